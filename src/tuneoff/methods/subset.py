"""Trains some of a base's own weights and gives the base back bit for bit: biases, the output head.

Departures from a paper: none.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tuneoff.errors import MethodError
from tuneoff.methods.base import AdaptedModel


@dataclass(frozen=True)
class _Chosen:
    """One weight that is trained, in each module that holds it."""

    places: tuple[tuple[nn.Module, str], ...]
    original: nn.Parameter
    """The base's own, put back whenever the base is asked for."""
    trained: nn.Parameter
    """Its copy in fp32."""


class _Cast(nn.Module):
    """Gives a weight that is trained in fp32 to a layer that computes in another type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight, rounded."""
        return weight.to(self.dtype)


class SubsetModel(AdaptedModel):
    """The base with some of its weights trained, in copies in fp32 that stand in their places; the rest is frozen.

    Args:
        module: the base.
        names: parameters to train.
        unties: whether a weight that other modules share is trained in the named place alone (a tied output head
            becomes a weight of its own, and the embeddings stay as they are).
    """

    can_pack = True

    def __init__(self, module: nn.Module, names: Sequence[str], *, unties: bool = False) -> None:
        super().__init__(module)
        owners: dict[int, list[str]] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            owners.setdefault(id(parameter), []).append(name)
        module.requires_grad_(False)
        self._chosen: dict[str, _Chosen] = {}
        self._is_untied = False
        for name in names:
            original = module.get_parameter(name)
            shared = owners[id(original)]
            if name != shared[0] and not unties:
                continue  # trained under its first name
            places = [name] if unties else shared
            self._is_untied |= len(places) < len(shared)
            wide = original.detach().to(torch.promote_types(original.dtype, torch.float32), copy=True)
            located = tuple(_locate(module, place) for place in places)
            self._chosen[name] = _Chosen(located, original, nn.Parameter(wide))
        self._merged = False
        self._is_aside = False
        self._install()

    def trainable_parameters(self, member: int = 0) -> Mapping[str, nn.Parameter]:
        """Return the chosen weights, by their names in the base."""
        return {name: chosen.trained for name, chosen in self._chosen.items()}

    @contextmanager
    def base_model(self) -> Iterator[nn.Module]:
        """Within the context the base's own weights are back in their places."""
        if self._merged:
            raise MethodError("the trained weights are merged into the base; call unmerge() first")
        if self._is_aside:
            yield self.module
            return
        self._withdraw()
        self._is_aside = True
        try:
            yield self.module
        finally:
            self._is_aside = False
            self._install()

    def merge(self, member: int = 0) -> nn.Module:
        """Put the trained weights, rounded to the base's type, in their places; return the plain model."""
        if not self._merged:
            self._withdraw()
            for chosen in self._chosen.values():
                rounded = chosen.trained.detach().to(chosen.original.dtype)
                _put(chosen, nn.Parameter(rounded, requires_grad=False))
            self._tie(False)
            self._merged = True
        return self.module

    def unmerge(self) -> None:
        """Put the trained weights back."""
        if self._merged:
            self._merged = False
            self._install()

    def remove(self) -> nn.Module:
        """Put the base's own weights back for good."""
        self._withdraw()
        return self.module

    def _install(self) -> None:
        """Put the trained weights in the places of the base's."""
        for chosen in self._chosen.values():
            _put(chosen, chosen.trained)
            if chosen.trained.dtype != chosen.original.dtype:
                for owner, attribute in chosen.places:
                    cast = _Cast(chosen.original.dtype)
                    parametrize.register_parametrization(owner, attribute, cast, unsafe=True)
        self._tie(False)

    def _withdraw(self) -> None:
        """Put the base's own weights back."""
        for chosen in self._chosen.values():
            for owner, attribute in chosen.places:
                if parametrize.is_parametrized(owner, attribute):
                    parametrize.remove_parametrizations(owner, attribute, leave_parametrized=False)
            if chosen.original.device != chosen.trained.device:  # the model was moved while it was out of it
                chosen.original.data = chosen.original.data.to(chosen.trained.device)
            _put(chosen, chosen.original)
        self._tie(True)

    def _tie(self, value: bool) -> None:
        """Say in the configuration what is tied, so that a saved model is read back as it was."""
        if self._is_untied:
            self.module.config.tie_word_embeddings = value  # type: ignore[union-attr]


def _locate(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    owner, _, attribute = name.rpartition(".")
    return module.get_submodule(owner), attribute


def _put(chosen: _Chosen, parameter: nn.Parameter) -> None:
    for owner, attribute in chosen.places:
        setattr(owner, attribute, parameter)
