"""Texts with a class: every form of the data, how classes are numbered, what a sequence holds, and bad rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.helpers import full_texts, gpt2_like, llama_like, run_prepare, write_jsonl
from transformers import PreTrainedTokenizerFast

from tuneoff.data.classification import (
    LabelledText,
    TextCuts,
    TextFitter,
    make_field_template,
    number_classes,
    to_labelled,
    word_ids,
)
from tuneoff.data.encoding import Encoder
from tuneoff.data.formats import Row
from tuneoff.data.rendering import render_prompt
from tuneoff.data.tokens import PreparedData, TokenSplit
from tuneoff.errors import DataError, StudyError
from tuneoff.study.spec import ColumnsSpec, TaskSpec

TOKENIZERS = [gpt2_like, llama_like]


def _prepare(folder: Path, **task: Any) -> PreparedData:
    return run_prepare(folder, gpt2_like(), kind="classification", **task)


def _rows(n: int, label: Callable[[int], Any] = lambda number: number % 2) -> list[dict[str, Any]]:
    return [{"sentence": f"It is {number}. ", "label": label(number)} for number in range(n)]


def _table(rows: list[dict[str, Any]], between: str) -> str:
    """The rows in GLUE's form: no quoting, a space at the end of sentences."""
    lines = [between.join(rows[0]), *(between.join(str(value) for value in row.values()) for row in rows)]
    return "\n".join(lines) + "\n"


def test_every_format_gives_the_same(tmp_path: Path) -> None:
    rows = _rows(30)
    (tmp_path / "rows.tsv").write_text(_table(rows, "\t"))
    (tmp_path / "rows.csv").write_text(_table(rows, ","))
    write_jsonl(tmp_path / "rows.jsonl", rows)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    floats = [{"review": row["sentence"], "sentiment": float(row["label"])} for row in rows]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(floats), tmp_path / "floats.parquet")
    bools = [{"content": row["sentence"], "class": bool(row["label"])} for row in rows]
    write_jsonl(tmp_path / "bools.jsonl", bools)
    names = ("rows.tsv", "rows.csv", "rows.jsonl", "rows.parquet", "floats.parquet", "bools.jsonl")
    found = [_prepare(tmp_path, data=name) for name in names]
    assert len({data.sha256 for data in found}) == 1
    data = found[0]
    assert [len(split) for split in data.splits().values()] == [24, 3, 3]
    assert data.classes == ("0", "1")
    assert (data.label_ids, data.prompts, data.samples) == ((), None, ())
    for split in data.splits().values():
        texts = full_texts(split, gpt2_like())
        assert [int(text.removeprefix("It is ").rstrip(".")) % 2 for text in texts] == split.labels.tolist()
        ends = split.offsets[1:] - 1
        assert np.flatnonzero(split.targets).tolist() == ends.tolist()
        assert not split.target_bytes.any()
    notes = [note for note in data.notes if note.startswith("train: 24 texts")]
    ones = int(data.train.labels.sum())
    assert notes == [f"train: 24 texts; 0 {24 - ones} ({(24 - ones) / 0.24:.1f} %), 1 {ones} ({ones / 0.24:.1f} %)."]
    assert "The class is read at the last token of a text; no end of sequence follows it." in data.notes


@pytest.mark.parametrize("make", TOKENIZERS)
def test_a_sequence_is_the_prompt_as_it_is_tried(make: Callable[[], PreTrainedTokenizerFast]) -> None:
    tokenizer = make()
    (ids,) = [split.sequence(0)[0] for split in [_build(tokenizer, ["the ship"], 90, template="say {text}: ")[0]]]
    task = TaskSpec(kind="classification", data="x", template="say {text}: ")
    assert ids.tolist() == tokenizer(render_prompt(task, tokenizer, " the ship\n"))["input_ids"]
    assert (ids[0] == tokenizer.bos_token_id) == (make is llama_like)


