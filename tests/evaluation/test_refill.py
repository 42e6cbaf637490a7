"""All strategies in one pass write what each writes alone in left-padded batches, whatever the model and the batch."""

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.evaluation.test_generation import BASES, Base, ids_of, sliding
from tests.methods.models import VOCABULARY, make_model
from torch import nn
from transformers import AutoModelForCausalLM, GPTNeoConfig, PreTrainedModel

from tuneoff.evaluation import generation, refill
from tuneoff.evaluation.cached_forward import CachedForward
from tuneoff.evaluation.decoding import Chooser
from tuneoff.evaluation.generation import Wrote, generate_each
from tuneoff.evaluation.reading import batches
from tuneoff.evaluation.refill import can_refill
from tuneoff.methods.bottleneck import Bottleneck
from tuneoff.methods.lora import LoRA
from tuneoff.methods.soft_prompt import PrefixTuning, PromptTuning
from tuneoff.study.testing import Decoding, GenerateSpec

STRATEGIES = (
    Decoding(),
    Decoding(temperature=0.8, samples=3),
    Decoding(top_k=8, samples=2),
    Decoding(beams=2),
    Decoding(top_p=0.9),
)
METHODS: dict[str, Callable[[], Any]] = {
    "lora": lambda: LoRA(rank=2, alpha=8, targets=("all-linear",)),
    "bottleneck": lambda: Bottleneck(size=4),
    "prompt": lambda: PromptTuning(5),
    "prefix": lambda: PrefixTuning(5),
}


def questions(seed: int = 3) -> list[list[int]]:
    """Return prompts of which most begin like others, in no order."""
    draw = torch.Generator().manual_seed(seed)

    def text(least: int, most: int) -> list[int]:
        length = int(torch.randint(least, most, (1,), generator=draw))
        return torch.randint(3, VOCABULARY, (length,), generator=draw).tolist()

    paragraphs = [text(16, 30) for _ in range(4)]
    found = [paragraphs[index % 4] + text(1, 8) for index in range(8)] + [text(1, 20) for _ in range(3)]
    return [found[index] for index in torch.randperm(len(found), generator=draw).tolist()]


def write(
    base: Base, prompts: list[list[int]], batch_size: int, decodings: Any = STRATEGIES, **options: Any
) -> list[Wrote]:
    spec = GenerateSpec(max_new_tokens=base.new_tokens, batch_size=batch_size)
    arguments: dict[str, Any] = {"pad_id": 0, "eos_id": base.eos_id, "seed": 11, "context_length": base.context}
    return generate_each(base.model, prompts, decodings, spec, **(arguments | options))


