"""What the statistics do with lost seeds, missing items, identical arms, and numbers of any size and order."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from made_up import Values, names_of, summary_by_item, summary_of

from tuneoff.analysis.items import ItemScores
from tuneoff.analysis.stats.bootstrap import ItemSpread, over_items, resamples
from tuneoff.analysis.stats.compare import MORE_ITEMS, NO_ITEMS, ONE_SEED, SMALL, TWO_SEEDS
from tuneoff.analysis.stats.tables import Difference, Seeds, difference_of, estimate_of
from tuneoff.analysis.stats.twoway import Spread, over_seeds_alone, two_way

NUM_ITEMS = 12


def table_of(number: int, num_seeds: int = 4, num_items: int = NUM_ITEMS, shift: float = 0.0) -> Values:
    """Losses with noise of seeds, items and errors; arms with other numbers share none of it."""
    generator = np.random.default_rng(number)
    seeds, items = generator.standard_normal((num_seeds, 1)), generator.standard_normal((1, num_items))
    return 2.3 + shift + 0.1 * seeds + 0.3 * items + 0.1 * generator.standard_normal((num_seeds, num_items))


def seeds_of(table: Values, seeds: Sequence[int], names: Sequence[str] | None = None) -> Seeds:
    """An arm with these seeds, in this order; rows of the table by seed, columns by the items' names."""
    order = names_of(table.shape[1]) if names is None else tuple(names)
    columns = [names_of(table.shape[1]).index(name) for name in order]
    return Seeds(
        is_drawn=True,
        values={seed: float(table[seed].mean()) for seed in seeds},
        items={seed: ItemScores(order, {"loss": table[seed][columns]}) for seed in seeds},
    )


def facts(found: Difference) -> tuple[float | None, ...]:
    estimate = found.estimate
    p = () if found.spread is None else tuple(float(found.spread.p_below(value)) for value in (-0.1, 0.0, 0.1))
    return (estimate.value, estimate.low, estimate.high, *p)


ONE, OTHER = table_of(1), table_of(2, shift=0.05)
WHOLE = difference_of(seeds_of(ONE, range(4)), seeds_of(OTHER, range(4)), "loss")


@pytest.mark.parametrize("order", [(3, 2, 1, 0), (1, 3, 0, 2)])
def test_the_order_of_seeds_does_not_matter(order: Sequence[int]) -> None:
    found = difference_of(seeds_of(ONE, order), seeds_of(OTHER, range(4)), "loss")
    assert facts(found) == facts(WHOLE)
    assert facts(difference_of(seeds_of(ONE, order), seeds_of(OTHER, order), "loss")) == facts(WHOLE)


def test_items_are_paired_by_name() -> None:
    turned = list(reversed(names_of(NUM_ITEMS)))
    found = difference_of(seeds_of(ONE, range(4)), seeds_of(OTHER, range(4), turned), "loss")
    assert facts(found) == facts(WHOLE)
    mixed = seeds_of(OTHER, range(4))
    items = {**mixed.items, 2: seeds_of(OTHER, [2], turned).items[2]}  # one run of an arm lists them differently
    found = difference_of(seeds_of(ONE, range(4)), Seeds(is_drawn=True, values=mixed.values, items=items), "loss")
    assert facts(found) == facts(WHOLE)


@pytest.mark.parametrize("num_seeds", [1, 4])
def test_turned_round_it_is_the_same_with_the_other_sign(num_seeds: int) -> None:
    one, other = seeds_of(ONE, range(num_seeds)), seeds_of(OTHER, range(num_seeds))
    there, back = difference_of(one, other, "loss"), difference_of(other, one, "loss")
    value, low, high, *p = facts(there)
    value_back, low_back, high_back, *p_back = facts(back)
    assert low is not None
    assert high is not None
    assert (value_back, low_back, high_back) == pytest.approx((-(value or 0.0), -high, -low), rel=1e-9)
    assert p_back == pytest.approx([1 - (one or 0.0) for one in reversed(p)], rel=1e-6, abs=1e-9)


