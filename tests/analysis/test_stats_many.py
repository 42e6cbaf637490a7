"""What is worked out for many pairs at once, against the same worked out one by one."""

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.special import stdtrit

from tuneoff.analysis.items import ItemScores
from tuneoff.analysis.stats import power
from tuneoff.analysis.stats.power import each_seeds_to_decide
from tuneoff.analysis.stats.tables import Difference, Seeds, difference_of, differences_of
from tuneoff.analysis.stats.twoway import Spread

NUM_HALVINGS, SMALLEST_P = 48, 1e-15


def seeds_of(
    generator: np.random.Generator, seeds: list[int], names: tuple[str, ...], *, is_drawn: bool = True
) -> Seeds:
    tables = {seed: generator.normal(3.0, 0.2, len(names)) for seed in seeds}
    return Seeds(
        is_drawn=is_drawn,
        values={seed: float(values.mean()) for seed, values in tables.items()},
        items={seed: ItemScores(names, {"loss": values}) for seed, values in tables.items()},
    )


ROUNDING = 1e-11
"""Relative: some hundred times the last bit of a sum over 10 x 137 numbers, and of the differences that it is of."""


def parts(found: Difference) -> tuple[object, ...]:
    return (
        found.estimate.n,
        found.estimate.how,
        type(found.spread),
        found.num_seeds,
        found.num_items,
        found.is_identical,
    )


def numbers(found: Difference) -> list[float]:
    spread, estimate = found.spread, found.estimate
    own = (
        [float(value) for value in (spread.mean, spread.by_seeds, spread.by_items, spread.item_freedom)]
        if isinstance(spread, Spread)
        else []
    )
    return [value for value in (estimate.value, estimate.low, estimate.high, *own) if value is not None]


@pytest.mark.parametrize("num_seeds", [2, 3, 10])
def test_every_two_arms_come_out_as_each_pair_alone(num_seeds: int) -> None:
    generator = np.random.default_rng(num_seeds)
    names = tuple(f"item {place}" for place in range(137))
    seeds = list(range(num_seeds))
    arms = [seeds_of(generator, seeds, names) for _ in range(7)]
    arms += [arms[2], seeds_of(generator, seeds[1:], names), seeds_of(generator, seeds, names[::-1])]
    arms += [seeds_of(generator, [-1], names, is_drawn=False), Seeds(True, {0: 3.0, 1: 3.1}, {})]
    hole = seeds_of(generator, seeds, names)
    hole.items[0].scores["loss"][4] = np.nan
    arms += [hole, seeds_of(generator, [90, 91], names), *(seeds_of(generator, seeds, names) for _ in range(3))]
    found = differences_of(arms, "loss")
    wanted = [difference_of(one, other, "loss") for one, other in combinations(arms, 2)]
    for one, other in zip(found, wanted, strict=True):
        assert parts(one) == parts(other)
        assert numbers(one) == pytest.approx(numbers(other), rel=ROUNDING, abs=1e-15)


@pytest.mark.parametrize("num_apart", [0, 1, 60])
def test_arms_that_hardly_differ_keep_their_digits(num_apart: int) -> None:
    """Differences of a millionth of the scores, beside an arm that lies far off."""
    generator = np.random.default_rng(num_apart)
    names, seeds = tuple(f"item {place}" for place in range(60)), [0, 1, 2]
    first = seeds_of(generator, seeds, names)
    arms = [seeds_of(generator, seeds, names), first]
    for _ in range(3):
        tables = {seed: own.scores["loss"].copy() for seed, own in first.items.items()}
        for table in tables.values():
            table[:num_apart] += generator.normal(0, 1e-6, num_apart)
        items = {seed: ItemScores(names, {"loss": table}) for seed, table in tables.items()}
        arms.append(Seeds(True, {seed: float(table.mean()) for seed, table in tables.items()}, items))
    found = differences_of(arms, "loss")
    for one, (first_arm, second_arm) in zip(found, combinations(arms, 2), strict=True):
        other = difference_of(first_arm, second_arm, "loss")
        assert one.is_identical == other.is_identical
        # The scores' own rounding, 2e-16 of 3, is 7e-10 of a difference of 1e-6, and its mean is over 180 of them.
        assert numbers(one) == pytest.approx(numbers(other), rel=1e-8, abs=1e-16)
    assert found[-1].is_identical == (num_apart == 0)


