"""Studies of LoRA arms whose test scores are whatever a test of the statistics makes up."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from fakes import Fakes, make_likelihood, make_study
from numpy.typing import NDArray

from tuneoff.analysis.items import ItemScores
from tuneoff.analysis.summary import summarise
from tuneoff.analysis.values import Summary
from tuneoff.study.records import TestRecord

Values = NDArray[np.float64]
MARGIN = 0.01


@lru_cache(maxsize=32)
def study_of(names: tuple[str, ...], num_seeds: int) -> tuple[Fakes, Mapping[str, tuple[str, ...]]]:
    """Return a study of arms with these names, all trained, and the arms' runs in the order of their seeds."""
    arms = {name: {"method": "lora", "rank": 8, "lr": 1e-4 * (place + 1)} for place, name in enumerate(names)}
    fakes = Fakes(make_study(arms=arms, seeds=list(range(num_seeds)), margin=MARGIN))
    found = summarise(fakes.study, fakes.records, fakes.tests)
    return fakes, {arm.name: arm.chosen_run_ids for arm in found.arms}


def names_of(num_items: int) -> tuple[str, ...]:
    """Return names of test items."""
    return tuple(f"item {place}" for place in range(num_items))


def summary_of(losses: Mapping[str, Sequence[float]]) -> Summary:
    """Return the summary of a study without scores by item.

    Args:
        losses: test loss of each seed, by arm.
    """
    fakes, run_ids = study_of(tuple(losses), max(map(len, losses.values())))
    tests = {
        run_id: TestRecord(run_id=run_id, test=make_likelihood(float(loss)), score_s=1.0)
        for name, values in losses.items()
        for run_id, loss in zip(run_ids[name], values, strict=False)
    }
    return summarise(fakes.study, fakes.records, tests)


def summary_by_item(tables: Mapping[str, Values]) -> Summary:
    """Return the summary of a study with scores by item.

    Args:
        tables: loss of each seed and item (S, I), by arm.
    """
    num_seeds, num_items = next(iter(tables.values())).shape
    fakes, run_ids = study_of(tuple(tables), num_seeds)
    names = names_of(num_items)
    tests, items = {}, {}
    for name, table in tables.items():
        for run_id, row in zip(run_ids[name], table, strict=True):
            tests[run_id] = TestRecord(run_id=run_id, test=make_likelihood(float(row.mean())), score_s=1.0)
            items[run_id] = ItemScores(names, {"loss": row})
    return summarise(fakes.study, fakes.records, tests, items)
