"""Sequences that stand end to end give the gradients, losses and scores that they give one to a row."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.methods.models import CONFIGS, make_classifier, make_model
from tests.training.helpers import PAD, Recorder, checked_forward, make_labelled, make_loop, make_split, runtime
from transformers import AutoModelForCausalLM, MistralConfig

from tuneoff.evaluation.likelihood import score_split
from tuneoff.methods import AdaptedModel, Bottleneck, Full, LoRA, LoRACohort, Method, PrefixTuning, PromptTuning
from tuneoff.training.attention import attend_packed, attend_written_out
from tuneoff.training.layout import Segment, packed
from tuneoff.training.steps import DeviceBatch, Forward

METHODS: dict[str, Method] = {
    "lora": LoRA(rank=4, dropout=0.1),
    "dora": LoRA(rank=4, dropout=0.1, dora=True),
    "full": Full(),
    "bottleneck": Bottleneck(size=4, dropout=0.1),
}


def adapted_model(method: Method, architecture: str) -> AdaptedModel:
    adapted = method.adapt(make_model(architecture).double(), torch.Generator().manual_seed(1))
    adapted.module.double()
    for parameter in adapted.trainable_parameters().values():  # B of LoRA is zero at the start
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    return adapted


def gradients(adapted: AdaptedModel, *, may_pack: bool, micro_batch: int = 8) -> tuple[dict[str, Any], float]:
    """Return the gradients of an effective batch with dropouts on, and the sum of its NLL."""
    loop = make_loop(
        adapted, [3], [1e-3], make_split(), Recorder(), batch_size=8, micro_batch=micro_batch, may_pack=may_pack
    )
    assert loop.forward.is_packed is may_pack
    adapted.module.train()
    total = sum(float(loop._backward(loop._placed(batches), [50])[0]) for batches in loop._micro_batches(0))
    found = {name: p.grad for name, p in adapted.trainable_parameters().items() if p.grad is not None}
    for parameter in adapted.trainable_parameters().values():
        parameter.grad = None
    return found, total


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_is_that_of_padded_rows(method: str, architecture: str) -> None:
    adapted = adapted_model(METHODS[method], architecture)
    padded, loss = gradients(adapted, may_pack=False)
    for micro_batch in (8, 3):
        grown, found = gradients(adapted, may_pack=True, micro_batch=micro_batch)
        assert found == pytest.approx(loss, rel=1e-12)
        assert grown.keys() == padded.keys()
        for name, gradient in padded.items():
            assert torch.allclose(grown[name], gradient, rtol=1e-9, atol=1e-12 * float(gradient.abs().max())), name


@pytest.mark.parametrize("architecture", CONFIGS)
def test_scores_are_those_of_each_sequence_alone(architecture: str) -> None:
    model, split = make_model(architecture), make_split()
    adapted = Full().adapt(model, torch.Generator())
    model.double()
    forward = checked_forward(adapted, split, runtime())
    assert forward.is_packed
    together = score_split(model, forward, split, runtime(), PAD)
    alone = score_split(model, Forward(model), split, runtime(), PAD, batch_size=1)
    assert np.allclose(together.nll_nats, alone.nll_nats, rtol=1e-12)
    assert together.likelihood.num_target_tokens == split.num_target_tokens


def test_short_sequences_that_are_padded_in_training_are_scored_end_to_end() -> None:
    model, split = make_model("gpt2").double(), make_split()
    adapted = Full().adapt(model, torch.Generator())
    forward = checked_forward(adapted, split, runtime())
    forward.is_packed = False  # as a session does where the mean length is small
    layouts: list[bool] = []
    own = forward.target_nll

    def looked_at(batch: DeviceBatch) -> torch.Tensor:
        layouts.append(batch.layout.is_packed)
        return own(batch)

    forward.target_nll = looked_at  # type: ignore[method-assign]
    together = score_split(model, forward, split, runtime(), PAD)
    assert layouts == [True]
    forward.can_pack = False
    padded = score_split(model, forward, split, runtime(), PAD)
    assert not any(layouts[1:])
    assert np.allclose(together.nll_nats, padded.nll_nats, rtol=1e-12)
    assert together.likelihood.perplexity == pytest.approx(padded.likelihood.perplexity, rel=1e-12)


def test_classes_are_read_at_each_sequences_last_token() -> None:
    model, split = make_classifier("gpt2", 3), make_labelled()
    adapted = Full().adapt(model, torch.Generator())
    model.double()
    forward = checked_forward(adapted, split, runtime())
    assert forward.is_packed
    together = score_split(model, forward, split, runtime(), PAD)
    alone = score_split(model, Forward(model), split, runtime(), PAD, batch_size=1)
    assert together.predictions is not None
    assert alone.predictions is not None
    assert together.predictions.tolist() == alone.predictions.tolist()
    assert np.allclose(together.nll_nats, alone.nll_nats, rtol=1e-12)


def test_a_cohorts_members_stand_in_rows_of_their_own() -> None:
    loras = (LoRA(rank=2, dropout=0.1), LoRA(rank=4, dropout=0.1))
    seeds, rates = (0, 5), (1e-2, 1e-3)
    split, recorders = make_split(), {}
    for may_pack in (False, True):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        adapted = LoRACohort(loras).adapt(make_model("gpt2").double(), generators)
        adapted.module.double()
        recorders[may_pack] = Recorder()
        loop = make_loop(adapted, seeds, rates, split, recorders[may_pack], num_steps=6, may_pack=may_pack)
        assert loop.forward.is_packed is may_pack
        loop.run()
    for member in range(2):
        assert recorders[True].losses(member) == pytest.approx(recorders[False].losses(member), rel=1e-9)


def test_a_window_of_attention_is_never_packed() -> None:
    config = MistralConfig(
        vocab_size=61, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, sliding_window=32,
    )  # fmt: skip
    adapted = Full().adapt(AutoModelForCausalLM.from_config(config), torch.Generator())
    assert not checked_forward(adapted, make_split(), runtime()).is_packed


def test_a_model_that_looks_across_sequences_is_not_packed() -> None:
    model = make_model("gpt2")
    attention = model.transformer.h[0].attn
    attention.register_forward_hook(lambda module, args, output: (output[0].cumsum(dim=1), *output[1:]))
    adapted = Full().adapt(model, torch.Generator())
    assert not checked_forward(adapted, make_split(), runtime()).is_packed


@pytest.mark.parametrize("method", [PromptTuning(3), PrefixTuning(3)])
def test_virtual_tokens_are_never_packed(method: Method) -> None:
    adapted = method.adapt(make_model("gpt2"), torch.Generator())
    assert not checked_forward(adapted, make_split(), runtime()).is_packed


def _inputs(lengths: list[int], rows: int = 1) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shape = (rows, 2, sum(lengths), 3)
    return [torch.randn(shape, generator=draw, dtype=torch.float64, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize("lengths", [[4, 2, 5], [3, 3], [5, 5, 4, 2, 2, 2], [1, 1, 4, 1]])
def test_attention_is_that_of_each_sequence_alone(lengths: list[int]) -> None:
    q, k, v = _inputs(lengths, rows=2)
    layout = packed([lengths] * 2, [0, 0], [list(range(len(lengths)))] * 2)
    found = attend_packed(q, k, v, layout, 0.7)
    parts = zip(*(tensor.split(lengths, dim=2) for tensor in (q, k, v)), strict=True)
    alone = [F.scaled_dot_product_attention(*part, is_causal=True, scale=0.7) for part in parts]
    assert torch.allclose(found, torch.cat(alone, dim=2), atol=1e-12)


def test_attention_with_dropped_weights_has_the_gradient_of_what_it_computes() -> None:
    lengths = [4, 2, 3]
    q, k, v = _inputs(lengths)
    layout = packed([lengths], [0], [[0, 1, 2]])

    def keep(segment: Segment) -> torch.Tensor:
        coin = torch.Generator().manual_seed(segment.slot)
        return torch.rand(2, segment.length, segment.length, generator=coin) > 0.3

    def dropped(*tensors: torch.Tensor) -> torch.Tensor:
        return attend_packed(*tensors, layout, 0.7, keep, 1.25)

    assert torch.autograd.gradcheck(dropped, (q, k, v), atol=1e-8)
    written = []
    for segment, part in zip(
        layout.segments, zip(*(tensor.split(lengths, dim=2) for tensor in (q, k, v)), strict=True), strict=True
    ):
        weights = attend_written_out(part[0], part[1], None, 0.7, torch.float64, is_causal=True)
        written.append((weights * keep(segment) * 1.25) @ part[2])
    assert torch.allclose(dropped(q, k, v), torch.cat(written, dim=2), atol=1e-12)
