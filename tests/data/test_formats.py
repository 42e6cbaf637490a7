"""Rows of every format with their places, and what malformed ones get."""

import json
from pathlib import Path

import pytest
from tests.data.helpers import write_jsonl

from tuneoff.data.formats import read_rows
from tuneoff.errors import DataError


def _read(path: Path, limit: int | None = None) -> list[tuple[int, dict[str, object]]]:
    return [(row.line, row.values) for row in read_rows(path, path.name, limit)]


def _error(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        read_rows(path, path.name)
    assert caught.value.file == path.name
    return caught.value


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson"])
def test_json_lines_keep_their_places(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(b'\xef\xbb\xbf{"a": "one\\u2028two"}\r\n\n{"a": "\xc3\xb6"}')
    assert _read(path) == [(1, {"a": "one\u2028two"}), (3, {"a": "ö"})]


def test_a_limit_stops_the_reading(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": 3}\nnot JSON\n')
    assert _read(path, 2) == [(1, {"a": 1}), (2, {"a": 2})]


@pytest.mark.parametrize("wrapped", [False, True])
def test_json_arrays(tmp_path: Path, wrapped: bool) -> None:
    rows = [{"a": "x"}, {"a": "y"}]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"version": 1, "data": rows} if wrapped else rows))
    assert _read(path) == [(1, {"a": "x"}), (2, {"a": "y"})]


def test_csv_quotes_and_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n"one\nline, two",x\n\ny,"say ""z"""\n', encoding="utf-8-sig")
    assert _read(path) == [(2, {"a": "one\nline, two", "b": "x"}), (5, {"a": "y", "b": 'say "z"'})]


def test_csv_of_a_spreadsheet_with_semicolons(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('Message;stars\n"so; he said, ""no""\nand left";1,5\nwell, yes;2\n', encoding="utf-8-sig")
    assert _read(path) == [
        (2, {"Message": 'so; he said, "no"\nand left', "stars": "1,5"}),
        (4, {"Message": "well, yes", "stars": "2"}),
    ]
    path.write_text("what; was said\nnothing\none; two; three\n")  # texts in one column
    assert _read(path) == [(2, {"what; was said": "nothing"}), (3, {"what; was said": "one; two; three"})]


def test_tsv_has_no_quoting(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text('sentence\tlabel\n"so, he said\t1\n')
    assert _read(path) == [(2, {"sentence": '"so, he said', "label": "1"})]


def test_parquet(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"a": ["x", None], "m": [[{"role": "user"}], []]}), path)
    assert _read(path) == [(1, {"a": "x", "m": [{"role": "user"}]}), (2, {"a": None, "m": []})]
    path.write_bytes(b"PAR1 but not really PAR1")
    assert "Parquet" in _error(path).message


@pytest.mark.parametrize("suffix", [".txt", ".md"])
def test_a_text_file_is_one_document(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes("\ufeffone\r\ntwö\n".encode())
    assert _read(path) == [(1, {"text": "one\r\ntwö\n"})]


def test_bad_lines_are_told_together(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": }\n[1]\n\xff\n' + b"oops\n" * 5)
    error = _error(path)
    assert (error.line, error.column) == (2, 7)
    assert "expected a JSON object on one line" in error.message
    assert "8 bad rows in all" in error.message
    assert "line 3: expected a JSON object such as {...}, found [1] (list)" in error.message
    assert "line 4, column 1: expected UTF-8 text, found the byte 0xff" in error.message
    assert "line 6" in error.message
    assert "line 7" not in error.message
    assert error.message.endswith("and 3 more")


def test_one_bad_line_is_told_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"a": "no end}\n')
    assert str(_error(path)).startswith("rows.jsonl, line 2, column 7: expected a JSON object on one line")
    assert "\n" not in str(_error(path))


@pytest.mark.parametrize("text", ["[" * 200_000, '{"a": ' * 200_000, "1" * 5000, '"' + "x" * 300_000])
def test_deep_and_long_lines_do_not_crash(tmp_path: Path, text: str) -> None:
    for suffix in (".jsonl", ".json"):
        path = tmp_path / f"rows{suffix}"
        path.write_text(text)
        assert len(str(_error(path))) < 400


def test_long_values_are_read(tmp_path: Path) -> None:
    long = "x" * 300_000
    write_jsonl(tmp_path / "rows.jsonl", [{"a": long}])
    (tmp_path / "rows.csv").write_text(f"a\n{long}\n")
    assert _read(tmp_path / "rows.jsonl") == [(1, {"a": long})]
    assert _read(tmp_path / "rows.csv") == [(2, {"a": long})]


@pytest.mark.parametrize(
    ("name", "content", "line", "message"),
    [
        ("a.csv", b"a,b\n1,2\n1\n1,2,3\n", 3, "expected 2 columns (a, b), found 1"),
        ("a.csv", b'a,b\n1,2\n"1,2\n', 3, "unexpected end of data"),
        ("a.csv", b"a,b,a\n1,2,3\n", 1, "'a' more than once"),
        ("a.csv", b"a\nx\n\xe9t\xe9\n", 3, "found the byte 0xe9"),
        ("a.json", b'{"rows": []}', None, '{"data": [...]}; found dict with the keys rows'),
        ("a.json", b"3", None, "found int"),
        ("a.json", b'{"a": 1}\n{"a": 2}\n', 2, "name the file .jsonl"),
        ("a.json", b'[{"a": 1}, 2]', 2, "found 2 (int)"),
        ("a.txt", b"one\ntw\xff\n", 2, "0xff"),
    ],
)
def test_malformed_files(tmp_path: Path, name: str, content: bytes, line: int | None, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    error = _error(path)
    assert error.line == line
    assert message in error.message


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.txt"])
@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_empty_files(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    if name.endswith((".csv", ".tsv")) and content:
        path.write_bytes(b"a\n")  # a header alone
    assert "is empty" in _error(path).message


def test_unknown_suffix(tmp_path: Path) -> None:
    path = tmp_path / "a.json1"
    path.write_text("{}")
    message = _error(path).message
    assert "'.json1' are not read" in message
    assert "Did you mean .json" in message


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in _error(tmp_path / "gone.jsonl").message
