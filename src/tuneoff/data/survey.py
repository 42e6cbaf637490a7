"""What some data hold, before a study is written for them: read, told apart, counted, and measured in tokens.

All is read with the readers that `run` reads with, so what cannot be trained on is refused here with the same error.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tuneoff.data import classification, tasks
from tuneoff.data.examples import Example, count_labels, num_contradictions, num_copies, text_in, to_examples
from tuneoff.data.formats import TABLES, Row
from tuneoff.data.guessing import Layout, guess_layout
from tuneoff.data.locating import Located, locate, source_of
from tuneoff.data.profiles import looks_headless
from tuneoff.data.sources import DEMO, Source
from tuneoff.data.splits import cut, cut_document, keep_apart
from tuneoff.errors import DataError
from tuneoff.study.spec import ColumnsSpec, TaskSpec
from tuneoff.study.testing import TaskKind
from tuneoff.study.value import Value

FORMATS = {
    ".jsonl": "JSON lines",
    ".ndjson": "JSON lines",
    ".json": "JSON",
    ".csv": "CSV",
    ".tsv": "TSV",
    ".parquet": "Parquet",
    ".txt": "plain text",
    ".md": "plain text",
}


class SplitCount(Value):
    """What one official split holds."""

    source: str
    """File, or hub id and split."""
    num_rows: int
    num_examples: int
    num_units: int
    """Documents, conversation trees, articles, distinct prompts or texts: what a split is cut by."""
    num_chars: int
    num_copies: int
    """Examples that are word for word like an earlier one."""
    num_shared: int = 0
    """Examples of train whose unit is in validation or test too; they are left out of train."""
    num_contradictions: int = 0
    """Texts with more than one class."""
    labels: Mapping[str, int] = {}
    """Texts of each class."""
    notes: tuple[str, ...] = ()
    """What its reader said."""


class Survey(Value):
    """What the data are and hold."""

    data: str
    format: str
    kind: TaskKind
    columns: Mapping[str, str]
    """For `task.columns`; empty where the names are recognised."""
    present: tuple[str, ...]
    """All columns."""
    reasons: tuple[str, ...]
    """Why it is read so."""
    splits: Mapping[str, SplitCount]
    """train, and what else has a source of its own."""
    split_sources: Mapping[str, str]
    """For `task.splits`: validation and test, where they have a source of their own."""
    classes: tuple[str, ...] = ()
    """Names in the order of their numbers."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Surveyed:
    """A survey, and the examples that it was made from.

    Attributes:
        survey: what can be shown.
        examples: of train and of each split that has a source of its own.
    """

    survey: Survey
    examples: Mapping[str, Sequence[Example]]


def survey_data(
    data: str, root: Path, kind: TaskKind | None = None, named: Mapping[str, str] | None = None
) -> Surveyed:
    """Look at data.

    Args:
        data: file, folder, hub id, or `demo`.
        root: folder that a relative path starts from.
        kind: of the task, where the user says it.
        named: columns by part, where the user says them.

    Raises:
        DataError: the data cannot be used, or do not tell what they are for.
    """
    located = locate(data, root, kind)
    rows, source = _read(located.data, root, kind, named or {})
    headless = _headless_note(rows, source)
    layout = Layout(kind or "instruction") if data == DEMO else guess_layout(rows, kind, named)
    columns = ColumnsSpec.model_validate(dict(layout.columns))
    _check_positions(rows, columns, headless)
    found = _Splits(located, root, layout, columns)
    found.add("train", rows, source.label)
    found.add_others()
    labels = found.labelled()
    classes: tuple[str, ...] = ()
    if labels:
        classes, _ = classification.number_classes(
            labels, None, source.class_names(classification.find_columns(rows, columns)[1])
        )
    survey = Survey(
        data=located.data,
        format=_format(source),
        kind=layout.kind,
        columns=layout.columns,
        present=tuple(tasks.columns_of(rows)),
        reasons=layout.reasons,
        splits=found.counts(),
        split_sources=found.sources,
        classes=classes,
        notes=(*located.notes, *headless, *found.notes, *filter(None, [source.note])),
    )
    return Surveyed(survey, found.examples)


def check_splits(task: TaskSpec, examples: Mapping[str, Sequence[Any]]) -> None:
    """Cut the splits as a run cuts them, and throw them away: what cannot be cut is said before a study is written.

    Args:
        task: the study's.
        examples: of train and of each split that has a source of its own.

    Raises:
        DataError: too few units to go round, a split whose examples are all in another, or a class that train lacks.
    """
    shares = {name: share for name in ("validation", "test") if isinstance(share := getattr(task.splits, name), float)}
    parts: dict[str, list[Any]] = {name: list(found) for name, found in examples.items()}
    shares = {name: share for name, share in shares.items() if name not in parts}
    if shares and task.kind == "text" and len(parts["train"]) == 1:
        parts |= cut_document(parts["train"][0], shares)
    elif shares:
        parts |= cut(parts["train"], shares)
    apart, _ = keep_apart(parts)
    if task.kind == "classification":
        classes, number = classification.number_classes(parts, None)
        classification.check_classes(apart, classes, number)


