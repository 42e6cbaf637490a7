"""How sure a mean over seeds and test items is: two-way random effects.

Model: y_si = mu + a_s + b_i + e_si, seeds s = 1..S and items i = 1..I drawn at random, the items the same for every
seed. The mean has the variance var(a)/S + var(b)/I + var(e)/(S I). With the mean squares of the two-way table,

    seeds  v = MS_seed / (S I)                    whose mean is var(a)/S + var(e)/(S I), S - 1 degrees of freedom,
    items  w = max(MS_item - MS_err, 0) / (S I)   whose mean is about var(b)/I, at most I - 1 (fewer with heavy tails),

and the half-width of the interval at a level with the quantiles t is

    h^2 = k (t_{S-1}^2 v + t_{I-1}^2 w) + (1 - k) t_f^2 (v + w),    f by Satterthwaite,

k = 0.4 at the 95 % interval and narrower ones. The first part adds squared half-widths, as the modified large-sample
method does (Graybill and Wang, 1980, "Confidence intervals on nonnegative linear combinations of variances", JASA 75,
869-873); the second is Satterthwaite's (1946, "An approximate distribution of estimates of variance components",
Biometrics Bulletin 2, 110-114).

How the constant was found: the variance of the mean was shared out between seeds, items and errors in tenths, and the
mean squares of normal noise were drawn as the exact chi-squares that they are, 40,000 studies of each of the 66 shares,
with 20, 64 and 500 items. At 3 seeds (the hardest of 3, 5 and 10) the lowest and highest coverage of the 95 % interval
over these, from the simulation seeds 20260901, 0 and 7, were

    the first part above alone (k = 1)                     94.8 to 97.9 %
    k = 0.6                                                94.6 to 97.2 %
    k = 0.4                                                94.0 to 96.8 %
    k = 0.2                                                93.2 to 96.2 %
    the second alone (k = 0)                               92.0 to 95.4 %

and 0.4 is the mix that stays between 94 and 97 %. `python -m benchmarks.shares --seeds 20260901 0 7` prints these and
checks it. Two more were tried, and dropped:

    (t^2 max(MS_seed - MS_err, 0) + z^2 MS_item) / (S I)    90.8 to 97.9 %: the difference of two uncertain mean squares
                                                           is cut off at 0 just where the seeds' own looks small
    Satterthwaite's on the same variance                   88.5 to 96.6 %

The two parts err to opposite sides where seeds and items weigh about the same, and both are Student's t where one of
them is all there is. The items' degrees of freedom follow their kurtosis, I - 1 for normal items: heavy tails make a
variance less sure. `python -m benchmarks.coverage --seeds 20260901 0 7` prints what the interval covers with that, also
of clustered and skewed noise, and how often claims are false.

Beyond the 95 % interval, where claims that are corrected for one another are made, the second part errs by more: with
k = 0.4 and 3 seeds up to 1.6 % of the claims at the level 1 % were false, and 0.2 % at 0.1 %. So the first gains weight
there, k = 1 - 0.6 sqrt(tail / 0.025) for a tail below 2.5 % on each side, which keeps false claims below 1.2 times the
level down to 0.1 %. The first is never the narrower (t^2 is convex in 1 / f), so the half-width still grows as the tail
shrinks.

Departures from the papers: the mix, and the mean square of the error taken away from the items' instead of the seeds'.
It stands on many degrees of freedom there, so that hardly anything is cut off.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaln, stdtr, stdtrit

Values = NDArray[np.float64]

ADDED_SHARE = 0.4
"""k: between the two formulas where each errs by about as much, to its own side."""
ADDED_TAIL = 0.025
"""Tail on each side below which k grows towards 1."""
_SMALLEST_P = 1e-15
_NUM_STEPS = 50
"""Of Newton's method, which takes three to five."""
_CONVERGED = 1e-8
"""A step in log t after which the error is about its square."""


