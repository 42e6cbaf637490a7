"""When a rank leaves the common curve of validation losses.

Low ranks follow the loss of larger ones, and fall behind at a step that grows with the rank (Schulman et al., 2025,
"LoRA Without Regret", section "LoRA rank"). Here a curve is left where the paired difference

    d(t) = mean over seeds of [loss of the arm at step t - loss of the reference at step t]      (nats per token)

is above the margin from step t to the end, and the t interval over seeds of the last difference lies above 0. The two
runs of a pair have one seed, and have seen the same batches by then. The reference is full fine-tuning, or else the
highest rank.

Departures from the paper: it reads the step off the figure; here a margin and an interval decide.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from tuneoff.analysis.explaining.evidence import Evidence, over_runs
from tuneoff.analysis.explanation import Leaving
from tuneoff.analysis.values import ArmSummary
from tuneoff.study.identity import canonical_json
from tuneoff.study.methods import rank_of
from tuneoff.study.records import Record
from tuneoff.study.testing import LOSS, MARGINS
from tuneoff.study.value import plain


@dataclass(frozen=True)
class _Point:
    """A step that every pair of runs was validated at.

    Attributes:
        step: of the optimizer.
        target_tokens: seen by then, median over seeds.
        differences: loss of the arm minus the reference's, one for each seed, seeds rising.
    """

    step: int
    target_tokens: int
    differences: tuple[float, ...]


def loss_margin(evidence: Evidence) -> float:
    """Return how far above the reference's loss counts as having left its curve, in nats."""
    return evidence.summary.margin if evidence.summary.primary.is_loss else MARGINS[LOSS]


def leavings(evidence: Evidence) -> tuple[Leaving, ...]:
    """Return of every arm with a rank when it leaves the curve of the largest capacity, ranks rising."""
    found: list[Leaving] = []
    for members, reference in held_against(evidence):
        if reference is None:
            evidence.note(
                f"When a rank leaves the common curve is not known of {members[0].name}: there is neither full "
                "fine-tuning nor an arm that differs in its rank alone."
            )
            continue
        found += (one for arm in members if arm is not reference for one in _leaving(evidence, arm, reference))
    return tuple(found)


def held_against(evidence: Evidence) -> Iterator[tuple[list[ArmSummary], ArmSummary | None]]:
    """Yield the arms that differ in their rank alone, and what they are held against: full, or the highest rank."""
    for members in rank_groups(evidence.summary.arms):
        yield members, evidence.full or (members[-1] if len(members) > 1 else None)


def rank_groups(arms: Sequence[ArmSummary]) -> list[list[ArmSummary]]:
    """Return the arms with a rank in groups that differ by it alone, ranks rising."""
    groups: dict[str, list[ArmSummary]] = {}
    for arm in arms:
        if arm.is_trained and rank_of(arm.method) is not None:
            groups.setdefault(_but_for_rank(arm), []).append(arm)
    return [sorted(group, key=lambda arm: rank_of(arm.method) or 0) for group in groups.values()]


def is_with_it(one: Leaving, margin: float) -> bool:
    """Whether an arm stays with the curve it is held against: the whole interval of the last gap is within the margin.

    Args:
        one: when it leaves.
        margin: how far above counts as having left, in nats.
    """
    highest = one.gap_nats.value if one.gap_nats.high is None else one.gap_nats.high
    return one.step is None and highest <= margin


def _but_for_rank(arm: ArmSummary) -> str:
    body: dict[str, Any] = plain(arm.method)
    inner = body.get("peft", body)
    return canonical_json(body | {"rank": None, "peft": {key: inner[key] for key in inner if key not in ("r", "rank")}})


def _leaving(evidence: Evidence, arm: ArmSummary, reference: ArmSummary) -> Iterator[Leaving]:
    barriers = evidence.barriers(arm.name, reference.name)
    if barriers:
        kinds = ", ".join(dict.fromkeys(one.kind.replace("_", " ") for one in barriers))
        evidence.note(f"The curves of {arm.name} and {reference.name} are not held against each other: {kinds} differ.")
        return
    points = _points(evidence, arm, reference)
    if not points:
        if evidence.runs(arm):
            evidence.note(
                f"The curves of {arm.name} and {reference.name} have no validated step in common: of one seed, with "
                "the same batches before it."
            )
        return
    margin, last = loss_margin(evidence), over_runs(points[-1].differences)
    after = next((place for place, point in enumerate(points[::-1]) if fmean(point.differences) <= margin), len(points))
    is_above = last.low is None or last.low > 0
    left = points[len(points) - after] if after and is_above else None
    yield Leaving(
        arm=arm.name,
        rank=rank_of(arm.method),
        reference=reference.name,
        step=None if left is None else left.step,
        target_tokens=None if left is None else left.target_tokens,
        is_from_start=left is points[0],
        gap_nats=last.model_copy(update={"how": f"{last.how}, paired; noise of the validation split not included"}),
    )


def _points(evidence: Evidence, arm: ArmSummary, reference: ArmSummary) -> list[_Point]:
    own, others = _by_seed(evidence, arm), _by_seed(evidence, reference)
    pairs = [
        (own[seed], others[seed]) for seed in sorted(own.keys() & others.keys()) if _is_pair(own[seed], others[seed])
    ]
    curves = [tuple(evidence.validated(run.run_id) for run in pair) for pair in pairs]
    steps = set.intersection(*(set(curve) for pair in curves for curve in pair)) if curves else set()
    return [
        _Point(
            step,
            round(median(one[step][1] for one, _ in curves)),
            tuple(one[step][0] - other[step][0] for one, other in curves),
        )
        for step in sorted(steps)
    ]


def _by_seed(evidence: Evidence, arm: ArmSummary) -> dict[int, Record]:
    runs = [run for run in evidence.runs(arm) if evidence.curves.get(run.run_id)]
    return {run.run.seed: run for run in runs if run.run.seed is not None}


def _is_pair(one: Record, other: Record) -> bool:
    """Whether two runs saw the same batches, and were validated on the same data."""
    if one.training is None or other.training is None:
        return False
    batches = one.training.batch_sequence_sha256 == other.training.batch_sequence_sha256
    return batches and one.provenance.data_sha256 == other.provenance.data_sha256
