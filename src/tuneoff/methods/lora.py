r"""Low-rank adaptation of linear layers, for one run or for a cohort of runs on one frozen base.

Source: Hu et al., 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, section 4.1. Options:
rsLoRA (Kalajdzievski, 2023, arXiv:2312.03732, theorem 3.2), LoRA+ (Hayou et al., 2024, arXiv:2402.12354, section 4),
DoRA (Liu et al., 2024, arXiv:2402.09353).

Departures from the papers: see `lora_layer`. LoRA+'s ratio holds for vectors (DoRA's magnitudes, biases), too, as in
its authors' code and in PEFT.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from tuneoff.errors import MethodError, UnsupportedError
from tuneoff.methods.base import AdaptedModel
from tuneoff.methods.heads import head_names
from tuneoff.methods.lora_layer import LoRALayer, Routing
from tuneoff.methods.subset import SubsetModel
from tuneoff.methods.surgery import AdaptableLayer, features, is_quantised, match_targets, swap
from tuneoff.study.methods import ALL_LINEAR

A_NAME, B_NAME, MAGNITUDE_NAME = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
BASE_BIAS_NAME = "base_layer.bias"
"""Ends of the saved tensors' names, those of PEFT."""


class LoRAModel(AdaptedModel):
    """A model whose matched layers are `LoRALayer`s.

    Args:
        module: the base with the layers in their places.
        layers: by name.
        methods: of each member.
        biases: the base's biases that are trained, none of them as a rule.
    """

    can_pack = True

    def __init__(
        self, module: nn.Module, layers: Mapping[str, LoRALayer], methods: Sequence["LoRA"], biases: SubsetModel
    ) -> None:
        super().__init__(module)
        self.layers = dict(layers)
        self.methods = tuple(methods)
        self.matched = tuple(layers)
        self.num_members = len(methods)
        self._routing = next(iter(layers.values())).routing
        self._biases = biases
        self._merged: int | None = None

    def trainable_parameters(self, member: int = 0) -> Mapping[str, nn.Parameter]:
        """Return A, B and DoRA's magnitude of every matched layer, and the biases that are trained."""
        found = {}
        for name, layer in self.layers.items():
            found[f"{name}.{A_NAME}"] = layer.lora_A[member]
            found[f"{name}.{B_NAME}"] = layer.lora_B[member]
            if layer.magnitude:
                found[f"{name}.{MAGNITUDE_NAME}"] = layer.magnitude[member]
        for name, parameter in self._biases.trainable_parameters().items():
            owner = name.removesuffix(".bias")
            found[f"{owner}.{BASE_BIAS_NAME}" if owner in self.layers else name] = parameter
        return found

    def rate_factors(self, member: int = 0) -> Mapping[str, float]:
        """Return LoRA+'s ratio for B and for vectors, 1 for A."""
        ratio = self.methods[member].lr_ratio
        return {
            name: ratio if name.endswith(B_NAME) or parameter.dim() == 1 else 1.0
            for name, parameter in self.trainable_parameters(member).items()
        }

    @contextmanager
    def member(self, index: int) -> Iterator[nn.Module]:
        """Within the context every row goes through one member."""
        if not 0 <= index < self.num_members:
            raise IndexError(f"member {index} of {self.num_members}")
        before, self._routing.member = self._routing.member, index
        try:
            yield self.module
        finally:
            self._routing.member = before

    @contextmanager
    def base_model(self) -> Iterator[nn.Module]:
        """Within the context the layers pass their input to the base alone, and every bias is the base's own."""
        if self._merged is not None:
            raise MethodError("the update is merged into the base; call unmerge() first")
        before, self._routing.enabled = self._routing.enabled, False
        try:
            with self._biases.base_model():
                yield self.module
        finally:
            self._routing.enabled = before

    def merge(self, member: int = 0) -> nn.Module:
        """Fold a member into the base's weights and return the plain model, in which trained biases stay.

        Merging the same member again changes nothing.

        Raises:
            MethodError: another member is merged, or a weight is quantised (`UnsupportedError`).
        """
        if self._merged == member:
            return self.module
        if self._merged is not None:
            raise MethodError(f"member {self._merged} is merged already; call unmerge() first")
        for layer in self.layers.values():
            layer.check_merge()
        for layer in self.layers.values():
            layer.merge(member)
        swap(self.module, {name: layer.base for name, layer in self.layers.items()})
        self._biases.merge()
        self._merged = member
        return self.module

    def unmerge(self) -> None:
        """Put the base's weights and the LoRA layers back."""
        for layer in self.layers.values():
            layer.unmerge()
        swap(self.module, self.layers)
        self._biases.unmerge()
        self._merged = None

    def remove(self) -> nn.Module:
        """Take the LoRA layers and the trained biases out and return the base."""
        self._biases.remove()
        for layer in self.layers.values():
            layer.unmerge()
        swap(self.module, {name: layer.base for name, layer in self.layers.items()})
        return self.module


