"""PEFT's models on the same small bases, and how far two tensors are apart."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from tests.methods.models import make_model
from tests.training.helpers import adapt
from torch import nn

from tuneoff.data.batching import BatchSequence
from tuneoff.data.tokens import TokenSplit
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


def bare_loop(
    model: nn.Module,
    split: TokenSplit,
    seed: int,
    rate: float,
    num_steps: int,
    *,
    has_own_loss: bool = False,
    clip: float | None = None,
) -> list[float]:
    """Train PEFT's model in a loop as people write it (padded, labels with -100) and return the losses.

    With `has_own_loss` the loss is what the model gives: with a method's regulariser, and rounded to fp32.
    """
    order = BatchSequence(len(split), 8, seed)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    losses = []
    for step in range(num_steps):
        indices = order.indices(step)
        longest = max(int(split.offsets[i + 1] - split.offsets[i]) for i in indices)
        ids, mask = torch.zeros(8, longest, dtype=torch.long), torch.zeros(8, longest, dtype=torch.long)
        labels = torch.full((8, longest), -100)
        for row, index in enumerate(indices):
            tokens, targets = split.sequence(index)
            ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.from_numpy(tokens.astype(np.int64)), 1
            labels[row, : len(tokens)] = torch.from_numpy(np.where(targets, tokens, -100).astype(np.int64))
        out = model(input_ids=ids, attention_mask=mask, labels=labels)
        plain = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        loss = out.loss if has_own_loss else plain
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        losses.append(loss.item())
    return losses
