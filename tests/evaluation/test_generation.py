"""Text does not depend on the batch, and is that of `model.generate` at batch 1 for every strategy without chance."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.models import VOCABULARY, make_model
from torch import nn
from transformers import DynamicCache, GenerationConfig, MistralConfig, MistralForCausalLM, PreTrainedModel

from tuneoff.errors import DataError
from tuneoff.evaluation.generation import check_lengths, generate
from tuneoff.evaluation.texts import Continuation
from tuneoff.study.testing import Decoding, GenerateSpec
from tuneoff.training.models import load_base, load_tokenizer

ENGLISH = [
    "Once upon a time there was a",
    "The cat",
    "Question: Where did the old man leave his boat when the storm came over the hills? Answer:",
    "She looked at him and",
    "No",
    "The captain of the ship had been asleep for an hour when the wind",
    "In the middle of the town stood a house that nobody",
    '"I do not know," said',
    "It was a very cold morning, and the children who lived near the river had gone out to play. The youngest of them",
    "Two and two are",
    "My dear brother, I have read your letter with much pleasure, and",
    "When",
]

SIZES = (1, 5, 16)
NUM_PROMPTS = 17
"""One more than the largest batch, so that a last one follows of one row."""


@dataclass(frozen=True)
class Base:
    """A model with its prompts."""

    model: PreTrainedModel
    prompts: list[list[int]]
    eos_id: int
    context: int
    new_tokens: int = 12

    def write(self, decoding: Decoding, batch_size: int = 4, **options: Any) -> list[list[Continuation]]:
        arguments: dict[str, Any] = {"pad_id": 0, "eos_id": self.eos_id, "seed": 11, "context_length": self.context}
        spec = GenerateSpec(max_new_tokens=self.new_tokens, batch_size=batch_size)
        return generate(self.model, self.prompts, decoding, spec, **(arguments | options))

    def peer(self, prompt: list[int], beams: int = 1) -> list[int]:
        """Return what `model.generate` writes after one prompt alone, up to the end of sequence."""
        ids = torch.tensor([prompt])
        with torch.no_grad():
            out = self.model.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self.new_tokens,
                do_sample=False,
                num_beams=beams,
                pad_token_id=0,
                eos_token_id=self.eos_id,
            )[0, len(prompt) :].tolist()
        return out[: out.index(self.eos_id)] if self.eos_id in out else out


def random_prompts(num: int, seed: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 25, (num,), generator=draw).tolist()
    return [torch.randint(3, VOCABULARY, (length,), generator=draw).tolist() for length in lengths]


@cache
def demo() -> Base:
    tokenizer = load_tokenizer("demo", Path())
    return Base(
        load_base("demo", Path()),
        [tokenizer(text)["input_ids"] for text in (ENGLISH * 2)[:NUM_PROMPTS]],
        eos_id=0,
        context=512,
    )


def common_eos(base: Base) -> Base:
    """Let a token that is often chosen end texts, so that many rows leave the batch early, each at its own time."""
    tokens = [token for samples in base.write(Decoding(), eos_id=None) for token in samples[0].ids]
    return Base(base.model, base.prompts, max(set(tokens), key=tokens.count), base.context)


def random_base(model: nn.Module) -> Base:
    assert isinstance(model, PreTrainedModel)
    with torch.no_grad():  # sharper than at the start of training, where all is nearly a tie
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 12
    return common_eos(Base(model, random_prompts(NUM_PROMPTS, seed=2), eos_id=2, context=64))


def sliding() -> nn.Module:
    """A model whose layers see the last 6 tokens alone."""
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        sliding_window=6,
    )
    return MistralForCausalLM(config).eval()


BASES: dict[str, Callable[[], Base]] = {
    "demo": cache(lambda: common_eos(demo())),
    "gpt2": cache(lambda: random_base(make_model("gpt2"))),
    "llama, grouped queries": cache(lambda: random_base(make_model("llama-untied"))),
    "sliding window": cache(lambda: random_base(sliding())),
}
each_base = pytest.mark.parametrize(
    "base",
    [pytest.param(make, id=name, marks=pytest.mark.slow if name == "demo" else ()) for name, make in BASES.items()],
)


def name(decoding: Decoding) -> str:
    return decoding.name


def ids_of(found: Sequence[Sequence[Continuation]]) -> list[list[tuple[int, ...]]]:
    return [[one.ids for one in samples] for samples in found]


def without_near_ties(found: Sequence[Sequence[Continuation]]) -> list[list[Continuation | None]]:
    """Blank the texts with a near tie, where the batch may tell (and is allowed to)."""
    return [[one if one.num_near_ties == 0 else None for one in samples] for samples in found]


@each_base
def test_greedy_text_does_not_depend_on_the_batch(base: Callable[[], Base]) -> None:
    found = {size: base().write(Decoding(), size) for size in SIZES}
    num_near_ties = sum(one.num_near_ties for samples in found[1] for one in samples)
    # so few that leaving their texts out would hide nothing; and here even those are equal
    assert num_near_ties <= 1
    assert ids_of(found[5]) == ids_of(found[1])
    assert ids_of(found[16]) == ids_of(found[1])
    assert without_near_ties(found[16]) == without_near_ties(found[1])
    assert len({ids_of(found[1])[index][0] for index in range(12)}) > 3


@pytest.mark.reference
@each_base
def test_greedy_text_is_that_of_generate_at_batch_1(base: Callable[[], Base]) -> None:
    own = base()
    found = own.write(Decoding(), 5)
    assert [list(samples[0].ids) for samples in found] == [own.peer(prompt) for prompt in own.prompts]


@pytest.mark.reference
@each_base
@pytest.mark.parametrize("beams", [2, 4])
def test_beams_are_those_of_generate_at_batch_1(base: Callable[[], Base], beams: int) -> None:
    own = replace(base(), prompts=base().prompts[:12])
    wanted = [own.peer(prompt, beams) for prompt in own.prompts]
    for size in (9, 48):
        found = own.write(Decoding(beams=beams), size)
        assert [list(samples[0].ids) for samples in found] == wanted
    assert wanted != [own.peer(prompt) for prompt in own.prompts]


@each_base
@pytest.mark.parametrize("decoding", [Decoding(temperature=0.8, samples=2), Decoding(top_k=8, top_p=0.9)], ids=name)
def test_sampled_text_does_not_depend_on_the_batch(base: Callable[[], Base], decoding: Decoding) -> None:
    found = {size: base().write(decoding, size) for size in SIZES}
    assert ids_of(found[5]) == ids_of(found[1])
    assert ids_of(found[16]) == ids_of(found[1])
    assert [len(samples) for samples in found[1]] == [decoding.samples] * len(base().prompts)
    other = base().write(decoding, 16, seed=12)
    assert ids_of(other) != ids_of(found[16])
    if decoding.samples > 1:
        assert sum(len(set(samples)) > 1 for samples in ids_of(found[1])) > len(found[1]) / 2


def test_a_prompt_twice_has_texts_of_its_own() -> None:
    base = replace(BASES["llama, grouped queries"](), prompts=[[5, 6, 7]] * 6)
    texts = ids_of(base.write(Decoding(temperature=1.0), 32))
    assert len({samples[0] for samples in texts}) > 3


def test_texts_that_end_and_texts_that_are_cut() -> None:
    base = BASES["llama, grouped queries"]()
    found = [samples[0] for samples in base.write(Decoding())]
    for one in found:
        assert base.eos_id not in one.ids
        assert one.ended == (len(one.ids) < base.new_tokens)
    assert 0 < sum(one.ended for one in found) < len(found)
    endless = [samples[0] for samples in base.write(Decoding(), eos_id=None)]
    assert not any(one.ended for one in endless)
    assert {len(one.ids) for one in endless} == {base.new_tokens}


def test_a_text_that_ends_with_the_last_token() -> None:
    base = BASES["llama, grouped queries"]()
    length = next(len(samples[0].ids) for samples in base.write(Decoding()) if samples[0].ended)
    last = replace(base, new_tokens=length + 1).write(Decoding())
    assert any(
        samples[0] == Continuation(samples[0].ids, ended=True) and len(samples[0].ids) == length for samples in last
    )


def test_near_ties_are_counted() -> None:
    model = make_model("gpt2")
    assert isinstance(model, PreTrainedModel)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # every logit is 0
    found = Base(model, [[5, 6], [7]], 2, 64, new_tokens=4).write(Decoding())
    assert [samples[0].num_near_ties for samples in found] == [4, 4]


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(temperature=0.9), Decoding(beams=3)], ids=name)
def test_a_bases_own_generation_settings_do_not_leak_in(decoding: Decoding) -> None:
    base = replace(demo(), prompts=demo().prompts[:3])
    plain = ids_of(base.write(decoding))
    own = base.model.generation_config
    base.model.generation_config = GenerationConfig(
        repetition_penalty=1.8, no_repeat_ngram_size=2, min_new_tokens=9, top_k=2, temperature=3.0, length_penalty=5.0
    )
    try:
        assert ids_of(base.write(decoding)) == plain
        assert base.model.generation_config.repetition_penalty == 1.8
    finally:
        base.model.generation_config = own


@pytest.mark.parametrize("batch_size", [1, 7])
def test_a_prompt_is_read_once_and_finished_rows_leave(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    base = replace(BASES["llama, grouped queries"](), prompts=random_prompts(9, seed=4))
    seen: list[tuple[int, int]] = []
    forward = base.model.forward

    def spy(*arguments: Any, **options: Any) -> Any:
        assert isinstance(options["past_key_values"], DynamicCache)
        seen.append(tuple(options["input_ids"].shape))
        out = forward(*arguments, **options)
        assert out.logits.shape[1] == 1
        return out

    spy.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(base.model, "forward", spy)
    found = base.write(Decoding(temperature=0.7, samples=7), batch_size)
    flat = [one for samples in found for one in samples]
    assert len({len(one.ids) for one in flat}) > 3
    # a text's first token comes from reading its prompt; each further one, or its end, takes one row of a forward
    num_steps = sum(min(len(one.ids) + one.ended, base.new_tokens) - 1 for one in flat)
    # before all that, slots are tried out on two beginnings: read in two pieces, gone on with, and each read alone
    num_tried = 2 + 2 + 2 + 1 + 1
    assert sum(rows for rows, _ in seen) == num_tried + len(base.prompts) + num_steps
    assert max(rows for rows, length in seen if length == 1) == max(batch_size, 2)


@pytest.mark.reference
def test_in_bf16_text_is_that_of_generate_in_bf16() -> None:
    base = BASES["llama, grouped queries"]()
    autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
    found = base.write(Decoding(), 1, autocast=autocast)
    with autocast():
        wanted = [base.peer(prompt) for prompt in base.prompts]
    assert [list(samples[0].ids) for samples in found] == wanted
    assert wanted != [base.peer(prompt) for prompt in base.prompts]


class TestPromptsThatDoNotFit:
    def test_refused_before_anything_is_generated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        base = demo()
        monkeypatch.setattr(base.model, "forward", lambda *_, **__: pytest.fail("something was generated"))
        long = replace(base, prompts=[[5], [5] * 501, [5] * 505])
        message = (
            r"prompt 3 has 505 tokens; with 12 new ones that is more than the 512 that the model sees in all "
            r"\(2 of 3 prompts have above 500\)\. Lower task\.max_length or generate\.max_new_tokens"
        )
        with pytest.raises(DataError, match=message):
            long.write(Decoding())

    def test_virtual_tokens_take_room(self) -> None:
        check = partial(check_lengths, [400], GenerateSpec(max_new_tokens=100))
        check(512)
        check(512, 12)
        check(None, 1000)
        with pytest.raises(DataError, match="with 100 new ones and 13 virtual tokens"):
            check(512, 13)

    def test_nothing_to_go_on_from(self) -> None:
        with pytest.raises(DataError, match="prompt 2 has no tokens"):
            check_lengths([3, 0], GenerateSpec(), None)

    def test_no_prompts(self) -> None:
        assert replace(demo(), prompts=[]).write(Decoding()) == []


def test_the_context_can_be_filled() -> None:
    full = replace(BASES["gpt2"](), prompts=[[5] * 52]).write(Decoding(), eos_id=None)
    assert len(full[0][0].ids) == 12
