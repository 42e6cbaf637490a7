"""Reads saved predictions and references of any task, whoever wrote them, and says what it took a file for.

JSON: SQuAD's data set (references), `{id: text}`, `{id: [texts]}`, a list of texts, of lists of texts, of classes or of
objects. JSON lines, CSV, TSV, Parquet: one object (row) each, whose columns are known by name. Any other file: one text
a line.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tuneoff.data.formats import TABLE_SUFFIXES, check_is_file, decode, read_rows
from tuneoff.data.problems import Problems, shown
from tuneoff.errors import DataError

Role = Literal["predictions", "references"]
Value = str | int

ID_COLUMNS = ("id", "question_id", "qid", "idx", "index")
DECODING_COLUMN = "decoding"
COLUMNS: dict[Role, tuple[str, ...]] = {
    "predictions": (
        "prediction",
        "predictions",
        "prediction_text",
        "texts",
        "generated_text",
        "output",
        "text",
        "answer",
    ),
    "references": ("references", "reference", "answers", "answer", "labels", "label", "targets", "target", "response"),
}
"""Columns that are looked for, in this order."""
LABEL_COLUMNS = ("labels", "label")
INTEGER = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class Saved:
    """What a file holds.

    Attributes:
        file: its name.
        format: what it was taken for, as a phrase.
        ids: name of each item; none where the file gives none.
        values: of each item its predictions (several samples) or its references: texts or classes, one at least.
        group: of predictions the decoding strategy that wrote them; none where the file does not say.
    """

    file: str
    format: str
    ids: tuple[str, ...] | None
    values: tuple[tuple[Value, ...], ...]
    group: str | None = None

    @property
    def has_classes(self) -> bool:
        """Whether the values are numbers of classes; a number among texts, such as a year, is a text."""
        return all(isinstance(value, int) for own in self.values for value in own)


def read_saved(path: Path, role: Role) -> tuple[Saved, ...]:
    """Read a file of predictions (one `Saved` for each decoding strategy in it) or of references (one).

    Args:
        path: the file.
        role: which of the two it is to hold.

    Raises:
        DataError: not readable, nothing in it, values that are neither texts nor classes, or an id twice.
    """
    file = str(path)
    suffix = path.suffix.lower()
    if suffix == ".json":
        found: tuple[Saved, ...] = (_read_json(_load(path, file), file, role),)
    elif suffix in TABLE_SUFFIXES:
        rows = read_rows(path, file)
        found = _from_rows([row.values for row in rows], [row.line for row in rows], file, role, _ROWS[suffix])
    else:
        lines = decode(_content(path, file), file).split("\n")
        lines = lines[:-1] if not lines[-1] else lines
        found = (Saved(file, "one text a line", None, tuple((line.removesuffix("\r"),) for line in lines)),)
    for saved in found:
        _check(saved)
    return found


_ROWS = {".jsonl": "JSON lines", ".ndjson": "JSON lines", ".csv": "CSV", ".tsv": "TSV", ".parquet": "Parquet"}


def _check(saved: Saved) -> None:
    if not saved.values:
        raise DataError("is empty: expected at least one prediction or reference", file=saved.file)
    if saved.ids is not None and len(set(saved.ids)) < len(saved.ids):
        seen: set[str] = set()
        double = [own for own in saved.ids if own in seen or seen.add(own)]  # type: ignore[func-returns-value]
        raise DataError(f"expected each id once; found twice: {some(double)}", file=saved.file)


def some(names: Sequence[str]) -> str:
    """Return the first few names for a message."""
    listed = ", ".join(shown(name) for name in names[:3])
    return f"{listed}, ..." if len(names) > 3 else listed


def _content(path: Path, file: str) -> bytes:
    check_is_file(path, file)
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", file=file) from None


def _load(path: Path, file: str) -> Any:
    text = decode(_content(path, file), file)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            double = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"the key {shown(double)} stands twice in one JSON object", file=file)
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        hint = " For one JSON object a line, name the file .jsonl." if error.msg == "Extra data" else ""
        raise DataError(
            f"expected one JSON value: {error.msg}.{hint}", file=file, line=error.lineno, column=error.colno
        ) from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"expected one JSON value, found one that cannot be read ({error})", file=file) from None


def _read_json(value: Any, file: str, role: Role) -> Saved:
    if _is_squad(value):
        if role == "predictions":
            raise DataError("is a SQuAD data set, which holds references; give it as --references", file=file)
        return _squad(value, file)
    if isinstance(value, dict):
        values = _each(value.values(), file, role)
        many = any(isinstance(own, list) for own in value.values())
        kind = "classes" if any(isinstance(own, int) for own in value.values()) else "texts"
        return Saved(file, f"{{id: {'[' + kind + ']' if many else kind}}}", tuple(map(str, value)), values)
    if not isinstance(value, list):
        raise DataError(f"expected a JSON object or list, found {shown(value)}", file=file)
    if value and all(isinstance(own, dict) for own in value):
        groups = _from_rows(value, list(range(1, len(value) + 1)), file, role, "JSON list of objects")
        if len(groups) > 1:
            raise DataError("holds several decoding strategies; write it as JSON lines (.jsonl)", file=file)
        return groups[0]
    if any(isinstance(own, list) for own in value):
        kind = "list of lists of texts"
    else:
        kind = "list of classes" if any(isinstance(own, int) for own in value) else "list of texts"
    return Saved(file, kind, None, _each(value, file, role))


def _is_squad(value: Any) -> bool:
    data = value.get("data") if isinstance(value, dict) else None
    return isinstance(data, list) and bool(data) and all(isinstance(own, dict) and "paragraphs" in own for own in data)


def _squad(value: Mapping[str, Any], file: str) -> Saved:
    """SQuAD 1.1 and 2.0; a question without an answer has the empty one, as 2.0's evaluation script has it."""
    ids, values = [], []
    try:
        for article in value["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    ids.append(str(question["id"]))
                    values.append(tuple(str(answer["text"]) for answer in question["answers"]) or ("",))
    except (KeyError, TypeError) as error:
        raise DataError(
            f"expected SQuAD's layout (data, paragraphs, qas, answers); found no {error}", file=file
        ) from None
    return Saved(file, "SQuAD data set", tuple(ids), tuple(values))


def _each(values: Iterable[Any], file: str, role: Role) -> tuple[tuple[Value, ...], ...]:
    problems = Problems()
    found = tuple(
        _values(own, problems, file=file, line=number, role=role) for number, own in enumerate(values, start=1)
    )
    problems.check()
    return found


def _values(value: Any, problems: Problems, *, file: str, line: int, role: Role) -> tuple[Value, ...]:
    """Return one item's texts or classes; SQuAD's `{text: [...]}` is a list of texts."""
    if isinstance(value, dict) and isinstance(value.get("text"), list | tuple):
        value = list(value["text"]) or [""]
    listed = list(value) if isinstance(value, list | tuple) else [value]
    wanted = "a text, a class (a whole number) or a list of them"
    if not listed:
        problems.add(f"expected {wanted}, found an empty list", file=file, line=line)
    for own in listed:
        if not isinstance(own, str | int) or (isinstance(own, int) and abs(own) >= 2**63):
            problems.add(f"expected {wanted} as {role}, found {shown(own)}", file=file, line=line)
            return ()
    return tuple(own if isinstance(own, str) else int(own) for own in listed)


def _from_rows(
    rows: Sequence[Mapping[str, Any]], lines: Sequence[int], file: str, role: Role, what: str
) -> tuple[Saved, ...]:
    """Read rows with columns; what several decoding strategies wrote is told apart by the column `decoding`."""
    column = find_column(rows[0], COLUMNS[role])
    if column is None:
        allowed, found = ", ".join(COLUMNS[role]), ", ".join(map(str, list(rows[0])[:8]))
        raise DataError(f"expected a column of {role} ({allowed}), found {found}", file=file, line=lines[0])
    id_column = find_column(rows[0], ID_COLUMNS)
    is_grouped = DECODING_COLUMN in rows[0]
    problems = Problems()
    groups: dict[str | None, tuple[list[str], list[tuple[Value, ...]]]] = {}
    for row, line in zip(rows, lines, strict=True):
        lacking = [name for name in (column, id_column) if name is not None and name not in row]
        if lacking:
            problems.add(
                f"expected the columns of the first row, found none called {lacking[0]!r}", file=file, line=line
            )
            continue
        ids, values = groups.setdefault(str(row.get(DECODING_COLUMN)) if is_grouped else None, ([], []))
        ids.append(str(row[id_column]) if id_column is not None else "")
        values.append(_values(row[column], problems, file=file, line=line, role=role))
    problems.check()
    if column in LABEL_COLUMNS:
        groups = {name: (ids, _numbered(values)) for name, (ids, values) in groups.items()}
    how = f"{what}, column {column}" + (f", by {id_column}" if id_column is not None else "")
    # all references of a file of several strategies are the same ones, so the first group's will do
    saved = tuple(
        Saved(file, how, tuple(ids) if id_column is not None else None, tuple(values), group)
        for group, (ids, values) in groups.items()
    )
    return saved if role == "predictions" else saved[:1]


def _numbered(values: list[tuple[Value, ...]]) -> list[tuple[Value, ...]]:
    """Return labels as numbers where all of them are: CSV and TSV have no types."""
    if not all(INTEGER.fullmatch(str(own)) for each in values for own in each):
        return values
    return [tuple(int(own) for own in each) for each in values]


def find_column(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Return the first of the names that a row has."""
    return next((name for name in names if name in row), None)


def embedded_references(path: Path) -> Saved | None:
    """Return the references that a file of predictions holds beside them, or none."""
    suffix = path.suffix.lower()
    if suffix == ".json":
        rows = _load(path, str(path))
        if not isinstance(rows, list) or not rows or not isinstance(rows[0], dict):
            return None
        first = rows[0]
    elif suffix in TABLE_SUFFIXES:
        first = read_rows(path, str(path), limit=1)[0].values
    else:
        return None
    return read_saved(path, "references")[0] if find_column(first, COLUMNS["references"]) is not None else None
