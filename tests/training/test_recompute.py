"""Gradient checkpointing: the same gradients and the same dropout masks, whatever is worked out twice."""

import pytest
import torch
from tests.methods.models import make_model
from tests.training.helpers import Recorder, make_loop, make_split
from torch import nn

from tuneoff.errors import UnsupportedError
from tuneoff.methods import Bottleneck, Full, LoRA, Method, PromptTuning
from tuneoff.training.recompute import recompute_activations


def gradients(method: Method, architecture: str, *, recompute: bool) -> tuple[dict[str, torch.Tensor], int]:
    """Return the gradients of one effective batch with dropouts on, and how often the first block's MLP ran."""
    model = make_model(architecture)
    if recompute:
        recompute_activations(model)
    adapted = method.adapt(model, torch.Generator().manual_seed(0))
    for parameter in adapted.trainable_parameters().values():  # B is zero at the start, and A then has no gradient
        parameter.data += 0.01
    loop = make_loop(adapted, [0], [1e-3], make_split(), Recorder(), micro_batch=3)
    calls = []
    blocks = model.transformer.h if architecture == "gpt2" else model.model.layers
    blocks[0].mlp.register_forward_pre_hook(lambda *args: calls.append(1))
    model.train()
    for batches in loop._micro_batches(0):
        loop._backward(loop._placed(batches), [50])
    grown = {name: p.grad for name, p in adapted.trainable_parameters().items() if p.grad is not None}
    return grown, len(calls)


@pytest.mark.parametrize("architecture", ["gpt2", "llama-untied"])
@pytest.mark.parametrize(
    "method",
    [Full(), LoRA(rank=2, dropout=0.2), Bottleneck("houlsby", size=4, dropout=0.2), PromptTuning(5)],
    ids=["full", "lora", "bottleneck", "prompt"],
)
def test_gradients_are_the_same_bits_with_dropout(method: Method, architecture: str) -> None:
    kept, num_once = gradients(method, architecture, recompute=False)
    again, num_twice = gradients(method, architecture, recompute=True)
    assert num_twice == 2 * num_once
    assert kept.keys() == again.keys()
    for name, gradient in kept.items():
        assert torch.equal(gradient, again[name]), name


def test_a_model_that_does_not_know_it_is_said_so() -> None:
    with pytest.raises(UnsupportedError, match="does not know gradient checkpointing"):
        recompute_activations(nn.Linear(2, 2))
