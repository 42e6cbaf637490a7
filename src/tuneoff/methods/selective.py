"""Methods that choose among the weights that are there: none of them (zero-shot), all, the biases, the output head.

Sources: Ben Zaken et al., 2022, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
Language-models", arXiv:2106.10199, section 3, for the biases.

Departures from the paper: BitFit there also trains the classifier's new head with the biases; here that is the work of
whoever puts a new head on a model, the same under every method.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tuneoff.errors import MethodError, UnsupportedError
from tuneoff.methods.base import AdaptedModel, unique_parameters
from tuneoff.methods.heads import head_names
from tuneoff.methods.structure import find_head


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


class BitFit:
    """The bias terms alone: of linear layers and of layer norms, but for a classifier's new head."""

    trains_base = False

    def adapt(self, model: nn.Module, generator: torch.Generator | Sequence[torch.Generator]) -> SubsetModel:
        """Make the biases of `model` trainable and freeze the rest.

        Raises:
            UnsupportedError: the model has no biases (Llama).
        """
        heads = tuple(f"{name}." for name in head_names(model))
        biases = (name for name, _ in model.named_parameters(remove_duplicate=False) if _is_bias(name))
        names = [name for name in biases if not name.startswith(heads)]
        if not names:
            raise UnsupportedError(
                f"{type(model).__name__} has no bias terms, so BitFit has nothing to train (looked for parameters "
                "named bias or *_bias). Use a model with biases, such as GPT-2 or GPT-NeoX, or another method."
            )
        return SubsetModel(model, names)


def _is_bias(name: str) -> bool:
    last = name.rpartition(".")[2]
    return last == "bias" or last.endswith("_bias")


class HeadOnly:
    """The output head alone, on a frozen base.

    A head that shares its weight with the embeddings is trained as a copy of its own: the embeddings stay as they are,
    and the model grows by the copy.
    """

    trains_base = False

    def adapt(self, model: nn.Module, generator: torch.Generator | Sequence[torch.Generator]) -> SubsetModel:
        """Make the head of `model` trainable and freeze the rest.

        Raises:
            UnsupportedError: the head cannot be told.
        """
        name, head = find_head(model)
        adapted = SubsetModel(model, [f"{name}.{key}" for key, _ in head.named_parameters()], unties=True)
        adapted.matched = (name,)
        return adapted
