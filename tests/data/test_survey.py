"""What is found in data before a study is written: official splits, copies, overlap, classes, lengths; broken files."""

import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from tests.data.helpers import chat_like, gpt2_like, llama_like, pairs, run_prepare, write_jsonl

from tuneoff.data.encoding import Encoder
from tuneoff.data.lengths import measure
from tuneoff.data.locating import locate
from tuneoff.data.qa import QuestionFitter, QuestionTemplate
from tuneoff.data.survey import check_splits, survey_data
from tuneoff.errors import DataError
from tuneoff.study.spec import TaskSpec

TEXTS = [f"The captain said that ship {number} was late." for number in range(30)]


def tsv(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] | None = ("sentence", "label")) -> Path:
    path.write_text("".join("\t".join(row) + "\n" for row in [*([header] if header else []), *rows]), encoding="utf-8")
    return path


def labelled(start: int = 0, number: int = 20) -> list[tuple[str, ...]]:
    return [(TEXTS[place % 30], str(place % 2)) for place in range(start, start + number)]


def test_a_dev_set_beside_train_is_the_test(tmp_path: Path) -> None:
    tsv(tmp_path / "train.tsv", labelled())
    tsv(tmp_path / "dev.tsv", labelled(20, 6))
    tsv(tmp_path / "test.tsv", [(str(place), text) for place, text in enumerate(TEXTS)], ("index", "sentence"))
    for named in ("train.tsv", "."):
        found = survey_data(named, tmp_path).survey
        assert Path(found.data).name == "train.tsv"
        assert (found.kind, found.classes, found.split_sources) == ("classification", ("0", "1"), {"test": "dev.tsv"})
        assert {name: counts.num_examples for name, counts in found.splits.items()} == {"train": 20, "test": 6}
        assert any("test.tsv is not used: no column for the label" in note for note in found.notes)


def test_dev_is_validation_where_there_is_a_test_set(tmp_path: Path) -> None:
    for name, start, number in (("my_train_1.tsv", 0, 20), ("my_dev_1.tsv", 20, 5), ("my_test_1.tsv", 25, 5)):
        tsv(tmp_path / name, labelled(start, number))
    tsv(tmp_path / "other_dev.tsv", labelled())
    found = survey_data("my_train_1.tsv", tmp_path).survey
    assert found.split_sources == {"validation": "my_dev_1.tsv", "test": "my_test_1.tsv"}


def test_copies_overlap_and_contradictions_are_counted(tmp_path: Path) -> None:
    rows = [("a b c", "1"), ("a b c", "1"), ("a b c", "0"), ("d e f", "0"), ("g h i", "1"), ("j k l", "0")]
    tsv(tmp_path / "train.tsv", rows)
    tsv(tmp_path / "dev.tsv", [("d e f", "0"), ("m n o", "1")])
    counts = survey_data("train.tsv", tmp_path).survey.splits["train"]
    assert (counts.num_examples, counts.num_units, counts.num_copies) == (6, 4, 1)
    assert (counts.num_shared, counts.num_contradictions, dict(counts.labels)) == (1, 1, {"1": 3, "0": 3})


def test_a_table_without_a_header(tmp_path: Path) -> None:
    tsv(tmp_path / "train.tsv", [(label, text) for text, label in labelled()], None)
    tsv(tmp_path / "dev.tsv", [(label, text) for text, label in labelled(20, 4)], None)
    found = survey_data("train.tsv", tmp_path).survey
    assert (found.columns, found.present) == ({"text": "1", "label": "0"}, ("0", "1"))
    assert found.splits["train"].num_rows == 20
    assert found.splits["test"].num_rows == 4
    assert any("no header line" in note for note in found.notes)


def test_a_folder_of_text_and_one_without_a_choice(tmp_path: Path) -> None:
    for name in ("a.txt", "b.md", "c.txt"):
        (tmp_path / name).write_text(f"The story of {name}.", encoding="utf-8")
    (tmp_path / "index.tsv").write_text("file\ntext\n")
    found = survey_data(".", tmp_path).survey
    assert (found.kind, found.format, found.splits["train"].num_examples) == ("text", "3 files of plain text", 3)
    (tmp_path / "rows").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        write_jsonl(tmp_path / "rows" / name, pairs(3))
    with pytest.raises(DataError, match=r"2 data files .a.jsonl, b.jsonl.; name one"):
        locate("rows", tmp_path)


