"""The noise of test items alone, where one seed was run or nothing was trained: BCa bootstrap over items.

Resamples of the items give the distribution G of the mean; an end of the interval is the quantile of G at

    Phi(z0 + (z0 + z) / (1 - a (z0 + z))),

with z the normal quantile of the tail, z0 = Phi^-1(G(mean)) for the bias and a for the skewness of the mean, a sixth of
the jackknife's (Efron, 1987, "Better bootstrap confidence intervals", JASA 82, 171-185, equation 3.8 and section 6).
Solved for z, the same line gives the p-value of any true mean.

Departures from the paper: resamples equal to the mean count half for z0, so that discrete scores bring no bias; the
tail outside of all resamples counts as half a resample.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Values = NDArray[np.float64]

NUM_RESAMPLES = 4_999
MAX_ITEMS = 1_000
"""Items from which on the mean is so close to normal that Student's t over items does as well, at no cost."""


@dataclass(frozen=True)
class ItemSpread:
    """A mean over items with its bootstrap distribution.

    Attributes:
        mean: over items.
        resampled: (B,), means of resamples, rising.
        acceleration: a.
    """

    mean: float
    resampled: Values
    acceleration: float

    @cached_property
    def bias(self) -> float:
        """z0."""
        below = np.mean(self.resampled < self.mean) + np.mean(self.resampled == self.mean) / 2
        return float(ndtri(self._inside(float(below))))

    def interval(self, level: float) -> tuple[float, float]:
        """Return both ends of the interval that is to hold the mean in a share `level` of studies."""
        shifted = self.bias + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
        shares = ndtr(self.bias + shifted / (1 - self.acceleration * shifted))
        low, high = np.quantile(self.resampled, shares)
        return float(low), float(high)

    def p_below(self, value: float) -> float:
        """Return the one-sided p-value of "the true mean is at most `value`", by inverting the interval."""
        if self.resampled[0] == self.resampled[-1]:
            return 0.5 if value == self.mean else float(value > self.mean)
        places = np.linspace(0, 1, len(self.resampled))
        share = self._inside(float(np.interp(value, self.resampled, places)))
        shifted = ndtri(share) - self.bias
        return float(ndtr(shifted / (1 + self.acceleration * shifted) - self.bias))

    def _inside(self, share: float) -> float:
        edge = 0.5 / len(self.resampled)
        return min(max(share, edge), 1 - edge)


def resamples(num_items: int, generator: np.random.Generator) -> Values:
    """Return how often each resample holds each item, (B, I).

    Args:
        num_items: I.
        generator: what they are drawn from.
    """
    return generator.multinomial(num_items, np.full(num_items, 1 / num_items), NUM_RESAMPLES).astype(np.float64)


def over_items(values: Values, counts: Values) -> ItemSpread:
    """Return the mean over items with its bootstrap distribution.

    Args:
        values: (I,), at least two.
        counts: (B, I), from `resamples`; arms that are compared may share it.
    """
    centred = values - values.mean()
    shares = centred / (np.abs(centred).max() or 1.0)  # a has no unit, and cubes of tiny numbers would be 0
    cubes, squares = np.sum(shares**3), np.sum(shares**2)
    acceleration = cubes / (6 * squares**1.5) if squares > 0 else 0.0
    means = values.mean() + np.sort(counts @ centred) / len(values)
    return ItemSpread(float(values.mean()), means, float(acceleration))
