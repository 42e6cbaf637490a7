"""Mean squares, bootstrap, t tests and power against plain loops and SciPy, which share no code with them."""

import math
from dataclasses import replace

import numpy as np
import pytest
from made_up import MARGIN, Values, summary_of
from scipy import integrate, stats

from tuneoff.analysis.stats.bootstrap import over_items, resamples
from tuneoff.analysis.stats.power import difference_power, equivalence_power, seeds_power, seeds_to_decide
from tuneoff.analysis.stats.twoway import ADDED_SHARE, two_way


def mean_squares(table: Values) -> tuple[float, float, float]:
    """Mean squares of seeds, items and errors, as a textbook writes them: one number after the other."""
    num_seeds, num_items = table.shape
    rows = [[float(value) for value in row] for row in table]
    grand = math.fsum(math.fsum(row) for row in rows) / (num_seeds * num_items)
    by_seed = [math.fsum(row) / num_items for row in rows]
    by_item = [math.fsum(row[i] for row in rows) / num_seeds for i in range(num_items)]
    error = math.fsum(
        (rows[s][i] - by_seed[s] - by_item[i] + grand) ** 2 for s in range(num_seeds) for i in range(num_items)
    )
    return (
        num_items * math.fsum((one - grand) ** 2 for one in by_seed) / (num_seeds - 1),
        num_seeds * math.fsum((one - grand) ** 2 for one in by_item) / (num_items - 1),
        error / ((num_seeds - 1) * (num_items - 1)),
    )


@pytest.mark.parametrize(("num_seeds", "num_items"), [(2, 2), (3, 7), (5, 40), (10, 3)])
def test_variances_are_those_of_the_two_way_table(num_seeds: int, num_items: int) -> None:
    generator = np.random.default_rng((num_seeds, num_items))
    table = (
        2.3
        + 0.3 * generator.standard_normal((num_seeds, 1))
        + generator.standard_normal((1, num_items))
        + 0.2 * generator.standard_normal((num_seeds, num_items))
    )
    ms_seed, ms_item, ms_error = mean_squares(table)
    found = two_way(table)
    size = num_seeds * num_items
    assert ms_item > ms_error  # else the next line but one says nothing
    assert float(found.by_seeds) == pytest.approx(ms_seed / size, rel=1e-12)
    assert float(found.by_items) == pytest.approx((ms_item - ms_error) / size, rel=1e-12)
    assert float(found.mean) == pytest.approx(table.mean(), rel=1e-12)


def test_half_width_is_the_documented_one() -> None:
    """The equations at the top of the module, once more; the items' kurtosis lowers their degrees of freedom."""
    num_seeds, num_items = 4, 30
    generator = np.random.default_rng(3)
    items = generator.standard_t(3, (1, num_items))  # heavy tails
    table = 0.2 * generator.standard_normal((num_seeds, 1)) + items + generator.standard_normal((num_seeds, num_items))
    ms_seed, ms_item, ms_error = mean_squares(table)
    v, w = ms_seed / table.size, (ms_item - ms_error) / table.size
    kurtosis = float(stats.kurtosis(table.mean(axis=0), fisher=False))
    item_freedom = (num_items - 1) * 2 / (kurtosis - 1)
    assert kurtosis > 3
    satterthwaite = (v + w) ** 2 / (v**2 / (num_seeds - 1) + w**2 / item_freedom)
    t_seed, t_item, t_both = (stats.t.ppf(0.975, df) for df in (num_seeds - 1, item_freedom, satterthwaite))
    added, pooled = t_seed**2 * v + t_item**2 * w, t_both**2 * (v + w)
    found = two_way(table)
    assert float(found.half_width(0.95)) == pytest.approx(math.sqrt(0.4 * added + 0.6 * pooled), rel=1e-9)
    assert ADDED_SHARE == 0.4
    for level in (0.5, 0.9, 0.999):
        low, high = found.interval(level)
        assert float(found.p_below(low)) == pytest.approx((1 - level) / 2, rel=1e-8)
        assert float(found.p_below(high)) == pytest.approx((1 + level) / 2, rel=1e-8)


