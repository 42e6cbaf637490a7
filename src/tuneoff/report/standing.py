"""How arms stand to one another, as the page says it: chips below the verdict, cells beside the scores, the audit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tuneoff.analysis.comparison import Comparison, Outcome
from tuneoff.analysis.findings import Finding
from tuneoff.analysis.values import ArmSummary, Summary
from tuneoff.report import comparisons as text
from tuneoff.report.numbers import NONE
from tuneoff.report.panel import Numbers
from tuneoff.study.options import Invariant

MAX_CHIPS = 12
"""More than that is a list and no glance; outcomes are counted then."""

SIGNS: Mapping[Outcome, str] = {"better": "\u25b2", "equivalent": "\u2248", "undecided": "?", "worse": "\u25bc"}
"""What stands before an outcome, so that no colour is needed to tell them apart."""


@dataclass(frozen=True)
class Chip:
    """An outcome, or a number of arms that have it."""

    outcome: Outcome
    text: str
    arm: str = ""
    """Empty where arms are counted."""

    @property
    def sign(self) -> str:
        """What stands before it."""
        return SIGNS[self.outcome]


@dataclass(frozen=True)
class Standing:
    """How an arm stands to the best one, beside its score."""

    pair: Comparison | None
    """None for the best itself, and where it is not known."""
    is_best: bool
    chip: Chip | None
    """The outcome alone."""
    needs: str
    """How many more seeds would decide an open outcome; empty where that is not known."""
    difference: str
    reasons: tuple[str, ...]
    """Sentences without their ends: why it is not comparable, and why it has no result."""


def chips(summary: Summary) -> tuple[Chip, ...]:
    """Return the outcome of each arm against the best one; of many arms how many there are of each."""
    pairs = text.against(summary, summary.ranking[0]) if summary.ranking else ()
    if len(pairs) <= MAX_CHIPS:
        return tuple(Chip(pair.outcome, _about(pair), pair.one) for pair in pairs)
    counts = {outcome: sum(pair.outcome == outcome for pair in pairs) for outcome in SIGNS}
    return tuple(
        Chip(outcome, f"{count} {'arm' if count == 1 else 'arms'} {outcome}")
        for outcome, count in counts.items()
        if count
    )


def _about(pair: Comparison) -> str:
    needs = _needs(pair)
    return f"{pair.outcome}, {needs}" if needs else pair.outcome


def _needs(pair: Comparison) -> str:
    if pair.more_seeds is None:
        return ""
    return f"about {pair.more_seeds:,} more {'seed' if pair.more_seeds == 1 else 'seeds'}"


def standings(summary: Summary) -> dict[str, Standing]:
    """Return how every arm stands to the best one, by its name."""
    best = summary.ranking[0] if summary.ranking else ""
    pairs = {pair.one: pair for pair in text.against(summary, best)} if best else {}
    return {arm.name: _standing(arm, pairs.get(arm.name), summary, is_best=arm.name == best) for arm in summary.arms}


def _standing(arm: ArmSummary, pair: Comparison | None, summary: Summary, *, is_best: bool) -> Standing:
    reasons = [finding.reason for finding in arm.findings]
    if arm.reason:
        reasons.append(f"no result: {arm.reason}")
    return Standing(
        pair=pair,
        is_best=is_best,
        chip=None if pair is None else Chip(pair.outcome, pair.outcome),
        needs="" if pair is None else _needs(pair),
        difference="" if pair is None else text.difference(summary, pair),
        reasons=tuple(reasons),
    )


def comparison_numbers(summary: Summary) -> Numbers:
    """Return every arm against the best, and against full fine-tuning, with what the outcome rests on."""
    rows = [
        (
            pair.one,
            pair.other,
            f"{SIGNS[pair.outcome]} {pair.outcome}",
            text.difference(summary, pair),
            text.p_difference(pair),
            text.p_equivalence(pair),
            NONE if pair.more_seeds is None else f"about {pair.more_seeds:,}",
            f"{pair.num_seeds:,}",
            f"{pair.num_items:,}" if pair.num_items else "not known",
            pair.note,
        )
        for reference in text.references(summary)
        for pair in text.against(summary, reference)
    ]
    unit = f", {summary.primary.unit}" if summary.primary.unit else ""
    heads = (
        *("arm", "against", "outcome", f"difference{unit}", "p", "p equivalence"),
        *("more seeds", "seeds", "items", "note"),
    )
    is_noted = any(row[-1] for row in rows)
    shown = rows if is_noted else [row[:-1] for row in rows]
    return Numbers(heads if is_noted else heads[:-1], tuple(shown), frozenset({0, 1, 2, 9}))


_INVARIANTS: Mapping[Invariant, tuple[str, str]] = {
    "base_model": ("Base model", "every arm starts from the same weights"),
    "data_order": ("Data and order", "each seed saw the same batches in the same order"),
    "budget": ("Budget", "trained for as long"),
    "batch_size": ("Effective batch", "as many sequences in a step"),
    "optimizer": ("Optimizer", "the same but for the rate"),
    "evaluation_set": ("Test set", "scored on the same items"),
    "template": ("Prompt template", "asked in the same words"),
    "max_length": ("Length", "cut at the same length, in the same way"),
    "precision": ("Precision", "computed in the same type"),
    "num_trials": ("Trials", "as many learning rates were tried"),
    "edge": ("Rate inside its grid", "the best rate has neighbours on both sides"),
    "lost_seed": ("Seeds", "no seed is missing from a mean"),
}
"""Of each invariant its name, and what holds where it is kept."""

State = Literal["kept", "broken", "meant"]


@dataclass(frozen=True)
class Check:
    """An invariant that was checked."""

    name: str
    about: str
    state: State

    @property
    def sign(self) -> str:
        """What stands before it."""
        return {"kept": "\u2713", "broken": "\u2717", "meant": "\u2260"}[self.state]


def checks(summary: Summary) -> tuple[Check, ...]:
    """Return each invariant that was checked, and whether it is kept."""
    broken = {finding.kind for finding in summary.audit.broken}
    found = {finding.kind for finding in summary.audit.findings}

    def state(kind: Invariant) -> State:
        return "broken" if kind in broken else "meant" if kind in found else "kept"

    return tuple(Check(*_INVARIANTS[kind], state(kind)) for kind in dict.fromkeys(summary.audit.checked))


def meant(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the findings that the study declares."""
    return tuple(finding for finding in findings if finding.is_declared)
