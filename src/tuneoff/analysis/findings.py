"""What an audit found, as frozen values (worked out in `tuneoff.analysis.audit`)."""

from tuneoff.study.options import Invariant
from tuneoff.study.value import Value

OF_ONE_ARM: tuple[Invariant, ...] = ("num_trials", "edge", "lost_seed")
"""Invariants that an arm breaks by itself, whatever it is held against."""


class Finding(Value):
    """An invariant that does not hold."""

    kind: Invariant
    arms: tuple[str, ...]
    """The arms that depart from the others, all in the same way."""
    label: str
    """Two or three words, for a table."""
    message: str
    """What was found, to be read after "not comparable because": `its budget differs (200 steps, the others 800)`."""
    is_declared: bool = False
    """Whether the study says that it is meant."""

    @property
    def reason(self) -> str:
        """A sentence without its end, to stand beside the arms' names."""
        return f"meant: {self.message}" if self.is_declared else f"not comparable because {self.message}"


class Audit(Value):
    """What the audit of a study found."""

    checked: tuple[Invariant, ...] = ()
    """Invariants that the records were held to."""
    num_runs: int = 0
    """Runs whose records were looked at."""
    findings: tuple[Finding, ...] = ()

    @property
    def broken(self) -> tuple[Finding, ...]:
        """Findings that are not meant."""
        return tuple(one for one in self.findings if not one.is_declared)

    def of(self, arm: str) -> tuple[Finding, ...]:
        """Return what was found of an arm and is not meant."""
        return tuple(one for one in self.broken if arm in one.arms)

    def between(self, one: str, other: str) -> tuple[Finding, ...]:
        """Return why two arms are not comparable: what one of them departs in, or either breaks by itself."""
        return tuple(
            finding
            for finding in self.broken
            if (one in finding.arms) != (other in finding.arms)
            or (finding.kind in OF_ONE_ARM and (one in finding.arms or other in finding.arms))
        )
