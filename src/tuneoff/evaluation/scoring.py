"""Scores saved predictions of any task, whoever wrote them. No torch here, nor below."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from tuneoff.data.metrics import check_metrics, score_classes, score_texts
from tuneoff.data.predictions import INTEGER, Saved, Value, embedded_references, read_saved, some
from tuneoff.errors import DataError, StudyError
from tuneoff.study.testing import CLASS_METRICS, DEFAULT_METRICS
from tuneoff.study.value import Value as Frozen


class Scored(Frozen):
    """The scores of one set of predictions.

    Attributes of text (`best_of_n`, `distinct_1`, `distinct_2`) are none where classes are scored.
    """

    decoding: str | None
    """The strategy that wrote them, where the file says."""
    num_items: int
    num_samples: int
    metrics: Mapping[str, float]
    """Points of 100; a user's function as it gives it (see `tuneoff.data.metrics.TextScores`)."""
    best_of_n: Mapping[str, float] | None = None
    distinct_1: float | None = None
    distinct_2: float | None = None


class Scoring(Frozen):
    """What was scored, and how it was understood."""

    predictions: str
    """What the file of predictions was taken for."""
    references: str
    matched_by: str
    """`id` or `order`."""
    kind: str
    """`text` or `classification`."""
    notes: tuple[str, ...] = ()
    scores: tuple[Scored, ...]
    """One for each decoding strategy in the file of predictions."""


def score_files(
    predictions: Path, references: Path | None = None, metrics: Sequence[str] = (), root: Path = Path()
) -> Scoring:
    """Score a file of predictions against a file of references.

    They are matched by id where both have ids, else by order. Classes are scored where either file holds whole
    numbers alone (of CSV and TSV: in a column `label` or `labels`), or where `accuracy` or `macro_f1` is asked for;
    else texts.

    Args:
        predictions: see `tuneoff.data.predictions`.
        references: likewise; none takes those that stand beside the predictions.
        metrics: names, as in a study file; none is accuracy and f1 for classes, f1 and exact_match (SQuAD's) for texts.
        root: folder where a metric of the user's own may lie.

    Raises:
        DataError: a file that cannot be read, or predictions and references that do not belong together.
        StudyError: a metric that is not known, or not of this kind.
    """
    check_metrics(metrics, root)
    wanted = read_saved(references, "references")[0] if references is not None else embedded_references(predictions)
    if wanted is None:
        raise DataError("holds no references; give their file as --references", file=str(predictions))
    found = read_saved(predictions, "predictions")
    is_classes = wanted.has_classes or any(own.has_classes for own in found)
    is_classes = is_classes or any(name in ("accuracy", "macro_f1") for name in metrics)
    names = tuple(metrics) or DEFAULT_METRICS["classification" if is_classes else "qa"]
    strange = [name for name in names if is_classes and name not in CLASS_METRICS]
    if strange:
        raise StudyError(f"metric {strange[0]!r} is of texts; these are classes. Allowed: {', '.join(CLASS_METRICS)}.")
    notes: list[str] = []
    scores = []
    for saved in found:
        right = _matched(saved, wanted)
        one = _score_classes(saved, right, names, notes) if is_classes else _score_texts(saved, right, names, root)
        scores.append(one)
    return Scoring(
        predictions=_described(found[0]),
        references=_described(wanted),
        matched_by="id" if found[0].ids is not None and wanted.ids is not None else "order",
        kind="classification" if is_classes else "text",
        notes=tuple(dict.fromkeys(notes)),
        scores=tuple(scores),
    )


def _described(saved: Saved) -> str:
    return f"{len(saved.values):,} in {saved.file} ({saved.format})"


def _matched(saved: Saved, wanted: Saved) -> Sequence[tuple[Value, ...]]:
    """Return the references in the predictions' order."""
    if saved.ids is None or wanted.ids is None:
        if len(saved.values) != len(wanted.values):
            raise DataError(
                f"holds {len(saved.values):,} predictions; {wanted.file} holds {len(wanted.values):,} references. "
                "Without ids in both they are matched by order, so there must be as many.",
                file=saved.file,
            )
        return wanted.values
    by_id = dict(zip(wanted.ids, wanted.values, strict=True))
    own = set(saved.ids)
    lacking = [name for name in wanted.ids if name not in own]
    strange = [name for name in saved.ids if name not in by_id]
    problems = [f"{len(lacking):,} of {len(by_id):,} references have no prediction: {some(lacking)}"] if lacking else []
    problems += [f"{len(strange):,} of {len(own):,} predictions have no reference: {some(strange)}"] if strange else []
    if problems:
        where = "" if saved.group is None else f"decoding {saved.group}: "
        raise DataError(f"{where}{'; '.join(problems)}. Each id must stand in both files.", file=saved.file)
    return [by_id[name] for name in saved.ids]


def _score_texts(saved: Saved, right: Sequence[tuple[Value, ...]], names: Sequence[str], root: Path) -> Scored:
    num_samples = len(saved.values[0])
    uneven = next((index for index, own in enumerate(saved.values) if len(own) != num_samples), None)
    if uneven is not None:
        raise DataError(
            f"item {uneven + 1} has {len(saved.values[uneven])} predictions and the first has {num_samples}; "
            "expected as many for each",
            file=saved.file,
        )
    texts = [[str(own) for own in samples] for samples in saved.values]
    scores = score_texts([[str(own) for own in references] for references in right], texts, names, root)
    return Scored(
        decoding=saved.group,
        num_items=len(texts),
        num_samples=num_samples,
        metrics=scores.metrics,
        best_of_n=scores.best_of_n,
        distinct_1=scores.distinct_1,
        distinct_2=scores.distinct_2,
    )


def _score_classes(saved: Saved, right: Sequence[tuple[Value, ...]], names: Sequence[str], notes: list[str]) -> Scored:
    own, wanted = (_one_each(values, file) for values, file in ((saved.values, saved.file), (right, "the references")))
    if all(INTEGER.fullmatch(str(value)) for value in (*own, *wanted)):
        labels, predictions = [int(value) for value in wanted], [int(value) for value in own]
        num_classes = max(2, *(number + 1 for number in (*labels, *predictions)))  # there are two classes at least
        positive = "1"
    else:
        classes = sorted({str(value) for value in (*own, *wanted)})
        strange = sorted({str(value) for value in own} - {str(value) for value in wanted})
        if len(strange) == len({str(value) for value in own}):
            raise DataError(f"none of its classes is among the references': {some(strange)}", file=saved.file)
        labels, predictions = ([classes.index(str(value)) for value in values] for values in (wanted, own))
        num_classes = len(classes)
        positive = classes[min(1, num_classes - 1)]
    if "f1" in names:
        is_binary = num_classes == 2
        notes.append(f"f1 is that of class {positive}" if is_binary else f"f1 is the mean over {num_classes} classes")
    scores = score_classes(labels, predictions, num_classes, names)
    return Scored(decoding=saved.group, num_items=len(own), num_samples=1, metrics=scores)


def _one_each(values: Sequence[tuple[Value, ...]], file: str) -> list[Value]:
    many = next((index for index, own in enumerate(values) if len(own) != 1), None)
    if many is not None:
        raise DataError(f"item {many + 1} has {len(values[many])} values; a class is one", file=file)
    return [own[0] for own in values]
