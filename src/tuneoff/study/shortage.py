"""Where memory ran out, as a frozen value: of the run and of the machine that it was on, which another may not lack."""

from typing import Literal

from tuneoff.study.sizes import shown_bytes
from tuneoff.study.testing import Testing
from tuneoff.study.value import Value

MemoryPhase = Literal["load", "train", "validate", "test", "generate", "explain"]
DOING: dict[MemoryPhase, str] = {
    "load": "loading the base",
    "train": "training",
    "validate": "scoring the validation split",
    "test": "scoring the test split",
    "generate": "generating text",
    "explain": "working out explanations",
}
OUT_OF_MEMORY = "out of memory"
GROWTH = 1.2
"""A run whose need is not known is tried again where there is this much more memory than there was."""


class Shortage(Value):
    """What memory a run lacked where it was tried with the least at a time."""

    phase: MemoryPhase
    asked_bytes: int | None = None
    """That could not be had at once, where the allocator said so."""
    needed_bytes: int | None = None
    """That the run needs in all at least, where it was not even begun."""
    available_bytes: int
    """That the process could have before it loaded anything."""
    source: str
    """Which limit said so: RAM, cgroup, ulimit -v, GPU."""
    left_bytes: int | None = None
    """That there was when memory ran out, where that could be told."""
    is_killed: bool = False
    """Whether the kernel ended the process, rather than refuse what it asked for."""
    testing: Testing | None = None
    """How the test split was to be read, where that is what ran out of memory."""

    def is_over(self, now_bytes: int) -> bool:
        """Whether a process that may have so much now could get through."""
        return now_bytes >= (self.needed_bytes or GROWTH * self.available_bytes)

    @property
    def reason(self) -> str:
        """What happened, for a table's row."""
        enough = shown_bytes(self.needed_bytes or GROWTH * self.available_bytes)
        remedy = f"the same command tries it again where {enough} is"
        if self.needed_bytes is not None:
            return (
                f"{OUT_OF_MEMORY}: needs at least {enough} to hold weights, gradients and optimizer state, and "
                f"{shown_bytes(self.available_bytes)} is available ({self.source}), so it was not begun; {remedy}"
            )
        least = "" if self.phase in ("load", "explain") else " with one sequence at a time"
        return f"{OUT_OF_MEMORY} while {DOING[self.phase]}{least}: {self.found}; {remedy}"

    @property
    def found(self) -> str:
        """How much was asked for, and how much there was."""
        parts = ["the kernel ended the process"] if self.is_killed else []
        parts += [f"{shown_bytes(self.asked_bytes)} more was asked for"] if self.asked_bytes is not None else []
        parts += [f"{shown_bytes(self.left_bytes)} was left"] if self.left_bytes is not None else []
        return ", ".join((*parts, f"{shown_bytes(self.available_bytes)} available before loading ({self.source})"))
