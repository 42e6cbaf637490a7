"""How often a claim would be made if things were so and so: power of the two tests.

Two one-sided t tests of a difference d with the standard error s find an equivalence where |d| <= margin - t s. For
normal differences d and s are independent, and f s^2 / sigma^2 is chi-square with f degrees of freedom, so the power is

    integral over s of Phi((margin - delta - t s) / sigma) - Phi((t s - margin - delta) / sigma), where t s < margin,

(Phillips, 1990, "Power of the two one-sided tests procedure in bioequivalence", Journal of Pharmacokinetics and
Biopharmaceutics 18, 137-144; Owen, 1965, Biometrika 52, 437-446), which is exact for the paired t test over seeds.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtr, chdtri, nctdtr, ndtr, stdtrit

from tuneoff.analysis.stats.twoway import freedom

Values = NDArray[np.float64]

LEVEL = 0.05
WANTED_POWER = 0.8
"""Convention (Cohen, 1988, "Statistical Power Analysis for the Behavioral Sciences", section 2.4)."""
MAX_MORE_SEEDS = 100
_NUM_NODES = 120


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
    t = -float(stdtrit(degrees, level))
    share = _share(margin, standard_error, degrees, t)
    nodes, weights = _nodes()
    # The estimated standard error, at probabilities that are spread evenly where an equivalence can be found at all.
    estimated = standard_error * np.sqrt(chdtri(degrees, 1 - share * nodes) / degrees)
    room = np.maximum(margin - t * estimated, 0) / standard_error
    shift = difference / standard_error
    return float(share * (weights @ (ndtr(room - shift) - ndtr(-room - shift))))


def _share(margin: float, standard_error: float, degrees: float, t: float) -> float:
    """Return how often the estimated standard error is so small that an equivalence can be found at all."""
    return float(chdtr(degrees, degrees * (margin / (t * standard_error)) ** 2))


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
    shift = abs(difference) / standard_error
    t = -float(stdtrit(degrees, level / 2))
    return float(1 - nctdtr(degrees, shift, t)) if shift < 30 else float(ndtr(shift - t))


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
    """Return how many seeds more give a claim, of a difference or of equivalence, a power of about 80 %.

    Args:
        difference: the estimated one, taken to be true.
        by_seeds: v of `tuneoff.analysis.stats.twoway`, of `num_seeds` seeds; falls as 1 / seeds.
        by_items: w, which stays.
        num_seeds: seeds that there are.
        item_freedom: degrees of freedom of w.
        margin: how close counts as equal.
        level: of the tests, after the correction for many of them.

    Returns:
        The number, at least 1; none where 100 more are not enough.
    """

    def is_enough(more: int) -> bool:
        total = num_seeds + more
        seeds = by_seeds * num_seeds / total
        degrees = float(freedom(seeds, by_items, total, item_freedom))
        return _is_decided(difference, math.sqrt(seeds + by_items), degrees, margin, level)

    low, high = 0, MAX_MORE_SEEDS
    if not is_enough(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def seeds_can_decide(
    difference: float, by_items: float, *, item_freedom: float, margin: float, level: float = LEVEL
) -> bool:
    """Whether any number of seeds could decide: with no noise of seeds left, a claim has a power of 80 %.

    Args:
        difference: the estimated one.
        by_items: w, the variance of the mean over items.
        item_freedom: degrees of freedom of w.
        margin: how close counts as equal.
        level: of the tests.
    """
    return _is_decided(difference, math.sqrt(by_items), item_freedom, margin, level)


def _is_decided(difference: float, error: float, degrees: float, margin: float, level: float) -> bool:
    if difference_power(difference, error, degrees, level=level) >= WANTED_POWER:
        return True
    # Two bounds that cost less than the integral: the level, outside the margin, and how often there is room for t s.
    if abs(difference) >= margin or _share(margin, error, degrees, -float(stdtrit(degrees, level))) < WANTED_POWER:
        return False
    return equivalence_power(margin, error, degrees, difference=difference, level=level) >= WANTED_POWER


@lru_cache(maxsize=1)
def _nodes() -> tuple[Values, Values]:
    """Return Gauss and Legendre's nodes and weights on (0, 1)."""
    nodes, weights = np.polynomial.legendre.leggauss(_NUM_NODES)
    return (nodes + 1) / 2, weights / 2
