"""Data that cannot be learnt from: every format, torn, of the wrong kind, or with rows that say nothing."""

import gzip
import io
import json
import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet
from tests.bad_input.case import Case, Place, lines

GOOD = [{"instruction": f"Say {index}", "response": f"{index} it is"} for index in range(20)]
PAIRS = "".join(f"Say {index},{index} it is\n" for index in range(20))
QA: dict[str, Any] = {"kind": "qa", "template": None}
CLASSES: dict[str, Any] = {"kind": "classification", "template": None}
TEXT: dict[str, Any] = {"kind": "text", "template": None}

Build = Callable[[Place], Sequence[str]]


def data(name: str, content: bytes | str, **task: Any) -> Build:
    return lambda place: place.data(name, content, **task)


def rows(*values: Any, **task: Any) -> Build:
    return lambda place: place.rows(*values, **task)


def squad(*questions: Any, context: Any = "The cat sat on the mat.") -> str:
    good = {"id": "1", "question": "Who sat?", "answers": [{"text": "The cat", "answer_start": 0}]}
    return json.dumps({"data": [{"title": "Cats", "paragraphs": [{"context": context, "qas": [good, *questions]}]}]})


def qa(*values: Any) -> str:
    good = [
        {
            "id": str(index),
            "title": f"t{index}",
            "context": "The cat sat.",
            "question": f"Who {index}?",
            "answers": "The cat",
        }
        for index in range(20)
    ]
    return lines([*good, *values])


def message(key: str, parent: str | None, role: str = "prompter", **more: Any) -> dict[str, Any]:
    return {"message_id": key, "parent_id": parent, "text": f"text of {key}", "role": role} | more


def trees(*more: Any) -> str:
    good = [
        one
        for index in range(10)
        for one in (message(f"p{index}", None), message(f"a{index}", f"p{index}", "assistant"))
    ]
    return lines([*good, *more])


def labelled(*values: Any) -> str:
    return lines([*({"text": f"text {index}", "label": index % 2} for index in range(20)), *values])


def table(values: dict[str, list[Any]]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(values), file)
    return file.getvalue()