def padded(base: Base, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[Wrote]:
    """Write one strategy after the other, in left-padded batches."""
    with monkeypatch.context() as patched:
        patched.setattr(generation, "can_refill", lambda *_: False)
        return write(base, prompts, 8, **options)


def sharp(model: nn.Module) -> Base:
    assert isinstance(model, PreTrainedModel)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= 12
    base = Base(model, questions(), 2, 64)
    tokens = [token for samples in write(base, base.prompts, 8, [Decoding()])[0].texts for token in samples[0].ids]
    return Base(model, questions(), max(set(tokens), key=tokens.count), 64)


@pytest.mark.parametrize(
    ("name", "has_end"),
    [("gpt2", True), ("llama, grouped queries", True), ("sliding window", True), ("llama, grouped queries", False)],
)
def test_all_strategies_at_once(name: str, has_end: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    base, prompts = BASES[name](), questions()
    options: dict[str, Any] = {} if has_end else {"eos_id": None}
    wanted = padded(base, prompts, monkeypatch, **options)
    for batch_size in (3, 64):
        found = write(base, prompts, batch_size, **options)
        assert [ids_of(own.texts) for own in found] == [ids_of(own.texts) for own in wanted]
        assert [own.texts for own in found] == [own.texts for own in wanted]
    lengths = {len(one.ids) for own in wanted for samples in own.texts for one in samples}
    assert len(lengths) > 5 if has_end else lengths == {base.new_tokens}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["gpt2", "llama-untied"])
def test_methods(method: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(name)
    adapted = METHODS[method]().adapt(model, torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():  # a method that has learnt something
        for parameter in adapted.trainable_parameters().values():
            parameter += torch.randn(parameter.shape, generator=draw) * 0.1
    base = sharp(adapted.module)
    options: dict[str, Any] = {"num_virtual_tokens": adapted.num_virtual_tokens}
    assert can_refill(CachedForward(base.model, 0), base.prompts)
    options["decodings"] = (Decoding(), Decoding(temperature=0.8, samples=2))
    found = write(base, base.prompts, 6, **options)
    assert [own.texts for own in found] == [own.texts for own in padded(base, base.prompts, monkeypatch, **options)]
    with adapted.base_model():  # there are no virtual tokens then, whatever the caller says
        without = write(base, base.prompts, 6, **options)
        assert [own.texts for own in without] == [
            own.texts for own in padded(base, base.prompts, monkeypatch, **options)
        ]
    assert ids_of(without[0].texts) != ids_of(found[0].texts)


def test_models_that_drop_keys_are_not_refilled() -> None:
    prompts = questions()
    assert not can_refill(CachedForward(sliding(), 0), prompts)
    assert can_refill(CachedForward(make_model("gpt2"), 0), prompts)
    assert not can_refill(CachedForward(make_model("gpt2"), 0), [[5, 6, 7]])


def test_a_window_that_is_counted_in_columns_is_not_refilled() -> None:
    """GPT-Neo's is, and is longer than what slots are tried out on."""
    config = GPTNeoConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_layers=2, num_heads=2, attention_types=[[["global", "local"], 1]],
        window_size=32, max_position_embeddings=64,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval()
    assert not can_refill(CachedForward(model, 0), questions())


def test_a_model_that_is_tried_out_and_differs_is_not_refilled(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that counts tokens by the width of the mask would take columns without a token for tokens."""
    model = make_model("gpt2")
    forward = model.forward

    def counting(*args: Any, **options: Any) -> Any:
        mask, ids = options["attention_mask"], options["input_ids"]
        width = torch.arange(mask.shape[1]) - (mask.cumsum(1) == 0).sum(1, keepdim=True)
        options["position_ids"] = width[:, -ids.shape[1] :].clamp(min=0)
        return forward(*args, **options)

    counting.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    model.forward = counting  # type: ignore[method-assign]
    assert not can_refill(CachedForward(model, 0), questions())


def test_time_is_shared_out_in_full_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by 1 a row in a forward, and by 1,000 in choosing tokens of the third strategy."""
    base, ticks = BASES["llama, grouped queries"](), [0.0]
    forward, choose = base.model.forward, Chooser.choose
    decodings = (Decoding(), Decoding(temperature=0.8, samples=3), Decoding(top_p=0.9))

    def ticking(*args: Any, **options: Any) -> Any:
        ticks[0] += len(options["input_ids"])
        return forward(*args, **options)

    def choosing(self: Chooser, *args: Any) -> Any:
        ticks[0] += 1000.0 * (self._nucleus is not None)
        return choose(self, *args)

    ticking.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    monkeypatch.setattr(base.model, "forward", ticking)
    monkeypatch.setattr(Chooser, "choose", choosing)
    monkeypatch.setattr(refill, "time", SimpleNamespace(perf_counter=lambda: ticks[0]))
    monkeypatch.setattr(generation, "can_refill", lambda *_: True)
    prompts = questions()
    found = write(base, prompts, 8, decodings)
    assert sum(own.seconds for own in found) == pytest.approx(ticks[0])
    # reading takes a row for each prompt, of which each strategy bears a third, and one for each shared beginning
    num_read = sum(len(group.prompts) for batch in batches(prompts, 8) for group in batch)
    num_read += sum(group.shared > 0 for batch in batches(prompts, 8) for group in batch)
    for own, extra in zip(found, (0, 0, 1000), strict=True):
        flat = [one for samples in own.texts for one in samples]
        num_steps = sum(min(len(one.ids) + one.ended, base.new_tokens) - 1 for one in flat)
        assert own.seconds % 1000 == pytest.approx(num_read / 3 + num_steps)
        assert (own.seconds >= 1000) == bool(extra)
