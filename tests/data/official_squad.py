"""SQuAD's official scripts, transcribed: `evaluate-v1.1.py`, and of `evaluate-v2.0.py` what is another rule.

It shares no code with the package, and is not to.
"""

import collections
import re
import string


def normalize_answer(s: str) -> str:
    def remove_articles(text: str) -> str:
        return re.sub(r"\b(a|an|the)\b", " ", text)

    def white_space_fix(text: str) -> str:
        return " ".join(text.split())

    def remove_punc(text: str) -> str:
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    def lower(text: str) -> str:
        return text.lower()

    return white_space_fix(remove_articles(remove_punc(lower(s))))


def f1_score_v1(prediction: str, ground_truth: str) -> float:
    prediction_tokens = normalize_answer(prediction).split()
    ground_truth_tokens = normalize_answer(ground_truth).split()
    common = collections.Counter(prediction_tokens) & collections.Counter(ground_truth_tokens)
    num_same = sum(common.values())
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(prediction_tokens)
    recall = 1.0 * num_same / len(ground_truth_tokens)
    return (2 * precision * recall) / (precision + recall)


def f1_score_v2(prediction: str, ground_truth: str) -> float:
    gold_toks = normalize_answer(ground_truth).split() if ground_truth else []
    pred_toks = normalize_answer(prediction).split() if prediction else []
    common = collections.Counter(gold_toks) & collections.Counter(pred_toks)
    num_same = sum(common.values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        # If either is no-answer, then F1 is 1 if they agree, 0 otherwise
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision = 1.0 * num_same / len(pred_toks)
    recall = 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


def exact_match_score(prediction: str, ground_truth: str) -> bool:
    return normalize_answer(prediction) == normalize_answer(ground_truth)


def evaluate(predictions: dict[str, str], references: dict[str, list[str]], version: int) -> dict[str, float]:
    """Return exact_match and f1 x 100, with the F1 of version 1 or 2."""
    f1_score = f1_score_v1 if version == 1 else f1_score_v2
    f1 = exact_match = 0.0
    for name, truths in references.items():
        exact_match += max(exact_match_score(predictions[name], truth) for truth in truths)
        f1 += max(f1_score(predictions[name], truth) for truth in truths)
    return {"exact_match": 100.0 * exact_match / len(references), "f1": 100.0 * f1 / len(references)}
