r"""Dropout as a pure function of the run's stream, the step and the place, for every dropout in a model.

A mask bit is a hash of (stream, step, slot in the effective batch, position, place, feature), so a cohort, a resumed
run and another micro-batch layout draw the same masks. The hash is the finaliser of SplitMix64 (Steele, Lea and
Flood, 2014, "Fast Splittable Pseudorandom Number Generators", section 5, variant 13 of Stafford); each 64-bit word
gives four 16-bit numbers.

`Masks` is a mode: within it `F.dropout` (thus `nn.Dropout`) and `scaled_dot_product_attention` with dropout go
through here, in whatever model, with no change to the model. The place is the how-manieth dropout of the forward it
is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, SplitMix64's increment
MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
LANES = 4
LEVELS = 1 << 16
LARGEST_SEED = (1 << 63) - 1
PLACE_STRIDE = 0x632BE59BD9B4E019
"""An odd number that spreads places over the hash's input."""


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift of int64, which PyTorch shifts arithmetically."""
    return z.bitwise_right_shift(bits).bitwise_and_((1 << (64 - bits)) - 1)


def mix(z: Tensor) -> Tensor:
    """Return SplitMix64's finaliser of int64 words; arithmetic wraps modulo 2^64."""
    z = z ^ _shift_right(z, 30)
    z *= MIX_1
    z ^= _shift_right(z, 27)
    z *= MIX_2
    z ^= _shift_right(z, 31)
    return z


def token_keys(streams: Sequence[int], step: int, slots: Tensor, length: int) -> Tensor:
    """Return one key for each token of a micro-batch.

    Args:
        streams: seed of the dropout stream of each row's run, (R,).
        step: optimizer step.
        slots: each row's place in its run's effective batch, (R,).
        length: positions T.

    Returns:
        int64 (R, T).
    """
    device = slots.device
    rows = mix(torch.tensor(streams, dtype=torch.int64, device=device) + GOLDEN * 1)
    rows = mix(rows ^ (step + 1) * 0x2545F491 + 1)
    rows = mix(rows + (slots.to(torch.int64) + 1) * GOLDEN)
    positions = torch.arange(1, length + 1, dtype=torch.int64, device=device) * PLACE_STRIDE_WRAPPED
    return mix(rows[:, None] ^ positions[None, :])


def _wrap(value: int) -> int:
    """Return the signed 64-bit integer with the same bits."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


PLACE_STRIDE_WRAPPED = _wrap(PLACE_STRIDE)


def keep_mask(keys: Tensor, place: int, num_features: int, threshold: int) -> Tensor:
    """Return which elements stay, bool (*keys.shape, num_features).

    Args:
        keys: int64 hash of where each vector of features stands.
        place: which dropout of the forward this is.
        num_features: length of each vector.
        threshold: of 65,536 equal chances, how many drop an element.
    """
    num_words = -(-num_features // LANES)
    words = torch.arange(1, num_words + 1, dtype=torch.int64, device=keys.device) * GOLDEN
    z = mix((keys + _wrap((place + 1) * PLACE_STRIDE)).unsqueeze(-1) + words)
    lanes = z.view(torch.int16)[..., :num_features]
    return lanes >= threshold - LEVELS // 2


_CURRENT: ContextVar["Masks | None"] = ContextVar("masks", default=None)


def current_masks() -> "Masks | None":
    """Return the masks of the forward that is under way, or none."""
    return _CURRENT.get()


class Masks(TorchFunctionMode):
    """Replaces every dropout within the context by the counter-based one.

    Args:
        keys: int64 (R, V + T), from `token_keys`.
        num_virtual_tokens: V, positions that a method puts before each text of T. A tensor without them (hidden states
            under a prefix, which is in the cache) has the keys of the text's own positions.
    """

    def __init__(self, keys: Tensor, num_virtual_tokens: int = 0) -> None:
        super().__init__()
        self.keys = keys
        self.num_virtual_tokens = num_virtual_tokens
        self.place = 0
        self._by_length = {keys.shape[1] - skipped: keys[:, skipped:] for skipped in (num_virtual_tokens, 0)}

    def __enter__(self) -> "Masks":
        super().__enter__()  # type: ignore[no-untyped-call]
        self._token = _CURRENT.set(self)
        return self

    def __exit__(self, *error: Any) -> None:
        _CURRENT.reset(self._token)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def from_place(self, place: int) -> "Masks":
        """Return the same masks for a part of the forward that began at the dropout numbered `place`."""
        again = Masks(self.keys, self.num_virtual_tokens)
        again.place = place
        return again

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Catch the two functions that drop elements out; pass everything else on."""
        kwargs = kwargs or {}
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention and _dropout_p(args, kwargs) > 0:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0.0:
            return x
        threshold = round(p * LEVELS)
        with torch.no_grad():
            keep = self._keep(x.shape, threshold)
        self.place += 1
        return torch.where(keep, x * (LEVELS / (LEVELS - threshold)), 0.0)

    def _keep(self, shape: torch.Size, threshold: int) -> Tensor:
        rows = len(self.keys)
        if len(shape) == 4 and shape[0] == rows and shape[2] in self._by_length:  # (R, heads, T, keys): attention
            heads = torch.arange(1, shape[1] + 1, dtype=torch.int64, device=self.keys.device) * MIX_1
            keys = self._by_length[shape[2]][:, None, :] ^ heads[None, :, None]
            return keep_mask(keys, self.place, shape[3], threshold)
        if len(shape) >= 3 and shape[0] == rows and shape[1] in self._by_length:  # (R, T, ...)
            return keep_mask(self._by_length[shape[1]], self.place, shape[2:].numel(), threshold).view(shape)
        if len(shape) == 2 and shape[0] % rows == 0 and shape[0] // rows in self._by_length:  # (R * T, features)
            return keep_mask(self._by_length[shape[0] // rows], self.place, shape[1], threshold).view(shape)
        lengths = " or ".join(map(str, self._by_length))
        raise NotImplementedError(f"dropout of a tensor of shape {tuple(shape)} with {rows} rows of {lengths} tokens")

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Attention with its weights written out, so that they can be dropped (Vaswani et al., 2017, section 3.2.1)."""
        if enable_gqa:
            repeats = query.shape[1] // key.shape[1]
            key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
        scores = query @ key.transpose(-2, -1) * (scale if scale is not None else query.shape[-1] ** -0.5)
        if is_causal:
            ones = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
            scores = scores.masked_fill(ones.triu(1), float("-inf"))
        elif attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, float("-inf"))
        elif attn_mask is not None:
            scores = scores + attn_mask
        # summed in fp32 at least, whatever the compute type
        weights = scores.to(torch.promote_types(scores.dtype, torch.float32)).softmax(dim=-1).to(value.dtype)
        return self._dropout(weights, dropout_p) @ value


def _dropout_p(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    return float(kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0))


@contextmanager
def masked(
    streams: Sequence[int], step: int, slots: Tensor, length: int, num_virtual_tokens: int = 0
) -> Iterator[None]:
    """Within the context every dropout draws the masks of these rows at this step (see `token_keys`).

    Virtual tokens stand before the `length` positions of each text. What a foreign layer draws from PyTorch's own
    generator instead (LoHa's rank dropout) is a function of the first row's stream and the step.
    """
    keys = token_keys(streams, step, slots, num_virtual_tokens + length)
    with torch.random.fork_rng(devices=[]), Masks(keys, num_virtual_tokens):
        torch.manual_seed((streams[0] + (step + 1) * GOLDEN) & LARGEST_SEED)
        yield
