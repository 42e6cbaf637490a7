"""The order of the data, the steps that a budget buys, and how a batch is laid out."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneoff.data.batching import BatchSequence, evaluation_batches, micro_batches, num_steps, sequence_sha256
from tuneoff.data.tokens import SplitBuilder, TokenSplit
from tuneoff.study.spec import BudgetSpec

PAD = 99


def _split(*lengths: int) -> TokenSplit:
    """Sequences of the given lengths; sequence i holds the token i, and all but the first are targets."""
    builder = SplitBuilder()
    for number, length in enumerate(lengths):
        ids = np.full(length, number, dtype=np.int32)
        builder.add(ids, np.arange(length) > 0, target_bytes=length, item=(number,), item_name=str(number))
    return builder.build()


def test_the_order_is_fixed() -> None:
    """Golden: another order would change the result of every run."""
    order = BatchSequence(num_sequences=5, batch_size=3, seed=0)
    assert [order.indices(step).tolist() for step in range(4)] == [[0, 2, 4], [1, 3, 0], [3, 1, 4], [2, 0, 1]]


@given(st.integers(1, 50), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_every_epoch_is_a_permutation(num_sequences: int, batch_size: int, seed: int) -> None:
    order = BatchSequence(num_sequences, batch_size, seed)
    steps = -(-3 * num_sequences // batch_size)
    batches = [order.indices(step) for step in range(steps)]
    assert {len(batch) for batch in batches} == {batch_size}
    seen = np.concatenate(batches)
    for epoch in range(3):
        part = seen[epoch * num_sequences : (epoch + 1) * num_sequences]
        assert sorted(part.tolist()) == list(range(num_sequences))
    assert order.epochs(steps) == steps * batch_size / num_sequences


def test_any_step_can_be_asked_for_alone() -> None:
    order = BatchSequence(1000, 16, 3)
    last = order.indices(400).tolist()
    assert last == BatchSequence(1000, 16, 3).indices(400).tolist()
    assert last != BatchSequence(1000, 16, 4).indices(400).tolist()


def test_the_hash_tells_orders_apart() -> None:
    order = BatchSequence(10, 4, 0)
    assert sequence_sha256(order, 7) == sequence_sha256(BatchSequence(10, 4, 0), 7)
    others = [(BatchSequence(10, 4, 1), 7), (BatchSequence(11, 4, 0), 7), (BatchSequence(10, 2, 0), 7), (order, 8)]
    assert sequence_sha256(order, 7) not in {sequence_sha256(*other) for other in others}


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ({"steps": 800}, 800),
        ({"epochs": 3.0}, 19),  # 3 x 100 / 16 = 18.75
        ({"epochs": 0.001}, 1),
        ({"epochs": 0.7, "batch_size": 10}, 7),  # 0.7 x 100 / 10 is 7.000000000000001 in floating point
        ({"target_tokens": 1000}, 16),  # 4 target tokens a sequence, 64 a step: 15.6
        ({"target_tokens": 64}, 1),
        ({"target_tokens": 65}, 2),
    ],
)
def test_steps_of_a_budget(budget: dict[str, float], steps: int) -> None:
    split = _split(*[3, 7] * 50)
    assert num_steps(BudgetSpec.model_validate(budget), split) == steps


@given(st.lists(st.integers(2, 9), min_size=1, max_size=20), st.integers(1, 25))
def test_micro_batches_hold_the_batch(lengths: list[int], micro_batch: int) -> None:
    split = _split(*lengths)
    indices = BatchSequence(len(split), 16, 0).indices(0)
    batches = micro_batches(split, indices, micro_batch, PAD)
    assert [len(batch) for batch in batches[:-1]] == [min(micro_batch, 16)] * (len(batches) - 1)
    assert sorted(slot for batch in batches for slot in batch.slots) == list(range(16))
    assert sum(batch.num_target_tokens for batch in batches) == sum(lengths[index] - 1 for index in indices)
    longest = [int(batch.lengths.max()) for batch in batches]
    assert longest == sorted(longest, reverse=True) == [batch.input_ids.shape[1] for batch in batches]
    for batch in batches:
        assert (batch.input_ids.dtype, batch.targets.dtype) == (np.int64, np.bool_)
        for row, slot in enumerate(batch.slots):
            index = indices[slot]
            length = lengths[index]
            assert batch.lengths[row] == length
            assert batch.input_ids[row, :length].tolist() == [index] * length
            assert set(batch.input_ids[row, length:].tolist()) <= {PAD}
            assert batch.targets[row].tolist() == [0 < place < length for place in range(batch.targets.shape[1])]


def test_one_micro_batch_by_default() -> None:
    (batch,) = micro_batches(_split(2, 5, 3), np.array([0, 1, 2, 1]), None, PAD)
    assert batch.slots.tolist() == [1, 3, 2, 0]
    assert batch.input_ids.shape == (4, 5)


def test_evaluation_sees_every_sequence_once() -> None:
    split = _split(2, 5, 3, 9, 4)
    batches = list(evaluation_batches(split, 2, PAD))
    assert [batch.slots.tolist() for batch in batches] == [[3, 1], [4, 2], [0]]
    assert sum(batch.num_target_tokens for batch in batches) == split.num_target_tokens


@given(st.lists(st.integers(2, 60), min_size=1, max_size=60), st.booleans())
def test_evaluation_fills_batches_up_to_their_tokens(lengths: list[int], is_packed: bool) -> None:
    split = _split(*lengths)
    batches = list(evaluation_batches(split, None, PAD, 100, is_packed=is_packed))
    assert sorted(np.concatenate([batch.slots for batch in batches]).tolist()) == list(range(len(lengths)))
    assert [n for batch in batches for n in batch.lengths.tolist()] == sorted(lengths, reverse=True)
    for batch in batches:
        tokens = int(batch.lengths.sum()) if is_packed else batch.input_ids.size
        assert tokens <= 100 or len(batch) == 1
    if is_packed:  # nothing is saved by a batch that could have been longer
        for batch, after in pairwise(batches):
            assert int(batch.lengths.sum() + after.lengths[0]) > 100


def test_evaluation_takes_another_forward_where_padding_would_cost_more() -> None:
    """1,000 + 10 x 10 tokens: padded together 11,000 positions, apart 1,100 and one more forward."""
    split = _split(1000, *[10] * 10)
    assert [len(batch) for batch in evaluation_batches(split, None, PAD, 20_000)] == [1, 10]
    assert [len(batch) for batch in evaluation_batches(split, None, PAD, 20_000, is_packed=True)] == [11]


def test_split_arrays() -> None:
    split = _split(2, 5)
    assert len(split) == 2
    assert split.lengths.tolist() == [2, 5]
    assert (split.num_input_tokens, split.num_target_tokens, split.num_target_bytes) == (7, 5, 7)
    assert split.sequence(1)[0].tolist() == [1] * 5
    assert {array.dtype.name for array in split.arrays().values()} == {"int32", "bool", "int64"}
    assert split.item_names == ("0", "1")
