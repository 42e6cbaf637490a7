"""Causal attention within packed sequences, and with dropped-out weights, without keeping the weights.

With dropout the weights of one sequence at a time are made, used and thrown away; the backward pass makes them again,
as Dao et al., 2022, "FlashAttention", arXiv:2205.14135, section 3.1, does by blocks. Only queries, keys and values are
kept.

Shapes: R rows, H heads, T positions of a row (several sequences, end to end), L of one sequence, D head size.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tuneoff.training.layout import Layout, Segment
from tuneoff.training.products import product, widened

Keep = Callable[[Segment], Tensor]
"""Which weights of a sequence stay, bool (H, L, L)."""


class _Drop(torch.autograd.Function):
    """Zeroes elements and scales the others, keeping one byte an element for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, keep: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(keep)
        ctx.factor = factor
        return _zeroed(x, keep).mul_(factor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (keep,) = ctx.saved_tensors
        return _zeroed(gradients[0], keep).mul_(ctx.factor), None, None


def _zeroed(x: Tensor, keep: Tensor) -> Tensor:
    """Return x where `keep` and 0 elsewhere, as a tensor of its own.

    On a CPU as a product: PyTorch picks by flags one element at a time, several times slower.
    """
    return x * _ones(keep, x.dtype) if x.device.type == "cpu" else torch.where(keep, x, 0.0)


def _ones(keep: Tensor, dtype: torch.dtype) -> Tensor:
    """Return flags as ones and zeros; as bytes they are converted by vector instructions."""
    return keep.view(torch.uint8).to(dtype)


def drop(x: Tensor, keep: Tensor, factor: float) -> Tensor:
    """Return x where `keep`, times `factor`, and 0 elsewhere.

    Args:
        x: of any shape.
        keep: bool, of the same shape.
        factor: 1 / (1 - p).
    """
    dropped: Tensor = _Drop.apply(x, keep, factor)  # type: ignore[no-untyped-call]
    return dropped


def attend_written_out(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float, dtype: torch.dtype, *, is_causal: bool
) -> Tensor:
    """Return the attention weights (R, H, T, keys) in `dtype` (Vaswani et al., 2017, section 3.2.1).

    Summed in fp32 at least, whatever the compute type.
    """
    scores = product(query, key.transpose(-2, -1)) * scale
    if is_causal:
        scores = scores + _future(scores)
    elif mask is not None and mask.dtype == torch.bool:
        scores = scores + torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, float("-inf"))
    elif mask is not None:
        scores = scores + mask
    return scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(dim=-1).to(dtype)


def attend_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scale: float,
    keep: Keep | None = None,
    factor: float = 1.0,
) -> Tensor:
    """Return causal attention within each sequence, (R, H, T, D).

    Args:
        query: (R, H, T, D).
        key: likewise, of as many heads.
        value: likewise.
        layout: where the sequences stand; every position belongs to one.
        scale: of the products of queries and keys.
        keep: which weights of a sequence stay; none drops nothing.
        factor: of those that stay.
    """
    if keep is not None:
        dropped: Tensor = _Attention.apply(query, key, value, layout, scale, keep, factor)  # type: ignore[no-untyped-call]
        return dropped
    rows = []
    for row, runs in enumerate(layout.equal_runs):
        sizes = [length * number for length, number in runs]
        parts = zip(*(torch.split(tensor[row], sizes, dim=1) for tensor in (query, key, value)), strict=True)
        attended = [_attend_equal(part, number, scale) for part, (_, number) in zip(parts, runs, strict=True)]
        rows.append(torch.cat(attended, dim=1))
    return torch.stack(rows)


def _attend_equal(part: Sequence[Tensor], number: int, scale: float) -> Tensor:
    """Return causal attention (H, T, D) within each of some sequences of one length, as one product.

    Args:
        part: queries, keys and values, (H, T, D) each.
        number: how many sequences there are.
        scale: of the products of queries and keys.
    """
    # (number, H, L, D), views; values may have a head size of their own
    q, k, v = (tensor.view(len(tensor), number, -1, tensor.shape[-1]).transpose(0, 1) for tensor in part)
    found = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return found.transpose(0, 1).flatten(1, 2)


class _Attention(torch.autograd.Function):
    """Attention with dropped-out weights, one sequence at a time.

    With S = scale Q K^T (causal), P = softmax(S), P' = factor keep * P and O = P' V, and g the gradient of O:
    dV = P'^T g, dP = factor keep * (g V^T), dS = P * (dP - rowsum(dP * P)), dQ = scale dS K, dK = scale dS^T Q.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, keep: Keep, factor: float
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.layout, ctx.scale, ctx.keep, ctx.factor = layout, scale, keep, factor
        out = query.new_zeros(*query.shape[:-1], value.shape[-1])
        with torch.autocast(query.device.type, enabled=False):  # the backward pass is without it, too
            for segment in layout.segments:
                if segment.is_padding:
                    continue
                q, k, v = (widened(_part(tensor, segment)) for tensor in (query, key, value))
                weights = _weights(q, k, scale)
                weights.mul_(_ones(keep(segment), weights.dtype)).mul_(factor)
                _part(out, segment).copy_(weights.to(v.dtype) @ v)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value = ctx.saved_tensors
        found = [torch.zeros_like(tensor) for tensor in (query, key, value)]
        for segment in ctx.layout.segments:
            if segment.is_padding:
                continue
            q, k, v, g = (widened(_part(tensor, segment)) for tensor in (query, key, value, gradients[0]))
            g, weights = g.to(v.dtype), _weights(q, k, ctx.scale)
            factors = _ones(ctx.keep(segment), weights.dtype).mul_(ctx.factor)
            kept = (weights * factors).to(v.dtype)
            d_weights = (g @ v.transpose(-2, -1)).to(weights.dtype).mul_(factors)
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            d_scores = d_scores.mul_(ctx.scale).to(q.dtype)
            own = (d_scores @ k, d_scores.transpose(-2, -1) @ q, kept.transpose(-2, -1) @ g)
            for whole, part in zip(found, own, strict=True):
                _part(whole, segment).copy_(part)
        return (*found, None, None, None, None)


def _part(tensor: Tensor, segment: Segment) -> Tensor:
    """Return the (H, L, D) of one sequence, a view."""
    return tensor[segment.row, :, segment.start : segment.start + segment.length]


def _weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Return the causal attention weights (H, L, L), in fp32 at least."""
    scores = (q @ k.transpose(-2, -1)).to(torch.promote_types(q.dtype, torch.float32)).mul_(scale)
    return scores.add_(_future(scores)).softmax(dim=-1)


def _future(scores: Tensor) -> Tensor:
    """Return -inf where a key stands behind its query, else 0, (T, keys): adding it is faster than filling by flags."""
    return torch.full(scores.shape[-2:], float("-inf"), dtype=scores.dtype, device=scores.device).triu_(1)