def _read(data: str, root: Path, kind: TaskKind | None, named: Mapping[str, str]) -> tuple[list[Row], Source]:
    """Read the data itself; a table without a header has its columns called by number."""
    is_folder = data != DEMO and (root / os.path.expanduser(data)).is_dir()
    source = source_of(data, root, kind or ("text" if is_folder else "instruction"), dict(named))
    rows = source.read()
    present = tasks.columns_of(rows)
    if _is_table(source) and not source.positions and looks_headless(rows, present):
        source = replace(source, positions=frozenset(str(place) for place in range(len(present))))
        rows = source.read()
    return rows, source


def _is_table(source: Source) -> bool:
    return bool(source.files) and source.files[0][0].suffix.lower() in TABLES


def _headless_note(rows: Sequence[Row], source: Source) -> tuple[str, ...]:
    if not source.positions or not all(name.isdecimal() for name in rows[0].values):
        return ()
    return ("The file has no header line (its first line holds values), so its columns are called by number, from 0.",)


def _check_positions(rows: Sequence[Row], columns: ColumnsSpec, headless: tuple[str, ...]) -> None:
    """Refuse a table whose first line of values would be taken for a header that holds the number of a column."""
    first = {str(value) for value in rows[0].values.values()}
    if headless and columns.positions and columns.positions <= first:
        raise DataError(
            f"has no header line, and its first line holds {', '.join(sorted(columns.positions))}, the number of the"
            " column that is meant, so that it would be taken for one; put a line of column names before it",
            file=rows[0].file,
            line=1,
        )


def _format(source: Source) -> str:
    if source.kind != "files":
        return {"hub": "data set of the hub", "demo": "demo data"}[source.kind]
    name = FORMATS[source.files[0][0].suffix.lower()]
    return f"{len(source.files)} files of {name}" if len(source.files) > 1 else name


@dataclass
class _Splits:
    """Gathers what each split holds."""

    located: Located
    root: Path
    layout: Layout
    columns: ColumnsSpec
    examples: dict[str, list[Example]] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _rows: dict[str, tuple[str, int, tuple[str, ...]]] = field(default_factory=dict)

    def add(self, name: str, rows: Sequence[Row], label: str) -> None:
        found = to_examples(self.layout.kind, rows, self.columns)
        self.examples[name] = found.examples
        self._rows[name] = (label, len(rows), found.notes)

    def add_others(self) -> None:
        """Add the official splits that can be scored: a dev set alone is the test, with a test set it is validation."""
        usable: dict[str, tuple[str, list[Row], str]] = {}
        for word, name in self.located.others.items():
            try:
                source = source_of(self.located.data, self.root, self.layout.kind, dict(self.layout.columns), name)
                rows = source.read()
                to_examples(self.layout.kind, rows, self.columns)
            except DataError as error:
                self.notes.append(f"{name} is not used: {error.message.splitlines()[0].partition(';')[0]}.")
            else:
                usable.setdefault("test" if word == "test" else "dev", (name, rows, source.label))
        roles = {"dev": "validation", "test": "test"} if len(usable) == 2 else dict.fromkeys(usable, "test")
        for word, role in roles.items():
            name, rows, label = usable[word]
            self.add(role, rows, label)
            self.sources[role] = name

    def labelled(self) -> dict[str, list[classification.LabelledText]]:
        """Return the labelled texts by split; none of another kind."""
        found: dict[str, Any] = dict(self.examples) if self.layout.kind == "classification" else {}
        return found

    def counts(self) -> dict[str, SplitCount]:
        """Return what is shown of each split."""
        held = {example.item for name, examples in self.examples.items() if name != "train" for example in examples}
        counts = {}
        for name, examples in self.examples.items():
            label, num_rows, notes = self._rows[name]
            labelled = self.labelled().get(name, [])
            labels = sorted(count_labels(labelled).items(), key=lambda pair: -pair[1])
            counts[name] = SplitCount(
                source=label,
                num_rows=num_rows,
                num_examples=len(examples),
                num_units=len({example.item for example in examples}),
                num_chars=sum(len(text_in(example)) for example in examples),
                num_copies=num_copies(examples),
                num_shared=sum(example.item in held for example in examples) if name == "train" else 0,
                num_contradictions=num_contradictions(labelled),
                labels={str(label): number for label, number in labels},
                notes=notes,
            )
        return counts
