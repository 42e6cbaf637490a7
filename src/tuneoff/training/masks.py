r"""Dropout as a pure function of the run's stream, the step and the place, for every dropout in a model.

The masks of one sequence at one dropout of the forward are drawn by a generator of their own, seeded by (stream, step,
slot in the effective batch, place), over the sequence's own positions and features. So a cohort, a resumed run and
another layout of the micro-batch, padded or packed, draw the same masks. On a CPU the generator is SFC64
(Doty-Humphrey, 2010, PractRand), on a GPU the device's own (Philox, Salmon et al., 2011, "Parallel random numbers: as
easy as 1, 2, 3"); each 64-bit word gives four 16-bit numbers.

`Masks` is a mode: within it `F.dropout` (thus `nn.Dropout`) and `scaled_dot_product_attention` go through here, in
whatever model, with no change to the model. The place is the how-manieth dropout of the forward it is.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tuneoff.training.attention import attend_packed, attend_written_out, drop
from tuneoff.training.gathered import attend_gathered
from tuneoff.training.hashing import GOLDEN, mixed
from tuneoff.training.layout import Layout, Segment
from tuneoff.training.products import product

LANES = 4
LEVELS = 1 << 16
LARGEST_SEED = (1 << 63) - 1


_HAS_NUMBERS: ContextVar[bool] = ContextVar("has_numbers", default=True)


@contextmanager
def shapes_alone() -> Iterator[None]:
    """Within the context random words have a shape and no values, as a plan traces a step whose tensors have none."""
    token = _HAS_NUMBERS.set(False)
    try:
        yield
    finally:
        _HAS_NUMBERS.reset(token)


def draw_words(parts: tuple[int, ...], num_words: int, device: torch.device) -> Tensor:
    """Return random int64 words (num_words,) that depend on `parts` (not negative) and the kind of device alone."""
    if not _HAS_NUMBERS.get():
        return torch.empty(num_words, dtype=torch.int64, device=device)
    if device.type == "cpu":
        return torch.from_numpy(np.random.SFC64(list(parts)).random_raw(num_words).view(np.int64))
    generator = torch.Generator(device).manual_seed(mixed(*parts) & LARGEST_SEED)
    return torch.empty(num_words, dtype=torch.int64, device=device).random_(-(1 << 63), None, generator=generator)


def _at_least(numbers: Tensor, level: int) -> Tensor:
    """Return which int16 numbers are at least `level`, bool.

    On a CPU by whole numbers, for which PyTorch has vector instructions where it compares one element at a time.
    """
    if numbers.device.type != "cpu" or level == -LEVELS // 2:  # below the least number there is none
        return numbers >= level
    return torch.clamp(numbers, level - 1, level).sub_(level - 1).to(torch.uint8).view(torch.bool)


_CURRENT: ContextVar["Masks | None"] = ContextVar("masks", default=None)


def current_masks() -> "Masks | None":
    """Return the masks of the forward that is under way, or none."""
    return _CURRENT.get()


class Masks(TorchFunctionMode):
    """Replaces every dropout within the context by the counter-based one, and keeps packed sequences apart.

    Args:
        layout: where the sequences stand.
        step: optimizer step; none drops nothing, whatever mode the model is in.
        device: of the tensors.
    """

    def __init__(self, layout: Layout, step: int | None, device: torch.device) -> None:
        super().__init__()
        self.layout = layout
        self.step = step
        self.device = device
        self.place = 0

    def __enter__(self) -> "Masks":
        super().__enter__()  # type: ignore[no-untyped-call]
        self._token = _CURRENT.set(self)
        return self

    def __exit__(self, *error: Any) -> None:
        _CURRENT.reset(self._token)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def from_place(self, place: int) -> "Masks":
        """Return the same masks for a part of the forward that began at the dropout numbered `place`."""
        again = Masks(self.layout, self.step, self.device)
        again.place = place
        return again

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Catch the two functions that drop elements out or look across positions; pass everything else on."""
        kwargs = kwargs or {}
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def drawn(self, segment: Segment, place: int, threshold: int, *shape: int) -> Tensor:
        """Return which elements of one sequence stay, bool of this shape.

        Args:
            segment: the sequence.
            place: which dropout of the forward this is.
            threshold: of 65,536 equal chances, how many drop an element.
            shape: made of the sequence's own length, so that the draws do not depend on the layout.
        """
        assert self.step is not None, "where nothing is dropped nothing is drawn"
        number = int(np.prod(shape))
        words = draw_words((segment.stream, self.step, segment.slot, place), -(-number // LANES), self.device)
        return _at_least(words.view(torch.int16)[:number], threshold - LEVELS // 2).view(shape)

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0.0 or self.step is None:
            return x
        threshold = round(p * LEVELS)
        with torch.no_grad():
            keep = self._keep(x.shape, threshold)
        self.place += 1
        return drop(x, keep, LEVELS / (LEVELS - threshold))

    def _keep(self, shape: torch.Size, threshold: int) -> Tensor:
        layout, virtual = self.layout, self.layout.num_virtual_tokens
        rows, lengths = layout.num_rows, (layout.length, layout.length + virtual)
        if (
            len(shape) == 4
            and shape[0] == rows
            and shape[2] in lengths
            and shape[3] in lengths
            and not layout.is_packed
        ):
            return self._keep_weights(shape, threshold)  # (R, heads, T, keys)
        if len(shape) >= 3 and shape[0] == rows and shape[1] in lengths:
            return self._keep_hidden(shape[1], shape[2:].numel(), threshold).view(shape)  # (R, T, ...)
        if len(shape) == 2 and shape[0] % rows == 0 and shape[0] // rows in lengths:
            return self._keep_hidden(shape[0] // rows, shape[1], threshold).view(shape)  # (R * T, features)
        known = " or ".join(map(str, dict.fromkeys(lengths)))
        raise NotImplementedError(f"dropout of a tensor of shape {tuple(shape)} with {rows} rows of {known} tokens")

    def _keep_hidden(self, length: int, num_features: int, threshold: int) -> Tensor:
        """Return the mask of hidden states (R, length, features); without virtual tokens it is the text's own part."""
        virtual = self.layout.num_virtual_tokens
        skipped = virtual if length == self.layout.length else 0
        parts = []
        for segment in self.layout.segments:
            own = virtual + segment.length
            if segment.is_padding:
                parts.append(torch.ones(segment.length, num_features, dtype=torch.bool, device=self.device))
            else:
                parts.append(self.drawn(segment, self.place, threshold, own, num_features)[skipped:])
        if self.layout.is_packed:
            return torch.cat(parts)
        keep = torch.ones(self.layout.num_rows, length, num_features, dtype=torch.bool, device=self.device)
        for row, part in enumerate(parts):
            keep[row, : len(part)] = part
        return keep

    def _keep_weights(self, shape: torch.Size, threshold: int) -> Tensor:
        """Return the mask of padded attention weights (R, heads, queries, keys)."""
        virtual, length = self.layout.num_virtual_tokens, self.layout.length
        keep = torch.ones(shape, dtype=torch.bool, device=self.device)
        for segment in self.layout.segments:
            own = virtual + segment.length
            part = self.drawn(segment, self.place, threshold, shape[1], own, own)
            queries, keys = (part.shape[1] - (virtual if size == length else 0) for size in shape[2:])
            keep[segment.row, :, :queries, :keys] = part[:, own - queries :, own - keys :]
        return keep

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
        """Attend within each packed sequence; else as asked, with the weights written out where some are dropped."""
        p = 0.0 if self.step is None else dropout_p
        if not (self.layout.is_packed or p > 0):
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if enable_gqa:
            repeats = query.shape[1] // key.shape[1]
            key, value = (tensor.repeat_interleave(repeats, dim=1) for tensor in (key, value))
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        if not self.layout.is_packed:
            weights = attend_written_out(query, key, attn_mask, scale, value.dtype, is_causal=is_causal)
            return product(self._dropout(weights, p), value)
        if p == 0.0 and query.is_cuda:
            return attend_gathered(query, key, value, self.layout, scale)
        if p == 0.0:
            return attend_packed(query, key, value, self.layout, scale)
        threshold, place = round(p * LEVELS), self.place
        self.place += 1

        def keep(segment: Segment) -> Tensor:
            return self.drawn(segment, place, threshold, query.shape[1], segment.length, segment.length)

        return attend_packed(query, key, value, self.layout, scale, keep, LEVELS / (LEVELS - threshold))


@contextmanager
def masked(layout: Layout, step: int, device: torch.device) -> Iterator[None]:
    """Within the context every dropout draws the masks of these sequences at this step.

    What a foreign layer draws from PyTorch's own generator instead (LoHa's rank dropout) is a function of the first
    sequence's stream and the step.
    """
    with torch.random.fork_rng(devices=[]), Masks(layout, step, device):
        torch.manual_seed((layout.segments[0].stream + (step + 1) * GOLDEN) & LARGEST_SEED)
        yield
