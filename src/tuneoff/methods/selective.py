"""Methods that add nothing: no training (zero-shot) and training all the weights.

Departures from a paper: none.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from tuneoff.errors import MethodError
from tuneoff.methods.base import AdaptedModel, unique_parameters


class FrozenModel(AdaptedModel):
    """The base as it is; nothing is trained."""

    def trainable_parameters(self, member: int = 0) -> Mapping[str, nn.Parameter]:
        """Return nothing."""
        return {}


class FullModel(AdaptedModel):
    """The base with every weight trained, in place."""

    def trainable_parameters(self, member: int = 0) -> Mapping[str, nn.Parameter]:
        """Return all parameters; tied ones once."""
        return unique_parameters(self.module)

    @contextmanager
    def base_model(self) -> Iterator[nn.Module]:
        """Refuse.

        The base was overwritten, and holding a second copy of it would double the memory that is measured.
        """
        raise MethodError("full fine-tuning writes over the base; load the base anew to have it back")
        yield  # type: ignore[unreachable]  # what makes this function a generator

    def merge(self, member: int = 0) -> nn.Module:
        """Return the model: its weights are already the plain model's own."""
        return self.module

    def unmerge(self) -> None:
        """Do nothing, as `merge` did nothing."""


class NoTraining:
    """Zero-shot: the base is scored as it is."""

    trains_base = False

    def adapt(self, model: nn.Module, generator: torch.Generator | Sequence[torch.Generator]) -> FrozenModel:
        """Freeze `model`."""
        model.requires_grad_(False)
        return FrozenModel(model)


class Full:
    """Full fine-tuning: all weights are trained, held in fp32."""

    trains_base = True

    def adapt(self, model: nn.Module, generator: torch.Generator | Sequence[torch.Generator]) -> FullModel:
        """Make every parameter of `model` trainable, in fp32 (in bf16 most Adam steps round to nothing)."""
        model.to(torch.float32)
        model.requires_grad_(True)
        return FullModel(model)
