"""What PyTorch's kernels multiply, and what they allocate for themselves, by the shapes that they are called with."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten
_FLASH_CPU = (
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
)
_BACKWARD_PRODUCTS = 2.5
"""Products of attention's backward pass for each of the forward's two: five, as the weights are made again."""


def product_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what an operation multiplies, as the fields of a `Product`; none where it multiplies no matrices."""
    first = _PRODUCTS.get(func)
    if first is not None:
        one, other = args[first], args[first + 1]
        flop = 2.0 * one.numel() * other.shape[-1]
        return _described(func, flop, (one, other), is_transposed=(_is_transposed(one), _is_transposed(other)))
    place = _ATTENTION.get(func)
    if place is None:
        return None
    q, k, v = args[place : place + 3]
    is_causal = _is_causal(func, args, kwargs)
    pairs = prod(q.shape[:-1]) * k.shape[-2] * (0.5 if is_causal else 1.0)
    flop = 2.0 * pairs * (q.shape[-1] + v.shape[-1]) * (_BACKWARD_PRODUCTS if place else 1.0)
    return _described(func, flop, (q, k, v), is_causal=is_causal)


def _described(func: Any, flop: float, tensors: Sequence[Tensor], **more: Any) -> dict[str, Any]:
    return {
        "operation": func.overloadpacket.__name__,
        "shapes": tuple(tuple(one.shape) for one in tensors),
        "dtype": str(tensors[0].dtype).removeprefix("torch."),
        "flop": flop,
        **more,
    }


def _is_transposed(matrix: Tensor) -> bool:
    return matrix.stride(-1) != 1 and matrix.shape[-1] > 1


_PRODUCTS = {
    _aten.mm.default: 0,
    _aten.mm.out: 0,
    _aten.bmm.default: 0,
    _aten.addmm.default: 1,
    _aten.addmm_.default: 1,
    _aten.baddbmm.default: 1,
}
"""Where the first of the two matrices stands among the arguments."""
_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu.default: 0,
    _aten._scaled_dot_product_flash_attention.default: 0,
    _aten._scaled_dot_product_efficient_attention.default: 0,
    _aten._scaled_dot_product_cudnn_attention.default: 0,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default: 1,
    _aten._scaled_dot_product_flash_attention_backward.default: 1,
    _aten._scaled_dot_product_efficient_attention_backward.default: 1,
    _aten._scaled_dot_product_cudnn_attention_backward.default: 1,
}
"""Where the queries stand; after the gradient in a backward pass."""


def _is_causal(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    names = [argument.name for argument in func._schema.arguments]
    if "is_causal" in kwargs:
        return bool(kwargs["is_causal"])
    place = names.index("is_causal") if "is_causal" in names else len(args)
    return bool(args[place]) if place < len(args) else False


def workspace_bytes(func: Any, args: Sequence[Any]) -> int:
    """Return the bytes that a kernel holds for itself while it runs, where they are of the tensors' own size.

    Args:
        func: the operation.
        args: what it is given.
    """
    rule = _WORKSPACES.get(func)
    return 0 if rule is None else rule(args)


def _as_input(args: Sequence[Any]) -> int:
    """A copy of the input: `logsumexp` takes off the largest and exponentiates in one."""
    return int(args[0].numel() * args[0].element_size())


_WORKSPACES: dict[Any, Callable[[Sequence[Any]], int]] = {
    _aten.logsumexp.default: _as_input,
}
