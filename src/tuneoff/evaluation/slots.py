"""Keys and values of texts in the making, in memory that is set aside once: a token is written where it belongs.

Transformers' `DynamicCache` copies all keys and values at every token, to grow by one column. Here each text has a slot
with room for all that may come, its columns from the left without gaps; a slot is taken over as soon as its text ends.

Shapes: S slots, R texts in the first R of them, H key-value heads, D width of a head, W columns that are looked at.
"""

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from tuneoff.evaluation.reading import Read


class _SlotLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values, (S, H, capacity, D)."""

    def __init__(self, slots: "SlotCache", keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # no cycle, so that keys and values go with the last use of their cache
        self._slots: SlotCache = weakref.proxy(slots)
        self.keys, self.values = keys, values
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the new token of each text; return what the texts hold, (R, H, W, D), as views."""
        slots = self._slots
        assert self.keys is not None
        assert self.values is not None
        # a `DynamicCache` promotes types as it grows, so that under autocast values may be kept in a wider one
        self.keys[slots.places, :, slots.lengths] = key_states[:, :, 0].to(self.keys.dtype)
        self.values[slots.places, :, slots.lengths] = value_states[:, :, 0].to(self.values.dtype)
        num, width = len(slots.places), slots.width
        return self.keys[:num, :, :width], self.values[:num, :, :width]

    def get_seq_length(self) -> int:
        """Return the columns before the new ones."""
        return self._slots.width - 1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the columns that are looked at, and the first of them."""
        return self._slots.width, 0


class SlotCache(DynamicCache):
    """A cache whose rows are slots of their own lengths; one token a text goes in at a time.

    Args:
        like: a prompt that was read, for the layers' sizes.
        num_slots: S.
        capacity: columns of a slot, virtual tokens' among them.
    """

    def __init__(self, like: Read, num_slots: int, capacity: int) -> None:
        self.lengths = self.places = torch.zeros(0, dtype=torch.int64, device=like.parts[0][0].device)
        self.width = 1
        self.num_virtual = like.num_virtual
        # zeros, as a weight of 0 times what memory happens to hold might be NaN
        self._parts = [
            tuple(part.new_zeros(num_slots, part.shape[1], capacity, part.shape[3]) for part in parts)
            for parts in like.parts
        ]
        Cache.__init__(self, layers=[_SlotLayer(self, keys, values) for keys, values in self._parts])

    def enter(self, place: int, read: Read) -> None:
        """Copy a prompt into a slot."""
        for targets, sources in zip(self._parts, read.parts, strict=True):
            for target, source in zip(targets, sources, strict=True):
                column = 0
                for start, stop in read.spans:
                    target[place, :, column : column + stop - start] = source[read.row, :, start:stop]
                    column += stop - start

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a slot's columns into another slot."""
        for parts in self._parts:
            for part in parts:
                part[target, :, :length] = part[source, :, :length]

    def expect(self, lengths: Sequence[int]) -> None:
        """Prepare for one more token of each text.

        Args:
            lengths: columns that each text has, R of them.
        """
        self.lengths = torch.tensor(lengths, dtype=torch.int64, device=self.lengths.device)
        self.places = torch.arange(len(lengths), device=self.lengths.device)
        self.width = max(lengths) + 1
