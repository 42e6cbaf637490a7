"""The new head of a classifier: trained under every method, saved with it, and put back with the base.

A sequence classifier is a pretrained trunk and a head that starts at random. What a method leaves frozen is the trunk;
a frozen random head would measure nothing (Houlsby et al., 2019, arXiv:1902.00751, section 2.1, train it too, and so
does PEFT with `modules_to_save`).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tuneoff.errors import MethodError
from tuneoff.methods.base import AdaptedModel, check_same_names, copy_tensors
from tuneoff.methods.subset import SubsetModel

CLASSIFIER = "ForSequenceClassification"


def is_classifier(model: nn.Module) -> bool:
    """Whether a model gives class logits and not those of a vocabulary."""
    return type(model).__name__.endswith(CLASSIFIER)


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of a classifier's modules outside its trunk that hold parameters; none of other models."""
    if not is_classifier(model):
        return ()
    trunk = str(getattr(model, "base_model_prefix", ""))
    children = ((name, module) for name, module in model.named_children() if name != trunk)
    return tuple(name for name, module in children if any(True for _ in module.parameters()))


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a classifier's head by name; none of other models."""
    parts = (model.get_submodule(name).named_parameters(prefix=name) for name in head_names(model))
    return {name: parameter for part in parts for name, parameter in part}


@torch.no_grad()
def draw_head(model: nn.Module, generator: torch.Generator) -> None:
    """Draw a classifier's head anew: matrices from a normal of the model's own spread, vectors zero.

    Args:
        model: a sequence classifier; nothing happens to other models.
        generator: on the CPU, so that every method and device start from the same head.
    """
    spread = float(getattr(getattr(model, "config", None), "initializer_range", 0.02) or 0.02)
    for parameter in head_parameters(model).values():
        values = torch.zeros(parameter.shape)
        if parameter.dim() > 1:
            values.normal_(0.0, spread, generator=generator)
        parameter.copy_(values)


def train_head(adapted: AdaptedModel) -> AdaptedModel:
    """Return an adapted classifier whose head is trained too, or what was given where that is no matter.

    Raises:
        MethodError: a cohort, whose members would need a head each, or a method that was put on the head itself.
    """
    trained = {id(parameter) for parameter in adapted.trainable_parameters().values()}
    head = {id(parameter) for parameter in head_parameters(adapted.module).values()}
    if not trained or head <= trained:
        return adapted
    if head & trained:
        names = ", ".join(map(repr, head_names(adapted.module)))
        raise MethodError(
            f"the classification head {names} is trained whole under every method. Leave it out of what the method "
            "adapts (targets; target_modules and modules_to_save of PEFT)."
        )
    if adapted.num_members > 1:
        raise MethodError("classification runs are trained one at a time: each needs a head of its own")
    return HeadedModel(adapted)


class HeadedModel(AdaptedModel):
    """An adapted model whose classification head is trained with it, in fp32 copies that stand in the head's places.

    Args:
        inner: what the method made of the classifier; it trains nothing of the head.
    """

    def __init__(self, inner: AdaptedModel) -> None:
        super().__init__(inner.module)
        self.inner = inner
        self.matched = inner.matched
        self.num_virtual_tokens = inner.num_virtual_tokens
        self.can_pack = inner.can_pack
        self.head = SubsetModel(inner.module, tuple(head_parameters(inner.module)))
        for parameter in inner.trainable_parameters().values():
            parameter.requires_grad_(True)  # the line before froze all that is not the head

    @property
    def head_name(self) -> str:
        """Name of the module that is the head, such as `score`."""
        (name,) = head_names(self.module)
        return name

    def trainable_parameters(self, member: int = 0) -> Mapping[str, nn.Parameter]:
        """Return what the method trains, and the head."""
        return {**self.inner.trainable_parameters(member), **self.head.trainable_parameters()}

    def rate_factors(self, member: int = 0) -> Mapping[str, float]:
        """Return what the method says; the head has the plain rate."""
        return {**self.inner.rate_factors(member), **self.head.rate_factors()}

    def state_dict(self, member: int = 0) -> dict[str, Tensor]:
        """Return what the method keeps, and the head."""
        return self.inner.state_dict(member) | self.head.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor], member: int = 0) -> None:
        """Copy saved tensors into the method and the head."""
        own = self.state_dict(member)
        check_same_names(own, state)
        copy_tensors(own, state)

    @contextmanager
    def base_model(self) -> Iterator[nn.Module]:
        """Within the context the trunk is the base's and the head is as it started."""
        with self.inner.base_model() as module, self.head.base_model():
            yield module

    def before_training(self, num_steps: int) -> None:
        """Tell the method how many steps there will be."""
        self.inner.before_training(num_steps)

    def after_optimizer_step(self, step: int, num_steps: int) -> None:
        """Let the method do what it does between steps."""
        self.inner.after_optimizer_step(step, num_steps)

    def extra_loss(self, member: int = 0) -> Tensor | None:
        """Return what the method adds to the loss."""
        return self.inner.extra_loss(member)

    def training_state(self, member: int = 0) -> dict[str, Tensor]:
        """Return what the method needs to go on."""
        return self.inner.training_state(member)

    def load_training_state(self, state: Mapping[str, Tensor], member: int = 0) -> None:
        """Put back what the method needs to go on."""
        self.inner.load_training_state(state, member)

    def merge(self, member: int = 0) -> nn.Module:
        """Fold the method into the trunk's weights, and put the trained head in its place."""
        self.inner.merge(member)
        return self.head.merge()

    def unmerge(self) -> None:
        """Undo `merge`, bit for bit."""
        self.head.unmerge()
        self.inner.unmerge()

    def remove(self) -> nn.Module:
        """Take out what the method added, and put the head back to where it started."""
        self.head.remove()
        return self.inner.remove()
