"""Whether arms may be compared: every invariant of a fair comparison, checked from the records."""

from tuneoff.study.options import Invariant
from tuneoff.study.value import Value


class Finding(Value):
    """An invariant that does not hold."""

    kind: Invariant
    arms: tuple[str, ...]
    """The arms that depart from the others."""
    message: str
    """What was found, to be read after "not comparable because": `its budget differs (200 steps, the others 800)`."""
    is_declared: bool = False
    """Whether the study says that it is meant."""


class Audit(Value):
    """What the audit of a study found."""

    checked: tuple[Invariant, ...] = ()
    """Invariants that the records were held to."""
    findings: tuple[Finding, ...] = ()

    def of(self, arm: str) -> tuple[Finding, ...]:
        """Return what was found of an arm and is not meant."""
        return tuple(one for one in self.findings if arm in one.arms and not one.is_declared)