@dataclass(frozen=True)
class Spread:
    """A mean with what it may be off by; every field has the shape of the leading dimensions.

    Attributes:
        mean: over seeds and items.
        by_seeds: v, variance of the mean that other seeds, and their errors, would bring.
        by_items: w, variance of the mean that other items would bring.
        num_seeds: S.
        num_items: I; 1 where items are not known, and `by_items` is 0 then.
        item_freedom: degrees of freedom of w.
    """

    mean: Values
    by_seeds: Values
    by_items: Values
    num_seeds: int
    num_items: int
    item_freedom: Values

    @property
    def variance(self) -> Values:
        """Estimated variance of the mean."""
        return self.by_seeds + self.by_items

    @property
    def freedom(self) -> Values:
        """Satterthwaite's degrees of freedom of the variance, S - 1 where it is 0."""
        return freedom(self.by_seeds, self.by_items, self.num_seeds, self.item_freedom)

    def half_width(self, level: ArrayLike) -> Values:
        """Return half the width of the interval.

        Args:
            level: share of studies whose interval is to hold the mean, in (0, 1).
        """
        return np.sqrt(self._squared((1 - np.asarray(level)) / 2))

    def interval(self, level: float) -> tuple[Values, Values]:
        """Return both ends of the interval."""
        half = self.half_width(level)
        return self.mean - half, self.mean + half

    def p_below(self, value: ArrayLike) -> Values:
        """Return the one-sided p-value of "the true mean is at most `value`", by inverting the interval.

        As a function of `value` it is a confidence distribution: it rises from 0 to 1, and its quantiles are the ends
        of intervals (Xie and Singh, 2013, International Statistical Review 81, 3-39).
        """
        distance = self.mean - np.asarray(value, dtype=np.float64)
        tail = self._tail(distance**2)
        return np.where(distance >= 0, tail, 1 - tail)

    def _squared(self, tail: ArrayLike) -> Values:
        """Return the squared half-width of the interval that leaves out `tail` on each side."""
        share = 1 - (1 - ADDED_SHARE) * np.sqrt(np.minimum(np.asarray(tail) / ADDED_TAIL, 1))
        added = stdtrit(self.num_seeds - 1, tail) ** 2 * self.by_seeds
        added = added + stdtrit(self.item_freedom, tail) ** 2 * self.by_items
        pooled = stdtrit(self.freedom, tail) ** 2 * self.variance
        return np.asarray(share * added + (1 - share) * pooled)

    def _tail(self, squared: Values) -> Values:
        """Return the tail at which the squared half-width is `squared`, which falls as the tail grows."""
        shape = np.broadcast_shapes(squared.shape, self.variance.shape)
        wanted = np.broadcast_to(squared, shape).ravel()
        found = np.where(wanted == 0, 0.5, 0.0)
        is_open = (wanted != 0) & ~(wanted > np.broadcast_to(self._squared(_SMALLEST_P), shape).ravel())
        places = np.flatnonzero(is_open)
        if places.size:
            found[places] = _tail_of(self._taken(shape, places), wanted[places])
        return found.reshape(shape)

    def _taken(self, shape: tuple[int, ...], places: NDArray[np.intp]) -> "Spread":
        """Return the spreads at some places of a shape that this one is broadcast to, as one of one dimension."""
        fields = (self.mean, self.by_seeds, self.by_items, self.item_freedom)
        mean, by_seeds, by_items, item_freedom = (np.broadcast_to(field, shape).ravel()[places] for field in fields)
        return Spread(mean, by_seeds, by_items, self.num_seeds, self.num_items, item_freedom)


def _tail_of(spread: Spread, squared: Values) -> Values:
    """Return the tails at which squared half-widths are `squared`, none of which is 0 or beyond the smallest tail.

    Newton's method on the logarithm of the half-width as a function of log t, where t is the quantile of the tail at
    Satterthwaite's degrees of freedom. That is nearly a line of slope 1, and convex: the seeds' and the items' own
    quantiles grow at least as fast as t, and the first formula's share grows with it. The start is where the second
    formula alone, which is never the wider, would be as wide: at or beyond the root, from where every step leads
    towards it and none past it.

    Args:
        spread: of one dimension, as `squared` is.
        squared: what is looked for.
    """
    degrees, seed_freedom, item_freedom = spread.freedom, float(spread.num_seeds - 1), spread.item_freedom
    log_scales = [_log_scale(np.asarray(f)) for f in (degrees, seed_freedom, item_freedom)]
    wanted = np.log(squared) / 2
    log_t = np.minimum(wanted - np.log(spread.variance) / 2, np.log(-stdtrit(degrees, _SMALLEST_P)))
    places = np.arange(squared.size)
    for _ in range(_NUM_STEPS):
        f, g, own = degrees[places], item_freedom[places], log_scales[0][places]
        v, w = spread.by_seeds[places], spread.by_items[places]
        t = np.exp(log_t[places])
        tail = stdtr(f, -t)
        by_seeds, by_items = -stdtrit(seed_freedom, tail), -stdtrit(g, tail)
        share = 1 - (1 - ADDED_SHARE) * np.sqrt(np.minimum(tail / ADDED_TAIL, 1))
        seeds, items, pooled = by_seeds**2 * v, by_items**2 * w, t**2 * (v + w)
        width = share * (seeds + items) + (1 - share) * pooled
        with np.errstate(all="ignore"):  # at a tail of 1/2 a quantile is 0, and has no slope
            fall = np.exp(own - _log_rise(f, t)) * t  # of the tail, as log t rises
            seed_slope = fall / np.exp(log_scales[1] - _log_rise(seed_freedom, by_seeds)) / by_seeds
            item_slope = fall / np.exp(log_scales[2][places] - _log_rise(g, by_items)) / by_items
            share_slope = np.where(tail < ADDED_TAIL, (1 - share) * fall / (2 * tail), 0.0)
            slope = share * (seeds * seed_slope + items * item_slope) + (1 - share) * pooled
            slope = slope / width + share_slope * (seeds + items - pooled) / (2 * width)
            step = (np.log(width) / 2 - wanted[places]) / slope
        step = np.where(np.isfinite(step), step, 0.0)
        log_t[places] -= step
        places = places[np.abs(step) > _CONVERGED]
        if not places.size:
            break
    return np.asarray(stdtr(degrees, -np.exp(log_t)))


