"""The two-way table against plain loops, SciPy and what must hold for any interval."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from tuneoff.analysis.stats.twoway import Spread, over_seeds_alone, two_way

Values = NDArray[np.float64]


def table(seed: int = 3, num_seeds: int = 4, num_items: int = 23) -> Values:
    draw = np.random.default_rng(seed)
    a, b = draw.normal(0, 0.2, (num_seeds, 1)), draw.normal(0, 1, (1, num_items))
    return np.asarray(0.1 + a + b + draw.normal(0, 0.7, (num_seeds, num_items)))


def mean_squares(values: Values) -> tuple[float, float, float]:
    """Seeds, items and error by the sums of a textbook's table: each over its degrees of freedom."""
    num_seeds, num_items = values.shape
    whole = math.fsum(float(x) for x in values.ravel()) / values.size
    rows = [math.fsum(map(float, row)) / num_items for row in values]
    columns = [math.fsum(map(float, column)) / num_seeds for column in values.T]
    total = math.fsum((float(x) - whole) ** 2 for x in values.ravel())
    seeds = num_items * math.fsum((row - whole) ** 2 for row in rows)
    items = num_seeds * math.fsum((column - whole) ** 2 for column in columns)
    freedom = num_seeds - 1, num_items - 1
    return seeds / freedom[0], items / freedom[1], (total - seeds - items) / (freedom[0] * freedom[1])


@pytest.mark.parametrize("shape", [(2, 2), (3, 64), (10, 7)])
def test_variances_are_those_of_the_textbooks_mean_squares(shape: tuple[int, int]) -> None:
    values = table(5, *shape)
    ms_seed, ms_item, ms_error = mean_squares(values)
    found = two_way(values)
    assert float(found.mean) == pytest.approx(values.mean(), rel=1e-13)
    assert float(found.by_seeds) == pytest.approx(ms_seed / values.size, rel=1e-11)
    assert float(found.by_items) == pytest.approx(max(ms_item - ms_error, 0) / values.size, rel=1e-11)


def test_paired_t_is_the_tables_f() -> None:
    """Of two rows, F = MS_seed / MS_error is the squared paired t of one row against the other."""
    values = table(7, 2, 40)
    found, (_, _, ms_error) = two_way(values), mean_squares(values)
    t = stats.ttest_rel(values[0], values[1]).statistic
    assert float(found.by_seeds) * values.size / ms_error == pytest.approx(t**2, rel=1e-10)


def test_items_that_differ_by_less_than_the_error_bring_no_variance() -> None:
    values = np.array([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]])
    found = two_way(values)
    assert (float(found.by_items), float(found.by_seeds), float(found.mean)) == (0, 0, 0)


@pytest.mark.parametrize(("level", "share"), [(0.90, 0.4), (0.95, 0.4), (0.99, 1 - 0.6 * math.sqrt(0.2))])
def test_half_width_is_the_stated_mix(level: float, share: float) -> None:
    found = Spread(np.array(1.0), np.array(0.3), np.array(0.2), 3, 50, np.array(30.0))
    freedom = 0.5**2 / (0.3**2 / 2 + 0.2**2 / 30)
    assert float(found.freedom) == pytest.approx(freedom, rel=1e-12)
    tail = (1 + level) / 2
    added = stats.t.ppf(tail, 2) ** 2 * 0.3 + stats.t.ppf(tail, 30) ** 2 * 0.2
    pooled = stats.t.ppf(tail, freedom) ** 2 * 0.5
    half = math.sqrt(share * added + (1 - share) * pooled)
    assert float(found.half_width(level)) == pytest.approx(half, rel=1e-10)
    low, high = found.interval(level)
    assert (float(low), float(high)) == pytest.approx((1 - half, 1 + half), rel=1e-10)


def test_items_alone_are_students_t_over_items() -> None:
    """With the same values at every seed no noise of seeds is left, and a normal-tailed w has I - 1 freedom."""
    row = np.array([-1.0, 1.0] * 16)  # of the lowest kurtosis there is
    found = two_way(np.tile(row, (3, 1)))
    expected = stats.t.interval(0.95, 31, loc=0, scale=stats.sem(row))
    assert [float(end) for end in found.interval(0.95)] == pytest.approx(expected, rel=1e-9)


def test_heavy_tails_of_items_take_freedom_away() -> None:
    row = np.zeros(64)
    row[0] = 64.0
    kurtosis = stats.kurtosis(row, fisher=False)
    found = two_way(np.tile(row, (3, 1)))
    assert float(found.item_freedom) == pytest.approx(63 * 2 / (kurtosis - 1), rel=1e-10)


levels = st.floats(0.01, 0.999)
variances = st.floats(1e-6, 1e6)