def looked_every_time(spread: Spread, value: float) -> NDArray[np.float64]:
    """Return `Spread.p_below` by halvings of the tail, at each of which the width is worked out."""
    distance = spread.mean - value
    squared = distance**2

    def width(tail: NDArray[np.float64]) -> NDArray[np.float64]:
        share = 1 - 0.6 * np.sqrt(np.minimum(tail / 0.025, 1))
        added = stdtrit(spread.num_seeds - 1, tail) ** 2 * spread.by_seeds
        added = added + stdtrit(spread.item_freedom, tail) ** 2 * spread.by_items
        return share * added + (1 - share) * (stdtrit(spread.freedom, tail) ** 2 * spread.variance)

    low, high = np.full_like(squared, np.log(SMALLEST_P)), np.full_like(squared, np.log(0.5))
    for _ in range(NUM_HALVINGS):
        middle = (low + high) / 2
        is_wider = width(np.exp(middle)) > squared
        low, high = np.where(is_wider, middle, low), np.where(is_wider, high, middle)
    tail = np.where(squared > width(np.full_like(squared, SMALLEST_P)), 0.0, np.exp(high))
    tail = np.where(squared == 0, 0.5, tail)
    return np.where(distance >= 0, tail, 1 - tail)


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 20])
def test_a_p_value_is_that_of_halvings(num_seeds: int) -> None:
    generator = np.random.default_rng(num_seeds)
    size = 400
    by_items = 10 ** generator.uniform(-9, -4, size) * (generator.random(size) > 0.1)
    spread = Spread(
        generator.normal(0, 10 ** generator.uniform(-5, -1, size)) * (generator.random(size) > 0.05),
        10 ** generator.uniform(-9, -4, size),
        by_items,
        num_seeds,
        500,
        generator.uniform(1, 499, size),
    )
    for value in (0.0, -0.01, 0.01):
        # The last of 48 halvings is 1.2e-13 wide in log p; quantiles are exact to 1e-14, and log p may fall 60 times as
        # fast as log t rises.
        assert spread.p_below(value) == pytest.approx(looked_every_time(spread, value), rel=3e-12, abs=0)


def test_seeds_to_decide_are_the_fewest_with_the_wanted_power() -> None:
    """Against the powers themselves, one number of seeds after another."""
    generator = np.random.default_rng(0)
    size, margin, level = 60, 0.01, 1e-4
    difference, by_seeds = generator.normal(0, 0.008, size), 10 ** generator.uniform(-7, -4.5, size)
    by_items, freedom = 10 ** generator.uniform(-8, -5.5, size), generator.uniform(50, 499, size)
    found = each_seeds_to_decide(
        difference, by_seeds, by_items, num_seeds=[5] * size, item_freedom=freedom, margin=margin, level=level
    )

    def has_power(place: int, more: int) -> bool:
        seeds = by_seeds[place] * 5 / (5 + more)
        error = float(np.sqrt(seeds + by_items[place]))
        degrees = float(power.freedom(seeds, by_items[place], 5 + more, freedom[place]))
        delta = float(difference[place])
        different = power.difference_power(delta, error, degrees, level=level)
        alike = power.equivalence_power(margin, error, degrees, difference=delta, level=level)
        return different >= 0.8 or (abs(delta) < margin and alike >= 0.8)

    assert len(set(found)) > 10
    for place, more in enumerate(found):
        if more is None:
            assert not has_power(place, power.MAX_MORE_SEEDS)
        else:
            assert has_power(place, more)
            assert more == 1 or not has_power(place, more - 1)


@pytest.mark.parametrize("level", [0.05, 1e-3, 1e-6])
def test_a_power_is_the_integral_over_the_density_of_the_estimated_error(level: float) -> None:
    """Against sums over 200,000 standard errors, SciPy's chi-square by SciPy's normal."""
    generator = np.random.default_rng(1)
    for degrees in (1.0, 2.0, 4.0, 4.7, 19.3, 240.0):
        for error, difference in zip(10 ** generator.uniform(-3, -0.5, 8), generator.uniform(-1, 1, 8), strict=True):
            t = -stats.t.ppf(level, degrees)
            ends = np.linspace(0, min(1 / t, error * (1 + 12 / np.sqrt(2 * degrees))), 200_001)
            at = (ends[1:] + ends[:-1]) / 2
            room = 1 - t * at
            inside = stats.norm.cdf((room - difference) / error) - stats.norm.cdf((-room - difference) / error)
            share = np.diff(stats.chi2.cdf(degrees * (ends / error) ** 2, degrees))
            found = power.equivalence_power(1.0, error, degrees, difference=difference, level=level)
            assert found == pytest.approx(float(inside @ share), abs=1e-6)