SAMPLES = {
    "skewed": np.random.default_rng(5).gamma(0.7, 1.0, 40),
    "normal": np.random.default_rng(6).normal(1.0, 2.0, 25),
    "discrete": np.random.default_rng(7).integers(0, 2, 60).astype(np.float64),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_bootstrap_is_scipys_of_the_same_resamples(name: str) -> None:
    values = SAMPLES[name]
    found = over_items(values, resamples(len(values), np.random.default_rng(0)))
    drawn = replace(stats.bootstrap((values,), np.mean, n_resamples=9, rng=0), bootstrap_distribution=found.resampled)
    for level in (0.8, 0.95):
        expected = stats.bootstrap(
            (values,), np.mean, n_resamples=0, bootstrap_result=drawn, method="BCa", confidence_level=level
        ).confidence_interval
        assert found.interval(level) == pytest.approx((expected.low, expected.high), rel=1e-9)


@pytest.mark.parametrize("name", ["skewed", "normal"])
def test_bootstrap_is_scipys_of_other_resamples(name: str) -> None:
    """SciPy's has 100,000 resamples of its own; ours 4,999, drawn 30 times over.

    The mean of the 30 must lie within 4.5 standard errors of SciPy's: 1 in 100,000 by chance for one end. SciPy's own
    Monte-Carlo error adds 4,999 x 30 / 100,000 = 1.5 times the variance of that mean.
    """
    values = SAMPLES[name]
    ends = np.array(
        [over_items(values, resamples(len(values), np.random.default_rng(seed))).interval(0.95) for seed in range(30)]
    )
    expected = stats.bootstrap(
        (values,), np.mean, n_resamples=100_000, batch=10_000, method="BCa", rng=np.random.default_rng(99)
    ).confidence_interval
    errors = ends.std(axis=0, ddof=1) * np.sqrt((1 + 1.5) / len(ends))
    assert np.all(np.abs(ends.mean(axis=0) - expected) < 4.5 * errors)
    # The errors are small enough for that to say something: well below what a plain percentile interval is off by.
    plain = np.quantile(over_items(values, resamples(len(values), np.random.default_rng(0))).resampled, [0.025, 0.975])
    if name == "skewed":
        assert np.all(np.abs(plain - expected) > 4.5 * errors)


@pytest.mark.parametrize("shift", [0.0, 0.003, 0.02, -0.2])
@pytest.mark.parametrize("num_seeds", [2, 3, 8])
def test_tests_over_seeds_are_scipys(num_seeds: int, shift: float) -> None:
    generator = np.random.default_rng((num_seeds, int(1e4 * abs(shift))))
    luck = 0.05 * generator.standard_normal(num_seeds)
    one = 2.3 + luck + 0.004 * generator.standard_normal(num_seeds)
    other = 2.3 + luck + shift + 0.004 * generator.standard_normal(num_seeds)
    summary = summary_of({"a": one.tolist(), "b": other.tolist()})
    (pair,) = summary.comparisons
    first, second = (one, other) if pair.one == "a" else (other, one)
    found = stats.ttest_rel(first, second)
    assert pair.difference.value == pytest.approx(np.mean(first - second), rel=1e-9)
    assert pair.p_difference == pytest.approx(found.pvalue, rel=1e-6)
    ends = found.confidence_interval(0.95)
    assert (pair.difference.low, pair.difference.high) == pytest.approx((ends.low, ends.high), rel=1e-9)
    above = stats.ttest_1samp(first - second, -MARGIN, alternative="greater").pvalue
    below = stats.ttest_1samp(first - second, MARGIN, alternative="less").pvalue
    assert pair.p_equivalence == pytest.approx(max(above, below), rel=1e-6)
    assert summary.margin == MARGIN


def chi_density(s: float, error: float, degrees: float) -> float:
    """Density of an estimated standard error, by its closed form; degrees of freedom need not be whole."""
    x = s * math.sqrt(degrees) / error
    if x == 0:
        return 0.0
    log = (1 - degrees / 2) * math.log(2) + (degrees - 1) * math.log(x) - x * x / 2 - math.lgamma(degrees / 2)
    return math.exp(log) * math.sqrt(degrees) / error


def exact_power(margin: float, error: float, degrees: float, difference: float, level: float) -> float:
    """Chance that |d| <= margin - t s: the normal of d over the chi of s, by SciPy's adaptive quadrature."""
    t = float(stats.t.ppf(1 - level, degrees))

    def inside(s: float) -> float:
        ends = [(side * (margin - t * s) - difference) / (error * math.sqrt(2)) for side in (-1, 1)]
        return (math.erf(ends[1]) - math.erf(ends[0])) / 2 * chi_density(s, error, degrees)

    return float(integrate.quad(inside, 0, margin / t, epsabs=1e-12, epsrel=1e-11, limit=400)[0])


@pytest.mark.parametrize("level", [0.05, 0.05 / 10])
@pytest.mark.parametrize("difference", [0.0, 0.6, 1.0, 1.3])
@pytest.mark.parametrize(("error", "degrees"), [(0.5, 2), (0.29, 2), (0.1, 4), (0.4, 9), (0.3, 2.7)])
def test_power_of_equivalence_is_exact(error: float, degrees: float, difference: float, level: float) -> None:
    expected = exact_power(1.0, error, degrees, difference, level)
    found = equivalence_power(1.0, error, degrees, difference=difference, level=level)
    assert found == pytest.approx(expected, abs=1e-6)
    assert equivalence_power(1e-3, 1e-3 * error, degrees, difference=1e-3 * difference, level=level) == pytest.approx(
        found, rel=1e-9
    )


def test_power_of_equivalence_where_it_is_known() -> None:
    """With the error known, it is 2 Phi(margin / error - z) - 1; at the margin itself it is the level."""
    for ratio in (2.0, 3.0, 4.0):
        expected = 2 * stats.norm.cdf(ratio - stats.norm.ppf(0.95)) - 1
        assert equivalence_power(ratio, 1.0, 1e7) == pytest.approx(expected, abs=1e-5)
    assert equivalence_power(1.0, 0.01, 5, difference=1.0) == pytest.approx(0.05, abs=1e-6)
    assert equivalence_power(1.0, 0.01, 5, difference=-1.0, level=0.01) == pytest.approx(0.01, abs=1e-6)
    assert seeds_power(1.0, 0.5, 3, 6) == pytest.approx(
        exact_power(1.0, 0.5 / math.sqrt(3), 2, 0.0, 0.05 / 6), abs=1e-6
    )
    assert seeds_power(1.0, 0.5, 1) == 0.0


@pytest.mark.parametrize(("error", "degrees"), [(0.5, 2), (0.2, 4), (0.05, 3), (0.02, 9)])
def test_power_of_a_difference_is_exact(error: float, degrees: float) -> None:
    t = stats.t.ppf(0.975, degrees)
    chi = stats.chi(degrees, scale=error / math.sqrt(degrees))
    expected, _ = integrate.quad(
        lambda s: stats.norm.sf(t * s, 1.0, error) * chi.pdf(s), 0, chi.isf(1e-14), epsabs=1e-11, limit=400
    )
    assert difference_power(1.0, error, degrees) == pytest.approx(expected, abs=1e-6)
    assert difference_power(-1.0, error, degrees) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("difference", "spread"), [(0.0, 1.0), (0.3, 0.8), (1.6, 2.0), (0.9, 1.0), (0.0, 6.0)])
def test_more_seeds_are_the_fewest_with_a_power_of_80_percent(difference: float, spread: float) -> None:
    """By trying one number after the other, each with an exact power; a hundred are not enough for the last."""

    def decides(num_seeds: int) -> bool:
        error, degrees = spread / math.sqrt(num_seeds), num_seeds - 1
        differs = stats.nct.sf(stats.t.ppf(0.975, degrees), degrees, abs(difference) / error)
        return bool(max(exact_power(1.0, error, degrees, difference, 0.05), differs) >= 0.8)

    expected = next((more for more in range(1, 101) if decides(3 + more)), None)
    found = seeds_to_decide(difference, spread**2 / 3, 0.0, num_seeds=3, item_freedom=1.0, margin=1.0)
    assert found == expected
    assert (found is None) == (spread == 6.0)
