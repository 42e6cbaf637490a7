"""What the audit found, as the tables and files say it."""

from collections.abc import Iterable

from tuneoff.analysis.findings import Audit
from tuneoff.analysis.values import ArmSummary


def audit_line(audit: Audit) -> str:
    """Return how the audit went, in a sentence; empty where nothing could be held against anything yet."""
    if not audit.checked:
        return ""
    kinds, broken = len(dict.fromkeys(audit.checked)), dict.fromkeys(one.kind for one in audit.broken)
    meant = dict.fromkeys(one.kind for one in audit.findings if one.is_declared)
    end = "none is broken" if not broken else f"{len(broken)} broken: {_listed(broken)}"
    also = f"; meant to differ: {_listed(meant)}" if meant else ""
    runs = "1 run" if audit.num_runs == 1 else f"{audit.num_runs} runs"
    return f"Audit: {kinds} invariants of a fair comparison checked over {runs}; {end}{also}."


def comparable(arm: ArmSummary) -> dict[str, str | int | float | None]:
    """Return whether an arm's numbers may be held against the others', and why not, for CSV and JSON."""
    reasons = [one.message for one in arm.findings if not one.is_declared]
    return {"is_comparable": not reasons, "not_comparable_because": "; ".join(reasons)}


def _listed(kinds: Iterable[str]) -> str:
    return ", ".join(kind.replace("_", " ") for kind in kinds)
