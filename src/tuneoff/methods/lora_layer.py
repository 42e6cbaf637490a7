r"""The layer of low-rank adaptation: a frozen linear layer and, for each run of a cohort, its own low-rank update.

Sources: Hu et al., 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685, section 4.1; Liu et
al., 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", arXiv:2402.09353, sections 4.1 and 4.3.

Departures from the papers: A is drawn Kaiming-uniform with a = sqrt(5), as the authors' code and PEFT do, where LoRA's
paper draws it from a Gaussian; the scaling is applied between A and B, where the tensor is smallest; DoRA's magnitude
is one for each output, as in the authors' code and PEFT (the paper's m in R^{1 x k}, of W in R^{d x k}, reads as one
for each input), and its norm is worked out in fp32 at least, whatever the compute type.

Shapes: R rows (sequences), T positions, K members, r rank.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tuneoff.errors import UnsupportedError
from tuneoff.methods.surgery import AdaptableLayer, dense_weight, features, is_quantised


class LayerOptions(Protocol):
    """What a layer needs to know of each member."""

    @property
    def rank(self) -> int:
        """Rank r of B A."""

    @property
    def dropout(self) -> float:
        """Share of the layer's input that is zeroed on its way to A while training; one for all members."""

    @property
    def dora(self) -> bool:
        """Whether a magnitude is trained apart from the direction; one for all members."""

    @property
    def scaling(self) -> float:
        """The factor before B A."""


@dataclass
class Routing:
    """Which member each row of a forward goes through; shared by all layers of one adapted model."""

    member: int | None = None
    """One member for all rows; none gives each member an equal, consecutive share of the rows."""
    enabled: bool = True
    """Off, the layers are the base's."""


