"""The general text on which forgetting is measured: what is read, how it is cut, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from tests.running.world import save_base
from transformers import PreTrainedTokenizerBase

from tuneoff.data import retention
from tuneoff.data.retention import prepare_retention
from tuneoff.errors import DataError
from tuneoff.study.spec import TaskSpec
from tuneoff.training.models import load_tokenizer

TASK = TaskSpec(kind="qa", data="nothing.json", max_length=32)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = save_base(tmp_path_factory.mktemp("retention") / "base", eos_token="<eos>", pad_token="<pad>")
    return load_tokenizer(str(folder), folder, None, False)


def test_each_token_of_one_text_is_predicted_once(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    text = "The sea was calm. " * 20 + "End."
    (tmp_path / "sea.txt").write_text(text, "utf-8")
    found = prepare_retention("sea.txt", TASK, tokenizer, tmp_path)
    split = found.split
    assert split.num_target_tokens == len(text) + 1  # a token is a byte here, and the text ends
    assert split.lengths.max() == TASK.max_length
    assert len(split.item_names) == len(split) > 1  # of one document the windows are the items
    assert found.stride_tokens == TASK.max_length - 1
    assert "windows are its items" in found.notes[0]


def test_rows_are_documents_and_documents_are_items(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    rows = [{"text": f"Document {index} tells a tale of its own, longer than a window."} for index in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    split = prepare_retention("rows.jsonl", TASK, tokenizer, tmp_path).split
    assert len(split.item_names) == 3
    assert len(split) > 3


def test_the_demos_text_is_there_for_every_kind_of_task(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    split = prepare_retention("demo", TASK, tokenizer, tmp_path).split
    assert len(split.item_names) == 24


def test_another_text_has_another_hash(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    hashes = []
    for text in ("One text.", "One text.", "Two texts."):
        (tmp_path / "text.txt").write_text(text, "utf-8")
        hashes.append(prepare_retention("text.txt", TASK, tokenizer, tmp_path).sha256)
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("num_documents", [1, 4])
def test_a_long_text_is_cut_and_it_is_said(
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_documents: int,
) -> None:
    documents = [f"{index} " + "a long text " * 40 for index in range(num_documents)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in documents), "utf-8")
    whole = prepare_retention("rows.jsonl", TASK, tokenizer, tmp_path)
    assert not any("no more" in note for note in whole.notes)
    monkeypatch.setattr(retention, "MAX_TOKENS", 100)
    monkeypatch.setattr(retention, "MAX_CHARS", 700)
    found = prepare_retention("rows.jsonl", TASK, tokenizer, tmp_path)
    assert any("no more" in note for note in found.notes)
    split = found.split
    assert 100 - TASK.max_length < split.num_target_tokens <= 100
    number = len(split)
    assert np.array_equal(split.input_ids, whole.split.input_ids[: whole.split.offsets[number]])
    assert len(split.item_names) == split.items.max() + 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nowhere.txt", None, "no such file or folder"),
        ("owner/set", None, "no such file or folder"),  # no hub id is looked for
        ("empty.txt", "", "retention: .*is empty"),
        ("rows.jsonl", '{"body": "a"}\n', "retention: .*text"),
    ],
)
def test_what_cannot_be_used_is_refused(
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    name: str,
    content: str | None,
    said: str,
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, "utf-8")
    with pytest.raises(DataError, match=said):
        prepare_retention(name, TASK, tokenizer, tmp_path)
