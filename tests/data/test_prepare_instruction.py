"""Instructions: exact masks, end of sequence in the loss, and what over-long examples lose."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.data.helpers import (
    chat_like,
    full_texts,
    gpt2_like,
    llama_like,
    pairs,
    run_prepare,
    target_texts,
    write_jsonl,
)
from transformers import PreTrainedTokenizerFast

from tuneoff.data.conversations import Conversation, Turn
from tuneoff.data.encoding import Encoder, encode_prompt
from tuneoff.data.fitting import Fitter
from tuneoff.data.prepare import prepare
from tuneoff.data.rendering import render_prompt
from tuneoff.data.templates import make_template
from tuneoff.data.tokens import PreparedData, PromptBuilder, TokenSplit
from tuneoff.errors import DataError
from tuneoff.study.spec import TaskSpec

TOKENIZERS = [gpt2_like, llama_like]


def _prepare(folder: Path, tokenizer: PreTrainedTokenizerFast, rows: list[Any], **task: Any) -> PreparedData:
    write_jsonl(folder / "rows.jsonl", rows)
    return run_prepare(folder, tokenizer, kind="instruction", data="rows.jsonl", **task)


@pytest.mark.parametrize("make", TOKENIZERS)
def test_replies_and_eos_are_the_targets(tmp_path: Path, make: Callable[[], PreTrainedTokenizerFast]) -> None:
    tokenizer = make()
    data = _prepare(tmp_path, tokenizer, pairs(20), max_length=200)
    eos = tokenizer.eos_token
    texts = [text for split in data.splits().values() for text in target_texts(split, tokenizer)]
    assert sorted(texts) == sorted(f"It is {number}!{eos}" for number in range(20))
    for split in data.splits().values():
        for index in range(len(split)):
            ids, targets = split.sequence(index)
            first = int(np.argmax(targets))
            assert targets.tolist() == [False] * first + [True] * (len(ids) - first)
            assert split.target_bytes[index] == len(tokenizer.decode(ids[targets][:-1]).encode())
    assert [len(split) for split in data.splits().values()] == [16, 2, 2]


@pytest.mark.parametrize("make", TOKENIZERS)
def test_training_sees_the_prompt_that_generation_sees(
    tmp_path: Path, make: Callable[[], PreTrainedTokenizerFast]
) -> None:
    tokenizer = make()
    data = _prepare(tmp_path, tokenizer, pairs(20, context="the context"), max_length=400)
    ids, targets = data.validation.sequence(0)
    prompt, reference = data.samples[0]
    assert encode_prompt(tokenizer, prompt) == ids[~targets].tolist()
    assert reference + tokenizer.eos_token == target_texts(data.validation, tokenizer)[0]
    task = TaskSpec(kind="instruction", data="x")
    instruction = prompt.split("\n")[1]
    assert render_prompt(task, tokenizer, instruction, "the context") == prompt


def test_bos_comes_first_where_the_tokenizer_puts_it(tmp_path: Path) -> None:
    data = _prepare(tmp_path, llama_like(), pairs(10), max_length=200)
    firsts = data.train.input_ids[data.train.offsets[:-1]]
    assert set(firsts.tolist()) == {1}
    assert int((data.train.input_ids == 1).sum()) == len(data.train)


def test_chat_template_masks(tmp_path: Path) -> None:
    tokenizer = chat_like()
    data = _prepare(tmp_path, tokenizer, pairs(10), max_length=200, template="chat")
    for text, whole in zip(target_texts(data.train, tokenizer), full_texts(data.train, tokenizer), strict=True):
        assert whole.startswith("<|im_start|>user\nSay ")
        assert text.startswith("It is ")
        assert text.endswith("!<|im_end|>\n")
    assert set(data.train.target_bytes.tolist()) == {len("It is 0!")}


def test_repeated_prompts_stay_together(tmp_path: Path) -> None:
    rows = [row | {"response": f"{reply}"} for row in pairs(10) for reply in range(3)]
    data = _prepare(tmp_path, gpt2_like(), rows)
    assert [len(split) for split in data.splits().values()] == [24, 3, 3]
    assert [len(split.item_names) for split in data.splits().values()] == [8, 1, 1]
    assert data.train.items.tolist() == [item for item in range(8) for _ in range(3)]
    names = [name for split in data.splits().values() for name in split.item_names]
    assert len(set(names)) == 10


def test_given_splits_are_used_whole(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "dev.jsonl", pairs(3))
    data = _prepare(tmp_path, gpt2_like(), pairs(20), splits={"test": "dev.jsonl"})
    # the test file's three prompts are taken out of train and validation, not the other way round
    assert sum(len(split) for split in data.splits().values()) == 20
    assert len(data.test) == 3
    assert any(
        "examples were left out, as their document, tree, prompt, article or text is in" in note for note in data.notes
    )


def _build(
    turns: list[tuple[str, str]], max_length: int, truncation: str = "middle", make: Any = gpt2_like
) -> tuple[TokenSplit, Any]:
    tokenizer = make()
    conversation = Conversation(
        tuple(Turn(role, text, is_target=role == "assistant") for role, text in turns),  # type: ignore[arg-type]
        ("item",),
        "rows.jsonl",
        7,
    )
    template = make_template("{instruction}", tokenizer)
    return Fitter(Encoder(tokenizer), template, max_length, truncation).build([conversation])


def _shape(split: TokenSplit) -> list[str]:
    """Each sequence as text, with its targets in capitals. Single letters: the text has one token a letter."""
    tokenizer = gpt2_like()
    shapes = []
    for index in range(len(split)):
        ids, targets = split.sequence(index)
        letters = ["." if i == tokenizer.eos_token_id else tokenizer.decode([i]) for i in ids]
        shapes.append("".join(x.upper() if t else x for x, t in zip(letters, targets, strict=True)).replace("\n", "-"))
    return shapes


@pytest.mark.parametrize(
    ("prompt", "reply", "max_length", "shape", "cut"),
    [
        ("abcdef", "xyz", 10, "abcdefXYZ.", (0, 0)),
        ("abcdef", "xyz", 9, "abcefXYZ.", (1, 0)),
        ("abcdef", "xyz", 8, "abefXYZ.", (2, 0)),
        ("abcdef", "uvwxyz", 8, "abefUVWX", (2, 3)),
        ("ab", "stuvwxyz", 6, "abSTUV", (0, 5)),
        ("abcdef", "x", 2, "aX", (5, 1)),
    ],
)
def test_the_middle_of_the_prompt_goes_first(
    prompt: str, reply: str, max_length: int, shape: str, cut: tuple[int, int]
) -> None:
    split, cuts = _build([("user", prompt), ("assistant", reply)], max_length)
    assert _shape(split) == [shape]
    assert (cuts.num_context_tokens, cuts.num_target_tokens) == cut
    assert split.target_bytes.tolist() == [sum(letter.isupper() for letter in shape)]


def test_a_long_conversation_becomes_one_sequence_for_each_reply() -> None:
    turns = [("user", "ab"), ("assistant", "x"), ("user", "cd"), ("assistant", "yz")]
    assert _shape(_build(turns, 11)[0]) == ["abX.--cdYZ."]
    split, cuts = _build(turns, 8)
    # the second reply's context is ab x. -- cd, of which 5 tokens fit beside YZ.
    assert _shape(split) == ["abX.", "abxcdYZ."]
    assert cuts.num_divided == 1
    assert split.target_bytes.tolist() == [1, 2]
    assert split.items.tolist() == [0, 0]


@given(st.integers(2, 40), st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=4))
def test_every_reply_keeps_its_start(max_length: int, lengths: list[tuple[int, int]]) -> None:
    """Whatever is cut, each reply has targets, they are its first tokens, and all tokens are accounted for."""
    turns = []
    for number, (asked, replied) in enumerate(lengths):
        turns += [("user", "a" * asked), ("assistant", "pqrs"[number] * replied)]
    split, cuts = _build(turns, max_length)
    assert split.lengths.max() <= max_length
    shapes = "".join(_shape(split))
    for number, (_, replied) in enumerate(lengths):
        assert 1 <= shapes.count("PQRS"[number]) <= replied
    kept = int(split.targets.sum())
    assert kept + cuts.num_target_tokens == sum(replied + 1 for _, replied in lengths)
    assert split.num_target_bytes == sum(shapes.count(letter) for letter in "PQRS")


def test_prompts_of_the_test_split(tmp_path: Path) -> None:
    tokenizer = gpt2_like()
    write_jsonl(tmp_path / "dev.jsonl", pairs(3, context="the context"))
    data = _prepare(tmp_path, tokenizer, pairs(20), max_length=400, splits={"test": "dev.jsonl"})
    assert data.prompts is not None
    assert data.prompts.ids == ("dev.jsonl:1", "dev.jsonl:2", "dev.jsonl:3")
    assert data.prompts.references == tuple((f"It is {number}!",) for number in range(3))
    task = TaskSpec(kind="instruction", data="x")
    for number in range(3):
        written = render_prompt(task, tokenizer, f"Say {number}.", "the context")
        assert data.prompts.prompt(number).tolist() == encode_prompt(tokenizer, written)
        assert data.test.item_names[data.prompts.items[number]] == f"dev.jsonl:{number + 1}"


def test_a_prompt_for_each_reply_that_is_learnt(tmp_path: Path) -> None:
    tokenizer = chat_like()
    said = [("system", "S"), ("user", "a"), ("assistant", " b "), ("user", "c"), ("assistant", "d")]
    messages = [{"role": role, "content": content} for role, content in said]
    write_jsonl(tmp_path / "dev.jsonl", [{"messages": messages}])
    data = _prepare(tmp_path, tokenizer, pairs(9), splits={"test": "dev.jsonl"}, template="chat")
    assert data.prompts is not None
    assert len(data.test) == 1
    assert data.prompts.ids == ("dev.jsonl:1", "dev.jsonl:1 #2")
    assert data.prompts.references == ((" b ",), ("d",))  # as it stands in the data, without the template's marks
    assert data.prompts.items.tolist() == [0, 0]
    first, second = (tokenizer.decode(data.prompts.prompt(number)) for number in range(2))
    assert first == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    assert second == f"{first}b<|im_end|>\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("max_length", "truncation", "prompts"),
    [
        (11, "middle", ["ab", "abx.--cd"]),
        (8, "middle", ["ab", "abxcd"]),  # each as its own sequence has it
        (8, "end", ["ab"]),  # nothing of the second reply is left, so nothing is asked
        (10, "end", ["ab", "abx.--cd"]),
    ],
)
def test_prompts_are_cut_as_their_sequences(max_length: int, truncation: str, prompts: list[str]) -> None:
    turns = [("user", "ab"), ("assistant", "x"), ("user", "cd"), ("assistant", "yz")]
    tokenizer = gpt2_like()
    conversation = Conversation(
        tuple(Turn(role, text, is_target=role == "assistant") for role, text in turns),  # type: ignore[arg-type]
        ("item",),
        "rows.jsonl",
        7,
    )
    builder = PromptBuilder()
    fitter = Fitter(Encoder(tokenizer), make_template("{instruction}", tokenizer), max_length, truncation)
    fitter.build([conversation], builder)
    found = builder.build()
    texts = [tokenizer.decode(found.prompt(number)) for number in range(len(found))]
    assert [text.replace("<|endoftext|>", ".").replace("\n", "-") for text in texts] == prompts
    assert [reference for (reference,) in found.references] == ["x", "yz"][: len(prompts)]


def test_bytes_of_a_reply_that_was_cut() -> None:
    split, _ = _build([("user", "a"), ("assistant", "äöü")], 4, make=llama_like)
    # BOS and the prompt's two tokens leave room for one of the reply's: the space before it, to which ä is counted
    assert split.target_bytes.tolist() == [2]
    split, _ = _build([("user", "a"), ("assistant", "äöü")], 5)
    # a | Ã ¤ Ã ¶: both characters are there
    assert split.target_bytes.tolist() == [4]


def test_end_truncation() -> None:
    split, cuts = _build([("user", "abc"), ("assistant", "x"), ("user", "de"), ("assistant", "yz")], 9, "end")
    assert _shape(split) == ["abcX.--de"]
    assert (cuts.num_context_tokens, cuts.num_target_tokens) == (0, 3)
    with pytest.raises(DataError, match=r"^rows.jsonl, line 7: .*the prompt alone has 3 tokens; raise task.max_length"):
        _build([("user", "abc"), ("assistant", "x")], 3, "end")


def test_refused_truncation() -> None:
    assert len(_build([("user", "abc"), ("assistant", "x")], 5, "error")[0]) == 1
    with pytest.raises(DataError, match=r"1 of 1 examples are longer than max_length 4 tokens \(the longest has 5\)"):
        _build([("user", "abc"), ("assistant", "x")], 4, "error")


def test_cuts_are_told(tmp_path: Path) -> None:
    rows = pairs(10) + [{"instruction": "x" * 200 + str(number), "response": "y"} for number in range(90)]
    data = _prepare(tmp_path, gpt2_like(), rows, max_length=60)
    notes = [note for note in data.notes if "were longer than 60 tokens" in note]
    assert [note.split(":")[0] for note in notes] == ["train", "validation", "test"]
    assert sum(int(note.split()[1]) for note in notes) == 90
    assert data.cautions == (notes[2],)  # what the test split lost is said beside the verdict
    assert all("context tokens from the middle of prompts and 0 target tokens" in note for note in notes)


def test_no_target_token(tmp_path: Path) -> None:
    rows = [*pairs(5), {"instruction": "Say.", "response": ""}]
    with pytest.raises(DataError, match=r"^rows.jsonl, line 6, column response: expected text, found ''$"):
        _prepare(tmp_path, gpt2_like(), rows)


def test_a_prompt_without_a_token() -> None:
    tokenizer = gpt2_like()
    conversation = Conversation((Turn("user", ""), Turn("assistant", "x", is_target=True)), ("i",), "rows.jsonl", 3)
    fitter = Fitter(Encoder(tokenizer), make_template("{instruction}", tokenizer), 9, "middle")
    with pytest.raises(DataError, match=r"line 3: expected a prompt before the reply"):
        fitter.build([conversation])


def test_max_length_above_the_context(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", pairs(10))
    task = TaskSpec(kind="instruction", data="rows.jsonl", max_length=512)
    with pytest.raises(DataError, match="max_length is 512 tokens, but the base model sees 256"):
        prepare(task, gpt2_like(), tmp_path, 256)


def test_settings_without_a_part_are_told(tmp_path: Path) -> None:
    data = _prepare(tmp_path, gpt2_like(), pairs(10), stride=5, columns={"text": "a"})
    assert {note for note in data.notes if "has no part" in note} == {
        "task.columns.text has no part in kind: instruction.",
        "task.stride has no part in kind: instruction.",
    }
    write_jsonl(tmp_path / "text.jsonl", [{"text": str(number)} for number in range(10)])
    texts = run_prepare(tmp_path, gpt2_like(), kind="text", data="text.jsonl", template="chat", truncation="end")
    assert {note for note in texts.notes if "has no part" in note} == {
        "task.template has no part in kind: text.",
        "task.truncation has no part in kind: text.",
    }


def test_the_date_in_a_chat_template_is_told(tmp_path: Path) -> None:
    tokenizer = chat_like()
    tokenizer.chat_template += "{# strftime_now #}"
    data = _prepare(tmp_path, tokenizer, pairs(10), template="chat")
    assert any("date of the day" in note for note in data.notes)
