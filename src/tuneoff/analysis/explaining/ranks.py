"""At which rank a low-rank method is as good as what it is held against, by the test split."""

from collections.abc import Iterator, Mapping

from tuneoff.analysis.comparison import Outcome
from tuneoff.analysis.explaining import wording as w
from tuneoff.analysis.explaining.evidence import Evidence
from tuneoff.analysis.explaining.leaving import held_against
from tuneoff.analysis.findings import OF_ONE_ARM
from tuneoff.analysis.values import ArmSummary
from tuneoff.study.methods import rank_of

_OUTCOMES: tuple[Outcome, ...] = ("better", "equivalent", "undecided", "worse")
_AS_SEEN_FROM_THE_OTHER: dict[Outcome, Outcome] = {"better": "worse", "worse": "better"}


def compared_ranks(evidence: Evidence) -> Iterator[str]:
    """Yield, for arms that differ in their rank alone, which are better, equivalent, undecided and worse on the test.

    Outcomes are those of the study's comparisons, corrected for all of them. Pairs that the audit finds unlike are left
    out, and so are arms without a test score.
    """
    summary = evidence.summary
    groups: dict[str, list[dict[str, Outcome]]] = {}
    for members, reference in held_against(evidence):
        if reference is not None:
            pairs = [(arm.name, _outcome(evidence, arm, reference)) for arm in members if arm is not reference]
            known = {name: outcome for name, outcome in pairs if outcome is not None}
            groups.setdefault(reference.name, []).extend([known] if known else [])
    for name, found in groups.items():
        outcomes = {arm: outcome for group in found for arm, outcome in group.items()}
        by_outcome = [(kind, [arm for arm, outcome in outcomes.items() if outcome == kind]) for kind in _OUTCOMES]
        parts = [f"{w.named(arms)} {'is' if len(arms) == 1 else 'are'} {kind}" for kind, arms in by_outcome if arms]
        margin = f"{summary.margin:g} {summary.primary.unit}".rstrip()
        lowest = _lowest(evidence, found[0]) if len(found) == 1 else ""
        if parts:
            head = f"By the test's {summary.primary.label}, against {name} (margin {margin})"
            yield f"{head}: {'; '.join(parts)}{lowest}."


def _outcome(evidence: Evidence, arm: ArmSummary, reference: ArmSummary) -> Outcome | None:
    pair = evidence.summary.comparison(arm.name, reference.name)
    found = evidence.summary.audit.between(arm.name, reference.name)
    if pair is None or any(one.kind not in OF_ONE_ARM for one in found):
        return None
    return pair.outcome if pair.one == arm.name else _AS_SEEN_FROM_THE_OTHER.get(pair.outcome, pair.outcome)


def _lowest(evidence: Evidence, outcomes: Mapping[str, Outcome]) -> str:
    """Return which is the lowest rank that is as good, where more than one was tried and they differ in it alone."""
    if len(outcomes) < 2:
        return ""
    good = (name for name, outcome in outcomes.items() if outcome in ("better", "equivalent"))
    ranks = [rank for name in good if (rank := rank_of(evidence.summary.arm(name).method)) is not None]
    return f"; the lowest rank shown to be as good is {min(ranks)}" if ranks else "; no rank is shown to be as good"