def torn_parquet(place: Place) -> Sequence[str]:
    content = table({"instruction": ["a"] * 20, "response": ["b"] * 20})
    return place.data("data.parquet", content[: len(content) // 2])


def lying_parquet(place: Place) -> Sequence[str]:
    content = bytearray(table({"instruction": ["a"] * 20, "response": ["b"] * 20}))
    content[-8:-4] = (2**31 - 1).to_bytes(4, "little")  # the length of the footer
    return place.data("data.parquet", bytes(content))


def parquet_bomb(place: Place) -> Sequence[str]:
    file = io.BytesIO()
    texts = ["x" * 1_000_000] * 400
    parquet.write_table(
        pyarrow.table({"instruction": texts, "response": texts}), file, compression="zstd", write_statistics=False
    )
    return place.data("data.parquet", file.getvalue())


def pickled(place: Place) -> Sequence[str]:
    return place.data("data.pkl", pickle.dumps([1, 2]))


def objects(place: Place) -> Sequence[str]:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return place.data("data.npy", file.getvalue())


def link_out(place: Place) -> Sequence[str]:
    outside = place.file("outside/secret.txt", "not yours\n" * 50)
    (place.folder / "texts").mkdir()
    os.symlink(outside, place.folder / "texts" / "a.txt")
    return place.task(**TEXT | {"data": "texts"})


def link_to_itself(place: Place) -> Sequence[str]:
    (place.folder / "texts").mkdir()
    os.symlink(place.folder / "texts", place.folder / "texts" / "again")
    os.symlink("round.jsonl", place.folder / "round.jsonl")
    return place.task(data="round.jsonl")


def pipe(place: Place) -> Sequence[str]:
    os.mkfifo(place.folder / "data.jsonl")
    return place.task(data="data.jsonl")


def empty_folder(place: Place) -> Sequence[str]:
    (place.folder / "texts").mkdir()
    return place.task(**TEXT | {"data": "texts"})


def two_tables(place: Place) -> Sequence[str]:
    place.file("many/a.jsonl", lines(GOOD))
    place.file("many/b.jsonl", lines(GOOD))
    return place.task(data="many")


def text_folder(place: Place) -> Sequence[str]:
    place.file("texts/a.txt", "one")
    return place.task(data="texts")


DATA = (
    Case(
        "data that is not there", lambda place: place.task(data="rowz.jsonl"), r"no such file.*Did you mean rows\.jsonl"
    ),
    Case(
        "data of an unknown kind",
        data("data.xlsx", b"PK\3\4"),
        r"data\.xlsx: files of kind '\.xlsx' are not read; allowed: \.jsonl",
    ),
    Case("a pickle for data", pickled, r"data\.pkl: files of kind '\.pkl' are not read"),
    Case("a NumPy file of Python objects", objects, r"data\.npy: files of kind '\.npy' are not read"),
    Case(
        "gzipped rows",
        data("data.jsonl.gz", gzip.compress(lines(GOOD).encode())),
        r"data\.jsonl\.gz: files of kind '\.gz' are not read",
    ),
    Case(
        "gzipped rows under the name of plain ones",
        data("data.jsonl", gzip.compress(lines(GOOD).encode())),
        r"data\.jsonl, line 1",
    ),
    Case("a named pipe for data", pipe, r"data\.jsonl: .*neither a file nor a folder"),
    Case("a link to itself for data", link_to_itself, r"round\.jsonl: .*link that leads nowhere"),
    Case("a folder without data", empty_folder, r"texts: is a folder without data"),
    Case(
        "a folder of two data files",
        two_tables,
        r"many: is a folder with 2 data files \(a\.jsonl, b\.jsonl\); name one",
    ),
    Case("a folder of text for instructions", text_folder, r"texts: is a folder of text; kind: instruction needs rows"),
    Case("a folder of text with a link out of it", link_out, r"texts.*a\.txt.*outside"),
    Case("an empty JSONL file", data("data.jsonl", ""), r"data\.jsonl: is empty"),
    Case(
        "a line that is cut",
        data("data.jsonl", lines(GOOD) + '{"instruction": "a", "resp'),
        r"data\.jsonl, line 21, column \d+: .*JSON",
    ),
    Case("lines that are no objects", rows([1, 2], 3), r"data\.jsonl, line 21: expected a JSON object.*2 bad rows"),
    Case("a thousand bad lines", rows(*range(1000)), r"line 21: .*1000 bad rows in all.*and 995 more"),
    Case(
        "a line that is not UTF-8",
        data("data.jsonl", lines(GOOD).encode() + b'{"instruction": "\xe9t\xe9"}\n'),
        r"data\.jsonl, line 21, column \d+: expected UTF-8",
    ),
    Case(
        "JSONL in UTF-16",
        data("data.jsonl", lines(GOOD).encode("utf-16")),
        r"data\.jsonl, line 1, column 1: expected UTF-8",
    ),
    Case("NUL bytes between rows", data("data.jsonl", lines(GOOD).encode() + b"\0\0\0\n"), r"data\.jsonl, line 21"),
    Case(
        "100,000 brackets, one in the other",
        data("data.jsonl", lines(GOOD) + "[" * 100_000 + "\n"),
        r"data\.jsonl, line 21: .*nested too deeply",
    ),
    Case(
        "a number of 5,000 digits in a row",
        data("data.jsonl", lines(GOOD) + f'{{"instruction": {"9" * 5000}}}\n'),
        r"data\.jsonl, line 21",
    ),
    Case(
        "a line of 10 MB that is no JSON", data("data.jsonl", lines(GOOD) + "x" * 10_000_000), r"data\.jsonl, line 21"
    ),
    Case(
        "NaN for a text",
        data("data.jsonl", lines(GOOD) + '{"instruction": NaN, "response": "a"}\n'),
        r"line 21, column instruction: expected",
    ),
    Case("null for a text", rows({"instruction": "a", "response": None}), r"line 21, column response: .*null"),
    Case("a number for a text", rows({"instruction": "a", "response": 5}), r"line 21, column response: .*5"),
    Case("an empty response", rows({"instruction": "a", "response": ""}), r"line 21, column response"),
    Case("a row without the column", rows({"instruction": "a"}), r"line 21, column response"),
    Case(
        "half a surrogate pair",
        data("data.jsonl", lines(GOOD) + '{"instruction": "\\ud800", "response": "a"}\n'),
        r"line 21, column instruction",
    ),
    Case(
        "escape codes in a bad row",
        rows({"instruction": "\x1b[2J\x1b]0;owned\x07", "response": 5}),
        r"line 21, column response",
    ),
    Case(
        "columns that are not known",
        data("data.jsonl", lines([{"wish\x1b[31m": "a", "reply": str(i)} for i in range(20)])),
        r"data\.jsonl.*wish.*reply",
    ),
    Case(
        "a named column that is not there",
        data("data.jsonl", lines(GOOD), columns={"response": "rsponse"}),
        r"rsponse.*Did you mean response",
    ),
    Case("one row alone", rows(number=1), r"data\.jsonl|split"),
    Case("a tenth of nothing", rows(splits={"test": 0.999}), r"split|train"),
    Case("a split that is not there", rows(splits={"test": "tset.jsonl"}), r"task\.splits\.test: no such file"),
    Case(
        "truncation: error, and a row that is too long",
        rows({"instruction": "a" * 99, "response": "b"}, truncation="error"),
        r"line 21.*truncation",
    ),
    Case(
        "JSON that is cut",
        data("data.json", json.dumps(GOOD)[:-40]),
        r"data\.json, line 1, column \d+: expected one JSON value",
    ),
    Case(
        "JSON lines under the name of JSON",
        data("data.json", lines(GOOD)),
        r"data\.json, line 2, column 1: .*name the file \.jsonl",
    ),
    Case(
        "an object for a list of rows", data("data.json", '{"rows": []}'), r"data\.json: expected a JSON array .*rows"
    ),
    Case("an empty list of rows", data("data.json", "[]"), r"data\.json: is empty"),
    Case("deep JSON", data("data.json", "[" * 100_000 + "]" * 100_000), r"data\.json: .*nested too deeply"),
    Case(
        "a CSV row with a column too many",
        data("data.csv", "instruction,response\n" + PAIRS + "a,b,c\n"),
        r"data\.csv, line 22: expected 2 columns .*found 3",
    ),
    Case(
        "a CSV quotation that is not closed",
        data("data.csv", "instruction,response\n" + PAIRS + '"a,b\n'),
        r"data\.csv, line 22: ",
    ),
    Case(
        "a CSV header with a name twice",
        data("data.csv", "response,response\n" + PAIRS),
        r"data\.csv, line 1: .*'response' more than once",
    ),
    Case("a CSV file without rows", data("data.csv", "instruction,response\n"), r"data\.csv: is empty"),
    Case(
        "a CSV file in Latin-1",
        data("data.csv", ("instruction,response\n" + PAIRS + "été,a\n").encode("latin-1")),
        r"data\.csv, line 22, column 1: expected UTF-8",
    ),
    Case(
        "a TSV row that lacks a column",
        data("data.tsv", "instruction\tresponse\n" + PAIRS.replace(",", "\t") + "a\n"),
        r"data\.tsv, line 22: expected 2 columns",
    ),
    Case("a Parquet file that is cut", torn_parquet, r"data\.parquet: expected a Parquet file"),
    Case("a Parquet file that lies about its length", lying_parquet, r"data\.parquet: expected a Parquet file"),
    Case(
        "CSV under the name of Parquet", data("data.parquet", "a,b\n" * 20), r"data\.parquet: expected a Parquet file"
    ),
    Case("a Parquet file that unpacks to ten thousand times its size", parquet_bomb, r"data\.parquet"),
    Case(
        "nulls in Parquet",
        data("data.parquet", table({"instruction": ["a"] * 20 + [None], "response": [f"b{i}" for i in range(21)]})),
        r"data\.parquet, line 21, column instruction",
    ),
    Case(
        "numbers in Parquet",
        data("data.parquet", table({"instruction": ["a"] * 20, "response": list(range(20))})),
        r"data\.parquet, line 1, column response",
    ),
    Case("an empty text", data("data.txt", " \n", **TEXT), r"data\.txt: is empty"),
    Case(
        "a text that is not UTF-8",
        data("data.txt", b"one\ntwo \xff\n", **TEXT),
        r"data\.txt, line 2, column 5: expected UTF-8",
    ),
    Case(
        "a binary file for a text",
        data("data.txt", os.urandom(0) + bytes(range(256)) * 50, **TEXT),
        r"data\.txt, line 2, column \d+: expected UTF-8",
    ),
    Case("a text of one word", data("data.txt", "word", **TEXT), r"data\.txt|split"),
    Case(
        "a SQuAD article without paragraphs",
        data("data.json", json.dumps({"data": [{"title": "a", "paragraphs": 5}]}), **QA),
        r"article 1 \('a'\): expected a list, found 5|paragraphs",
    ),
    Case(
        "a SQuAD question that is a text",
        data("data.json", squad("Who?"), **QA),
        r"article 1 \('Cats'\), paragraph 1, question 2: expected an object",
    ),
    Case(
        "a SQuAD question without an answer's text",
        data("data.json", squad({"id": "2", "question": "a", "answers": [{"start": 1}]}), **QA),
        r"column answers\[1\]: article 1 .*question 2: expected text, found null",
    ),
    Case(
        "a context that is a number",
        data("data.json", squad(context=7), **QA),
        r"column context: article 1 .*question 1: expected text, found 7",
    ),
    Case(
        "questions that have no answers at all",
        data("data.jsonl", lines([{"context": "c", "question": "q", "answers": []}] * 20), **QA),
        r"none of the 20 questions has an answer",
    ),
    Case(
        "a message that answers itself",
        data("data.jsonl", trees(message("x", "x"))),
        r"line 21, column parent_id: .*circle",
    ),
    Case(
        "two messages that answer each other",
        data("data.jsonl", trees(message("x", "y"), message("y", "x"))),
        r"line 21, column parent_id: .*circle",
    ),
    Case("a message id twice", data("data.jsonl", trees(message("p1", None))), r"line 21, column message_id: .*line 3"),
    Case(
        "a tree that begins with an answer",
        data("data.jsonl", trees(message("x", None, "assistant"))),
        r"line 21, column role: .*prompter",
    ),
    Case(
        "an unknown role", data("data.jsonl", trees(message("x", "p1", "wizard"))), r"line 21, column role: .*'wizard'"
    ),
    Case(
        "trees without an answer", data("data.jsonl", lines([message(f"p{i}", None) for i in range(9)])), r"data\.jsonl"
    ),
    Case("a chat turn without content", rows({"messages": [{"role": "user"}]}, number=0), r"line 1, column messages"),
    Case(
        "a chat of an unknown role",
        data("data.jsonl", lines([{"messages": [{"role": "wizard", "content": "a"}]}] * 20)),
        r"line 1, column messages.*'wizard'",
    ),
    Case(
        "messages that are a text", data("data.jsonl", lines([{"messages": "hello"}] * 20)), r"line 1, column messages"
    ),
    Case(
        "a label that is not one of the task's",
        data("data.jsonl", labelled({"text": "a", "label": 2}), **CLASSES | {"labels": ["no", "yes"]}),
        r"task\.labels: expected a word for each of the 3 classes",
    ),
    Case(
        "a label that is null",
        data("data.jsonl", labelled({"text": "a", "label": None}), **CLASSES),
        r"line 21, column label",
    ),
    Case(
        "a label that is a fraction",
        data("data.jsonl", labelled({"text": "a", "label": 0.5}), **CLASSES),
        r"line 21, column label",
    ),
    Case(
        "a label that is a list",
        data("data.jsonl", labelled({"text": "a", "label": [1]}), **CLASSES),
        r"line 21, column label",
    ),
    Case(
        "one class alone",
        data("data.jsonl", lines([{"text": f"text {i}", "label": 1} for i in range(20)]), **CLASSES),
        r"class|label",
    ),
    Case(
        "a class for every row",
        data("data.jsonl", lines([{"text": f"text {i}", "label": f"c{i}"} for i in range(20)]), **CLASSES),
        r"class|label",
    ),
)
