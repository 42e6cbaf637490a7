"""Methods that choose among the weights that are there: none of them (zero-shot), all, the biases, the output head.

Sources: Ben Zaken et al., 2022, "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
Language-models", arXiv:2106.10199, section 3, for the biases.

Departures from the paper: BitFit there also trains the classifier's new head with the biases; here that is the work of
whoever puts a new head on a model, the same under every method.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from tuneoff.errors import MethodError, UnsupportedError
from tuneoff.methods.base import AdaptedModel, unique_parameters
from tuneoff.methods.heads import head_names
from tuneoff.methods.structure import find_head
from tuneoff.methods.subset import SubsetModel


class FrozenModel(AdaptedModel):
    """The base as it is; nothing is trained."""

    can_pack = True

    def trainable_parameters(self, member: int = 0) -> Mapping[str, nn.Parameter]:
        """Return nothing."""
        return {}


class FullModel(AdaptedModel):
    """The base with every weight trained, in place."""

    can_pack = True

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
        tensors = (*model.parameters(), *model.buffers())
        if any(tensor.is_floating_point() and tensor.dtype != torch.float32 for tensor in tensors):
            model.to(torch.float32)  # tensors without numbers, of which a plan is made, cannot be converted in place
        model.requires_grad_(True)
        return FullModel(model)


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
