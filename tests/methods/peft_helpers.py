"""PEFT's models on the same small bases, and how far two tensors are apart."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tests.methods.models import make_model
from tests.training.helpers import adapt
from torch import nn

from tuneoff.methods import LoRA
from tuneoff.methods.lora import LoRAModel

BOUND = 1e-6
"""Of the largest value: the same products, the scaling applied at another place."""
EXACT = 1e-12
"""The same in float64."""


@contextmanager
def peft_warnings() -> Iterator[None]:
    """PEFT warns of Conv1D and of tied weights; neither is about what is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    return float((first - second).detach().abs().max() / second.detach().abs().max())


def lora_pair(lora: LoRA, architecture: str) -> tuple[LoRAModel, nn.Module, dict[str, nn.Parameter]]:
    """Return ours, theirs with our starting values, and their parameters under our names."""
    from peft import LoraConfig, get_peft_model

    ours = adapt([lora], [0], architecture)
    assert isinstance(ours, LoRAModel)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        bias=lora.bias,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    with peft_warnings():
        theirs: nn.Module = get_peft_model(make_model(architecture), config)
    found = {
        name.removeprefix("base_model.model.")
        .replace("lora_magnitude_vector.default.weight", "lora_magnitude_vector")
        .replace(".default", ""): parameter
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad
    }
    assert found.keys() == ours.trainable_parameters().keys()
    for name, parameter in ours.trainable_parameters().items():
        found[name].data.copy_(parameter.data)
    return ours, theirs.eval(), found


def move(ours: LoRAModel, found: dict[str, nn.Parameter]) -> None:
    """Draw new values for every trained tensor around its old ones, ours and theirs alike.

    At the start B is zero, and the gradient of A with it.
    """
    draw = torch.Generator().manual_seed(3)
    for name, parameter in ours.trainable_parameters().items():
        parameter.data.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
        found[name].data.copy_(parameter.data)
