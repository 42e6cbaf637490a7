"""From the runs of one arm or two to an estimate: values by seed and item, and what is known of their mean."""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from tuneoff.analysis.estimates import CONFIDENCE, Estimate, over_seeds
from tuneoff.analysis.items import ItemScores
from tuneoff.analysis.stats.bootstrap import MAX_ITEMS, ItemSpread, over_items, resamples
from tuneoff.analysis.stats.pairs import spreads_of_pairs
from tuneoff.analysis.stats.twoway import Spread, over_seeds_alone, two_way

Values = NDArray[np.float64]

_RESAMPLING_SEED = 0
"""Of the generator that every bootstrap starts from, so that a report comes out the same each time it is made."""


@dataclass(frozen=True)
class Seeds:
    """An arm's tested runs, one for each seed.

    Attributes:
        is_drawn: whether seeds were drawn at all; an arm that is not trained has one run, which stands for every seed.
        values: a metric by seed; -1 stands for the one run of an arm that is not trained.
        items: scores by item, by seed; runs may be missing.
    """

    is_drawn: bool
    values: Mapping[int, float]
    items: Mapping[int, ItemScores]


@dataclass(frozen=True)
class Difference:
    """One arm minus another.

    Attributes:
        estimate: with its 95 % interval.
        spread: what tests are made from; none where nothing is known of it.
        num_seeds: seeds that both have, 0 where neither is trained.
        num_items: items that both were scored on, 0 where they are not known.
        is_identical: whether the two score the same on every seed and item that there is.
    """

    estimate: Estimate
    spread: Spread | ItemSpread | None
    num_seeds: int
    num_items: int
    is_identical: bool


def estimate_of(
    values: Sequence[float], items: Sequence[ItemScores | None], metric: str, *, is_drawn: bool
) -> Estimate | None:
    """Return the mean of a metric with its interval over seeds and items; over seeds where items are not known.

    Args:
        values: the metric, one number for each seed.
        items: scores by item of each seed, in the same order.
        metric: name of the metric among them.
        is_drawn: whether seeds were drawn at all.
    """
    table = _table(items, metric)
    if not values or table is None:
        return over_seeds(values, is_drawn=is_drawn)
    return _estimate(float(np.mean(values)), _spread(table), table.shape, is_drawn=is_drawn)


def difference_of(one: Seeds, other: Seeds, metric: str) -> Difference:
    """Return what is known of one arm minus another, on the seeds and items that both have.

    Args:
        one: an arm.
        other: another.
        metric: name of the metric among the scores by item.
    """
    seeds = _shared(one, other)
    is_drawn = one.is_drawn or other.is_drawn
    if not seeds:
        means = [float(np.mean(list(arm.values.values()))) for arm in (one, other)]
        unpaired = Estimate(value=means[0] - means[1], n=0, how="no seed that both arms have")
        return Difference(unpaired, None, 0, 0, is_identical=False)
    keys = [[seed if arm.is_drawn else -1 for seed in seeds] for arm in (one, other)]
    first, second = (np.array([arm.values[key] for key in own]) for arm, own in zip((one, other), keys, strict=True))
    both = [arm.items.get(key) for arm, own in zip((one, other), keys, strict=True) for key in own]
    table = _table(both, metric)
    num_seeds = len(seeds) if is_drawn else 0
    if table is None:
        found = over_seeds((first - second).tolist(), is_drawn=is_drawn)
        assert found is not None  # there is a seed
        spread = over_seeds_alone(first - second) if len(seeds) > 1 else None
        return Difference(found, spread, num_seeds, 0, is_identical=bool(np.all(first == second)) and len(seeds) > 1)
    halves = table[: len(seeds)] - table[len(seeds) :]
    known = _spread(halves)
    found = _estimate(float(halves.mean()), known, halves.shape, is_drawn=is_drawn)
    return Difference(found, known, num_seeds, halves.shape[1], is_identical=not halves.any())


def differences_of(arms: Sequence[Seeds], metric: str) -> list[Difference]:
    """Return `difference_of` of every two arms, in the order of `itertools.combinations`, but for rounding.

    Arms that were tested on the same seeds and items, as those of one study mostly are, are taken all at once.
    """
    wholes = [_whole(arm, metric) for arm in arms]
    alike: dict[Hashable, list[int]] = defaultdict(list)
    for place, whole in enumerate(wholes):
        if whole is not None:
            alike[whole.key].append(place)
    found: dict[tuple[int, int], Difference] = {}
    for places in alike.values():
        tables = np.array([whole.table for place in places if (whole := wholes[place]) is not None])
        found |= zip(combinations(places, 2), _of_every_two(tables), strict=True)
    return [
        known if (known := found.get(pair)) is not None else difference_of(arms[pair[0]], arms[pair[1]], metric)
        for pair in combinations(range(len(arms)), 2)
    ]


