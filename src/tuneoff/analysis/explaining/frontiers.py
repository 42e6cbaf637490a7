"""The frontier of quality against a cost: the arms that no other beats in both.

An arm is beaten by one that costs no more and scores no worse, and is better in at least one of the two. Scores are the
test split's, by the metric that ranks the arms; a score is an estimate, so an arm is only beaten for certain where the
test of the difference says so, or says that it is equivalent to one that costs less.
"""

from collections.abc import Mapping
from typing import get_args

from tuneoff.analysis.comparison import Outcome
from tuneoff.analysis.explaining.evidence import Evidence
from tuneoff.analysis.explanation import Cost, Frontier
from tuneoff.analysis.findings import OF_ONE_ARM
from tuneoff.analysis.values import ArmSummary, Summary

_REVERSED: Mapping[Outcome, Outcome] = {"better": "worse", "worse": "better"}
COSTS: tuple[Cost, ...] = get_args(Cost)

Place = tuple[float, float]
"""Cost, and how bad the score is (lower is better)."""


def frontiers(evidence: Evidence) -> tuple[Frontier, ...]:
    """Return the frontier for each cost that at least two arms have; arms the audit found unlike the others are out."""
    summary = evidence.summary
    left_out = unlike(summary)
    if left_out:
        evidence.note(f"Left out of the frontiers, because not comparable with the others: {', '.join(left_out)}.")
    found, outcomes = [], _outcomes(summary)
    for cost in COSTS:
        places = placed(summary, cost)
        if len(places) > 1:
            on = [name for name in places if not _beating(name, places)]
            found.append(
                Frontier(
                    cost=cost,
                    arms=tuple(sorted(on, key=lambda name: places[name])),
                    contested=tuple(
                        name for name in places if name not in on and not _is_beaten(name, places, outcomes)
                    ),
                )
            )
    return tuple(found)


def unlike(summary: Summary) -> tuple[str, ...]:
    """Return the arms that the audit found to be trained or tested otherwise than the others."""
    found = summary.audit.broken
    return tuple(
        arm.name for arm in summary.arms if any(one.kind not in OF_ONE_ARM and arm.name in one.arms for one in found)
    )


def placed(summary: Summary, cost: Cost) -> dict[str, Place]:
    """Return the place of every comparable arm whose score and cost are known, in the study's order.

    Args:
        summary: what is known.
        cost: of the arm; nothing is trained of a base as it is, which costs nothing but has no memory of training.
    """
    found, left_out = {}, unlike(summary)
    for arm in summary.arms:
        score = None if arm.test is None else arm.test.of(summary.primary)
        amount = cost_of(arm, cost)
        if score is not None and amount is not None and arm.name not in left_out:
            found[arm.name] = (amount, summary.primary.badness(score.value))
    return found


def beaten(summary: Summary, frontier: Frontier) -> set[str]:
    """Return the arms that are beaten for certain.

    An arm that costs no more is better by the corrected test, or one that costs less is equivalent.
    """
    return set(placed(summary, frontier.cost)) - {*frontier.arms, *frontier.contested}


def cost_of(arm: ArmSummary, cost: Cost) -> float | None:
    """Return what an arm costs: parameters, bytes while training, seconds of training, bytes on disk."""
    if arm.method.method == "none":
        return None if cost == "memory" else 0.0
    if cost == "parameters":
        return None if arm.parameters is None or not arm.is_trained else float(arm.parameters.trainable)
    if arm.costs is None:
        return None
    costs: dict[Cost, float | None] = {
        "memory": arm.costs.train_peak_bytes,
        "time": arm.costs.train_s,
        "disk": arm.costs.weights_bytes,
    }
    found = costs[cost]
    return None if found is None else float(found)


def _beating(name: str, places: Mapping[str, Place]) -> list[str]:
    """Return the arms that beat one."""
    own = places[name]
    return [other for other, place in places.items() if place != own and place[0] <= own[0] and place[1] <= own[1]]


def _is_beaten(name: str, places: Mapping[str, Place], outcomes: Mapping[tuple[str, str], Outcome]) -> bool:
    """Whether an arm is beaten for certain."""
    return any(
        outcomes.get((other, name)) == "better"
        or (outcomes.get((other, name)) == "equivalent" and places[other][0] < places[name][0])
        for other in _beating(name, places)
    )


def _outcomes(summary: Summary) -> dict[tuple[str, str], Outcome]:
    """Return the outcome of every pair in both orders; looked up for each, hundreds of arms would take minutes."""
    found: dict[tuple[str, str], Outcome] = {}
    for pair in summary.comparisons:
        found[pair.one, pair.other] = pair.outcome
        found[pair.other, pair.one] = _REVERSED.get(pair.outcome, pair.outcome)
    return found
