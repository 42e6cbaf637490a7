"""The seam between methods and all above them: a method adapts a model, and the loop sees only the result.

What is trained is known by identity, as the parameters that the adapted model returns, never by a substring of a name.
A method holds one or more *members*: runs that share one frozen base (a cohort). One member is the ordinary case.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from tuneoff.errors import MethodError


class AdaptedModel(ABC):
    """A model together with what a method added to it or chose from it.

    Attributes:
        module: the model to call; the one that was given, changed in place.
        matched: names of the modules that were adapted; empty where the method adapts none in particular.
        num_members: runs that share the base.
        num_virtual_tokens: positions that the method puts before every text; callers never see them, but text and
            they must fit the model's context together.
        can_pack: whether all that the method added works position by position, so that sequences may stand end to end.
    """

    module: nn.Module
    matched: tuple[str, ...] = ()
    num_members: int = 1
    num_virtual_tokens: int = 0
    can_pack: bool = False

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    @abstractmethod
    def trainable_parameters(self, member: int = 0) -> Mapping[str, nn.Parameter]:
        """Return what a member trains, by the name under which `state_dict` saves it; shared storage once."""

    def rate_factors(self, member: int = 0) -> Mapping[str, float]:
        """Return each trainable parameter's share of the learning rate, by name: 1 unless the method says otherwise."""
        return dict.fromkeys(self.trainable_parameters(member), 1.0)

    def state_dict(self, member: int = 0) -> dict[str, Tensor]:
        """Return a member's trained tensors (detached, not copied).

        What the method added, or all weights where it trains them.
        """
        return {name: parameter.detach() for name, parameter in self.trainable_parameters(member).items()}

    def load_state_dict(self, state: Mapping[str, Tensor], member: int = 0) -> None:
        """Copy saved tensors into a member.

        Raises:
            MethodError: a tensor is missing, is not known, or has another shape.
        """
        own = self.trainable_parameters(member)
        check_same_names(own, state)
        copy_tensors(own, state)

    @contextmanager
    def member(self, index: int) -> Iterator[nn.Module]:
        """Within the context every row goes through one member (a cohort gives each member its own rows otherwise)."""
        if index:
            raise IndexError(f"member {index} of a model that holds one")
        yield self.module

    @contextmanager
    def base_model(self) -> Iterator[nn.Module]:
        """Within the context the module is the base again, bit for bit.

        Raises:
            MethodError: the method overwrote the base.
        """
        yield self.module

    def before_training(self, num_steps: int) -> None:  # noqa: B027  # most methods have nothing to do here
        """Learn how many optimizer steps there will be; called once, also before a resumed run goes on."""

    def after_optimizer_step(self, step: int, num_steps: int) -> None:  # noqa: B027  # nor here
        """Do what the method does between steps; the gradients that were applied are still there.

        Called for each member that made a step; methods that do something here have one.

        Args:
            step: optimizer steps done, from 1.
            num_steps: of the whole run.
        """

    def extra_loss(self, member: int = 0) -> Tensor | None:
        """Return what the method adds to the loss of an optimizer step, once however it is cut up; or nothing."""
        return None

    def training_state(self, member: int = 0) -> dict[str, Tensor]:
        """Return what a resumed run needs beside the weights."""
        return {}

    def load_training_state(self, state: Mapping[str, Tensor], member: int = 0) -> None:  # noqa: B027  # nor here
        """Put back what `training_state` gave."""

    def merge(self, member: int = 0) -> nn.Module:
        """Fold a member into the base's own weights, in place, and return the plain model.

        Raises:
            MethodError: the method has nothing that could be folded into weights.
        """
        raise MethodError(f"{type(self).__name__} has nothing to merge")

    def unmerge(self) -> None:
        """Undo `merge`, bit for bit."""
        raise MethodError(f"{type(self).__name__} has nothing to unmerge")

    def remove(self) -> nn.Module:
        """Take out what was added and return the base, bit for bit."""
        with self.base_model() as module:
            return module


class Method(Protocol):
    """A way to fine-tune, with its hyperparameters fixed."""

    @property
    def trains_base(self) -> bool:
        """Whether the base's own weights are trained (they are then held in fp32, whatever the compute type)."""

    def adapt(self, model: nn.Module, generator: torch.Generator | Sequence[torch.Generator]) -> AdaptedModel:
        """Adapt `model` in place.

        Args:
            model: a causal language model; on the meta device shapes alone are made.
            generator: draws the starting values of what is added, on the CPU; one for each member.

        Raises:
            MethodError: the model cannot take the method (targets that match nothing, a rank out of range).
        """


def one_generator(generator: torch.Generator | Sequence[torch.Generator]) -> torch.Generator:
    """Return the generator of a method that has one member.

    Raises:
        ValueError: there are more.
    """
    if isinstance(generator, torch.Generator):
        return generator
    if len(generator) != 1:
        raise ValueError(f"{len(generator)} generators for one member")
    return generator[0]


def check_same_names(own: Mapping[str, object], given: Mapping[str, object]) -> None:
    """Refuse a saved state whose names are not exactly the model's own."""
    missing = [name for name in own if name not in given]
    unknown = [name for name in given if name not in own]
    if missing or unknown:
        parts = [f"missing {len(missing)} tensors ({', '.join(missing[:3])})"] if missing else []
        parts += [f"unknown {len(unknown)} tensors ({', '.join(unknown[:3])})"] if unknown else []
        raise MethodError(f"the saved weights are not of this model and method: {'; '.join(parts)}")


@torch.no_grad()
def copy_tensors(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Copy tensors into those of the same name.

    Raises:
        MethodError: another shape.
    """
    for name, tensor in own.items():
        if tensor.shape != given[name].shape:
            found, wanted = tuple(given[name].shape), tuple(tensor.shape)
            raise MethodError(f"{name}: the saved tensor has shape {found}; this model's has {wanted}")
        tensor.copy_(given[name])


def unique_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the module's parameters by name, storage that is shared (tied embeddings) once, under its first name."""
    return dict(module.named_parameters(remove_duplicate=True))


def empty_linear(num_in: int, num_out: int, device: torch.device) -> nn.Linear:
    """Return a linear layer whose weights are not drawn yet, so that PyTorch's own generator is left alone."""
    layer = nn.Linear(num_in, num_out, device="meta")
    layer.weight = nn.Parameter(torch.empty_like(layer.weight, device=device))
    layer.bias = nn.Parameter(torch.empty_like(layer.bias, device=device))
    return layer


def is_quantised(layer: nn.Module) -> bool:
    """Whether a linear layer's weight is held in integers of few bits: nothing can be added to it exactly."""
    return isinstance(layer, nn.Linear) and not layer.weight.is_floating_point()


def num_parameters(module: nn.Module) -> int:
    """Return the number of parameters, those that share storage once; of a quantised weight, those it stands for."""
    held = sum(parameter.numel() for parameter in unique_parameters(module).values())
    quantised = [layer for layer in module.modules() if isinstance(layer, nn.Linear) and is_quantised(layer)]
    return held + sum(layer.in_features * layer.out_features - layer.weight.numel() for layer in quantised)
