"""The cache saves time and nothing else: the same data with it, without it, and when it is damaged."""

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.data.helpers import gpt2_like, llama_like, pairs, run_prepare, write_jsonl

from tuneoff.data import kinds, prepare
from tuneoff.data.cache import cache_folder, fingerprint, save_entry
from tuneoff.data.tokens import PreparedData


def _run(folder: Path, **task: object) -> PreparedData:
    return run_prepare(folder, gpt2_like(), kind="instruction", data="rows.jsonl", **task)


def _entries(folder: Path) -> list[Path]:
    return sorted((folder / "cache" / "tokens").iterdir())


def _same(one: PreparedData, other: PreparedData) -> bool:
    for name, split in one.splits().items():
        arrays = other.splits()[name].arrays()
        if not all(np.array_equal(array, arrays[key]) for key, array in split.arrays().items()):
            return False
        if split.item_names != other.splits()[name].item_names:
            return False
    if (one.prompts is None) != (other.prompts is None):
        return False
    if one.prompts is not None and other.prompts is not None:
        arrays = other.prompts.arrays()
        if not all(np.array_equal(array, arrays[key]) for key, array in one.prompts.arrays().items()):
            return False
        if (one.prompts.ids, one.prompts.references) != (other.prompts.ids, other.prompts.references):
            return False
    rest = ("sha256", "notes", "cautions", "stride_tokens", "samples", "classes", "label_ids")
    return all(getattr(one, field) == getattr(other, field) for field in rest)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "rows.jsonl", pairs(20))


def test_the_second_time_nothing_is_tokenised(tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _run(tmp_path)
    monkeypatch.setattr(kinds, "to_conversations", None)
    again = _run(tmp_path)
    assert _same(first, again)
    assert again.prompts is not None
    assert again.prompts.prompt(0).dtype == again.prompts.items.dtype == np.int32
    assert again.prompts.offsets.dtype == np.int64


def test_metrics_have_no_entry_of_their_own(tmp_path: Path, rows: Path) -> None:
    """What is measured on the test split changes no token, and prompts are there whether it is measured or not."""
    first = _run(tmp_path)
    assert _same(first, _run(tmp_path, metrics=["rougeL", "exact_match"]))
    assert len(_entries(tmp_path)) == 1


def test_an_entry_of_every_kind_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [
        {"kind": "qa"},
        {"kind": "classification"},
        {"kind": "classification", "labels": ["negative", "positive"]},
        {"kind": "text"},
    ]
    first = [run_prepare(tmp_path, gpt2_like(), data="demo", limit=40, **task) for task in tasks]
    assert [data.prompts is None for data in first] == [False, True, True, True]
    assert [data.classes for data in first] == [(), ("negative", "positive"), ("negative", "positive"), ()]
    assert [len(data.label_ids) for data in first] == [0, 0, 2, 0]
    monkeypatch.setattr(prepare, "make_preparer", lambda task, tokenizer: None)
    again = [run_prepare(tmp_path, gpt2_like(), data="demo", limit=40, **task) for task in tasks]
    assert all(_same(one, other) for one, other in zip(first, again, strict=True))


def test_references_are_in_the_hash(tmp_path: Path) -> None:
    """Two data sets with the same tokens and other right answers are not the same."""
    found = []
    for more in ("b", "c"):
        rows = [{"context": f"{n}", "question": "q", "answers": ["a", more]} for n in range(9)]
        write_jsonl(tmp_path / "qa.jsonl", rows)
        found.append(run_prepare(tmp_path, gpt2_like(), kind="qa", data="qa.jsonl"))
    assert np.array_equal(found[0].test.input_ids, found[1].test.input_ids)
    assert found[0].sha256 != found[1].sha256


def test_what_an_entry_depends_on(tmp_path: Path, rows: Path) -> None:
    one = _run(tmp_path)
    assert _run(tmp_path, max_length=100).sha256 == one.sha256  # another entry with the same tokens, as all fit
    run_prepare(tmp_path, llama_like(), kind="instruction", data="rows.jsonl")
    write_jsonl(rows, pairs(21))
    assert _run(tmp_path).sha256 != one.sha256
    assert len(_entries(tmp_path)) == 4


def test_tokenizers_are_told_apart() -> None:
    chat = gpt2_like()
    chat.chat_template = "{{ messages }}"
    marks = [fingerprint(t) for t in (gpt2_like(), gpt2_like(pad_token="!"), llama_like(), chat)]
    assert len(set(marks)) == 4
    assert fingerprint(gpt2_like()) == marks[0]
    used = gpt2_like(pad_token="!")
    used(["a", "b c"], padding="max_length", truncation=True, max_length=7)
    assert fingerprint(used) == marks[1]


@pytest.mark.parametrize("damage", ["torn", "flipped", "text", "empty", "folder"])
def test_a_damaged_entry_is_built_again(
    tmp_path: Path, rows: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = _run(tmp_path)
    (entry,) = _entries(tmp_path)
    content = bytearray(entry.read_bytes())
    if damage == "torn":
        entry.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[-5] ^= 1
        entry.write_bytes(content)
    elif damage == "folder":
        entry.unlink()
        entry.mkdir()
    else:
        entry.write_text("not safetensors" if damage == "text" else "")
    with caplog.at_level(logging.WARNING):
        assert _same(first, _run(tmp_path))
    assert "the data is tokenised again" in caplog.text
    if damage != "folder":
        assert entry.read_bytes() == save_again(first, tmp_path)


def save_again(data: PreparedData, folder: Path) -> bytes:
    save_entry(folder / "again.safetensors", data)
    return (folder / "again.safetensors").read_bytes()


def test_every_flipped_bit_is_noticed(tmp_path: Path, rows: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = _run(tmp_path)
    (entry,) = _entries(tmp_path)
    content = entry.read_bytes()
    for place in range(0, len(content), len(content) // 60):
        damaged = bytearray(content)
        damaged[place] ^= 4
        entry.write_bytes(damaged)
        assert _same(first, _run(tmp_path))


def test_an_unwritable_cache_costs_time_only(tmp_path: Path, rows: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        first = _run(tmp_path)
    assert "cannot be written" in caplog.text
    assert _same(first, _run(tmp_path))


def test_a_failed_write_leaves_nothing(tmp_path: Path, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    _run(tmp_path)
    assert _entries(tmp_path) == []


def test_two_processes_build_one_entry(tmp_path: Path, rows: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.data.helpers import *; "
        "print(run_prepare(Path(sys.argv[1]), gpt2_like(), kind='instruction', data='rows.jsonl').sha256)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    top = Path(__file__).resolve().parents[2]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=top) for _ in range(2)]
    printed = {process.communicate(timeout=120)[0] for process in both}
    assert printed == {f"{_run(tmp_path).sha256}\n"}
    assert len(_entries(tmp_path)) == 1


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder(tmp_path) == tmp_path / "tokens"
    monkeypatch.setenv("TUNEOFF_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own" / "tokens"
    monkeypatch.delenv("TUNEOFF_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "tuneoff" / "tokens"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "tuneoff" / "tokens"
