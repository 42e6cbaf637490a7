"""Estimates over seeds: a value, its interval, its n, and how it was made.

The interval here is Student's t over seeds, on the scale on which losses add (nats per token); a perplexity is the exp
of it, ends included. It says how far the mean would move with other seeds. It does not hold the noise of the test
items, which takes the scores of each item: `tuneoff.analysis.stats.tables` makes intervals of both.
"""

import math
from collections.abc import Sequence
from functools import cache

from tuneoff.study.records import exp
from tuneoff.study.value import Value

CONFIDENCE = 0.95
"""Convention; the interval that readers of tables expect."""

ONE_SEED = "one seed: no interval over seeds"
NOT_DRAWN = "nothing is trained, so no seed can move it; noise of the test items not included"


class Estimate(Value):
    """A value with its interval, its n and how it was made."""

    value: float
    low: float | None = None
    """Lower end of the 95 % interval; none where there is none."""
    high: float | None = None
    n: int
    """Seeds that it stands on."""
    how: str

    @property
    def has_interval(self) -> bool:
        """Whether both ends are known."""
        return self.low is not None and self.high is not None


def over_seeds(values: Sequence[float], *, is_drawn: bool = True) -> Estimate | None:
    """Return the mean of `values`, one for each seed, with its t interval; none where there are no values.

    Args:
        values: one number for each seed.
        is_drawn: whether seeds were drawn at all; a base that is only scored has none.
    """
    if not values:
        return None
    mean, half = mean_and_half(values)
    if half is None:
        return Estimate(value=mean, n=1, how=ONE_SEED if is_drawn else NOT_DRAWN)
    how = f"t over {len(values)} seeds; noise of the test items not included"
    return Estimate(value=mean, low=mean - half, high=mean + half, n=len(values), how=how)


def mean_and_half(values: Sequence[float]) -> tuple[float, float | None]:
    """Return the mean and half the width of its t interval; none of one value.

    Args:
        values: at least one.
    """
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    # `statistics.stdev` works in fractions, which takes ten times as long; a report has tens of thousands of these.
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, t_quantile(len(values) - 1) * math.sqrt(variance / len(values))


@cache
def t_quantile(degrees: int) -> float:
    """Return Student's t that leaves out half of what is not in the interval."""
    from scipy.special import stdtrit  # here, because its import takes as long as a small study's status

    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2))


def exp_of(estimate: Estimate | None) -> Estimate | None:
    """Return the perplexity of a loss: exp of the value and of both ends."""
    if estimate is None:
        return None
    low = None if estimate.low is None else exp(estimate.low)
    high = None if estimate.high is None else exp(estimate.high)
    return Estimate(value=exp(estimate.value), low=low, high=high, n=estimate.n, how=estimate.how)