def test_seeds_that_one_arm_lost_are_left_out_of_both() -> None:
    found = difference_of(seeds_of(ONE, [0, 1, 3]), seeds_of(OTHER, [1, 2, 3]), "loss")
    assert facts(found) == facts(difference_of(seeds_of(ONE, [1, 3]), seeds_of(OTHER, [1, 3]), "loss"))
    assert found.num_seeds == 2
    assert found.estimate.value == pytest.approx((ONE[[1, 3]] - OTHER[[1, 3]]).mean(), rel=1e-9)
    none = difference_of(seeds_of(ONE, [0]), seeds_of(OTHER, [1, 2]), "loss")
    assert (none.num_seeds, none.spread, none.estimate.low) == (0, None, None)
    assert none.estimate.how == "no seed that both arms have"


def without(seeds: Seeds, seed: int, scores: ItemScores | None) -> Seeds:
    items = {one: found for one, found in seeds.items.items() if one != seed}
    if scores is not None:
        items[seed] = scores
    return Seeds(is_drawn=True, values=seeds.values, items=items)


@pytest.mark.parametrize("how", ["not scored", "not listed", "infinite"])
def test_an_item_that_one_run_lacks_is_left_out_of_all(how: str) -> None:
    whole = seeds_of(ONE, range(4))
    names = names_of(NUM_ITEMS)
    lost = np.full(2, np.nan if how == "not scored" else np.inf)
    values = np.concatenate([ONE[1][:-2], lost])
    scores = (
        ItemScores(names[:-2], {"loss": ONE[1][:-2]}) if how == "not listed" else ItemScores(names, {"loss": values})
    )
    found = difference_of(without(whole, 1, scores), seeds_of(OTHER, range(4)), "loss")
    fewer = two_way(ONE[:, :-2] - OTHER[:, :-2])
    assert found.num_items == NUM_ITEMS - 2
    assert (found.estimate.low, found.estimate.high) == pytest.approx([float(end) for end in fewer.interval(0.95)])
    assert found.estimate.how == "4 seeds x 10 items, two-way"


@pytest.mark.parametrize("how", ["no run", "no metric", "one item"])
def test_where_items_are_not_shared_seeds_alone_are_left(how: str) -> None:
    scores = {
        "no run": None,
        "no metric": ItemScores(names_of(NUM_ITEMS), {"f1": ONE[1]}),
        "one item": ItemScores((*names_of(1), *(f"other {place}" for place in range(9))), {"loss": ONE[1][:10]}),
    }[how]
    found = difference_of(without(seeds_of(ONE, range(4)), 1, scores), seeds_of(OTHER, range(4)), "loss")
    alone = over_seeds_alone((ONE - OTHER).mean(axis=1)).interval(0.95)
    assert found.num_items == 0
    assert (found.estimate.low, found.estimate.high) == pytest.approx([float(end) for end in alone], rel=1e-9)
    assert found.estimate.how == "t over 4 seeds; noise of the test items not included"


def test_without_scores_by_item_a_note_says_so() -> None:
    (pair,) = summary_of({"a": [2.30, 2.31, 2.32], "b": [2.50, 2.52, 2.51]}).comparisons
    assert pair.outcome == "better"
    assert NO_ITEMS in pair.note.split("; ")
    assert pair.num_items == 0


def test_one_seed_knows_items_alone_and_claims_nothing() -> None:
    one, other = table_of(1, 1, 40), table_of(1, 1, 40) + 1.0 + 0.01 * table_of(5, 1, 40)
    summary = summary_by_item({"a": one, "b": other})
    (pair,) = summary.comparisons
    bootstrapped = over_items((one - other)[0], resamples(40, np.random.default_rng(0))).interval(0.95)
    assert (pair.difference.low, pair.difference.high) == pytest.approx(bootstrapped)
    assert pair.difference.how == "1 seed x 40 items, items alone: how far another seed would move it is not known"
    assert pair.p_difference is not None
    assert pair.p_difference < 0.001  # beyond doubt, as far as items go
    assert (pair.outcome, pair.more_seeds, pair.note) == ("undecided", None, ONE_SEED)
    assert "run at least 3 seeds" in summary.verdict
    close = summary_by_item({"a": one, "b": one + 1e-5 * table_of(5, 1, 40)}).comparisons[0]
    assert close.p_equivalence is not None
    assert close.p_equivalence < 0.001
    assert (close.outcome, close.note) == ("undecided", ONE_SEED)


