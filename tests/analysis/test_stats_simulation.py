"""Whole verdicts over a few hundred made-up studies with a fixed generator: intervals hold, and claims are true.

Bounds are binomial: were a rate what it is allowed to be, a count beyond them would come up once in 10,000.
`benchmarks/coverage.py` does the same for more kinds of noise, with standard errors of 0.15 %.
"""

import numpy as np
import pytest
from made_up import MARGIN, Values, names_of, study_of
from scipy import stats

from tuneoff.analysis.comparison import Comparison
from tuneoff.analysis.items import ItemScores
from tuneoff.analysis.measures import measure
from tuneoff.analysis.stats.compare import compare_all
from tuneoff.analysis.summary import summarise
from tuneoff.study.records import TestRecord

CHANCE = 1e-4
NUM_STUDIES = 200
NUM_ITEMS = 40
NAMES = ("a", "b", "c")


def studies(num_seeds: int, by_seed: float, by_item: float, error: float, shift: float) -> list[list[Comparison]]:
    """Return the comparisons of studies of three arms, of which the last is worse by `shift`; the rest have one mean.

    Args:
        num_seeds: of every arm.
        by_seed: standard deviation of a seed's own in each arm.
        by_item: of what an arm makes of an item, beyond what the item is for all.
        error: of what is left.
        shift: in nats per token.
    """
    generator = np.random.default_rng((num_seeds, 13))
    fakes, run_ids = study_of(NAMES, num_seeds)
    summary = summarise(fakes.study, fakes.records, fakes.tests)
    primary, (template, *_) = measure(fakes.study.primary_metric, fakes.study.task.kind), fakes.tests.values()
    names, found = names_of(NUM_ITEMS), []
    for _ in range(NUM_STUDIES):
        items = 2.3 + 0.5 * generator.standard_normal(NUM_ITEMS)
        tests: dict[str, TestRecord] = {}
        scores: dict[str, ItemScores] = {}
        for name in NAMES:
            table: Values = items + by_item * generator.standard_normal(NUM_ITEMS) + shift * (name == NAMES[-1])
            table = table + by_seed * generator.standard_normal((num_seeds, 1))
            table = table + error * generator.standard_normal((num_seeds, NUM_ITEMS))
            for run_id, row in zip(run_ids[name], table, strict=True):
                tests[run_id] = template.model_copy(update={"run_id": run_id})
                scores[run_id] = ItemScores(names, {"loss": row})
        found.append(list(compare_all(summary.arms, NAMES, primary, MARGIN, fakes.records, tests, scores)))
    return found


def is_claimed_at_5_percent(pair: Comparison) -> bool:
    """Whether the outcome is what the corrected p-values say: equivalence first, then a difference by its sign."""
    assert pair.p_equivalence_corrected is not None
    assert pair.p_difference_corrected is not None
    if pair.p_equivalence_corrected < 0.05:
        return pair.outcome == "equivalent"
    if pair.p_difference_corrected < 0.05:
        return pair.outcome == ("better" if pair.difference.value < 0 else "worse")  # of a loss
    return pair.outcome == "undecided"


def most(rate: float, number: int = NUM_STUDIES) -> int:
    return int(stats.binom.ppf(1 - CHANCE, number, rate))


def fewest(rate: float, number: int = NUM_STUDIES) -> int:
    return int(stats.binom.ppf(CHANCE, number, rate))


@pytest.mark.parametrize(("num_seeds", "by_item"), [(3, 0.0), (3, 0.03)])
def test_arms_that_are_the_same_on_average(num_seeds: int, by_item: float) -> None:
    """Any claim of a difference in a study is one too many, however many pairs it has; each interval holds 0."""
    found = studies(num_seeds, by_seed=0.02, by_item=by_item, error=0.05, shift=0.0)
    num_wrong = sum(any(pair.outcome in ("better", "worse") for pair in pairs) for pairs in found)
    assert num_wrong <= most(0.05)
    first = [pairs[0] for pairs in found]
    held = sum((pair.difference.low or 0.0) <= 0 <= (pair.difference.high or 0.0) for pair in first)
    assert fewest(0.93) <= held <= most(0.97)
    uncorrected = sum(pair.p_difference is not None and pair.p_difference < 0.05 for pair in first)
    assert uncorrected == NUM_STUDIES - held


def test_arms_that_differ_by_the_margin_are_not_equivalent() -> None:
    """`a` and `b` are the same, and are found to be; `c` is on the edge, where a claim of equivalence is false."""
    found = studies(5, by_seed=0.002, by_item=0.002, error=0.005, shift=MARGIN)
    num_equal = sum(pairs[0].outcome == "equivalent" for pairs in found)
    num_wrong = sum("equivalent" in (pairs[1].outcome, pairs[2].outcome) for pairs in found)
    assert num_equal >= fewest(0.9)
    assert num_wrong <= most(0.05)
    uncorrected = sum(pairs[1].p_equivalence is not None and pairs[1].p_equivalence < 0.05 for pairs in found)
    assert fewest(0.03) <= uncorrected <= most(0.055)
    every = [pair for pairs in found for pair in pairs]
    assert all(map(is_claimed_at_5_percent, every))
    near = [pair.p_equivalence_corrected or 0.0 for pair in every]
    assert sum(0.05 <= p < 0.1 for p in near) > 5  # else the line above could not tell 5 from 10 %


def test_a_large_difference_is_found_with_its_right_sign() -> None:
    found = studies(3, by_seed=0.002, by_item=0.01, error=0.02, shift=5 * MARGIN)
    outcomes = [pair.outcome for pairs in found for pair in pairs[1:]]
    assert outcomes.count("better") >= fewest(0.9, len(outcomes))
    assert outcomes.count("worse") == 0
    assert all(is_claimed_at_5_percent(pair) for pairs in found for pair in pairs)
