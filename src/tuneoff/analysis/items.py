"""A run's test scores by item: numbers whose mean over items is the metric (see `tuneoff.data.items`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ItemScores:
    """Every metric of one run on the test split, item by item.

    Attributes:
        names: of the items, the smallest independent units.
        scores: by metric (`loss`, `f1`, `f1@greedy`): float64 (items,), NaN for an item that was not scored.
    """

    names: tuple[str, ...]
    scores: Mapping[str, NDArray[np.float64]]

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> "ItemScores":
        """Return what `items.json` holds; null is an item that was not scored.

        Raises:
            KeyError, TypeError, ValueError: it is not such a file.
        """
        names = tuple(map(str, body["items"]))
        scores = {name: np.array(values, dtype=np.float64) for name, values in body["scores"].items()}
        if any(values.shape != (len(names),) for values in scores.values()):
            raise ValueError("a metric has not as many values as there are items")
        return cls(names, scores)
