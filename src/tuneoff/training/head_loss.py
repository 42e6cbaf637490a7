"""Cross-entropy of a linear head without its logits ever standing whole in memory.

A few targets at a time: logits, log-sum-exp, NLL, and at once the gradient, as the loss is a weighted sum whose weights
are known. With h the hidden state of a target, W and b the head, p = softmax(W h + b) and w its weight:
dh = w (p - onehot) W, dW += w (p - onehot) h^T, db += w (p - onehot).

Source: Hsu et al., 2024, "Liger Kernel", arXiv:2410.10989, section 3.2 (FusedLinearCrossEntropy).

Shapes: N targets, D width, V vocabulary.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuneoff.training.alike import alike
from tuneoff.training.products import MIN_ROWS, widened

CHUNK_BYTES = 32 << 20
"""Of fp32 logits at a time: they stay near the processor, and are many enough to fill it."""


def target_nll(hidden: Tensor, head: nn.Linear, labels: Tensor) -> Tensor:
    """Return the NLL (nats) of each target (N,), in fp32 at least, with no way back.

    Args:
        hidden: (N, D).
        head: makes logits of it.
        labels: int64 (N,).
    """
    with torch.no_grad():
        hidden, weight, bias = _in_compute_type(hidden, head.weight, head.bias)
        nll = torch.empty(len(hidden), dtype=_exact(hidden.dtype), device=hidden.device)
        for part in _parts(hidden, weight):
            # In one kernel a row at a time: log-sum-exp alone is four passes over all logits of a part.
            nll[part] = F.cross_entropy(_logits(hidden[part], weight, bias), labels[part], reduction="none")
        return nll


def summed_nll(hidden: Tensor, head: nn.Linear, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the targets' NLL, to be differentiated once, and each one's NLL (N,).

    Args:
        hidden: (N, D).
        head: makes logits of it.
        labels: int64 (N,).
        weights: of each target, (N,).
    """
    total, nll = _SummedNLL.apply(hidden, head.weight, head.bias, labels, weights)  # type: ignore[no-untyped-call]
    return total, nll


class _SummedNLL(torch.autograd.Function):
    """See the module; gradients are worked out in the forward pass, of what needs them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        h, w, b = _in_compute_type(hidden, weight, bias)
        d_hidden = torch.empty_like(h) if needs_hidden else None
        d_weight = torch.zeros_like(weight) if needs_weight else None
        d_bias = torch.zeros_like(bias) if needs_bias and bias is not None else None
        nll = torch.empty(len(h), dtype=_exact(h.dtype), device=h.device)
        weights = weights.to(nll.dtype)
        with torch.autocast(h.device.type, enabled=False):
            for part in _parts(h, w):
                logits = _logits(h[part], w, b)
                nll[part], largest = _nll(logits, labels[part])
                if not (needs_hidden or needs_weight or needs_bias):
                    continue
                change = logits.sub_(largest[:, None]).exp_()
                change[torch.arange(len(change), device=h.device), labels[part]] -= 1
                change.mul_(weights[part, None])
                if d_bias is not None:
                    d_bias += change.sum(0).to(d_bias.dtype)
                change = change.to(h.dtype)
                if d_hidden is not None:
                    torch.mm(change, w, out=d_hidden[part])
                if d_weight is not None:
                    _add_product(d_weight, change.T, h[part])
                del logits, change  # else they would stand beside the next part's
        ctx.gradients = (d_hidden, d_weight, d_bias)
        ctx.kind = hidden.dtype
        ctx.mark_non_differentiable(nll)
        return (nll * weights).sum(), nll

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight, d_bias = (
            None if one is None else one.mul_(gradients[0].to(one.dtype)) for one in ctx.gradients
        )
        ctx.gradients = (None, None, None)
        return (None if d_hidden is None else d_hidden.to(ctx.kind), d_weight, d_bias, None, None)


def _add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """Add a product in the total's own type, which is never coarser than fp32 where weights are trained."""
    if total.dtype == one.dtype:
        total.addmm_(one, other)
    else:
        total += torch.mm(one, other)


def _in_compute_type(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the three in autocast's type within autocast, else in the weight's own; widened where that is quicker."""
    device = hidden.device.type
    kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    hidden, weight, bias = hidden.to(kind), weight.to(kind), None if bias is None else bias.to(kind)
    if len(hidden) < MIN_ROWS:
        return hidden, weight, bias
    return widened(hidden), widened(weight), None if bias is None else widened(bias)


def _parts(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    size = max(1, CHUNK_BYTES // (4 * len(weight)))
    return alike(slice(start, min(start + size, len(hidden))) for start in range(0, len(hidden), size))


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    with torch.autocast(hidden.device.type, enabled=False):
        logits = F.linear(hidden, weight, bias)
        return logits.to(_exact(logits.dtype))


def _exact(dtype: torch.dtype) -> torch.dtype:
    """Return the type of losses: fp32 at least."""
    return torch.promote_types(dtype, torch.float32)


def _nll(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the NLL and the log-sum-exp of each row."""
    total = torch.logsumexp(logits, dim=-1)
    return total - logits.gather(-1, labels[:, None])[:, 0], total
