"""Intervals and tests against SciPy, and power against a simulation of the test itself."""

import numpy as np
import pytest
from scipy import stats

from tuneoff.analysis.stats.corrections import step_down
from tuneoff.analysis.stats.power import seeds_power
from tuneoff.analysis.stats.twoway import over_seeds_alone, two_way


def test_without_item_noise_it_is_students_t() -> None:
    seeds = np.array([0.3, -0.1, 0.5, 0.2])
    for spread in (over_seeds_alone(seeds), two_way(np.repeat(seeds[:, None], 8, axis=1))):
        low, high = spread.interval(0.95)
        expected = stats.t.interval(0.95, 3, loc=seeds.mean(), scale=stats.sem(seeds))
        assert (float(low), float(high)) == pytest.approx(expected, rel=1e-9)
        for value in (0.0, 1.0):
            p = stats.ttest_1samp(seeds, value, alternative="greater").pvalue
            assert float(spread.p_below(value)) == pytest.approx(p, rel=1e-8)


def test_power_is_that_of_the_test() -> None:
    draws = 0.5 * np.random.default_rng(1).standard_normal((200_000, 3))
    room = 1 - stats.t.ppf(0.95, 2) * stats.sem(draws, axis=1)
    assert seeds_power(1.0, 0.5, 3) == pytest.approx(np.mean(np.abs(draws.mean(axis=1)) < room), abs=0.005)


def test_pairs_share_the_correction() -> None:
    assert step_down([("a", 0.01), ("b", 0.02), ("c", 0.04)]) == pytest.approx([0.03, 0.04, 0.04])
    assert step_down([("a", 0.01), ("a", 0.9), ("b", 0.02), ("b", 0.8)]) == pytest.approx([0.02, 1.0, 0.04, 1.0])