def test_a_file_without_a_header(tmp_path: Path) -> None:
    """Stanford's form of SST-2: the label first, and no header."""
    for name in ("train", "dev"):
        lines = [f"{number % 2}\t{name} {number} ." for number in range(20)]
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines))
    columns = {"label": 0, "text": 1}
    data = _prepare(tmp_path, data="train.tsv", columns=columns, splits={"test": "dev.tsv"})
    assert len(data.test) == 20
    assert data.test.item_names[0] == "dev.tsv:1"
    assert full_texts(data.test, gpt2_like())[0] == "dev 0 ."
    with pytest.raises(DataError) as caught:
        _prepare(tmp_path, data="train.tsv")
    assert "no column for the text" in str(caught.value)
    assert "the data has '0', 'train 0 .'." in str(caught.value)
    assert "name its columns by number, from 0: task.columns: {label: 0, text: 1}" in str(caught.value)
    with pytest.raises(DataError, match=r"no column '2'; the data has 0, 1\."):
        _prepare(tmp_path, data="train.tsv", columns={"label": 0, "text": 2})


def test_a_header_of_numbers_is_a_header(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("1,0\n" + "".join(f"It is {number},{number % 2}\n" for number in range(20)))
    data = _prepare(tmp_path, data="rows.csv", columns={"label": 0, "text": 1})
    assert sum(len(split) for split in data.splits().values()) == 20


class _Features(dict[str, Any]):
    pass


class _FakeRows(list[dict[str, Any]]):
    features = _Features(label=datasets.ClassLabel(names=["neg", "pos"]), text=datasets.Value("string"))


def test_the_hub_names_the_classes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def load(name: str, configuration: str | None, split: str) -> _FakeRows:
        return _FakeRows({"text": f"{split} {number}", "label": number % 2} for number in range(20))

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = _prepare(tmp_path, data="owner/name", splits={"test": "validation"})
    assert data.classes == ("neg", "pos")
    assert data.test.labels.tolist() == [0, 1] * 10
    turned = _prepare(tmp_path, data="owner/name", splits={"test": "validation"}, labels=["pos", "neg"])
    assert turned.classes == ("pos", "neg")
    assert turned.test.labels.tolist() == [1, 0] * 10


def test_exact_copies_stay_on_one_side(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [row for row in _rows(20) for _ in range(3)])
    data = _prepare(tmp_path, data="rows.jsonl")
    assert [len(split) for split in data.splits().values()] == [48, 6, 6]
    assert [len(split.item_names) for split in data.splits().values()] == [16, 2, 2]
    write_jsonl(tmp_path / "dev.jsonl", _rows(4))
    data = _prepare(tmp_path, data="rows.jsonl", splits={"test": "dev.jsonl"})
    assert len(data.train) + len(data.validation) == 48
    assert any(
        "examples were left out, as their document, tree, prompt, article or text is in" in n for n in data.notes
    )


def _labelled(*labels: int | str) -> dict[str, list[LabelledText]]:
    return {"train": [LabelledText(f"t{n}", label, (f"t{n}",), "rows.tsv", n) for n, label in enumerate(labels)]}


@pytest.mark.parametrize(
    ("labels", "words", "hub_names", "classes", "numbers"),
    [
        ((3, 1, 2, 1), None, (), ("1", "2", "3"), [2, 0, 1, 0]),
        ((10, 9), None, (), ("9", "10"), [1, 0]),
        (("pos", "neg"), None, (), ("neg", "pos"), [1, 0]),
        (("pos", "neg"), ("pos", "neg"), (), ("pos", "neg"), [0, 1]),
        (("pos", "neg"), ("bad", "good"), (), ("bad", "good"), [1, 0]),
        ((1, 0), ("bad", "good"), (), ("bad", "good"), [1, 0]),
        ((1, 0), ("no", "yes"), ("yes", "no"), ("no", "yes"), [0, 1]),
        ((2, 0), None, ("a", "b", "c"), ("a", "c"), [1, 0]),
        ((2, 0), None, ("a", "b"), ("0", "2"), [1, 0]),  # the hub's names are for fewer: they are not these classes'
        ((3, "b"), None, (), ("3", "b"), [0, 1]),
    ],
)
def test_classes_in_order(
    labels: tuple[int | str, ...],
    words: tuple[str, ...] | None,
    hub_names: tuple[str, ...],
    classes: tuple[str, ...],
    numbers: list[int],
) -> None:
    found, number = number_classes(_labelled(*labels), words, hub_names)
    assert found == classes
    assert [number[label] for label in labels] == numbers


@pytest.mark.parametrize(
    ("labels", "words", "message"),
    [
        ((0, 1, 2), ("a", "b"), "task.labels: expected a word for each of the 3 classes (0, 1, 2), found 2: a, b"),
        (("neg", "pos"), ("neg", "good"), "task.labels: 'neg' is a class of the data, but the others are not;"),
        (tuple(range(20)), ("a", "b"), "classes (0, 1, 2, 3, 4, 5, 6, 7, ...), found 2"),
        ((1, 1), None, "expected two classes at least, found 1: 1"),
    ],
)
def test_classes_that_cannot_be(labels: tuple[int | str, ...], words: tuple[str, ...] | None, message: str) -> None:
    with pytest.raises(DataError if words is None else StudyError) as caught:
        number_classes(_labelled(*labels), words)
    assert message in str(caught.value)


def test_a_class_that_train_lacks(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", _rows(20))
    write_jsonl(tmp_path / "dev.jsonl", [{"sentence": "x", "label": 0}, {"sentence": "y", "label": 2}])
    with pytest.raises(DataError, match=r"^dev.jsonl, line 2: the class '2' is in test but not in train"):
        _prepare(tmp_path, data="rows.jsonl", splits={"test": "dev.jsonl"})


GOOD = {"text": "a", "label": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": -1}, "column label: expected a class, found -1 (int): rows without one cannot be learnt or scored"),
        ({"label": "-1"}, "column label: expected a class, found '-1'"),
        ({"label": None}, "column label: expected a class, found null"),
        ({"label": " "}, "column label: expected a class, found ' '"),
        ({"label": 0.5}, "column label: expected a class as an integer or a name, found 0.5 (float)"),
        ({"label": [1]}, "column label: expected a class as an integer or a name, found [1] (list)"),
        ({"text": " "}, "column text: expected text, found ' '"),
        ({"text": 5}, "column text: expected text, found 5 (int)"),
    ],
)
def test_bad_rows(change: dict[str, Any], message: str) -> None:
    rows = [Row(GOOD, "rows.tsv", 2), Row(GOOD | change, "rows.tsv", 3)]
    with pytest.raises(DataError) as caught:
        to_labelled(rows, ColumnsSpec())
    assert str(caught.value).startswith(f"rows.tsv, line 3, {message}")


def test_unknown_columns() -> None:
    """GLUE's test split has no labels; it does have a header."""
    with pytest.raises(DataError) as caught:
        to_labelled([Row({"index": "0", "sentence": "a"}, "test.tsv", 2)], ColumnsSpec())
    assert "no column for the label (known names: label, labels, class, sentiment)" in str(caught.value)
    assert "header" not in str(caught.value)
    with pytest.raises(DataError, match="Did you mean sentences"):
        to_labelled([Row({"sentences": "a", "x": 1}, "x.jsonl", 1)], ColumnsSpec())


@pytest.mark.parametrize(
    ("make", "template", "words"),
    [
        (gpt2_like, None, [" bad", " good"]),
        (gpt2_like, "{text}\nThis is", [" bad", " good"]),
        (gpt2_like, "{text}\n", ["bad", "good"]),
        (llama_like, None, ["bad", "good"]),
        (llama_like, "{text} ", ["bad", "good"]),
    ],
)
def test_words_as_they_follow_a_prompt(
    make: Callable[[], PreTrainedTokenizerFast], template: str | None, words: list[str]
) -> None:
    tokenizer = make()
    found = word_ids(("bad", "good"), make_field_template(template), Encoder(tokenizer))
    assert found == tuple(tuple(tokenizer(word, add_special_tokens=False)["input_ids"]) for word in words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a", " "), "task.labels: expected words, found ' ', which has no token"),
        (("bad", "badly"), "the tokens of 'bad' are also the first ones of 'badly'"),
        (("bad", " bad"), "the tokens of 'bad' are also the first ones of ' bad'"),
    ],
)
def test_words_that_cannot_be_told_apart(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(StudyError) as caught:
        word_ids(words, make_field_template(None), Encoder(gpt2_like()))
    assert message in str(caught.value)


def test_words_with_a_common_start_can_be_told_apart() -> None:
    assert len(word_ids(("very bad", "very good"), make_field_template(None), Encoder(gpt2_like()))) == 2


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("chat", "task.template: chat has no part in kind: classification"),
        ("This is", "expected the placeholder {text}, found 'This is'"),
        ("{txt}", "unknown placeholder {txt}; allowed: {text}. Did you mean text?"),
    ],
)
def test_bad_templates(template: str, message: str) -> None:
    with pytest.raises(StudyError) as caught:
        make_field_template(template)
    assert message in str(caught.value)


