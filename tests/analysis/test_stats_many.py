"""What is worked out for many pairs at once, against the same worked out one by one: equal to the last bit."""

from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
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


def parts(found: Difference) -> tuple[object, ...]:
    spread = found.spread
    own = (
        [float(value) for value in (spread.mean, spread.by_seeds, spread.by_items, spread.item_freedom)]
        if isinstance(spread, Spread)
        else spread is None
    )
    return found.estimate, own, found.num_seeds, found.num_items, found.is_identical


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
    assert [parts(one) for one in found] == [parts(one) for one in wanted]


def looked_every_time(spread: Spread, value: float) -> NDArray[np.float64]:
    """Return `Spread.p_below` as halvings alone give it: at each the width is worked out."""
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
def test_a_p_value_has_the_bits_of_halvings_that_look_every_time(num_seeds: int) -> None:
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
        assert spread.p_below(value).tolist() == looked_every_time(spread, value).tolist()


def test_seeds_to_decide_are_the_fewest_with_the_wanted_power() -> None:
    """Against the powers of all nodes, one number of seeds after another."""
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
def test_few_nodes_are_nearer_than_half_of_the_doubt(level: float) -> None:
    generator = np.random.default_rng(1)
    size = 4000
    given = (
        10 ** generator.uniform(-4, 0, size),
        np.where(generator.random(size) < 0.3, generator.integers(1, 6, size), 10 ** generator.uniform(0, 3, size)),
        generator.uniform(-1, 1, size),
    )
    all_nodes = power._equivalence_powers(1.0, *given, level=level)
    few = power._equivalence_powers(1.0, *given, level=level, num_nodes=power._NUM_FEW_NODES)
    assert np.abs(all_nodes - few).max() < power._DOUBT / 2
