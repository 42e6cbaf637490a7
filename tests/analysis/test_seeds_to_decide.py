"""The number of further seeds, against the definition tried seed by seed with SciPy's noncentral t."""

import math

import numpy as np
import pytest
from scipy import stats

from tuneoff.analysis.stats.power import (
    MAX_MORE_SEEDS,
    WANTED_POWER,
    difference_power,
    equivalence_power,
    seeds_to_decide,
)
from tuneoff.analysis.stats.twoway import freedom

NUM_SEEDS, ITEM_FREEDOM, MARGIN, LEVEL = 3, 400.0, 0.01, 0.05 / 3


def by_definition(difference: float, by_seeds: float, by_items: float) -> int | None:
    """Return the first number of further seeds at which either claim has the wanted power."""
    for more in range(1, MAX_MORE_SEEDS + 1):
        total = NUM_SEEDS + more
        seeds = by_seeds * NUM_SEEDS / total
        degrees, error = float(freedom(seeds, by_items, total, ITEM_FREEDOM)), math.sqrt(seeds + by_items)
        differs = stats.nct.sf(stats.t.isf(LEVEL / 2, degrees), degrees, abs(difference) / error)
        equal = equivalence_power(MARGIN, error, degrees, difference=difference, level=LEVEL)
        if max(differs, equal) >= WANTED_POWER:
            return more
    return None


@pytest.mark.parametrize("difference", [0.0, 0.003, -0.009, 0.01, 0.012, -0.03, 0.2])
def test_more_seeds_are_as_many_as_the_definition_asks_for(difference: float) -> None:
    found, wanted = [], []
    for by_seeds in np.geomspace(1e-7, 1e-2, 9):
        for by_items in (0.0, 1e-6, 4e-5):
            wanted.append(by_definition(difference, by_seeds, by_items))
            found.append(
                seeds_to_decide(
                    difference,
                    by_seeds,
                    by_items,
                    num_seeds=NUM_SEEDS,
                    item_freedom=ITEM_FREEDOM,
                    margin=MARGIN,
                    level=LEVEL,
                )
            )
    assert found == wanted
    assert len(set(found)) > 2  # none, few and many are among them


@pytest.mark.parametrize("degrees", [1.0, 2.5, 40.0])
@pytest.mark.parametrize("shift", [0.0, 1.0, 4.0, 25.0])
def test_the_power_of_a_difference_is_that_of_the_noncentral_t(degrees: float, shift: float) -> None:
    wanted = stats.nct.sf(stats.t.isf(0.025, degrees), degrees, shift)
    assert difference_power(shift * 0.3, 0.3, degrees) == pytest.approx(wanted, abs=1e-12)