def test_two_seeds_are_flagged_and_three_are_not() -> None:
    notes = {
        num_seeds: summary_by_item({"a": table_of(1, num_seeds, 40), "b": table_of(2, num_seeds, 40)})
        .comparisons[0]
        .note.split("; ")
        for num_seeds in (2, 3)
    }
    assert TWO_SEEDS in notes[2]
    assert TWO_SEEDS not in notes[3]


def test_what_no_number_of_seeds_decides_says_so() -> None:
    """Items alone bring a standard error of four margins."""
    items = 0.3 * np.random.default_rng(1).standard_normal((1, 50))
    errors = 1e-4 * np.random.default_rng(2).standard_normal((3, 50))
    one = table_of(1, 3, 50)
    (pair,) = summary_by_item({"a": one, "b": one + items - items.mean() + errors}).comparisons
    assert pair.outcome == "undecided"
    assert pair.more_seeds is None
    assert pair.note == MORE_ITEMS


LOSSES = st.floats(0, 20, allow_subnormal=False)
TABLES = st.tuples(st.integers(2, 4), st.integers(2, 8)).flatmap(
    lambda shape: arrays.arrays(np.float64, shape, elements=LOSSES)
)


@settings(deadline=None, max_examples=50)
@given(TABLES, st.sampled_from(["items", "no items"]))
def test_identical_arms_never_differ(table: Values, items: str) -> None:
    tables: Mapping[str, Values] = {"a": table, "b": table.copy(), "c": table.copy()}
    by_seed = {name: one.mean(axis=1).tolist() for name, one in tables.items()}
    summary = summary_by_item(tables) if items == "items" else summary_of(by_seed)
    assert len(summary.comparisons) == 3
    for pair in summary.comparisons:
        assert (pair.outcome, pair.p_difference, pair.p_equivalence) == ("equivalent", 1.0, 0.0)
        assert (pair.difference.value, pair.difference.low, pair.difference.high) == (0.0, 0.0, 0.0)
        assert pair.p_difference_corrected == 1.0


def test_identical_arms_of_one_seed_are_equivalent_where_items_are_known() -> None:
    """As two arms are that are not trained; without items, one number that is the same twice says nothing."""
    table = table_of(1, 1, 30)
    (pair,) = summary_by_item({"a": table, "b": table.copy()}).comparisons
    assert (pair.outcome, pair.p_difference, pair.p_equivalence) == ("equivalent", 1.0, 0.0)
    (pair,) = summary_of({"a": [2.3], "b": [2.3]}).comparisons
    assert (pair.outcome, pair.p_difference, pair.p_equivalence, pair.note) == ("undecided", None, None, ONE_SEED)


@pytest.mark.parametrize(
    ("shift", "outcome", "note"), [(0.5, "better", ""), (0.004, "equivalent", SMALL), (0.012, "better", "")]
)
def test_a_constant_shift_is_known_without_doubt(shift: float, outcome: str, note: str) -> None:
    """It is the same on every seed and item, so that there is no noise at all; thousandths in binary are exact."""
    table = np.round(table_of(1, 3, 30) * 1024) / 1024
    step = round(shift * 1024) / 1024
    (pair,) = summary_by_item({"a": table, "b": table + step}).comparisons
    assert (pair.one, pair.outcome, pair.note) == ("a", outcome, note)
    assert (pair.difference.value, pair.difference.low, pair.difference.high) == (-step, -step, -step)
    assert pair.p_difference == 0.0


def test_a_shift_of_one_seed_is_no_shift() -> None:
    """Three seeds differ by 0, 0 and 0.5 on all of a thousand items: items say all is clear, seeds say it is not."""
    table = table_of(1, 3, 1000)
    (pair,) = summary_by_item({"a": table, "b": table + np.array([[0.0], [0.0], [0.5]])}).comparisons
    assert pair.outcome == "undecided"
    assert pair.p_difference == pytest.approx(0.4226, abs=1e-3)  # t = 1 on 2 degrees of freedom


