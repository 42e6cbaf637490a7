"""Where the sequences of a micro-batch stand in the tensor that the model sees.

Padded: one sequence a row, filled up to the longest. Packed: the sequences of a member end to end in one row, so that
no position is padding but where the rows of a cohort end at different places.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby


@dataclass(frozen=True)
class Segment:
    """One sequence.

    Attributes:
        row, start, length: where its tokens stand, virtual ones not counted.
        stream: seed of its run's dropout stream.
        slot: its place in its run's effective batch; -1 is the padding at a packed row's end.
    """

    row: int
    start: int
    length: int
    stream: int
    slot: int

    @property
    def is_padding(self) -> bool:
        """Whether it holds no sequence."""
        return self.slot < 0


@dataclass(frozen=True)
class Layout:
    """Where the sequences of a micro-batch stand.

    Attributes:
        num_rows, length: of the tensor of tokens.
        segments: the sequences, rows rising and from left to right; of a packed layout they cover every position.
        is_packed: whether a row may hold several.
        num_virtual_tokens: positions that the method puts before each row; of a packed layout there are none.
    """

    num_rows: int
    length: int
    segments: tuple[Segment, ...]
    is_packed: bool = False
    num_virtual_tokens: int = 0

    def lengths(self, row: int) -> list[int]:
        """Return the lengths of a row's segments, from left to right."""
        return [segment.length for segment in self.segments if segment.row == row]

    @cached_property
    def equal_runs(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Of each row (length, how many) of its segments that stand side by side and are equally long."""
        return tuple(
            tuple((length, len(list(same))) for length, same in groupby(self.lengths(row)))
            for row in range(self.num_rows)
        )


def padded(lengths: Sequence[int], streams: Sequence[int], slots: Sequence[int], num_virtual_tokens: int = 0) -> Layout:
    """Return the layout of sequences that have a row each.

    Args:
        lengths: of each row's sequence.
        streams: seed of each row's dropout stream.
        slots: place of each row's sequence in its run's effective batch.
        num_virtual_tokens: positions before each text.
    """
    segments = tuple(
        Segment(row, 0, length, stream, slot)
        for row, (length, stream, slot) in enumerate(zip(lengths, streams, slots, strict=True))
    )
    return Layout(len(segments), max(lengths), segments, num_virtual_tokens=num_virtual_tokens)


def packed(lengths: Sequence[Sequence[int]], streams: Sequence[int], slots: Sequence[Sequence[int]]) -> Layout:
    """Return the layout of rows that hold several sequences each.

    Args:
        lengths: of each row's sequences, from left to right.
        streams: seed of each row's dropout stream.
        slots: places of each row's sequences in their run's effective batch.
    """
    width = max(sum(row) for row in lengths)
    segments: list[Segment] = []
    for row, (own, stream, places) in enumerate(zip(lengths, streams, slots, strict=True)):
        starts = list(accumulate(own, initial=0))
        segments += (
            Segment(row, start, length, stream, slot)
            for start, length, slot in zip(starts[:-1], own, places, strict=True)
        )
        if starts[-1] < width:
            segments.append(Segment(row, starts[-1], width - starts[-1], stream, -1))
    return Layout(len(lengths), width, tuple(segments), is_packed=True)
