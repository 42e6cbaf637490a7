"""A metric of a split, item by item: numbers whose mean over items is the metric.

Items are the smallest independent units (a document, a conversation, an article), so that intervals can be made over
them. A metric that is a ratio of sums over items, R = sum of N_i / sum of D_i, is linearised: the value of item i is
R + (N_i - R D_i) / mean of D, whose mean is R and whose spread over items is R's to first order (Cochran, 1977,
"Sampling Techniques", section 6.3). Losses are such ratios (nats over tokens), and so is an F1 (2 TP over 2 TP + FP +
FN).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
POINTS = 100.0


def ratio_values(numerators: Values, denominators: Values) -> Values:
    """Return the values of the items, of a ratio of sums over them.

    Args:
        numerators: (items,).
        denominators: (items,), their sum above zero.
    """
    ratio = numerators.sum() / denominators.sum()
    return np.asarray(ratio + (numerators - ratio * denominators) / denominators.mean())


def sums(items: NDArray[np.integer[Any]], values: Values, num_items: int) -> Values:
    """Return the sum of the values of each item, (num_items,).

    Args:
        items: index of the item of each value, (n,).
        values: (n,).
        num_items: items that there are.
    """
    return np.bincount(items, weights=values, minlength=num_items).astype(np.float64)


def mean_values(items: NDArray[np.integer[Any]], values: Values, num_items: int) -> Values:
    """Return the items' values of a mean over all `values`; NaN for an item that has none.

    Args:
        items: index of the item of each value, (n,).
        values: (n,).
        num_items: items that there are.
    """
    counts = sums(items, np.ones(len(items)), num_items)
    present = counts > 0
    found = np.full(num_items, np.nan)
    found[present] = ratio_values(sums(items, values, num_items)[present], counts[present])
    return found


def class_values(
    items: NDArray[np.integer[Any]],
    labels: NDArray[np.integer[Any]],
    predictions: NDArray[np.integer[Any]],
    num_items: int,
    num_classes: int,
    names: Sequence[str],
) -> Mapping[str, Values]:
    """Return the items' values of metrics of classes, as `tuneoff.data.metrics.score_classes` defines them.

    Args:
        items: index of the item of each sequence, (n,).
        labels: right class of each, (n,).
        predictions: predicted class of each, (n,).
        num_items: items that there are.
        num_classes: classes that there are.
        names: of the metrics.
    """
    present = sums(items, np.ones(len(items)), num_items) > 0

    def f1(one: int) -> Values:
        hits = (labels == one) & (predictions == one)
        sizes = (labels == one).astype(np.float64) + (predictions == one)
        found = np.full(num_items, np.nan)
        numerators, denominators = sums(items, 2.0 * hits, num_items)[present], sums(items, sizes, num_items)[present]
        found[present] = ratio_values(numerators, denominators) if denominators.sum() else 0.0
        return found

    def macro() -> Values:
        return np.asarray(np.mean([f1(int(one)) for one in np.union1d(labels, predictions)], axis=0))

    makers: Mapping[str, Callable[[], Values]] = {
        "accuracy": lambda: mean_values(items, (labels == predictions).astype(np.float64), num_items),
        "f1": lambda: f1(1) if num_classes == 2 else macro(),
        "macro_f1": macro,
    }
    return {name: POINTS * makers[name]() for name in names}
