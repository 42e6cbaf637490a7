"""What each metric means, in a sentence, for readers who did not write the study."""

_MEANINGS = {
    "accuracy": "Share of examples whose class is right, in points of 100.",
    "macro_f1": "Mean over classes of each one's F1, all counting the same, in points of 100.",
    "exact_match": "Share of prompts whose text equals a reference once case, punctuation, articles and spaces are "
    "normalised as SQuAD does; the best over references, in points of 100.",
    "rouge1": "F1 of the words that text and reference share, in points of 100.",
    "rouge2": "F1 of the pairs of words that text and reference share, in points of 100.",
    "rougeL": "F1 by the longest common subsequence of words, in points of 100.",
    "bleu": "Corpus BLEU by sacrebleu, in points of 100.",
}
_TEXT_F1 = (
    "F1 of the words that text and reference share, normalised as SQuAD does; the best over references, mean over "
    "prompts, in points of 100."
)
_CLASS_F1 = (
    "Harmonic mean of precision and recall of class 1 where there are two classes, else the mean over classes, in "
    "points of 100."
)


def meaning(name: str, *, is_classification: bool) -> str:
    """Return what a metric means.

    Args:
        name: as a study file has it.
        is_classification: whether it is of classes; F1 is of words otherwise.
    """
    if name == "f1":
        return _CLASS_F1 if is_classification else _TEXT_F1
    if name.startswith("regex:"):
        return (
            f"Share of texts in which the regular expression {name.removeprefix('regex:')} is found, in points of 100."
        )
    return _MEANINGS.get(name, f"What the study's own function {name} gives, as it gives it.")
