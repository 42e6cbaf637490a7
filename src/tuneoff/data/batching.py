"""Which sequences a step sees, and how they are laid out: the first is part of the study, the second is free.

The order of the data is a pure function of (number of sequences, effective batch, seed): every method that is trained
with one seed sees the same sequences in the same steps, and a resumed run goes on where it stopped without any state.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tuneoff.data.splits import stable_permutation
from tuneoff.data.tokens import TokenSplit
from tuneoff.study.spec import BudgetSpec
from tuneoff.study.streams import ORDER, stream_seed


@dataclass(frozen=True)
class BatchSequence:
    """The order of the data: one permutation for each epoch, end to end, so that a batch may span two epochs."""

    num_sequences: int
    batch_size: int
    """The effective batch; every step has exactly so many sequences."""
    seed: int

    def indices(self, step: int) -> NDArray[np.int64]:
        """Return the sequences that the optimizer step `step` (from 0) sees, (batch_size,)."""
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        parts = []
        for epoch in range(int(places[0]) // self.num_sequences, int(places[-1]) // self.num_sequences + 1):
            inside = places[places // self.num_sequences == epoch] - epoch * self.num_sequences
            parts.append(_permutation(self.num_sequences, self.seed, epoch)[inside])
        return np.concatenate(parts)

    def epochs(self, step: int) -> float:
        """Return how many times the data has been seen after `step` steps."""
        return step * self.batch_size / self.num_sequences


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    order = stable_permutation(n, (stream_seed(seed, ORDER), epoch))
    order.flags.writeable = False  # shared by all who ask
    return order


def sequence_sha256(order: BatchSequence, num_steps: int) -> str:
    """Return the hash of which sequences the steps see, in order; the same for runs that saw the same batches."""
    digest = hashlib.sha256(f"{order.num_sequences} {order.batch_size} {num_steps};".encode())
    for step in range(num_steps):
        digest.update(order.indices(step).astype("<i8").tobytes())
    return digest.hexdigest()


def num_steps(budget: BudgetSpec, split: TokenSplit) -> int:
    """Return the optimizer steps that the budget buys, the same for every arm and seed.

    Epochs are rounded up to a whole step. Target tokens are divided by what a step holds on average (target tokens per
    sequence, times the effective batch) and rounded up, so that the number does not depend on the order of the data.
    """
    if budget.steps is not None:
        return budget.steps
    if budget.epochs is not None:
        steps = budget.epochs * len(split) / budget.batch_size
    else:
        assert budget.target_tokens is not None, "exactly one is set"
        steps = budget.target_tokens * len(split) / (split.num_target_tokens * budget.batch_size)
    return max(1, math.ceil(round(steps, 9)))  # 0.1 epochs of 30 in batches of 1 are 3 steps, not 4


@dataclass(frozen=True)
class Batch:
    """Sequences of one forward, padded on the right."""

    input_ids: NDArray[np.int64]
    """(rows, length)"""
    targets: NDArray[np.bool_]
    """(rows, length), false on padding."""
    lengths: NDArray[np.int64]
    """(rows,), without padding."""
    slots: NDArray[np.int64]
    """(rows,): place in the effective batch, or index of the sequence where a whole split is evaluated."""
    labels: NDArray[np.int64]
    """(rows,), class of each sequence; empty where the task has no classes."""

    def __len__(self) -> int:
        return len(self.slots)

    @property
    def num_target_tokens(self) -> int:
        """Tokens that carry loss."""
        return int(np.count_nonzero(self.targets))


def micro_batches(split: TokenSplit, indices: NDArray[np.int64], micro_batch: int | None, pad_id: int) -> list[Batch]:
    """Return an effective batch as forwards of at most `micro_batch` rows (none: one forward), longest sequences first.

    Sorting by length saves padding; `slots` says where each row stood. Longest first, so that running out of memory
    happens at once.
    """
    order = np.argsort(-split.lengths[indices], kind="stable")
    size = micro_batch or len(indices)
    parts = [order[start : start + size] for start in range(0, len(order), size)]
    return [_batch(split, indices[part], part, pad_id) for part in parts]


BATCH_COST_TOKENS = 128
"""What one more forward costs beside its positions, in positions: it is weighed against the padding that it saves."""


def evaluation_batches(
    split: TokenSplit, batch_size: int | None, pad_id: int, max_tokens: int = 0, *, is_packed: bool = False
) -> Iterator[Batch]:
    """Yield all sequences of a split once, longest first; `slots` are their indices.

    Args:
        split: tokenised sequences.
        batch_size: sequences in one forward; none takes as many as `max_tokens` holds, one at least, and fewer where
            they are so unequal that padding would cost more than another forward.
        pad_id: token that fills rows up.
        max_tokens: tokens of one forward, padding included.
        is_packed: whether sequences will stand end to end, so that nothing is padding.
    """
    order = np.argsort(-split.lengths, kind="stable")
    lengths = split.lengths[order]
    start = 0
    while start < len(order):
        if batch_size is not None:
            size = batch_size
        else:
            size = _num_rows(lengths[start : start + max_tokens], max_tokens, is_packed=is_packed)
        part = order[start : start + size]
        yield _batch(split, part, part, pad_id)
        start += size


def _num_rows(lengths: NDArray[np.int64], max_tokens: int, *, is_packed: bool) -> int:
    """Return how many of some sequences, longest first, one forward takes: where it costs least a token."""
    tokens = np.cumsum(lengths)
    positions = tokens if is_packed else lengths[0] * np.arange(1, len(lengths) + 1)
    num_fitting = max(1, int(np.searchsorted(positions, max_tokens, side="right")))
    costs = (positions[:num_fitting] + BATCH_COST_TOKENS) / tokens[:num_fitting]
    return int(costs.argmin()) + 1


def _batch(split: TokenSplit, indices: NDArray[np.int64], slots: NDArray[np.int64], pad_id: int) -> Batch:
    lengths = split.lengths[indices]
    input_ids = np.full((len(indices), int(lengths.max())), pad_id, dtype=np.int64)
    targets = np.zeros(input_ids.shape, dtype=np.bool_)
    for row, index in enumerate(indices):
        ids, carries_loss = split.sequence(int(index))
        input_ids[row, : len(ids)] = ids
        targets[row, : len(ids)] = carries_loss
    labels = split.labels[indices] if split.has_labels else split.labels
    return Batch(input_ids, targets, lengths, slots.astype(np.int64), labels.astype(np.int64))
