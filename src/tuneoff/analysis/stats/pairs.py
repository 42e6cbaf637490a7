"""Every two of many arms against each other, on the same seeds and items: their two-way spreads at once.

The sums of `tuneoff.analysis.stats.twoway` of a difference d = x - y need no pass over its table but the errors':

    mean of d = mean of x - mean of y,                   likewise the means by seed and by item,
    sum of squared errors of d = |E(x) - E(y)|^2,        E what is left of a table without its means.

So the means and E are worked out once for each arm. All tables are first taken from the first arm's, item by item and
seed by seed: what is left is of the size of the differences, and they lose no digits to the scores' own size.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuneoff.analysis.stats.twoway import Spread, tailed_freedom

Values = NDArray[np.float64]

_CACHED_NUMBERS = 1 << 15
"""Of the errors of some arms, that stay in the processor's cache (256 KiB) from one operation to the next."""


@dataclass(frozen=True)
class Pairs:
    """Every two of some arms, in the order of `itertools.combinations`.

    Attributes:
        spread: of the first one's mean minus the second one's; every field is (pairs,).
        is_identical: (pairs,), whether the two have the same table.
    """

    spread: Spread
    is_identical: NDArray[np.bool_]


def spreads_of_pairs(tables: Values) -> Pairs:
    """Return what `two_way` gives of the difference of every two tables, but for rounding.

    Args:
        tables: (arms, seeds, items), at least two of each; no NaN.
    """
    num_arms, num_seeds, num_items = tables.shape
    left = tables - tables[0]
    mean = left.mean(axis=(1, 2))
    seeds = left.mean(axis=2) - mean[:, None]
    items = left.mean(axis=1) - mean[:, None]
    left -= mean[:, None, None]
    left -= seeds[:, :, None]
    left -= items[:, None, :]
    errors = left.reshape(num_arms, -1)
    one, other = np.triu_indices(num_arms, 1)
    kinds = _kinds(tables)
    is_identical = kinds[one] == kinds[other]
    by_seeds, by_errors, by_items, freedom = (np.empty(one.size) for _ in range(4))
    end = 0
    for place in range(num_arms - 1):
        own = slice(end, end + num_arms - 1 - place)
        end = own.stop
        by_seeds[own] = np.square(seeds[place] - seeds[place + 1 :]).sum(axis=1)
        by_errors[own] = _distances(errors, place)
        apart = items[place] - items[place + 1 :]
        by_items[own] = np.square(apart).sum(axis=1)
        freedom[own] = tailed_freedom(apart)
    size = num_seeds * num_items
    ms_seed = num_items * by_seeds / (num_seeds - 1)
    ms_item = num_seeds * by_items / (num_items - 1)
    ms_error = by_errors / ((num_seeds - 1) * (num_items - 1))

    def known(values: Values, of_none: float = 0.0) -> Values:
        return np.where(is_identical, of_none, values)

    spread = Spread(
        known(mean[one] - mean[other]),
        known(ms_seed / size),
        known(np.maximum(ms_item - ms_error, 0) / size),
        num_seeds,
        num_items,
        known(freedom, num_items - 1.0),
    )
    return Pairs(spread, is_identical)


def _kinds(tables: Values) -> NDArray[np.int64]:
    """Return a number for each table, the same for those that are equal to the last bit."""
    numbers: dict[bytes, int] = {}
    contents = ((table + 0.0).tobytes() for table in tables)  # so that -0 is 0
    return np.array([numbers.setdefault(content, len(numbers)) for content in contents])


def _distances(errors: Values, place: int) -> Values:
    """Return the squared distance of one row to each of those after it, without the digits that a product would lose.

    Args:
        errors: (arms, seeds x items).
        place: of the one.
    """
    num_arms, size = errors.shape
    step = max(1, _CACHED_NUMBERS // size)
    apart = np.empty((min(step, num_arms), size))
    found = np.empty(num_arms - 1 - place)
    for start in range(place + 1, num_arms, step):
        others = errors[start : start + step]
        now = np.subtract(errors[place], others, out=apart[: len(others)])
        found[start - place - 1 : start - place - 1 + len(others)] = np.einsum("ij,ij->i", now, now)
    return found
