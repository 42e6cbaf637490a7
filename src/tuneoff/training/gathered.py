"""Causal attention within packed sequences as one product for all of them, for devices that are slow to start kernels.

The sequences are gathered into rows of their own, filled up with zeros on the right, where causal attention does not
look, and what comes out goes back to where they stood. So a micro-batch takes as many kernels as one sequence does,
however many sequences and members it holds.

Shapes: R rows, H heads, T positions of a row (several sequences, end to end), N sequences, L of the longest, D head
size.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tuneoff.training.layout import Layout


class _Gather(torch.autograd.Function):
    """Takes vectors by place from (P, ...), zeros where the place is P; `back` says where each of the P went."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return _take(x, places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return _take(gradients[0], back), None, None


def _take(x: Tensor, places: Tensor) -> Tensor:
    return torch.cat([x, x.new_zeros(1, *x.shape[1:])]).index_select(0, places)


def attend_gathered(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float) -> Tensor:
    """Return causal attention within each sequence, (R, H, T, D).

    Args:
        query: (R, H, T, D).
        key: likewise, of as many heads.
        value: likewise.
        layout: where the sequences stand; every position belongs to one.
        scale: of the products of queries and keys.
    """
    gather, scatter, length = _places(layout, query.device)
    num_rows, heads, row_length, _ = query.shape

    def rows(tensor: Tensor) -> Tensor:  # (N, H, L, D)
        flat = tensor.transpose(1, 2).reshape(-1, heads, tensor.shape[-1])  # values may have a size of their own
        return _Gather.apply(flat, gather, scatter).view(-1, length, heads, tensor.shape[-1]).transpose(1, 2)  # type: ignore[no-untyped-call,no-any-return]

    found = F.scaled_dot_product_attention(rows(query), rows(key), rows(value), is_causal=True, scale=scale)
    flat = found.transpose(1, 2).reshape(-1, heads, found.shape[-1])
    out: Tensor = _Gather.apply(flat, scatter, gather)  # type: ignore[no-untyped-call]
    return out.view(num_rows, row_length, heads, -1).transpose(1, 2)


@lru_cache(maxsize=4)
def _places(layout: Layout, device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Return where each position of the sequences' rows (N * L) comes from, where each of (R * T) goes, and L.

    The same for every layer of a forward, so it is kept.
    """
    lengths = np.array([segment.length for segment in layout.segments])
    starts = np.array([segment.row * layout.length + segment.start for segment in layout.segments])
    length, num_positions = int(lengths.max()), layout.num_rows * layout.length
    own = np.arange(length)
    is_inside = own < lengths[:, None]
    gather = np.where(is_inside, starts[:, None] + own, num_positions)
    scatter = np.empty(num_positions, dtype=np.int64)
    scatter[gather[is_inside]] = np.flatnonzero(is_inside)
    return torch.from_numpy(gather.reshape(-1)).to(device), torch.from_numpy(scatter).to(device), length
