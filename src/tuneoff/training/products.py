"""Products of bf16 numbers on a processor that has no instructions for them: as fp32 numbers, rounded once.

Without such instructions PyTorch takes products of bf16 numbers several times slower than of fp32 ones
(`docs/performance.md`). Every bf16 number is an fp32 number, and the instructions of newer processors sum in fp32 too,
so operands that are widened on the way give the same result but for the order of the sum. They are widened when they
are used: what is kept for the backward pass stays bf16.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

MIN_ROWS = 16
"""From which widening a weight costs less than it saves."""
ATTENTION_OPTIONS = ("attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa")
AUTOCAST_TYPES = {torch.float32, torch.bfloat16, torch.float16}
INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx10_2")


_IS_ANOTHER: ContextVar[bool] = ContextVar("is_another", default=False)


@contextmanager
def own_bf16_products() -> Iterator[None]:
    """Within the context this processor is taken to multiply bf16 numbers itself, as a plan for another device does."""
    token = _IS_ANOTHER.set(True)
    try:
        yield
    finally:
        _IS_ANOTHER.reset(token)


def has_bf16_products() -> bool:
    """Whether this processor multiplies bf16 numbers itself; one that is not of the x86 family is taken to."""
    return _has_instructions() or _IS_ANOTHER.get()


@cache
def _has_instructions() -> bool:
    able: Mapping[str, Any] = torch.cpu.get_capabilities()
    return able.get("architecture") != "x86_64" or any(able.get(name) for name in INSTRUCTIONS)


def is_slow(kind: torch.dtype, device: torch.device) -> bool:
    """Whether numbers of this type are multiplied faster as fp32 ones."""
    return kind == torch.bfloat16 and device.type == "cpu" and not has_bf16_products()


def widened(tensor: Tensor) -> Tensor:
    """Return a tensor as fp32 where that is multiplied faster, else as it is."""
    return tensor.float() if is_slow(tensor.dtype, tensor.device) else tensor


class _WideProduct(torch.autograd.Function):
    """y = x w + b, of bf16 numbers, summed in fp32; x (..., N, I), w (..., I, O), b (O,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        needs_x, needs_w, _ = ctx.needs_input_grad
        x16 = x.to(torch.bfloat16)
        ctx.save_for_backward(x16 if needs_w else None, w if needs_x else None)
        ctx.kinds = (x.dtype, w.dtype, None if bias is None else bias.dtype)
        with torch.autocast("cpu", enabled=False):
            y = torch.matmul(x16.float(), w.to(torch.bfloat16).float())
            return (y if bias is None else y.add_(bias.to(torch.bfloat16))).to(torch.bfloat16)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, w = ctx.saved_tensors
        kind_x, kind_w, kind_bias = ctx.kinds
        needs_x, needs_w, needs_bias = ctx.needs_input_grad
        g = gradients[0].float()
        return (
            torch.matmul(g, w.to(torch.bfloat16).float().mT).to(kind_x) if needs_x else None,
            torch.matmul(x.float().mT, g).to(kind_w) if needs_w else None,
            g.sum(0).to(kind_bias) if needs_bias else None,
        )


_IS_WIDE: ContextVar[bool] = ContextVar("is_wide", default=False)


def current_products() -> AbstractContextManager[Any]:
    """Return the way of multiplying that is in force, to be entered again where a part of a forward is repeated."""
    return WideProducts() if _IS_WIDE.get() else nullcontext()


class WideProducts(TorchFunctionMode):
    """Within the context linear layers and attention of bf16 numbers (autocast's too) are worked out in fp32."""

    def __enter__(self) -> "WideProducts":
        super().__enter__()  # type: ignore[no-untyped-call]
        self._token = _IS_WIDE.set(True)
        return self

    def __exit__(self, *error: Any) -> None:
        _IS_WIDE.reset(self._token)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Catch what multiplies matrices; pass everything else on."""
        kwargs = kwargs or {}
        way = _WAYS.get(func)
        if way is None or not kwargs.keys() <= {"bias", *ATTENTION_OPTIONS}:  # `out`, and operands that are named
            return func(*args, **kwargs)
        return way(*args, **kwargs)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not _is_to_be_widened(x, weight, x.numel() // max(1, x.shape[-1])):
        return F.linear(x, weight, bias)
    y: Tensor = _WideProduct.apply(x.reshape(-1, x.shape[-1]), weight.t(), bias)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], -1)


def _addmm(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    if bias.dim() != 1 or not _is_to_be_widened(x, weight, len(x)):
        return torch.addmm(bias, x, weight)
    y: Tensor = _WideProduct.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return y


def product(one: Tensor, other: Tensor) -> Tensor:
    """Return the matrix product, with a way back; of bf16 numbers summed in fp32 where that is quicker."""
    return torch.matmul(one, other) if has_bf16_products() else _matmul(one, other)


def _matmul(one: Tensor, other: Tensor) -> Tensor:
    if (
        one.dim() < 2
        or other.dim() < 2
        or one.shape[:-2] != other.shape[:-2]
        or not _is_to_be_widened(one, other, one.shape[-2])
    ):
        return torch.matmul(one, other)
    y: Tensor = _WideProduct.apply(one, other, None)  # type: ignore[no-untyped-call]
    return y


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    # With dropout it is written out by others (`tuneoff.training.masks`), who widen a sequence at a time.
    if dropout_p > 0 or not _is_to_be_widened(query, key, query.shape[-2]):
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, *args, **kwargs)
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.float()
    with torch.autocast("cpu", enabled=False):
        q, k, v = (tensor.to(torch.bfloat16).float() for tensor in (query, key, value))
        found = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, *args, **kwargs)
        return found.to(torch.bfloat16)


def _is_to_be_widened(one: Tensor, other: Tensor, num_rows: int) -> bool:
    if one.device.type != "cpu" or one.dim() < 2 or num_rows < MIN_ROWS:
        return False
    if torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16:
        return {one.dtype, other.dtype} <= AUTOCAST_TYPES  # float64 is left alone, as autocast leaves it
    return one.dtype == other.dtype == torch.bfloat16


_WAYS: dict[Any, Callable[..., Tensor]] = {
    F.linear: _linear,
    torch.addmm: _addmm,
    torch.bmm: _matmul,
    torch.matmul: _matmul,
    Tensor.matmul: _matmul,
    Tensor.__matmul__: _matmul,
    F.scaled_dot_product_attention: _attention,
}
