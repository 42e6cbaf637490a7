"""How often a claim would be made if things were so and so: power of the two tests.

Two one-sided t tests of a difference d with the standard error s find an equivalence where |d| <= margin - t s. For
normal differences d and s are independent, and f s^2 / sigma^2 is chi-square with f degrees of freedom, so the power is

    integral over s of Phi((margin - delta - t s) / sigma) - Phi((t s - margin - delta) / sigma), where t s < margin,

(Phillips, 1990, "Power of the two one-sided tests procedure in bioequivalence", Journal of Pharmacokinetics and
Biopharmaceutics 18, 137-144; Owen, 1965, Biometrika 52, 437-446), which is exact for the paired t test over seeds.
"""

import math
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtr, gammaln, nctdtr, ndtr, stdtrit

from tuneoff.analysis.stats.twoway import freedom

Values = NDArray[np.float64]

LEVEL = 0.05
WANTED_POWER = 0.8
"""Convention (Cohen, 1988, "Statistical Power Analysis for the Behavioral Sciences", section 2.4)."""
MAX_MORE_SEEDS = 100
_NUM_NODES = 32
_REACH = 8.0
"""Standard deviations beyond which a normal number does not lie: one in 1e15."""


def equivalence_power(
    margin: float, standard_error: float, degrees: float, *, difference: float = 0.0, level: float = LEVEL
) -> float:
    """Return the chance that two one-sided t tests find an equivalence.

    Args:
        margin: how close counts as equal.
        standard_error: true one, of the estimated difference.
        degrees: degrees of freedom of its estimate.
        difference: true one.
        level: of each one-sided test.
    """
    if standard_error == 0:
        return float(abs(difference) < margin)
    return float(_equivalence_powers(margin, *map(_one, (standard_error, degrees, difference)), level=level)[0])


def _equivalence_powers(
    margin: float, standard_errors: Values, degrees: Values, differences: Values, *, level: float
) -> Values:
    """Return `equivalence_power` of many, (n,); no standard error is 0.

    With y = s / sigma the tests find an equivalence where |d| <= margin - t y sigma. Below some y that is as good as
    certain, above another it is not to be had, or so large a y is not; the integral over y's density is taken between.
    """
    t = -stdtrit(degrees, level)
    room, shift = margin / standard_errors, np.abs(differences) / standard_errors
    low = np.maximum((room - shift - _REACH) / t, 0)
    high = np.minimum(room, room - shift + _REACH) / t
    certain = chdtr(degrees, degrees * low**2)
    spread = np.sqrt(0.5 / degrees)  # of y, or a little more
    low = np.maximum(low, 1 - _REACH * spread)
    wide = np.maximum(np.minimum(high, 1 + _REACH * spread) - low, 0)[:, None]
    nodes, weights = _nodes()
    y, f = np.maximum(low[:, None] + wide * nodes, np.finfo(np.float64).tiny), degrees[:, None]
    log_density = (f - 1) * np.log(y) - f / 2 * (y**2 - np.log(f / 2)) + np.log(2) - gammaln(f / 2)
    left = room[:, None] - t[:, None] * y
    found = ndtr(left - shift[:, None]) - ndtr(-left - shift[:, None])
    return np.asarray(certain + (wide * np.exp(log_density) * found * weights).sum(axis=1))


def _share(margin: float, standard_errors: Values, degrees: Values, t: Values) -> Values:
    """Return how often the estimated standard error is so small that an equivalence can be found at all."""
    return np.asarray(chdtr(degrees, degrees * (margin / (t * standard_errors)) ** 2))


def difference_power(difference: float, standard_error: float, degrees: float, *, level: float = LEVEL) -> float:
    """Return the chance that a two-sided t test finds a true difference, on its right side.

    Args:
        difference: true one.
        standard_error: true one, of the estimated difference.
        degrees: degrees of freedom of its estimate.
        level: of the two-sided test.
    """
    if standard_error == 0:
        return float(difference != 0)
    return float(_difference_powers(*map(_one, (difference, standard_error, degrees)), level=level)[0])


def _difference_powers(differences: Values, standard_errors: Values, degrees: Values, *, level: float) -> Values:
    """Return `difference_power` of many, (n,); no standard error is 0."""
    shift = np.abs(differences) / standard_errors
    t = -stdtrit(degrees, level / 2)
    is_near = shift < 30
    found = ndtr(shift - t)
    found[is_near] = 1 - nctdtr(degrees[is_near], shift[is_near], t[is_near])
    return np.asarray(found)


def seeds_power(margin: float, spread: float, num_seeds: int, num_comparisons: int = 1) -> float:
    """Return how often a study finds that two arms are equivalent which are the same.

    Args:
        margin: how close counts as equal.
        spread: standard deviation over seeds of the difference between the two arms; the noise of the test items is
            left out, so that the power is at most this.
        num_seeds: seeds of the study; none is found at one.
        num_comparisons: pairs of arms whose verdicts are corrected for one another; the level is shared evenly, as
            for the first of them to be decided.
    """
    if num_seeds < 2:
        return 0.0
    level = LEVEL / max(num_comparisons, 1)
    return equivalence_power(margin, spread / math.sqrt(num_seeds), num_seeds - 1, level=level)


