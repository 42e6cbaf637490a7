"""Text: each token of a document is a target exactly once, and the bytes add up."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.helpers import full_texts, gpt2_like, llama_like, run_prepare, write_jsonl
from transformers import PreTrainedTokenizerFast

from tuneoff.data.encoding import Encoder, pad_token_id, starts_with_bos
from tuneoff.data.tasks import Document
from tuneoff.data.tokens import TokenSplit
from tuneoff.data.windows import build_windows, window_bounds
from tuneoff.errors import DataError, ModelError

TOKENIZERS = [gpt2_like, llama_like]
TEXT = "The old sailor told the captain: “Öl, 油 and 🙂 will come again.”\n\n"


@given(st.integers(2, 200), st.integers(2, 40), st.data())
def test_each_token_is_a_target_once(num_tokens: int, max_length: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, max_length - 1))
    targets: list[int] = []
    for start, first_target, end in window_bounds(num_tokens, max_length, stride):
        assert 0 <= start < first_target < end <= start + max_length
        assert first_target == 1 or first_target - start >= max_length - stride  # the context that was promised
        targets += range(first_target, end)
    assert targets == list(range(1, num_tokens))


def _target_ids(split: TokenSplit) -> list[int]:
    return split.input_ids[split.targets].tolist()


@pytest.mark.parametrize("make", TOKENIZERS)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, max_size=4))
def test_targets_are_the_documents(make: Callable[[], PreTrainedTokenizerFast], texts: list[str]) -> None:
    tokenizer = make()
    documents = [Document(text, (text, str(number)), "a", 1) for number, text in enumerate(texts)]
    for max_length, stride in ((7, 6), (7, 3)):
        split = build_windows(documents, Encoder(tokenizer), max_length, stride)
        expected: list[int] = []
        for text in texts:
            expected += tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            expected.append(tokenizer.eos_token_id)
        assert _target_ids(split) == expected
        assert split.num_target_bytes == sum(len(text.encode()) for text in texts)
        assert split.target_bytes.min() >= 0
        assert not split.targets[split.offsets[:-1]].any()
        assert split.lengths.max() <= max_length


@pytest.mark.parametrize(("make", "start"), [(gpt2_like, "<|endoftext|>"), (llama_like, "<s>")])
def test_a_document_starts_with_context_and_ends_with_eos(
    make: Callable[[], PreTrainedTokenizerFast], start: str
) -> None:
    tokenizer = make()
    split = build_windows([Document("the sailor", ("x",), "a", 1)], Encoder(tokenizer), 64, 63)
    ids, targets = split.sequence(0)
    assert tokenizer.convert_ids_to_tokens(int(ids[0])) == start
    assert ids[-1] == tokenizer.eos_token_id
    assert targets.tolist() == [False] + [True] * (len(ids) - 1)
    assert split.target_bytes.tolist() == [len("the sailor")]


def test_bytes_of_a_window() -> None:
    """A token's share is the bytes up to its end, so that a window's bytes are those of its text."""
    split = build_windows([Document("äbcd", ("x",), "a", 1)], Encoder(gpt2_like()), 3, 2)
    # start | Ã ¤ | b c | d eos: the two halves of ä count for its first token
    assert split.target_bytes.tolist() == [2, 2, 1]


def _folder(tmp_path: Path, num_documents: int) -> None:
    (tmp_path / "books").mkdir()
    for number in range(num_documents):
        (tmp_path / "books" / f"{number:02d}.txt").write_text(TEXT * 20 + str(number), encoding="utf-8")


@pytest.mark.parametrize("make", TOKENIZERS)
def test_a_folder(tmp_path: Path, make: Callable[[], PreTrainedTokenizerFast]) -> None:
    _folder(tmp_path, 20)
    data = run_prepare(tmp_path, make(), kind="text", data="books", max_length=32)
    assert [len(split.item_names) for split in (data.train, data.validation, data.test)] == [16, 2, 2]
    total = sum(split.num_target_bytes for split in data.splits().values())
    assert total == sum(path.stat().st_size for path in (tmp_path / "books").iterdir())
    assert data.stride_tokens == 31
    names = [name for split in (data.train, data.validation, data.test) for name in split.item_names]
    assert len(set(names)) == 20
    assert any("20 text files" in note for note in data.notes)
    prompt, reference = data.samples[0]
    assert (TEXT * 20).startswith(prompt + reference)


def test_one_document_has_windows_as_items(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("".join(f"{TEXT}{number}\n\n" for number in range(100)), encoding="utf-8")
    tokenizer = gpt2_like()
    data = run_prepare(tmp_path, tokenizer, kind="text", data="book.txt", max_length=64, stride=32)
    for split in data.splits().values():
        assert split.items.tolist() == list(range(len(split)))
        assert len(set(split.item_names)) == len(split)
    assert sum(split.num_target_bytes for split in data.splits().values()) == (tmp_path / "book.txt").stat().st_size
    # The document ends once: in the last window of the test split. Its other pieces are cut, not ended.
    eos = tokenizer.eos_token_id
    ends = {name: int((split.input_ids[split.targets] == eos).sum()) for name, split in data.splits().items()}
    assert ends == {"train": 0, "validation": 0, "test": 1}
    assert data.stride_tokens == 32
    assert np.diff(data.train.offsets)[:-1].tolist() == [64] * (len(data.train) - 1)
    assert any("windows of one document are not independent" in note for note in data.notes)
    assert [caution for caution in data.cautions if caution in data.notes] == list(data.cautions) != []
    assert any("its head is train, and validation and test are the stretches after it" in note for note in data.notes)


def test_the_stride_is_for_scoring_alone(tmp_path: Path) -> None:
    _folder(tmp_path, 10)
    wide = run_prepare(tmp_path, gpt2_like(), kind="text", data="books", max_length=32)
    narrow = run_prepare(tmp_path, gpt2_like(), kind="text", data="books", max_length=32, stride=8)
    assert np.array_equal(wide.train.input_ids, narrow.train.input_ids)
    assert len(narrow.test) > 3 * len(wide.test)
    assert _target_ids(narrow.test) == _target_ids(wide.test)
    assert narrow.test.num_target_bytes == wide.test.num_target_bytes


def test_special_tokens_in_the_data_are_text(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"text": f"the <|endoftext|> {number}"} for number in range(10)])
    tokenizer = gpt2_like()
    data = run_prepare(tmp_path, tokenizer, kind="text", data="rows.jsonl", max_length=64)
    ids, _ = data.train.sequence(0)
    assert ids.tolist().count(tokenizer.eos_token_id) == 2  # its start and its end
    assert "the <|endoftext|> " in full_texts(data.train, tokenizer)[0]


def test_a_text_without_tokens(tmp_path: Path) -> None:
    """A tokenizer without end of sequence, which drops white space."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    bare = Tokenizer(models.WordLevel({"a": 0, "[PAD]": 1}, unk_token="[PAD]"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="[PAD]")
    write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in ("a a", "a", "a a a")])
    write_jsonl(tmp_path / "none.jsonl", [{"text": " "}])
    data = run_prepare(tmp_path, tokenizer, kind="text", data="rows.jsonl", splits={"validation": 0.3, "test": 0.3})
    assert any("no end-of-sequence token" in note for note in data.notes)
    with pytest.raises(DataError, match="the test split holds no target token"):
        run_prepare(tmp_path, tokenizer, kind="text", data="rows.jsonl", splits={"test": "none.jsonl"})


def test_padding() -> None:
    assert pad_token_id(gpt2_like()) == gpt2_like().eos_token_id
    assert pad_token_id(gpt2_like(pad_token="!")) == gpt2_like().convert_tokens_to_ids("!")
    bare = gpt2_like(bos_token=None, eos_token=None)
    with pytest.raises(ModelError, match="neither a padding nor an end-of-sequence token"):
        pad_token_id(bare)
    with pytest.raises(ModelError):
        Encoder(bare)


def test_who_puts_bos_first() -> None:
    assert not starts_with_bos(gpt2_like())
    assert starts_with_bos(llama_like())
    assert not starts_with_bos(gpt2_like(bos_token=None))
