"""Which arms a page draws and a terminal lists: all of them, or of a study of hundreds the best.

A chart of hundreds of lines shows none of them, and a dozen tables of hundreds of rows run off any screen. Every arm
keeps its row in the page's tables of results and of costs, its differences, and all of its numbers in report.json,
report.csv and report.md.
"""

from collections.abc import Iterable
from typing import Any

from tuneoff.analysis.explanation import Explanation
from tuneoff.analysis.values import Summary
from tuneoff.report.comparisons import references

MAX_ARMS = 72
"""Up to which every arm is drawn: a page of so many stays below three megabytes."""
NUM_DRAWN = 32
"""Of more than that."""
WHICH = (
    "those that rank highest, those on a frontier, the best that trains every weight, and those that are not trained"
)
_OF_ARMS = ("leaving", "optima", "ratios", "weights", "forgetting", "capacity")


def drawn_part(summary: Summary, explanation: Explanation) -> tuple[Summary, Explanation, str]:
    """Return what charts and their tables show of a study, and a sentence that says so; empty where they show all.

    Drawn are the arms that rank highest, those that no other beats in quality and a cost, the best that trains every
    weight, and those that are not trained.

    Args:
        summary: what is known.
        explanation: when, why and how the arms differ.
    """
    if len(summary.arms) <= MAX_ARMS:
        return summary, explanation, ""
    names = {arm.name for arm in summary.ranked[:NUM_DRAWN]} | set(references(summary))
    names |= {arm.name for arm in summary.arms if not arm.is_trained}
    names |= {name for frontier in explanation.frontiers for name in frontier.arms}
    part = summary.model_copy(
        update={
            "arms": tuple(arm for arm in summary.arms if arm.name in names),
            "ranking": tuple(name for name in summary.ranking if name in names),
            "comparisons": tuple(one for one in summary.comparisons if one.one in names and one.other in names),
        }
    )
    parts = {name: _of(getattr(explanation, name), names) for name in _OF_ARMS}
    note = (
        f"Charts, and the tables that belong to them, show {len(part.arms)} of {len(summary.arms)} arms: {WHICH}. All "
        "are in the tables of results and costs, and in report.json."
    )
    return part, explanation.model_copy(update=parts), note


def _of(found: Iterable[Any], names: set[str]) -> tuple[Any, ...]:
    """Return what is of arms that are drawn, and held against one that is."""
    others = ("arm", "reference", "base")
    return tuple(one for one in found if all(getattr(one, key, "") in names | {""} for key in others))