def _log_scale(degrees: Values) -> Values:
    """Return the logarithm of Student's density at 0."""
    found = gammaln((degrees + 1) / 2) - gammaln(degrees / 2) - np.log(degrees * np.pi) / 2
    return np.asarray(found)


def _log_rise(degrees: ArrayLike, t: Values) -> Values:
    """Return by how much the logarithm of Student's density is lower at t than at 0."""
    f = np.asarray(degrees)
    return np.asarray((f + 1) / 2 * np.log1p(t**2 / f))


def freedom(by_seeds: ArrayLike, by_items: ArrayLike, num_seeds: ArrayLike, item_freedom: ArrayLike) -> Values:
    """Return Satterthwaite's degrees of freedom of the sum of two variances of a mean, S - 1 where both are 0.

    Args:
        by_seeds: v, on `num_seeds` - 1 degrees of freedom.
        by_items: w, on `item_freedom`.
        num_seeds: S, at least 2.
        item_freedom: at least 1.
    """
    v, w = np.asarray(by_seeds, dtype=np.float64), np.asarray(by_items, dtype=np.float64)
    total, v_freedom, w_freedom = v + w, np.asarray(num_seeds) - 1, np.asarray(item_freedom, dtype=np.float64)
    share = np.divide(v, total, out=np.ones_like(total), where=total > 0)  # shares, because squares may underflow
    degrees = 1 / (share**2 / v_freedom + (1 - share) ** 2 / w_freedom)
    return np.asarray(degrees, dtype=np.float64)


def two_way(values: Values) -> Spread:
    """Return the mean of a two-way table with its spread.

    Args:
        values: (..., S, I), seeds by items, at least two of each; no NaN.
    """
    num_seeds, num_items = values.shape[-2:]
    mean = values.mean(axis=(-2, -1))
    seeds = values.mean(axis=-1) - mean[..., None]
    items = values.mean(axis=-2) - mean[..., None]
    errors = values - mean[..., None, None]
    errors -= seeds[..., :, None]
    errors -= items[..., None, :]
    ms_seed = num_items * (seeds**2).sum(axis=-1) / (num_seeds - 1)
    ms_item = num_seeds * (items**2).sum(axis=-1) / (num_items - 1)
    ms_error = np.square(errors, out=errors).sum(axis=(-2, -1)) / ((num_seeds - 1) * (num_items - 1))
    size = num_seeds * num_items
    by_items = np.maximum(ms_item - ms_error, 0) / size
    return Spread(mean, ms_seed / size, by_items, num_seeds, num_items, tailed_freedom(items))


def over_seeds_alone(values: Values) -> Spread:
    """Return the mean over seeds with its spread where items are not known: Student's t.

    Args:
        values: (..., S), one for each seed, at least two.
    """
    num_seeds = values.shape[-1]
    mean = values.mean(axis=-1)
    return Spread(mean, values.var(axis=-1, ddof=1) / num_seeds, np.zeros_like(mean), num_seeds, 1, np.ones_like(mean))


def tailed_freedom(centred: Values) -> Values:
    """Return the degrees of freedom of a variance over items whose tails are heavier than the normal's.

    The variance of a sample variance is (kurtosis - 1) sigma^4 / I, of the normal 2 sigma^4 / (I - 1).

    Args:
        centred: (..., I), with a mean of 0.
    """
    num_items = centred.shape[-1]
    largest = np.abs(centred).max(axis=-1, keepdims=True)
    shares = np.divide(centred, largest, out=np.zeros_like(centred), where=largest > 0)  # fourth powers may not fit
    np.square(shares, out=shares)
    squares = shares.mean(axis=-1)
    fourth = np.square(shares, out=shares).mean(axis=-1)
    kurtosis = np.divide(fourth, squares**2, out=np.full_like(squares, 3.0), where=squares > 0)
    return np.asarray((num_items - 1) * np.minimum(2 / np.maximum(kurtosis - 1, 2), 1))
