"""The demo data of every kind: small, the same each time, and such that it can be learnt."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from tests.data.helpers import run_prepare
from transformers import AutoTokenizer

import tuneoff
from tuneoff.data import demo, demo_tasks
from tuneoff.data.demo_tasks import CLASS_WORDS, generate_rows
from tuneoff.errors import DataError
from tuneoff.study.testing import TaskKind

SPLITS = ("train", "validation", "test")
NEW_KINDS: list[TaskKind] = ["text", "qa", "classification"]


@pytest.mark.parametrize("kind", NEW_KINDS)
def test_splits_are_apart_and_the_same_each_time(kind: TaskKind) -> None:
    rows = [generate_rows(kind, split) for split in SPLITS]
    assert rows == [generate_rows(kind, split) for split in SPLITS]
    assert rows[0] != generate_rows(kind, "train", seed=1)
    held = [{json.dumps(row) for row in part} for part in rows]
    assert sum(map(len, held)) == sum(map(len, rows)) == len(set.union(*held))


def test_rows_do_not_change_between_versions() -> None:
    """The hash pins the rows: whoever changes them changes every number that was measured on them."""
    content = json.dumps([generate_rows(kind, split) for kind in NEW_KINDS for split in SPLITS])
    assert hashlib.sha256(content.encode()).hexdigest()[:16] == "dd230163df59a96c"


def test_instructions_are_those_of_the_demo() -> None:
    assert generate_rows("instruction", "test") == demo.generate_demo_rows("test")


def test_an_answer_is_one_sentence_of_its_context() -> None:
    rows = [row for split in SPLITS for row in generate_rows("qa", split)]
    starts = Counter(row["question"].split()[0] for row in rows)
    assert set(starts) == {"Who", "What", "When"}
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        answers, places = row["answers"]["text"], row["answers"]["answer_start"]
        for answer, place in zip(answers, places, strict=True):
            assert row["context"][place : place + len(answer)] == answer
        # the noun of who or what is asked about names one sentence, and the answer stands in it
        noun = row["question"].rstrip("?").split()[3]
        (sentence,) = [sentence for sentence in row["context"].split(".") if f" {noun}" in sentence.lower()]
        assert answers[0] in sentence


def test_articles_are_the_items() -> None:
    for split in SPLITS:
        rows = generate_rows("qa", split)
        counts = Counter(row["title"] for row in rows)
        assert set(counts.values()) == {demo_tasks.NUM_STORIES * demo_tasks.NUM_QUESTIONS}
        assert len(counts) == demo_tasks.QA_SIZES[split]


@pytest.mark.parametrize("split", SPLITS)
def test_adjectives_tell_the_class(split: str) -> None:
    rows = generate_rows("classification", split)
    assert len(rows) == demo_tasks.CLASS_SIZES[split]
    assert set(Counter(row["label"] for row in rows).values()) == {len(rows) // 2}
    for row in rows:
        words = row["text"].lower().rstrip(".").split()
        assert {label for label, adjectives in CLASS_WORDS.items() if set(words) & set(adjectives)} == {row["label"]}
    assert sorted(word for adjectives in CLASS_WORDS.values() for word in adjectives) == sorted(demo.ADJECTIVES)


def test_every_kind_fits_the_base(tmp_path: Path) -> None:
    """Nothing of the demo data is cut at a length that a CPU takes fast, and the base's tokenizer tells the words."""
    tokenizer = AutoTokenizer.from_pretrained(Path(tuneoff.__file__).parent / "assets" / "demo_base")
    for kind in NEW_KINDS:
        labels = {"labels": ["negative", "positive"]} if kind == "classification" else {}
        data = run_prepare(tmp_path, tokenizer, kind=kind, data="demo", max_length=96, **labels)
        assert data.cautions == ()
        assert all(len(split) for split in data.splits().values())
        assert max(split.lengths.max() for split in data.splits().values()) <= 96


@pytest.mark.parametrize("kind", [*NEW_KINDS, "instruction"])
def test_unknown_splits_are_refused(kind: TaskKind) -> None:
    with pytest.raises(DataError, match="Did you mean test"):
        generate_rows(kind, "tests")
