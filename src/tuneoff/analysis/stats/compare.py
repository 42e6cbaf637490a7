"""Every two arms of a study against each other: differences, tests, and what follows from them.

p-values come from inverting the 95 % interval's own formula, so that p < 0.05 exactly where the interval leaves out 0.
Equivalence is two one-sided tests against the margin (Schuirmann, 1987, Journal of Pharmacokinetics and
Biopharmaceutics 15, 657-680). Verdicts are corrected for one another; intervals are not.

A claim about methods is one about what other seeds would give, too, so none is made from one seed.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from tuneoff.analysis.comparison import Comparison, Outcome
from tuneoff.analysis.items import ItemScores
from tuneoff.analysis.measures import Measure
from tuneoff.analysis.stats.corrections import step_down
from tuneoff.analysis.stats.power import LEVEL, MAX_MORE_SEEDS, each_seeds_can_decide, each_seeds_to_decide
from tuneoff.analysis.stats.tables import Difference, Seeds, differences_of
from tuneoff.analysis.stats.twoway import Spread
from tuneoff.analysis.values import ArmSummary
from tuneoff.study.records import Record, TestRecord

ONE_SEED = (
    "one seed: only the noise of the test items is known, and another seed may turn it; at least 3 seeds are needed"
)
TWO_SEEDS = "two seeds: the noise of seeds rests on a single difference, so intervals are wide and claims rare"
NO_ITEMS = "scores by item are not known, so the noise of the test items is not in it"
NO_SEED = "no seed that both arms have a test score for"
NOT_KNOWN = "nothing is known of the noise: neither seeds nor items to take it from"
SMALL = "there is a difference, and it is smaller than the margin"
MORE_ITEMS = "more seeds alone would not decide it: more test items are needed"


@dataclass(frozen=True)
class _Pair:
    one: ArmSummary
    other: ArmSummary
    found: Difference
    p_difference: float | None
    p_equivalence: float | None


def compare_all(
    arms: Sequence[ArmSummary],
    ranking: Sequence[str],
    primary: Measure,
    margin: float,
    records: Mapping[str, Record],
    tests: Mapping[str, TestRecord],
    items: Mapping[str, ItemScores],
) -> tuple[Comparison, ...]:
    """Return every two arms that have a test score, compared by the primary metric, in the order of the ranking.

    Args:
        arms: every arm of the study.
        ranking: names of those with a test score, the best first.
        primary: what ranks them.
        margin: how close counts as equal, in its unit.
        records: finished runs by `run_id`.
        tests: readings of the test split by `run_id`, made as the study asks.
        items: scores by item, by `run_id`; runs may be missing.
    """
    by_name = {arm.name: arm for arm in arms}
    seeds = {name: _seeds(by_name[name], primary, records, tests, items) for name in ranking}
    differences = differences_of([seeds[name] for name in ranking], primary.name)
    tested = _tests(differences, margin)
    names = combinations(ranking, 2)
    pairs = [
        _Pair(by_name[one], by_name[other], found, *p)
        for (one, other), found, p in zip(names, differences, tested, strict=True)
    ]
    corrected = _corrected(pairs)
    outcomes = [_outcome(pair, *p, primary) for pair, p in zip(pairs, corrected, strict=True)]
    level = LEVEL / max(outcomes.count("undecided"), 1)
    more = _more_seeds(differences, outcomes, margin, level)
    reasons = _why_not(differences, [place for place, number in more.items() if not number], margin, level)
    return tuple(
        _comparison(pair, p, outcome, more.get(place), reasons.get(place))
        for place, (pair, p, outcome) in enumerate(zip(pairs, corrected, outcomes, strict=True))
    )


def _seeds(
    arm: ArmSummary,
    primary: Measure,
    records: Mapping[str, Record],
    tests: Mapping[str, TestRecord],
    items: Mapping[str, ItemScores],
) -> Seeds:
    def seed_of(run_id: str) -> int:
        seed = records[run_id].run.seed if arm.is_trained and run_id in records else None
        return -1 if seed is None else seed

    def value_of(test: TestRecord) -> float | None:
        return test.test.loss_nats if primary.is_loss else test.metrics.get(primary.name)

    values = {seed_of(run_id): value_of(tests[run_id]) for run_id in arm.chosen_run_ids if run_id in tests}
    return Seeds(
        is_drawn=arm.is_trained,
        values={seed: value for seed, value in values.items() if value is not None},
        items={seed_of(run_id): items[run_id] for run_id in arm.chosen_run_ids if run_id in tests and run_id in items},
    )


P = tuple[float | None, float | None]


def _tests(found: Sequence[Difference], margin: float) -> list[P]:
    """Return of each difference the p-values that there is none, and that it is not within the margin."""
    tested: dict[int, P] = {}
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for place, one in enumerate(found):
        if isinstance(one.spread, Spread):
            alike[one.spread.num_seeds, one.spread.num_items].append(place)
        elif one.spread is not None:
            below, at_low, at_high = (one.spread.p_below(value) for value in (0.0, -margin, margin))
            tested[place] = min(1.0, 2 * min(below, 1 - below)), max(at_low, 1 - at_high)
    for (num_seeds, num_items), places in alike.items():  # together, because inverting one takes as long as many
        spreads = [spread for place in places if isinstance(spread := found[place].spread, Spread)]
        fields = [(one.mean, one.by_seeds, one.by_items, one.item_freedom) for one in spreads]
        mean, by_seeds, by_items, item_freedom = np.array(fields, dtype=np.float64).T
        stacked = Spread(mean, by_seeds, by_items, num_seeds, num_items, item_freedom)
        at_zero = stacked.p_below(0.0)
        # Of the two one-sided tests the one against the nearer end of the margin decides.
        is_above = mean >= 0
        at_end = stacked.p_below(np.where(is_above, margin, -margin))
        differ = np.minimum(1.0, 2 * np.minimum(at_zero, 1 - at_zero))
        apart = np.where(is_above, 1 - at_end, at_end)
        tested |= zip(places, zip(differ.tolist(), apart.tolist(), strict=True), strict=True)
    return [tested.get(place, (None, None)) for place in range(len(found))]


def _corrected(pairs: Sequence[_Pair]) -> list[P]:
    hypotheses = [
        (place, p) for place, pair in enumerate(pairs) for p in (pair.p_difference, pair.p_equivalence) if p is not None
    ]
    values = iter(step_down(hypotheses))
    return [(None, None) if pair.p_difference is None else (next(values), next(values)) for pair in pairs]


def _is_one_seed(pair: _Pair) -> bool:
    return pair.found.num_seeds == 1 and not pair.found.is_identical


def _outcome(pair: _Pair, p_difference: float | None, p_equivalence: float | None, primary: Measure) -> Outcome:
    if p_difference is None or p_equivalence is None or _is_one_seed(pair):
        return "undecided"
    if p_equivalence < LEVEL:
        return "equivalent"
    if p_difference < LEVEL:
        return "better" if primary.badness(pair.found.estimate.value) < 0 else "worse"
    return "undecided"


def _comparison(pair: _Pair, p: P, outcome: Outcome, more: int | None, reason: str | None) -> Comparison:
    notes = [*_notes(pair, p[0], outcome)]
    if reason is not None:
        notes.append(reason)
    elif outcome == "undecided" and pair.found.num_seeds == 0 and pair.found.spread is not None:
        notes.append("no seed can move it: more test items are needed")
    return Comparison(
        one=pair.one.name,
        other=pair.other.name,
        difference=pair.found.estimate,
        outcome=outcome,
        p_difference=pair.p_difference,
        p_equivalence=pair.p_equivalence,
        p_difference_corrected=p[0],
        p_equivalence_corrected=p[1],
        num_seeds=pair.found.num_seeds,
        num_items=pair.found.num_items,
        more_seeds=more,
        note="; ".join(notes),
    )


def _notes(pair: _Pair, p_difference: float | None, outcome: Outcome) -> Iterator[str]:
    found, is_trained = pair.found, pair.one.is_trained or pair.other.is_trained
    if is_trained and found.num_seeds == 0:
        yield NO_SEED
    elif found.spread is None and found.num_seeds != 1:
        yield NOT_KNOWN
    elif _is_one_seed(pair):
        yield ONE_SEED
    elif found.num_seeds == 2:
        yield TWO_SEEDS
    if found.num_items == 0 and found.spread is not None:
        yield NO_ITEMS
    if outcome == "equivalent" and p_difference is not None and p_difference < LEVEL:
        yield SMALL


def _more_seeds(
    found: Sequence[Difference], outcomes: Sequence[Outcome], margin: float, level: float
) -> dict[int, int | None]:
    """Return how many more seeds would decide what is undecided, by its place; none where no number would."""
    spreads = {
        place: one.spread
        for place, (one, outcome) in enumerate(zip(found, outcomes, strict=True))
        if outcome == "undecided" and one.num_seeds > 1 and isinstance(one.spread, Spread)
    }
    more = each_seeds_to_decide(
        [float(spread.mean) for spread in spreads.values()],
        [float(spread.by_seeds) for spread in spreads.values()],
        [float(spread.by_items) for spread in spreads.values()],
        num_seeds=[spread.num_seeds for spread in spreads.values()],
        item_freedom=[float(spread.item_freedom) for spread in spreads.values()],
        margin=margin,
        level=level,
    )
    return dict(zip(spreads, more, strict=True))


def _why_not(found: Sequence[Difference], places: Sequence[int], margin: float, level: float) -> dict[int, str]:
    """Return why no number of seeds that can be asked for decides some of the differences, by their places."""
    spreads = [spread for place in places if isinstance(spread := found[place].spread, Spread)]
    can = each_seeds_can_decide(
        [float(spread.mean) for spread in spreads],
        [float(spread.by_items) for spread in spreads],
        item_freedom=[float(spread.item_freedom) for spread in spreads],
        margin=margin,
        level=level,
    )
    far = f"not even {MAX_MORE_SEEDS} more seeds would decide it"
    return {place: far if known else MORE_ITEMS for place, known in zip(places, can, strict=True)}