def seeds_to_decide(
    difference: float,
    by_seeds: float,
    by_items: float,
    *,
    num_seeds: int,
    item_freedom: float,
    margin: float,
    level: float = LEVEL,
) -> int | None:
    """Return `each_seeds_to_decide` of one."""
    (more,) = each_seeds_to_decide(
        [difference],
        [by_seeds],
        [by_items],
        num_seeds=[num_seeds],
        item_freedom=[item_freedom],
        margin=margin,
        level=level,
    )
    return more


def each_seeds_to_decide(
    differences: ArrayLike,
    by_seeds: ArrayLike,
    by_items: ArrayLike,
    *,
    num_seeds: ArrayLike,
    item_freedom: ArrayLike,
    margin: float,
    level: float = LEVEL,
) -> list[int | None]:
    """Return how many seeds more give a claim, of a difference or of equivalence, a power of about 80 %.

    Args:
        differences: (n,), the estimated ones, taken to be true.
        by_seeds: (n,), v of `tuneoff.analysis.stats.twoway`, of `num_seeds` seeds; falls as 1 / seeds.
        by_items: (n,), w, which stays.
        num_seeds: (n,), seeds that there are.
        item_freedom: (n,), degrees of freedom of w.
        margin: how close counts as equal.
        level: of the tests, after the correction for many of them.

    Returns:
        The numbers, at least 1; none where 100 more are not enough.
    """
    given = (differences, by_seeds, by_items, num_seeds, item_freedom)
    delta, v, w, seeds, degrees = (np.asarray(values, dtype=np.float64) for values in given)

    def is_enough(more: NDArray[np.int64], places: NDArray[np.intp]) -> NDArray[np.bool_]:
        total = seeds[places] + more
        left = v[places] * seeds[places] / total
        found = freedom(left, w[places], total, degrees[places])
        return _are_decided(delta[places], np.sqrt(left + w[places]), found, margin=margin, level=level)

    every = np.arange(delta.size)
    low, high = np.zeros(delta.size, dtype=np.int64), np.full(delta.size, MAX_MORE_SEEDS)
    can = is_enough(high, every)
    while (open_ := np.flatnonzero(can & (high - low > 1))).size:
        middle = (low[open_] + high[open_]) // 2
        is_met = is_enough(middle, open_)
        low[open_], high[open_] = np.where(is_met, low[open_], middle), np.where(is_met, middle, high[open_])
    return [int(more) if known else None for more, known in zip(high, can, strict=True)]


def each_seeds_can_decide(
    differences: ArrayLike, by_items: ArrayLike, *, item_freedom: ArrayLike, margin: float, level: float = LEVEL
) -> list[bool]:
    """Return whether any number of seeds could decide: with no noise of seeds left, a claim has a power of 80 %.

    Args:
        differences: (n,), the estimated ones.
        by_items: (n,), w, the variance of the mean over items.
        item_freedom: (n,), degrees of freedom of w.
        margin: how close counts as equal.
        level: of the tests.
    """
    delta, w, degrees = (np.asarray(values, dtype=np.float64) for values in (differences, by_items, item_freedom))
    return [bool(can) for can in _are_decided(delta, np.sqrt(w), degrees, margin=margin, level=level)]


def _one(value: float) -> Values:
    return np.array([value])


def _are_decided(
    differences: Values, errors: Values, degrees: Values, *, margin: float, level: float
) -> NDArray[np.bool_]:
    """Whether a claim has a power of 80 %, of each (n,) of the differences with their standard errors."""
    is_sure = errors == 0
    found = np.where(is_sure, (differences != 0) | (np.abs(differences) < margin), False)
    places = np.flatnonzero(~is_sure)
    found[places] = (
        _difference_powers(differences[places], errors[places], degrees[places], level=level) >= WANTED_POWER
    )
    # Two bounds that cost less than the integral: the level, outside the margin, and how often there is room for t s.
    left = np.flatnonzero(~found & ~is_sure & (np.abs(differences) < margin))
    room = _share(margin, errors[left], degrees[left], -stdtrit(degrees[left], level))
    left = left[room >= WANTED_POWER]
    powers = _equivalence_powers(margin, errors[left], degrees[left], differences[left], level=level)
    found[left] = powers >= WANTED_POWER
    return np.asarray(found)


@cache
def _nodes() -> tuple[Values, Values]:
    """Return Gauss and Legendre's nodes and weights on (0, 1)."""
    nodes, weights = np.polynomial.legendre.leggauss(_NUM_NODES)
    return (nodes + 1) / 2, weights / 2