def test_splits_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"train": pairs(9), "validation": pairs(2), "unsupervised": pairs(2)}
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name, config, revision: list(held))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, split: datasets.Dataset.from_list(held[split]))
    found = survey_data("owner/name", tmp_path).survey
    assert (found.kind, found.split_sources) == ("instruction", {"test": "validation"})
    assert found.format == "data set of the hub"


BROKEN: dict[str, tuple[bytes, str]] = {
    "torn.json": (
        json.dumps(pairs(9)).encode()[:-30],
        r"torn.json, line 1, column \d+: expected one JSON value.*cut off",
    ),
    "torn.jsonl": (
        b"".join(json.dumps(row).encode() + b"\n" for row in pairs(3))[:-20],
        r"torn.jsonl, line 3, column \d+: expected a JSON object on one line.*cut off: copy it again",
    ),
    "latin.csv": (
        "text,label\nun café,1\n".encode("latin-1"),
        r"latin.csv, line 2, column 7: expected UTF-8.*save the",
    ),
    "wide.csv": ("text,label\na,1\n".encode("utf-16-le"), r"wide.csv, line 1.*zero byte.*UTF-16; save it as UTF-8"),
    "empty.jsonl": (b"", "empty.jsonl: is empty: expected at least one row"),
    "blank.txt": (b" \n\n", "blank.txt: is empty"),
    "image.csv": (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", r"image.csv, line 1, column 1: expected UTF-8 text"),
    "program.txt": (b"\x7fELF\x02\x01\x01\x00\x00", r"program.txt, line 1, column 8: expected text, found a zero byte"),
    "rows.parquet": (b"PAR1 not really", "rows.parquet: expected a Parquet file"),
    "rows.xlsx": (b"PK\x03\x04", r"rows.xlsx: files of kind '.xlsx' are not read; allowed: .jsonl"),
    "ragged.csv": (b"text,label\na,1,2\n", r"ragged.csv, line 2: expected 2 columns .text, label., found 3"),
    "numbers.csv": (
        b"a,b\n" + b"".join(b"%d,%d\n" % (n, n * 7) for n in range(9)),
        "expected a column of running text",
    ),
    "hole.jsonl": (
        b'{"instruction": "Say a.", "response": "a"}\n{"instruction": "Say b.", "response": ""}\n',
        r"hole.jsonl, line 2, column response: expected text, found ''",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused_where_they_are_broken(tmp_path: Path, name: str) -> None:
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        survey_data(name, tmp_path)


def test_a_folder_without_data_and_a_name_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is a folder without data; expected text files or one data file"):
        survey_data("empty", tmp_path)
    write_jsonl(tmp_path / "rows.jsonl", pairs(3))
    with pytest.raises(DataError, match=r"no such file or folder.*Did you mean rows.jsonl"):
        survey_data("row.jsonl", tmp_path)


def test_a_class_that_only_the_test_has_is_found_before_a_study_is_written(tmp_path: Path) -> None:
    tsv(tmp_path / "train.tsv", labelled())
    tsv(tmp_path / "dev.tsv", [("new text", "7"), ("old text", "1")])
    found = survey_data("train.tsv", tmp_path)
    task = TaskSpec(kind="classification", data="train.tsv", splits={"test": "dev.tsv"})
    with pytest.raises(DataError, match="the class '7' is in test but not in train"):
        check_splits(task, found.examples)
    few = {"train": list(found.examples["train"])[:2]}
    with pytest.raises(DataError, match="the train split would be empty"):
        check_splits(TaskSpec(kind="classification", data="train.tsv"), few)


CONTEXT = "The ship that was called Rose left the harbour on a cold morning with nine sailors. " * 3
KINDS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "text": ([{"text": text * (1 + place % 5)} for place, text in enumerate(TEXTS)], {}),
    "instruction": ([{"instruction": text, "response": text[: 5 + place]} for place, text in enumerate(TEXTS)], {}),
    "qa": (
        [{"context": CONTEXT[place:], "question": f"Who was {place}?", "answers": ["Rose"]} for place in range(30)],
        {},
    ),
    "classification": (
        [{"text": text[place:], "label": place % 2} for place, text in enumerate(TEXTS)],
        {"template": "Say {text}:"},
    ),
}


@pytest.mark.parametrize("tokenizer", [gpt2_like, llama_like], ids=["gpt2", "llama"])
@pytest.mark.parametrize("kind", KINDS)
def test_lengths_are_those_that_are_trained_on(tmp_path: Path, kind: Any, tokenizer: Any) -> None:
    """The independent reference: the very splits that a run prepares, where nothing has to be cut."""
    rows, more = KINDS[kind]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    found = survey_data("rows.jsonl", tmp_path)
    lengths = measure(kind, found.examples["train"], tokenizer(), more.get("template"), context=40)
    whole = run_prepare(tmp_path, tokenizer(), kind=kind, data="rows.jsonl", max_length=4096, **more)
    trained = np.concatenate([split.lengths for split in whole.splits().values()])
    if kind == "text":
        trained = trained - 1  # a window begins with a token that is no part of the document
    assert lengths.whole.longest == trained.max()
    assert lengths.whole.total == trained.sum()
    assert lengths.whole.median == np.ceil(np.median(trained))
    assert lengths.over_context_share == np.mean(trained > 40)


@pytest.mark.parametrize("num_chars", range(1, 9))
def test_short_questions_need_a_third_more_than_their_prompt(tmp_path: Path, num_chars: int) -> None:
    """Below 128 tokens the room for the answer is a quarter of `max_length`: the least length that the fitter takes."""
    rows = [{"context": "x" * num_chars, "question": "y?", "answers": ["z"]} for _ in range(3)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    examples: Any = survey_data("rows.jsonl", tmp_path).examples["train"]
    tokenizer = gpt2_like()
    needed = measure("qa", examples, tokenizer).needed.longest
    template = QuestionTemplate(None, tokenizer)

    def is_whole(length: int) -> bool:
        try:
            _, cuts = QuestionFitter(Encoder(tokenizer), template, length, "error").build(examples)
        except DataError:
            return False
        return not cuts.num_long

    assert needed < 128
    assert is_whole(needed)
    assert not is_whole(needed - 1)


@pytest.mark.parametrize("kind", ["instruction", "qa", "classification"])
def test_the_length_that_is_needed_is_the_least_that_cuts_nothing(tmp_path: Path, kind: Any) -> None:
    rows, more = KINDS[kind]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    found = survey_data("rows.jsonl", tmp_path)
    needed = measure(kind, found.examples["train"], gpt2_like(), more.get("template")).needed.longest
    for length, is_cut in ((needed, False), (needed - 1, True)):
        data = run_prepare(tmp_path, gpt2_like(), kind=kind, data="rows.jsonl", max_length=length, **more)
        assert any("longer than" in note for note in data.notes) == is_cut


def test_a_chat_template_counts(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", pairs(5))
    examples: Any = survey_data("rows.jsonl", tmp_path).examples["train"]
    plain, chat = (measure("instruction", examples, chat_like(), template) for template in (None, "chat"))
    assert plain.whole.total != chat.whole.total


def test_of_many_examples_a_sample_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every third of 299 equal texts says of all what all say; the one that is longer is measured in any case."""
    rows = [{"text": f"{TEXTS[0]} {number:03}", "label": number % 2} for number in range(299)]
    write_jsonl(tmp_path / "rows.jsonl", [*rows, {"text": TEXTS[0] * 3, "label": 1}])
    examples = list(survey_data("rows.jsonl", tmp_path).examples["train"])
    whole = measure("classification", examples, gpt2_like())
    monkeypatch.setattr("tuneoff.data.lengths.MAX_CHARS", sum(len(TEXTS[0]) + 4 for _ in rows) // 3 + 100)
    sample = measure("classification", examples, gpt2_like())
    assert 100 < sample.whole.num_measured < 130
    assert whole.whole.num_measured == 300
    assert sample.whole.longest == whole.whole.longest > sample.whole.p99
    assert sample.whole.median == whole.whole.median
    assert abs(sample.whole.total - whole.whole.total) <= whole.whole.longest  # but for the long one


def test_of_long_documents_the_beginnings_are_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    for number in range(1, 9):
        (tmp_path / "books" / f"{number}.txt").write_text((TEXTS[0] + " ") * 40 * number, encoding="utf-8")
    examples = list(survey_data("books", tmp_path).examples["train"])
    whole = measure("text", examples, gpt2_like())
    repeat = len(TEXTS[0]) + 1
    monkeypatch.setattr("tuneoff.data.lengths.MAX_CHARS", 8 * 10 * repeat)
    sample = measure("text", examples, gpt2_like())
    assert sample.whole.num_measured == 0
    # A head is ten sentences, of which the last one's space is a token less or more: one in a hundred at most.
    assert abs(sample.whole.total / whole.whole.total - 1) < 0.01
    assert abs(sample.whole.longest / whole.whole.longest - 1) < 0.01
