"""Rows of local files, each with its place: JSON lines, JSON (SQuAD's too), CSV, TSV, Parquet, and plain text.

Plain text is one document a file. Text is UTF-8, with or without a byte order mark. TSV has no quoting (GLUE's files
hold bare quotation marks); CSV has that of RFC 4180, with commas, or semicolons throughout.
"""

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneoff.data import squad
from tuneoff.data.problems import Problems, shown
from tuneoff.errors import DataError, did_you_mean

TEXT_SUFFIXES = (".txt", ".md")
"""Files that are one document each."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
PARQUET_ROWS = 64
"""Rows unpacked at a time: few, as a small file can hold rows of any size."""
MAX_UNPACKED_BYTES, MAX_UNPACKED = 2**28, 100
"""Of a Parquet file, which may unpack to this much whatever its size, and to this many times its size."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the data and where it stands."""

    values: dict[str, Any]
    file: str
    line: int
    """Line where the row starts, from 1; the row's number where the format has no lines (Parquet, JSON, the hub)."""
    place: str = ""
    """What messages say instead of the line, where rows are nested: article, paragraph and question of SQuAD."""


def read_rows(path: Path, file: str, limit: int | None = None, positions: frozenset[str] = frozenset()) -> list[Row]:
    """Read the rows of one local file.

    Args:
        path: the file; its suffix says the format.
        file: how errors name it.
        limit: rows read at most.
        positions: columns that the study names by number; a CSV or TSV file whose first row does not hold these numbers
            has no header, and its columns are called 0, 1, ...

    Raises:
        DataError: an unknown suffix, a file that cannot be read or holds no rows, or rows unlike what the format asks.
    """
    suffix = path.suffix.lower()
    reader = _READERS.get(suffix)
    if reader is None:
        allowed = ", ".join(_READERS)
        hint = did_you_mean(suffix, _READERS)
        raise DataError(f"files of kind {path.suffix or 'none'!r} are not read; allowed: {allowed}.{hint}", file=file)
    check_is_file(path, file)
    problems = Problems()
    rows: list[Row] = []
    try:
        if suffix in TABLES:
            read = TABLES[suffix](path, file, problems, positions)
        elif suffix == ".json":
            read = _read_json(path, file, problems, limit)
        else:
            read = reader(path, file, problems)
        for row in read:
            rows.append(row)
            if limit is not None and len(rows) + len(problems) >= limit:
                break
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", file=file) from None
    problems.check()
    if not rows:
        raise DataError("is empty: expected at least one row", file=file)
    return rows


def check_is_file(path: Path, file: str) -> None:
    """Refuse a named pipe or a device, which may never come to an end; what a shell hands over (`<(...)`) may be read.

    Raises:
        DataError: it is one.
    """
    is_handed_over = path.parent.name == "fd"
    if os.path.exists(path) and not (path.is_file() or path.is_dir() or is_handed_over):
        raise DataError(
            "is neither a file nor a folder (a pipe or a device?); write what it gives to a file", file=file
        )


def decode(content: bytes, file: str) -> str:
    """Return UTF-8 bytes as text, without a byte order mark, or say in which line they are not UTF-8."""
    content = content.removeprefix(BYTE_ORDER_MARK)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line, column = _place(content, error.start)
        raise DataError(_not_utf8(content, error), file=file, line=line, column=column) from None
    if (zero := content.find(b"\0")) >= 0:
        line, column = _place(content, zero)
        raise DataError(
            "expected text, found a zero byte: the file is no text, or text in UTF-16; save it as UTF-8",
            file=file,
            line=line,
            column=column,
        )
    return text


def _place(content: bytes, position: int) -> tuple[int, int]:
    return content.count(b"\n", 0, position) + 1, position - content.rfind(b"\n", 0, position)


def _not_utf8(content: bytes, error: UnicodeDecodeError) -> str:
    return f"expected UTF-8 text, found the byte 0x{content[error.start]:02x}; save the file as UTF-8"


def _read_json_lines(path: Path, file: str, problems: Problems) -> Iterator[Row]:
    with path.open("rb") as lines:
        for line, content in enumerate(lines, start=1):
            content = content.removeprefix(BYTE_ORDER_MARK) if line == 1 else content
            if not content.strip():
                continue
            try:
                value = json.loads(content.decode("utf-8").rstrip("\r\n"))
            except UnicodeDecodeError as error:
                problems.add(_not_utf8(content, error), file=file, line=line, column=error.start + 1)
            except json.JSONDecodeError as error:
                found = shown(content.decode("utf-8").strip())
                message = f"expected a JSON object on one line ({error.msg}), found {found}{_torn(content)}"
                problems.add(message, file=file, line=line, column=error.pos + 1)
            except (RecursionError, ValueError) as error:  # ValueError: an integer of thousands of digits
                problems.add(f"expected a JSON object on one line, found {_why(error)}", file=file, line=line)
            else:
                yield from _object_row(value, file, line, problems)


def _torn(last: bytes) -> str:
    """Say where a line without an end cannot be read: the file was cut off there."""
    return (
        "" if last.endswith(b"\n") else "; the file ends within this line, so it may have been cut off: copy it again"
    )


def _why(error: Exception) -> str:
    return "values nested too deeply" if isinstance(error, RecursionError) else f"a value that cannot be read ({error})"


def _object_row(value: Any, file: str, line: int, problems: Problems) -> Iterator[Row]:
    if isinstance(value, dict):
        yield Row(value, file, line)
    else:
        problems.add(f"expected a JSON object such as {{...}}, found {shown(value)}", file=file, line=line)