def _build(
    tokenizer: PreTrainedTokenizerFast,
    texts: list[str],
    room: int,
    truncation: str = "middle",
    template: str | None = None,
) -> tuple[TokenSplit, TextCuts]:
    fitter = TextFitter(Encoder(tokenizer), make_field_template(template), room, truncation)
    labelled = [LabelledText(text, "a", (text,), "rows.tsv", 2) for text in texts]
    return fitter.build(labelled, {"a": 0})


@pytest.mark.parametrize(
    ("text", "truncation", "template", "room", "whole", "num_cut"),
    [
        ("abcdef", "middle", None, 6, "abcdef", 0),
        ("abcdef", "middle", None, 5, "abcef", 1),
        ("abcdef", "end", None, 5, "abcde", 1),
        ("abcdef", "end", "q\n{text}\nr", 7, "q\nabc\nr", 3),
        ("abcdef", "middle", "q\n{text}\nr", 7, "q\nabf\nr", 3),
        ("äöü", "end", None, 5, "äö", 2),  # two tokens each, and a character is not split
        ("abcdef", "end", None, 1, "a", 5),
    ],
)
def test_long_texts(text: str, truncation: str, template: str | None, room: int, whole: str, num_cut: int) -> None:
    split, cuts = _build(gpt2_like(), [text], room, truncation, template)
    assert full_texts(split, gpt2_like()) == [whole]
    assert (cuts.num_long, cuts.num_tokens) == (int(num_cut > 0), num_cut)
    assert split.targets.tolist() == [False] * (len(split.input_ids) - 1) + [True]


