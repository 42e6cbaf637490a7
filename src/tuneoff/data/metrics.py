"""What predictions are worth: scores of generated text, of several samples of it, and of predicted classes.

No torch here, nor below.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tuneoff.data.text_metrics import BLEU, POINTS, Scorer, corpus_bleu, find_scorer
from tuneoff.errors import StudyError
from tuneoff.study.testing import CLASS_METRICS


@dataclass(frozen=True)
class TextScores:
    """How good the samples of a set of items are.

    Attributes:
        metrics: mean over samples of the mean over items, in points of 100 (a user's function: as it gives it). `bleu`
            is the corpus BLEU of all items' first samples, all their second ones and so on, mean over those corpora.
        best_of_n: mean over items of the best sample; of `bleu` the corpus BLEU of each item's best sample by sentence
            BLEU. Higher counts as better, of a user's function too. Equals `metrics` where there is one sample.
        per_text: the score of each sample of each item (of `bleu` the sentence's), in the same unit.
        distinct_1: distinct words over all words of an item's samples, mean over items (see `distinct`).
        distinct_2: the same of pairs of words.
    """

    metrics: Mapping[str, float]
    best_of_n: Mapping[str, float]
    per_text: Mapping[str, tuple[tuple[float, ...], ...]]
    distinct_1: float
    distinct_2: float


def check_metrics(names: Iterable[str], root: Path) -> None:
    """Refuse metrics that cannot be worked out, before anything is trained.

    Args:
        names: as the study gives them.
        root: the study's folder, where modules of the user's own may lie.

    Raises:
        StudyError: an unknown name, a bad pattern, or a module or function that is not there.
    """
    for name in names:
        if name not in CLASS_METRICS:
            find_scorer(name, root)


def score_texts(
    references: Sequence[Sequence[str]], texts: Sequence[Sequence[str]], names: Sequence[str], root: Path
) -> TextScores:
    """Score the samples of every item against the item's references.

    Means are summed in the items' order, so they equal the official SQuAD script's to the last bit.

    Args:
        references: of each item, one at least.
        texts: of each item, the same number of samples, one at least.
        names: of the metrics.
        root: the study's folder, where modules of the user's own may lie.

    Raises:
        StudyError: a metric that cannot be worked out, or a user's function that fails.
    """
    assert len(references) == len(texts) > 0, "references and samples for each item"
    metrics, best_of_n, per_text = {}, {}, {}
    for name in names:
        scorer = find_scorer(name, root)
        scores = [[scorer.score(text, own) for text in samples] for samples, own in zip(texts, references, strict=True)]
        per_text[name] = tuple(tuple(scorer.scale * score for score in own) for own in scores)
        if name == BLEU:
            metrics[name], best_of_n[name] = _bleu(references, texts, scores)
        else:
            metrics[name], best_of_n[name] = _means(scores, scorer)
    return TextScores(
        metrics,
        best_of_n,
        per_text,
        distinct_1=_mean([distinct(samples, 1) for samples in texts]),
        distinct_2=_mean([distinct(samples, 2) for samples in texts]),
    )


def _means(scores: Sequence[Sequence[float]], scorer: Scorer) -> tuple[float, float]:
    own = _sum(_mean(samples) for samples in scores)
    best = _sum(max(samples) for samples in scores)
    return scorer.scale * own / len(scores), scorer.scale * best / len(scores)


def _bleu(
    references: Sequence[Sequence[str]], texts: Sequence[Sequence[str]], scores: Sequence[Sequence[float]]
) -> tuple[float, float]:
    corpora = zip(*texts, strict=True)
    best = [samples[own.index(max(own))] for samples, own in zip(texts, scores, strict=True)]
    mean = _mean([corpus_bleu(corpus, references) for corpus in corpora])
    return POINTS * mean, POINTS * (mean if len(texts[0]) == 1 else corpus_bleu(best, references))


def distinct(samples: Sequence[str], n: int) -> float:
    """Return distinct n-grams over all n-grams of an item's samples, in 0..1; 0 where there is none.

    Li et al., 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models", arXiv:1510.03055,
    section 5.2. Words are what stands between white space.

    Departures from the paper: over the samples of one item, not over the texts of the whole test set.
    """
    grams = [gram for text in samples for gram in _grams(text.split(), n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def _grams(words: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(n)), strict=False)


def score_classes(
    labels: Sequence[int], predictions: Sequence[int], num_classes: int, names: Sequence[str]
) -> dict[str, float]:
    """Return scores of predicted classes, in points of 100, by scikit-learn.

    `accuracy` is the share that is right; `f1` that of class 1 where there are two classes, else `macro_f1`: the mean
    over the classes that are among the labels or the predictions, each counting the same. A class that is never
    predicted rightly has an F1 of 0.

    Args:
        labels: right class of each sequence.
        predictions: predicted class of each.
        num_classes: classes that there are.
        names: of the metrics.

    Raises:
        StudyError: a metric that is none of classes.
    """
    from sklearn.metrics import accuracy_score, f1_score  # takes a second to import

    assert len(labels) == len(predictions) > 0, "a prediction for each label"
    own = [1] if num_classes == 2 else None
    scores = {}
    for name in names:
        if name == "accuracy":
            score = accuracy_score(labels, predictions)
        elif name in ("f1", "macro_f1"):
            classes = own if name == "f1" else None
            score = f1_score(labels, predictions, labels=classes, average="macro", zero_division=0)
        else:
            raise StudyError(f"metrics of classification are {', '.join(CLASS_METRICS)}; found {name!r}")
        scores[name] = POINTS * float(score)
    return scores


def _mean(values: Sequence[float]) -> float:
    return _sum(values) / len(values)


def _sum(values: Iterable[float]) -> float:
    """Add up in order, as the official script does; Python's own `sum` does from 3.12 on with a correction."""
    total = 0.0
    for value in values:
        total += value
    return total