@given(v=variances, w=variances, num_seeds=st.integers(2, 30), freedom=st.floats(1, 500), one=levels, other=levels)
def test_a_surer_interval_is_wider(
    v: float, w: float, num_seeds: int, freedom: float, one: float, other: float
) -> None:
    found = Spread(np.array(0.0), np.array(v), np.array(w), num_seeds, 501, np.array(freedom))
    low, high = sorted((one, other))
    assert 0 < float(found.half_width(low)) <= float(found.half_width(high)) * (1 + 1e-12)


@given(v=variances, w=variances, num_seeds=st.integers(2, 30), level=st.floats(0.05, 0.999))
def test_p_is_the_intervals_own(v: float, w: float, num_seeds: int, level: float) -> None:
    """At the lower end of an interval the one-sided p is its tail, at the upper end the rest."""
    found = Spread(np.array(0.5), np.array(v), np.array(w), num_seeds, 64, np.array(63.0))
    low, high = found.interval(level)
    assert float(found.p_below(low)) == pytest.approx((1 - level) / 2, rel=1e-6)
    assert float(found.p_below(high)) == pytest.approx((1 + level) / 2, rel=1e-6)
    assert float(found.p_below(0.5)) == 0.5


@given(scale=st.floats(1e-60, 1e60), shift=st.floats(-100, 100), is_turned=st.booleans(), seed=st.integers(0, 50))
def test_other_units_give_the_same_answer(scale: float, shift: float, is_turned: bool, seed: int) -> None:
    factor = -scale if is_turned else scale
    values = table(seed)
    one, other = two_way(values), two_way(factor * (values + shift))
    ends = sorted(factor * (float(end) + shift) for end in one.interval(0.95))
    size = scale * (abs(shift) + 1)
    assert [float(end) for end in other.interval(0.95)] == pytest.approx(ends, rel=1e-9, abs=1e-12 * size)
    p, q = float(one.p_below(0.3)), float(other.p_below(factor * (0.3 + shift)))
    assert q == pytest.approx(1 - p if is_turned else p, rel=1e-6)


@given(seed=st.integers(0, 50), order=st.permutations(range(4)), places=st.permutations(range(23)))
def test_order_of_seeds_and_items_does_not_matter(seed: int, order: list[int], places: list[int]) -> None:
    values = table(seed)
    one, other = two_way(values), two_way(values[order][:, places])
    assert [float(end) for end in other.interval(0.95)] == pytest.approx(
        [float(end) for end in one.interval(0.95)], rel=1e-12, abs=1e-12
    )


def test_a_stack_of_tables_is_each_of_them() -> None:
    tables = np.array([table(seed) for seed in range(3)])
    stacked = two_way(tables)
    for place, one in enumerate(tables):
        for mine, alone in zip(stacked.interval(0.95), two_way(one).interval(0.95), strict=True):
            assert float(mine[place]) == pytest.approx(float(alone), rel=1e-12)


def test_no_noise_has_no_width_and_sure_answers() -> None:
    for values in (np.zeros((3, 5)), np.full((3, 5), 0.25)):
        found = two_way(values)
        mean = float(values[0, 0])
        assert [float(end) for end in found.interval(0.95)] == [mean, mean]
        assert float(found.p_below(mean)) == 0.5
        assert (float(found.p_below(mean - 1e-3)), float(found.p_below(mean + 1e-3))) == (0, 1)
        assert float(found.freedom) == 2


@pytest.mark.parametrize("num_seeds", [2, 3, 10])
def test_seeds_alone_are_the_t_test(num_seeds: int) -> None:
    values = np.random.default_rng(num_seeds).normal(0.4, 1, num_seeds)
    found = over_seeds_alone(values)
    for null in (-1.0, 0.0, 0.5):
        expected = stats.ttest_1samp(values, null, alternative="greater").pvalue
        assert float(found.p_below(null)) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("share", [0.99, 0.97, 0.9])
def test_corrected_claims_are_rarely_false(share: float) -> None:
    """At the level 1 %, as for the first of five pairs, where items bring a small share of the variance.

    The bound is the binomial's quantile at 1e-6 of the rate that is allowed.
    """
    num_studies, num_seeds, num_items = 50_000, 3, 64
    generator = np.random.default_rng(2)
    by_seeds = share * generator.chisquare(num_seeds - 1, num_studies) / (num_seeds - 1)
    by_items = (1 - share) * generator.chisquare(num_items - 1, num_studies) / (num_items - 1)
    means = generator.standard_normal(num_studies)
    found = Spread(means, by_seeds, by_items, num_seeds, num_items, np.full(num_studies, num_items - 1.0))
    claims = int(np.sum(np.abs(means) > found.half_width(0.99)))
    assert claims <= stats.binom.isf(1e-6, num_studies, 0.012)
