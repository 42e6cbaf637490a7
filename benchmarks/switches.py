"""Every speed-up of training, and how to do without it: the plain computation in its place.

Each switch is a context in which one speed-up is off for models, loops and steps that are made within it. What stands
in is the computation as it is written down: whole logits, attention with its weights written out, one row a sequence.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from tuneoff.training import attention, masks, products
from tuneoff.training.attention import Keep, attend_written_out
from tuneoff.training.layout import Layout, Segment
from tuneoff.training.steps import Forward


@dataclass(frozen=True)
class Switch:
    """One speed-up.

    Attributes:
        title: what it is called in a table.
        instead: what is done where it is off.
        off: a context in which it is off.
        keeps_draws: whether dropout draws the same masks without it.
    """

    title: str
    instead: str
    off: Callable[[], AbstractContextManager[Any]]
    keeps_draws: bool = True


def attend_plainly(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scale: float,
    keep: Keep | None = None,
    factor: float = 1.0,
) -> Tensor:
    """Return what `attend_packed` does, each sequence's weights written out and kept for the backward pass."""
    found = torch.zeros_like(query)
    for one in layout.segments:
        if one.is_padding:
            continue
        inside = (slice(one.row, one.row + 1), slice(None), slice(one.start, one.start + one.length))
        q, k, v = query[inside], key[inside], value[inside]
        weights = attend_written_out(q, k, None, scale, v.dtype, is_causal=True)
        if keep is not None:
            weights = drop_plainly(weights, keep(one)[None], factor)
        found[inside] = weights @ v
    return found


def drop_plainly(x: Tensor, keep: Tensor, factor: float) -> Tensor:
    """Return x where `keep`, times `factor`, and 0 elsewhere; PyTorch keeps what its own backward pass needs."""
    return torch.where(keep, x, 0.0) * factor


def _drawn_by_torch(self: masks.Masks, _segment: Segment, _place: int, threshold: int, *shape: int) -> Tensor:
    """Draw as PyTorch does, from its one generator: masks then depend on the layout."""
    return torch.rand(shape, device=self.device) >= threshold / masks.LEVELS


def _checks_nothing(self: Forward, _input_ids: Tensor) -> bool:
    self.is_short = False
    return False


def _plain_adamw() -> AbstractContextManager[Any]:
    adamw = torch.optim.AdamW

    def made(*args: Any, **options: Any) -> torch.optim.AdamW:
        return adamw(*args, **(options | {"fused": False, "foreach": False}))

    return patch.object(torch.optim, "AdamW", made)


SWITCHES: Mapping[str, Switch] = {
    "packing": Switch(
        "sequences end to end",
        "one row a sequence, padded to the longest",
        lambda: patch.object(Forward, "check_packing", lambda self, sequences: False),
    ),
    "attention": Switch(
        "attention weights made again in the backward pass",
        "written out by sequence and kept",
        lambda: _both(
            patch.object(attention, "attend_packed", attend_plainly),
            patch.object(masks, "attend_packed", attend_plainly),
        ),
    ),
    "head": Switch(
        "the head's loss a few targets at a time",
        "whole logits of all targets, cross-entropy",
        lambda: patch.object(Forward, "_plain_head", lambda self: None),
    ),
    "targets": Switch(
        "logits at target positions alone",
        "the model's own forward, all logits, padded rows",
        lambda: patch.object(Forward, "check", _checks_nothing),
    ),
    "activation": Switch(
        "GELU in one pass",
        "the model's own, in eight",
        lambda: patch("tuneoff.training.activations.fuse_activations", lambda model: None),
    ),
    "drop": Switch(
        "one byte an element kept of a dropout",
        "what PyTorch keeps of where and times",
        lambda: patch.object(masks, "drop", drop_plainly),
    ),
    "draws": Switch(
        "four mask elements a word of SFC64",
        "torch.rand, other masks",
        lambda: patch.object(masks.Masks, "drawn", _drawn_by_torch),
        keeps_draws=False,
    ),
    "products": Switch(
        "bf16 products summed in fp32 on processors without bf16",
        "as PyTorch takes them",
        lambda: _both(
            patch.object(products, "has_bf16_products", lambda: True),
            patch.object(products, "_is_to_be_widened", lambda one, other, num_rows: False),
        ),
    ),
    "optimizer": Switch("AdamW in one pass", "tensor by tensor, operation by operation", _plain_adamw),
}


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Within the context the speed-ups of these names are off."""
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(SWITCHES[name].off())
        yield


@contextmanager
def _both(*contexts: AbstractContextManager[Any]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
