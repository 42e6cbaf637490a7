"""Gradient checkpointing: activations are worked out again in the backward pass instead of being kept.

Chen et al., 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174, as Transformers' blocks do it. The
second forward draws the dropout masks of the first one: `masks` numbers the dropouts of a forward, so each block goes
back to the number at which it began.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn

from tuneoff.errors import UnsupportedError
from tuneoff.training.masks import current_masks
from tuneoff.training.products import current_products


def recompute_activations(model: nn.Module) -> None:
    """Switch gradient checkpointing on, in place; scoring and generation do without it of themselves.

    Raises:
        UnsupportedError: a model whose blocks do not know it.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise UnsupportedError(
            f"{type(model).__name__} does not know gradient checkpointing. Leave gradient_checkpointing out."
        )
    # Named anew within version 5 of Transformers; both names take the same first argument.
    names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
    switch_on: Any = next(getattr(model, name) for name in names if hasattr(model, name))
    switch_on({"use_reentrant": False, "context_fn": _contexts})


def _contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """Return what a block's first and second forward run within.

    The second may run in another thread, that of the backward pass.
    """
    masks = current_masks()
    return nullcontext(), _both(nullcontext() if masks is None else masks.from_place(masks.place), current_products())


@contextmanager
def _both(masks: AbstractContextManager[Any], products: AbstractContextManager[Any]) -> Iterator[None]:
    with masks, products:
        yield
