r"""Low-rank adaptation of linear layers, for one run or for a cohort of runs on one frozen base.

Source: Hu et al., 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, section 4.1.

Departures from the paper: A is drawn Kaiming-uniform with a = sqrt(5), as the authors' code and PEFT do, where the
paper draws it from a Gaussian; the scaling is applied between A and B, where the tensor is smallest.

Shapes: R rows (sequences), T positions, K members, r rank.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tuneoff.errors import MethodError
from tuneoff.methods.base import AdaptedModel
from tuneoff.methods.surgery import AdaptableLayer, features, match_targets, swap
from tuneoff.study.methods import ALL_LINEAR

A_NAME, B_NAME = "lora_A.weight", "lora_B.weight"
"""Ends of the saved tensors' names, those of PEFT."""


@dataclass
class Routing:
    """Which member each row of a forward goes through; shared by all layers of one adapted model."""

    member: int | None = None
    """One member for all rows; none gives each member an equal, consecutive share of the rows."""
    enabled: bool = True
    """Off, the layers are the base's."""


class LoRALayer(nn.Module):
    r"""A frozen linear layer plus a trainable low-rank update for each member.

    Computes $y = W x + b + B_k\,(s_k\,A_k\,\mathrm{dropout}(x))$ with $s_k = \alpha_k / r_k$ for the rows of member
    $k$. A starts Kaiming-uniform and B zero, so at step 0 the layer equals the base layer exactly.

    Args:
        base: layer to adapt; it is frozen and, but for `merge`, never written.
        methods: rank, alpha and dropout of each member; the dropout is the same for all.
        generators: draw each member's A.
        routing: shared by the layers of a model.

    Raises:
        MethodError: a rank above min(in_features, out_features).
    """

    def __init__(
        self,
        base: AdaptableLayer,
        methods: Sequence["LoRA"],
        generators: Sequence[torch.Generator],
        routing: Routing,
    ) -> None:
        super().__init__()
        self.base = base
        self.routing = routing
        self.dropout = nn.Dropout(methods[0].dropout) if methods[0].dropout > 0 else nn.Identity()
        self.scalings = tuple(method.scaling for method in methods)
        num_in, num_out = features(base)
        device = base.weight.device
        self.lora_A = nn.ParameterList(
            draw_a(method.rank, num_in, generator, device)
            for method, generator in zip(methods, generators, strict=True)
        )
        self.lora_B = nn.ParameterList(torch.zeros(num_out, method.rank, device=device) for method in methods)
        self._base_weight: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (R, T, in_features) to (R, T, out_features)."""
        y: Tensor = self.base(x)
        if not self.routing.enabled:
            return y
        x = self.dropout(x)
        member = self.routing.member
        if member is None and len(self.scalings) == 1:
            member = 0
        if member is not None:
            a, b = self.lora_A[member], self.lora_B[member]
            update = F.linear(F.linear(x, a.to(x.dtype)) * self.scalings[member], b.to(x.dtype))
        else:
            update = self._cohort(x)
        return y + update

    def _cohort(self, x: Tensor) -> Tensor:
        """Send each member's share of the rows through its own A and B, as one batched product.

        Smaller ranks are filled up with zero rows on the fly: the parameters themselves are never padded, so a padded
        row has no gradient, no optimizer state and no weight decay.
        """
        num_members = len(self.scalings)
        if x.shape[0] % num_members:
            raise ValueError(f"{x.shape[0]} rows cannot be shared equally by {num_members} members")
        rank = max(a.shape[0] for a in self.lora_A)
        a = torch.stack([F.pad(a, (0, 0, 0, rank - a.shape[0])) for a in self.lora_A]).to(x.dtype)  # (K, r, in)
        b = torch.stack([F.pad(b, (0, rank - b.shape[1])) for b in self.lora_B]).to(x.dtype)  # (K, out, r)
        scaling = torch.tensor(self.scalings, dtype=x.dtype, device=x.device).view(-1, 1, 1)
        flat = x.reshape(num_members, -1, x.shape[-1])  # (K, R/K * T, in)
        down = torch.bmm(flat, a.transpose(1, 2)) * scaling
        update: Tensor = torch.bmm(down, b.transpose(1, 2)).view(*x.shape[:-1], -1)
        return update

    def delta(self, member: int = 0) -> Tensor:
        """Return s B A in fp32, laid out as the base's weight (transposed for `Conv1D`)."""
        update: Tensor = self.scalings[member] * (self.lora_B[member].float() @ self.lora_A[member].float())
        return update.T if isinstance(self.base, Conv1D) else update

    @torch.no_grad()
    def merge(self, member: int) -> None:
        """Add a member's update to the base's weight, worked out in fp32 and rounded once."""
        weight = self.base.weight
        self._base_weight = weight.data
        weight.data = (weight.data.float() + self.delta(member)).to(weight.dtype)

    def unmerge(self) -> None:
        """Put the base's own weight back, bit for bit; subtracting the update would leave rounding behind."""
        if self._base_weight is not None:
            self.base.weight.data = self._base_weight
            self._base_weight = None