@dataclass(frozen=True)
class _Whole:
    """An arm of several seeds, each of which has a finite score of every item."""

    key: Hashable
    table: Values
    """(seeds, items)."""


def _whole(arm: Seeds, metric: str) -> _Whole | None:
    seeds = sorted(arm.values)
    found = [arm.items.get(seed) for seed in seeds]
    if not arm.is_drawn or len(seeds) < 2:
        return None
    rows = [scores.scores[metric] for scores in found if scores is not None and metric in scores.scores]
    names = {scores.names for scores in found if scores is not None}
    if len(rows) < len(seeds) or len(names) > 1 or len(rows[0]) < 2:
        return None
    table = np.array(rows)
    return _Whole((tuple(seeds), names.pop()), table) if np.isfinite(table).all() else None


def _of_every_two(tables: Values) -> Iterator[Difference]:
    """Yield the difference of every two tables, (arms, seeds, items), in the order of `itertools.combinations`."""
    if len(tables) < 2:
        return
    num_seeds, num_items = tables.shape[1:]
    pairs = spreads_of_pairs(tables)
    spread, how = pairs.spread, _how(num_seeds, num_items, is_drawn=True)
    fields = (spread.mean, *spread.interval(CONFIDENCE), spread.by_seeds, spread.by_items, spread.item_freedom)
    for (mean, low, high, by_seeds, by_items, freedom), is_identical in zip(
        np.stack(fields, axis=1), pairs.is_identical.tolist(), strict=True
    ):
        yield Difference(
            Estimate(value=float(mean), low=float(low), high=float(high), n=num_seeds, how=how),
            Spread(mean, by_seeds, by_items, num_seeds, num_items, freedom),
            num_seeds,
            num_items,
            is_identical=is_identical,
        )


def _shared(one: Seeds, other: Seeds) -> list[int]:
    """Return the seeds of both; -1 alone where neither is trained."""
    if not one.is_drawn:
        return sorted(other.values) if one.values else []
    if not other.is_drawn:
        return sorted(one.values) if other.values else []
    return sorted(one.values.keys() & other.values.keys())


def _table(items: Sequence[ItemScores | None], metric: str) -> Values | None:
    """Return the scores of the items that every run has, (runs, items); none where there are not two."""
    found = [scores for scores in items if scores is not None and metric in scores.scores]
    if not found or len(found) < len(items):
        return None
    first = found[0].names
    if all(scores.names == first for scores in found):
        rows = [scores.scores[metric] for scores in found]
    else:
        by_name = [dict(zip(scores.names, scores.scores[metric], strict=True)) for scores in found]
        rows = [np.array([row.get(name, np.nan) for name in first]) for row in by_name]
    table = np.array(rows)
    table = table[:, np.isfinite(table).all(axis=0)]
    return table if table.shape[1] > 1 else None


def _spread(table: Values) -> Spread | ItemSpread:
    """Return what is known of the mean of (seeds, items)."""
    num_seeds, num_items = table.shape
    if num_seeds > 1:
        return two_way(table)
    if num_items > MAX_ITEMS:
        return over_seeds_alone(table[0])  # Student's t does not ask whether its values are seeds or items
    return over_items(table[0], _resamples(num_items))


@lru_cache(maxsize=2)
def _resamples(num_items: int) -> Values:
    return resamples(num_items, np.random.default_rng(_RESAMPLING_SEED))


def _estimate(value: float, spread: Spread | ItemSpread, shape: tuple[int, ...], *, is_drawn: bool) -> Estimate:
    low, high = spread.interval(CONFIDENCE)
    num_seeds, num_items = shape
    how = _how(num_seeds, num_items, is_drawn=is_drawn)
    return Estimate(value=value, low=float(low), high=float(high), n=num_seeds, how=how)


def _how(num_seeds: int, num_items: int, *, is_drawn: bool) -> str:
    if not is_drawn:
        return f"{num_items} items; nothing is trained, so no seed can move it"
    if num_seeds == 1:
        return f"1 seed x {num_items} items, items alone: how far another seed would move it is not known"
    return f"{num_seeds} seeds x {num_items} items, two-way"