@dataclass(frozen=True)
class LoRA:
    """Low-rank adaptation with its hyperparameters fixed.

    Args:
        rank: r, from 1 to min(in_features, out_features) of every matched layer.
        alpha: numerator of the scaling alpha / rank.
        dropout: share of the layer's input that is zeroed on its way to A while training.
        targets: patterns that name the layers (see `surgery`).
        rslora: scale by alpha / sqrt(rank), which keeps the update's size as the rank grows.
        dora: train a magnitude for each output apart from the direction.
        lr_ratio: learning rate of B and of vectors over that of A (LoRA+).
        bias: which of the base's biases are trained too: `none`, `all`, or those of the matched layers (`lora_only`).
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = (ALL_LINEAR,)
    rslora: bool = False
    dora: bool = False
    lr_ratio: float = 1.0
    bias: Literal["none", "all", "lora_only"] = "none"

    @property
    def trains_base(self) -> bool:
        """No: the base is frozen, and biases are trained in copies."""
        return False

    @property
    def scaling(self) -> float:
        """The factor before B A: alpha / rank, of rsLoRA alpha / sqrt(rank)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def adapt(self, model: nn.Module, generator: torch.Generator | Sequence[torch.Generator]) -> LoRAModel:
        """Put this LoRA on `model`, which is frozen and changed in place."""
        generators = [generator] if isinstance(generator, torch.Generator) else list(generator)
        return LoRACohort((self,)).adapt(model, generators)


@dataclass(frozen=True)
class LoRACohort:
    """LoRA runs trained together in one pass over one frozen base.

    Args:
        members: one LoRA for each run. Rank, alpha, rsLoRA and LoRA+'s ratio may differ; the rest may not.

    Raises:
        MethodError: members that differ in targets, dropout, dora or bias, or several that train the base's biases.
    """

    members: tuple[LoRA, ...]

    @property
    def trains_base(self) -> bool:
        """No: the base is frozen."""
        return False

    def __post_init__(self) -> None:
        for name in ("targets", "dropout", "dora", "bias"):
            found = {getattr(member, name) for member in self.members}
            if len(found) != 1:
                raise MethodError(f"the members of a cohort must have one {name}; found {sorted(map(str, found))}")
        if len(self.members) > 1 and self.members[0].bias != "none":
            raise MethodError(
                f"{len(self.members)} runs with bias: {self.members[0].bias} cannot train together: the base's biases "
                "are shared. Train them one at a time, or with bias: none."
            )

    def adapt(self, model: nn.Module, generator: torch.Generator | Sequence[torch.Generator]) -> LoRAModel:
        """Put the cohort on `model`, which is frozen and changed in place."""
        generators = [generator] if isinstance(generator, torch.Generator) else list(generator)
        if len(generators) != len(self.members):
            raise ValueError(f"{len(generators)} generators for {len(self.members)} members")
        matched = match_targets(model, self.members[0].targets)
        _check_ranks(matched, self.members)
        biases = SubsetModel(model, _biases(model, matched, self.members[0].bias))
        routing = Routing()
        layers = {name: LoRALayer(layer, self.members, generators, routing) for name, layer in matched.items()}
        for layer in layers.values():
            layer.train(model.training)
        swap(model, layers)
        return LoRAModel(model, layers, self.members, biases)


def _check_ranks(matched: Mapping[str, AdaptableLayer], members: Sequence[LoRA]) -> None:
    largest = max(member.rank for member in members)
    for name, layer in matched.items():
        num_in, num_out = features(layer)
        if largest > min(num_in, num_out):
            raise MethodError(
                f"rank {largest} is above the size of {name} ({num_in} in, {num_out} out); "
                f"allowed: 1 to {min(num_in, num_out)}. Lower the rank, or leave that layer out of the targets."
            )


def _biases(model: nn.Module, matched: Mapping[str, AdaptableLayer], kind: str) -> list[str]:
    """Return the names of the biases to train, those that PEFT would, but for a classifier's new head.

    Raises:
        UnsupportedError: there are none.
        MethodError: a quantised layer holds its bias in its own type.
    """
    if kind == "none":
        return []
    if any(is_quantised(layer) for layer in matched.values()):
        raise MethodError(f"bias: {kind} cannot be trained on a quantised base. Use bias: none, or quantize: none.")
    heads = tuple(f"{name}." for name in head_names(model))
    everything = (name for name, _ in model.named_parameters(remove_duplicate=False) if f".{name}".endswith(".bias"))
    found = [name for name in everything if not name.startswith(heads)]
    if kind == "lora_only":
        found = [name for name in found if name.removesuffix(".bias") in matched]
    if not found:
        where = "in the matched layers" if kind == "lora_only" else "anywhere"
        raise UnsupportedError(
            f"bias: {kind} finds nothing to train: {type(model).__name__} has no bias {where}. Use bias: none."
        )
    return found