def draw_a(rank: int, num_in: int, generator: torch.Generator, device: torch.device) -> nn.Parameter:
    """Return A (r, in), uniform within 1/sqrt(in).

    Kaiming-uniform with a = sqrt(5). Drawn on the CPU, so equal on every device.
    """
    if device.type == "meta":
        return nn.Parameter(torch.empty(rank, num_in, device=device))
    bound = 1.0 / math.sqrt(num_in)
    values = torch.empty(rank, num_in).uniform_(-bound, bound, generator=generator)
    return nn.Parameter(values.to(device))


class LoRAModel(AdaptedModel):
    """A model whose matched layers are `LoRALayer`s."""

    def __init__(self, module: nn.Module, layers: Mapping[str, LoRALayer], methods: Sequence["LoRA"]) -> None:
        super().__init__(module)
        self.layers = dict(layers)
        self.methods = tuple(methods)
        self.matched = tuple(layers)
        self.num_members = len(methods)
        self._routing = next(iter(layers.values())).routing
        self._merged: int | None = None

    def trainable_parameters(self, member: int = 0) -> Mapping[str, nn.Parameter]:
        """Return A and B of every matched layer."""
        found = {}
        for name, layer in self.layers.items():
            found[f"{name}.{A_NAME}"] = layer.lora_A[member]
            found[f"{name}.{B_NAME}"] = layer.lora_B[member]
        return found

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
        """Within the context the layers pass their input to the base alone."""
        if self._merged is not None:
            raise MethodError("the update is merged into the base; call unmerge() first")
        before, self._routing.enabled = self._routing.enabled, False
        try:
            yield self.module
        finally:
            self._routing.enabled = before

    def merge(self, member: int = 0) -> nn.Module:
        """Fold a member into the base's weights and return the plain model.

        Merging the same member again changes nothing.
        """
        if self._merged == member:
            return self.module
        if self._merged is not None:
            raise MethodError(f"member {self._merged} is merged already; call unmerge() first")
        for layer in self.layers.values():
            layer.merge(member)
        swap(self.module, {name: layer.base for name, layer in self.layers.items()})
        self._merged = member
        return self.module

    def unmerge(self) -> None:
        """Put the base's weights and the LoRA layers back."""
        for layer in self.layers.values():
            layer.unmerge()
        swap(self.module, self.layers)
        self._merged = None

    def remove(self) -> nn.Module:
        """Take the LoRA layers out and return the base."""
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
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = (ALL_LINEAR,)

    @property
    def trains_base(self) -> bool:
        """No: the base is frozen."""
        return False

    @property
    def scaling(self) -> float:
        """The factor alpha / rank before B A."""
        return self.alpha / self.rank

    def adapt(self, model: nn.Module, generator: torch.Generator | Sequence[torch.Generator]) -> LoRAModel:
        """Put this LoRA on `model`, which is frozen and changed in place."""
        generators = [generator] if isinstance(generator, torch.Generator) else list(generator)
        return LoRACohort((self,)).adapt(model, generators)


@dataclass(frozen=True)
class LoRACohort:
    """LoRA runs trained together in one pass over one frozen base.

    Args:
        members: one LoRA for each run. Ranks and alphas may differ; targets and dropout may not.

    Raises:
        MethodError: members that differ in targets or dropout.
    """

    members: tuple[LoRA, ...]

    @property
    def trains_base(self) -> bool:
        """No: the base is frozen."""
        return False

    def __post_init__(self) -> None:
        for name in ("targets", "dropout"):
            found = {getattr(member, name) for member in self.members}
            if len(found) != 1:
                raise MethodError(f"the members of a cohort must have one {name}; found {sorted(map(str, found))}")

    def adapt(self, model: nn.Module, generator: torch.Generator | Sequence[torch.Generator]) -> LoRAModel:
        """Put the cohort on `model`, which is frozen and changed in place."""
        generators = [generator] if isinstance(generator, torch.Generator) else list(generator)
        if len(generators) != len(self.members):
            raise ValueError(f"{len(generators)} generators for {len(self.members)} members")
        matched = match_targets(model, self.members[0].targets)
        _check_ranks(matched, self.members)
        model.requires_grad_(False)
        routing = Routing()
        layers = {name: LoRALayer(layer, self.members, generators, routing) for name, layer in matched.items()}
        for layer in layers.values():
            layer.train(model.training)
        swap(model, layers)
        return LoRAModel(model, layers, self.members)


def _check_ranks(matched: Mapping[str, AdaptableLayer], members: Sequence[LoRA]) -> None:
    largest = max(member.rank for member in members)
    for name, layer in matched.items():
        num_in, num_out = features(layer)
        if largest > min(num_in, num_out):
            raise MethodError(
                f"rank {largest} is above the size of {name} ({num_in} in, {num_out} out); "
                f"allowed: 1 to {min(num_in, num_out)}. Lower the rank, or leave that layer out of the targets."
            )