def _read_json(path: Path, file: str, problems: Problems, limit: int | None = None) -> Iterator[Row]:
    text = decode(path.read_bytes(), file)
    if not text.strip():
        return
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        hint = " For one JSON object a line, name the file .jsonl." if error.msg == "Extra data" else ""
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
            hint = " The file ends within a value, so it may have been cut off: copy it again."
        raise DataError(
            f"expected one JSON value: {error.msg}.{hint}", file=file, line=error.lineno, column=error.colno
        ) from None
    except (RecursionError, ValueError) as error:
        raise DataError(f"expected a JSON array of objects, found {_why(error)}", file=file) from None
    rows = value.get("data") if isinstance(value, dict) else value
    if not isinstance(rows, list):
        keys = f" with the keys {', '.join(map(str, list(value)[:8]))}" if isinstance(value, dict) else ""
        raise DataError(
            f'expected a JSON array of objects, or {{"data": [...]}}; found {type(value).__name__}{keys}', file=file
        )
    if squad.holds_articles(rows):
        asked = enumerate(squad.questions(rows, file, problems), start=1)
        found = [Row(values, file, number, place) for number, (values, place) in asked]
        yield from found if limit is None else squad.spread(found, limit, lambda row: str(row.values.get("title")))
        return
    for number, row in enumerate(rows, start=1):
        yield from _object_row(row, file, number, problems)


def _read_csv(path: Path, file: str, problems: Problems, positions: frozenset[str] = frozenset()) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # the default refuses a field above 128 kB: one long document
    lines = _text_lines(path, file)
    mark = ";" if _has_semicolons(lines) else ","
    return _read_table(csv.reader(lines, delimiter=mark, strict=True), file, problems, positions)


def _has_semicolons(lines: io.StringIO) -> bool:
    """Whether semicolons separate the columns, as spreadsheets write where the comma is a decimal point.

    The first line then has no comma, and every row is of as many values.
    """
    first = lines.readline()
    lines.seek(0)
    if ";" not in first or "," in first:
        return False
    try:
        counts = {len(cells) for cells in csv.reader(lines, delimiter=";", strict=True) if cells}
    except csv.Error:
        counts = set()
    lines.seek(0)
    return len(counts) == 1 and counts != {1}


def _read_tsv(path: Path, file: str, problems: Problems, positions: frozenset[str] = frozenset()) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(_text_lines(path, file), delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)
    return _read_table(reader, file, problems, positions)


def _text_lines(path: Path, file: str) -> io.StringIO:
    return io.StringIO(decode(path.read_bytes(), file), newline="")


def _read_table(reader: Any, file: str, problems: Problems, positions: frozenset[str]) -> Iterator[Row]:
    """Yield the rows below the header, if there is one. `reader` is a `csv.reader`, whose type has no name."""
    start = 1
    header: list[str] | None = None
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            problems.add(f"expected a row of delimited values, found {error}", file=file, line=start)
            return  # after a broken quotation there is no telling where the next row starts
        if cells is None:
            return
        if not cells:
            pass  # a blank line
        elif header is None and positions <= set(cells):
            header = _checked_header(cells, file, start)
        elif header is None:
            header = [str(place) for place in range(len(cells))]
            yield Row(dict(zip(header, cells, strict=True)), file, start)
        elif len(cells) != len(header):
            expected = f"expected {len(header)} columns ({', '.join(header)})"
            problems.add(f"{expected}, found {len(cells)}", file=file, line=start)
        else:
            yield Row(dict(zip(header, cells, strict=True)), file, start)
        start = reader.line_num + 1


def _checked_header(cells: list[str], file: str, line: int) -> list[str]:
    double = sorted({name for name in cells if cells.count(name) > 1})
    if double:
        message = f"expected a header of distinct column names, found {', '.join(map(repr, double))} more than once"
        raise DataError(message, file=file, line=line)
    return cells


def _read_parquet(path: Path, file: str, problems: Problems) -> Iterator[Row]:
    from pyarrow import ArrowException, parquet

    del problems  # a Parquet file is whole or not at all
    number = num_bytes = 0
    most = max(MAX_UNPACKED_BYTES, MAX_UNPACKED * path.stat().st_size)
    try:
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=PARQUET_ROWS):
                num_bytes += batch.nbytes
                if num_bytes > most:
                    raise DataError(
                        f"its rows unpack to more than {MAX_UNPACKED} times the file's size, as no data does; write "
                        "them as JSON lines if they are meant",
                        file=file,
                        line=number + 1,
                    )
                for values in batch.to_pylist():
                    number += 1
                    yield Row(values, file, number)
    except ArrowException as error:
        first_line = str(error).splitlines()[0]
        raise DataError(f"expected a Parquet file, found one that cannot be read: {first_line}", file=file) from None


def _read_document(path: Path, file: str, problems: Problems) -> Iterator[Row]:
    del problems
    text = decode(path.read_bytes(), file)
    if text.strip():
        yield Row({"text": text}, file, 1)


_READERS: dict[str, Callable[[Path, str, Problems], Iterator[Row]]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
    **dict.fromkeys(TEXT_SUFFIXES, _read_document),
}

TABLES: dict[str, Callable[[Path, str, Problems, frozenset[str]], Iterator[Row]]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
}
"""Readers of files that may lack a header."""

TABLE_SUFFIXES = tuple(suffix for suffix in _READERS if suffix not in TEXT_SUFFIXES)
"""Files that hold rows."""