class LoRALayer(nn.Module):
    r"""A frozen linear layer plus a trainable low-rank update for each member.

    Computes $y = W x + b + B_k\,(s_k\,A_k\,\mathrm{dropout}(x))$ for the rows of member $k$. A starts Kaiming-uniform
    and B zero, so at step 0 the layer equals the base layer exactly.

    With DoRA $y = b + g_k \odot (W x + B_k\,(s_k\,A_k\,x))$, where $g_k = m_k / \lVert W + s_k B_k A_k \rVert$ has one
    number for each output (equation 5), the norm is that of each output's weights and is held constant in the backward
    pass (section 4.3), and the magnitude $m_k$ starts at $\lVert W \rVert$. While training with dropout, $W x$ enters
    the change $(g_k - 1)\,W x$ with the same dropped-out input as A, as in PEFT.

    Args:
        base: layer to adapt, quantised ones too; it is frozen and, but for `merge`, never written.
        methods: what each member asks for.
        generators: draw each member's A.
        routing: shared by the layers of a model.
    """

    def __init__(
        self,
        base: AdaptableLayer,
        methods: Sequence[LayerOptions],
        generators: Sequence[torch.Generator],
        routing: Routing,
    ) -> None:
        super().__init__()
        self.base = base
        self.routing = routing
        self.dropout = nn.Dropout(methods[0].dropout) if methods[0].dropout > 0 else nn.Identity()
        self.scalings = tuple(method.scaling for method in methods)
        self._scalings: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        num_in, num_out = features(base)
        device = base.weight.device
        self.lora_A = nn.ParameterList(
            draw_a(method.rank, num_in, generator, device)
            for method, generator in zip(methods, generators, strict=True)
        )
        self.lora_B = nn.ParameterList(torch.zeros(num_out, method.rank, device=device) for method in methods)
        members = range(len(methods)) if methods[0].dora else ()
        self.magnitude = nn.ParameterList(nn.Parameter(self._norm(member)) for member in members)
        self._base_weight: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (R, T, in_features) to (R, T, out_features)."""
        y: Tensor = self.base(x)
        if not self.routing.enabled:
            return y
        dropped = self.dropout(x)
        member = self.routing.member
        if member is None and len(self.scalings) == 1:
            member = 0
        if member is not None:
            a, b = self.lora_A[member], self.lora_B[member]
            update = F.linear(F.linear(dropped, a.to(x.dtype)) * self.scalings[member], b.to(x.dtype))
        else:
            update = self._cohort(dropped)
        if not self.magnitude:
            return y + update
        return self._decomposed(dropped, y, update, member)

    def _cohort(self, x: Tensor) -> Tensor:
        """Send each member's share of the rows through its own A and B, as one batched product.

        Smaller ranks are filled up with zero rows on the fly: the parameters themselves are never padded, so a padded
        row has no gradient, no optimizer state and no weight decay.
        """
        num_members = len(self.scalings)
        if x.shape[0] % num_members:
            raise ValueError(f"{x.shape[0]} rows cannot be shared equally by {num_members} members")
        rank = max(a.shape[0] for a in self.lora_A)
        a = torch.stack([_filled(a, 0, 0, 0, rank - a.shape[0]) for a in self.lora_A]).to(x.dtype)  # (K, r, in)
        b = torch.stack([_filled(b, 0, rank - b.shape[1]) for b in self.lora_B]).to(x.dtype)  # (K, out, r)
        scaling = self._scaling(x)
        flat = x.reshape(num_members, -1, x.shape[-1])  # (K, R/K * T, in)
        down = torch.bmm(flat, a.transpose(1, 2)) * scaling
        update: Tensor = torch.bmm(down, b.transpose(1, 2)).view(*x.shape[:-1], -1)
        return update

    def _scaling(self, x: Tensor) -> Tensor:
        """Return each member's scaling (K, 1, 1); kept, as a copy to a GPU waits for all that runs there."""
        key = (x.device, x.dtype)
        if key not in self._scalings:
            self._scalings[key] = torch.tensor(self.scalings, dtype=x.dtype, device=x.device).view(-1, 1, 1)
        return self._scalings[key]

    def _decomposed(self, dropped: Tensor, y: Tensor, update: Tensor, member: int | None) -> Tensor:
        """Rescale each output of W x + update by the magnitude over the norm; the bias is left alone.

        As y + (g - 1) W x + g B A x, where g = 1 gives the bits of y.
        """
        members = range(len(self.scalings)) if member is None else (member,)
        gain = torch.stack([self.magnitude[index] / self._norm(index) for index in members])[:, None, :]  # (K, 1, out)
        shape = (len(members), -1, y.shape[-1])  # each member's share of the rows
        if not self.training or isinstance(self.dropout, nn.Identity):
            product = y if self.base.bias is None else y - self.base.bias.to(y.dtype)
        else:
            weight = dense_weight(self.base).to(dropped.dtype)
            product = F.linear(dropped, weight.T if isinstance(self.base, Conv1D) else weight)
        change = (gain - 1).to(y.dtype) * product.reshape(shape) + gain.to(y.dtype) * update.reshape(shape)
        return y + change.view(y.shape)

    @torch.no_grad()
    def _norm(self, member: int) -> Tensor:
        """Return the norm of each output's weights in W + s B A, (out,), in fp32 at least.

        B is zero at the start, so that the norm is W's own there, to the bit.
        """
        device = self.base.weight.device.type
        with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
            norm: Tensor = torch.linalg.vector_norm(self._summed(member), dim=1)
            return norm

    def _summed(self, member: int) -> Tensor:
        """Return W + s B A as (out, in), in fp32 at least."""
        weight = dense_weight(self.base)
        weight = weight.T if isinstance(self.base, Conv1D) else weight
        a, b = self.lora_A[member], self.lora_B[member]
        weight = weight.to(torch.promote_types(weight.dtype, a.dtype))
        return torch.addmm(weight, b.to(weight.dtype), a.to(weight.dtype), alpha=self.scalings[member])

    def check_merge(self) -> None:
        """Refuse a merge that would lose what was learned.

        Raises:
            UnsupportedError: the base's weight is quantised.
        """
        if is_quantised(self.base):
            raise UnsupportedError(
                f"a LoRA cannot be merged into a quantised weight ({type(self.base).__name__}): what it learned is "
                "finer than the steps of 4 or 8 bits. Keep it as an adapter, or merge it into the base in fp32 or bf16."
            )

    @torch.no_grad()
    def merge(self, member: int) -> None:
        """Fold a member's update into the base's weight, worked out in fp32 and rounded once."""
        merged = self._summed(member)
        if self.magnitude:
            merged = merged * (self.magnitude[member] / self._norm(member))[:, None]
        weight = self.base.weight
        self._base_weight = weight.data
        merged = merged.T if isinstance(self.base, Conv1D) else merged
        weight.data = merged.to(weight.dtype).contiguous()

    def unmerge(self) -> None:
        """Put the base's own weight back, bit for bit; subtracting the update would leave rounding behind."""
        if self._base_weight is not None:
            self.base.weight.data = self._base_weight
            self._base_weight = None


def _filled(matrix: Tensor, *zeros: int) -> Tensor:
    """Return a matrix filled up with rows or columns of zeros, as `F.pad` counts them; itself where there are none."""
    return F.pad(matrix, zeros) if any(zeros) else matrix


def draw_a(rank: int, num_in: int, generator: torch.Generator, device: torch.device) -> nn.Parameter:
    """Return A (r, in), uniform within 1/sqrt(in).

    Kaiming-uniform with a = sqrt(5). Drawn on the CPU, so equal on every device.
    """
    if device.type == "meta":
        return nn.Parameter(torch.empty(rank, num_in, device=device))
    bound = 1.0 / math.sqrt(num_in)
    values = torch.empty(rank, num_in).uniform_(-bound, bound, generator=generator)
    return nn.Parameter(values.to(device))