@pytest.mark.parametrize(
    ("truncation", "message"),
    [
        ("error", "the text has 8 tokens, 3 fit, and task.truncation is error; raise task.max_length"),
        ("end", "expected a text and its template of at most 3 tokens, found 8, and nothing of the text would be left"),
    ],
)
def test_what_does_not_fit_is_refused(truncation: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        _build(gpt2_like(), ["abcd"], 3, truncation, "q {text} r")
    assert str(caught.value).startswith(f"rows.tsv, line 2: {message}")


def test_words_find_room_behind_the_text(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"text": "x" * 90 + str(n), "label": n % 2} for n in range(20)])
    data = _prepare(tmp_path, data="rows.jsonl", max_length=40, labels=["bad", "good"])
    longest = max(map(len, data.label_ids))
    assert data.test.lengths.tolist() == [40 - longest] * 2
    (note,) = data.cautions
    assert note.startswith(f"test: 2 of 2 texts were longer than {40 - longest} tokens; ")
    assert note.endswith(" tokens were cut from the middle of them.")
    bare = _prepare(tmp_path, data="rows.jsonl", max_length=40)
    assert bare.test.lengths.tolist() == [40] * 2


def test_settings_without_a_part_are_told(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", _rows(20))
    data = _prepare(tmp_path, data="rows.jsonl", stride=5, columns={"prompt": "a"})
    assert {note for note in data.notes if "has no part" in note} == {
        "task.columns.prompt has no part in kind: classification.",
        "task.stride has no part in kind: classification.",
    }


@pytest.mark.parametrize("make", TOKENIZERS)
@settings(max_examples=50)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1).map(lambda text: f"x{text}x"),
    room=st.integers(12, 40),
    truncation=st.sampled_from(["middle", "end"]),
)
def test_any_text_fits(make: Callable[[], PreTrainedTokenizerFast], text: str, room: int, truncation: str) -> None:
    tokenizer = make()
    split, cuts = _build(tokenizer, [text], room, truncation)
    whole = tokenizer(text, split_special_tokens=True)["input_ids"]
    assert len(split.input_ids) == len(whole) - cuts.num_tokens
    assert 0 < len(split.input_ids) <= room
    assert (cuts.num_tokens > 0) == (len(whole) > room)
    kept = split.input_ids.tolist()
    if truncation == "end":
        assert kept == whole[: len(kept)]
    else:
        head = next((n for n, (a, b) in enumerate(zip(kept, whole, strict=False)) if a != b), len(kept))
        assert kept[head:] == whole[len(whole) - len(kept) + head :]