WIDE = st.integers(-300, 300).map(lambda power: 2.0**power)
NOISE = st.tuples(st.integers(2, 5), st.integers(2, 9), st.integers(0, 10_000))


def noise(shape: tuple[int, int, int]) -> Values:
    num_seeds, num_items, number = shape
    generator = np.random.default_rng(number)
    return generator.standard_normal((num_seeds, num_items)) + generator.gamma(0.5, 2.0, (1, num_items))


@settings(deadline=None, max_examples=30)
@given(NOISE, WIDE)
def test_the_unit_does_not_matter(shape: tuple[int, int, int], unit: float) -> None:
    """Powers of two scale a float exactly; 2^-300 to 2^300 is 1e-90 to 1e90."""
    values = noise(shape)
    for plain, scaled in (
        (two_way(values), two_way(unit * values)),
        (over_seeds_alone(values[:, 0]), over_seeds_alone(unit * values[:, 0])),
        (_bootstrapped(values), _bootstrapped(unit * values)),
    ):
        assert float(scaled.mean) == pytest.approx(unit * float(plain.mean), rel=1e-12)
        ends = [unit * float(end) for end in plain.interval(0.95)]
        width = ends[1] - ends[0]
        assert [float(end) for end in scaled.interval(0.95)] == pytest.approx(ends, rel=1e-9, abs=1e-9 * width)
        p = [float(plain.p_below(value)) for value in (-1.0, 0.0, 0.5)]
        assert [float(scaled.p_below(value * unit)) for value in (-1.0, 0.0, 0.5)] == pytest.approx(p, rel=1e-6)


def _bootstrapped(values: Values) -> ItemSpread:
    return over_items(values[0], resamples(values.shape[1], np.random.default_rng(0)))


@settings(deadline=None)
@given(NOISE, st.integers(-1000, 1000))
def test_where_zero_lies_does_not_matter(shape: tuple[int, int, int], start: int) -> None:
    values = noise(shape)
    plain, moved = two_way(values), two_way(values + start)
    assert [float(end) - start for end in moved.interval(0.95)] == pytest.approx(
        [float(end) for end in plain.interval(0.95)], abs=1e-9
    )


@settings(deadline=None, max_examples=50)
@given(NOISE, st.floats(-3, 3))
def test_p_is_below_5_percent_where_the_interval_leaves_a_value_out(shape: tuple[int, int, int], value: float) -> None:
    values = noise(shape)
    spreads: list[Spread | ItemSpread] = [two_way(values), over_seeds_alone(values.mean(axis=1)), _bootstrapped(values)]
    for spread in spreads:
        low, high = (float(end) for end in spread.interval(0.95))
        below = float(spread.p_below(value))
        if min(abs(value - low), abs(value - high)) > 1e-9 * (1 + high - low):
            assert (2 * min(below, 1 - below) < 0.05) == (value < low or value > high)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30, 1e-100, 1e100])
def test_one_value_among_zeros(size: float) -> None:
    """Nearly all differences are 0, as between two arms that write nearly the same texts; nothing breaks."""
    table = np.zeros((3, 20))
    table[1, 4] = size
    spread = two_way(table)
    low, high = (float(end) / size for end in spread.interval(0.95))
    assert low < 0 < high
    assert 0.05 < float(spread.p_below(0.0)) < 0.5
    found = over_items(table[1], resamples(20, np.random.default_rng(0)))
    low, high = (end / size for end in found.interval(0.95))
    assert low == 0
    assert 0.1 < high < 0.35


def test_an_arms_own_estimate_is_of_the_same_kind() -> None:
    items = [ItemScores(names_of(NUM_ITEMS), {"loss": row}) for row in ONE]
    found = estimate_of([float(row.mean()) for row in ONE], items, "loss", is_drawn=True)
    assert found is not None
    assert (found.low, found.high) == pytest.approx([float(end) for end in two_way(ONE).interval(0.95)])
    alone = estimate_of([float(ONE[0].mean())], items[:1], "loss", is_drawn=False)
    assert alone is not None
    assert alone.how == "12 items; nothing is trained, so no seed can move it"
