"""Where a child process works, on what, and with whom it shares the machine."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tuneoff.running.leaving import Leave
from tuneoff.running.store import Store
from tuneoff.running.tracking import Tracking
from tuneoff.study.shortage import MemoryPhase, Shortage
from tuneoff.study.spec import CheckpointSpec


@dataclass(frozen=True)
class Place:
    """Where a child works and on what."""

    store: Store
    root: Path
    """Where the study's relative paths start."""
    checkpoint: CheckpointSpec = field(default_factory=CheckpointSpec)
    """How often the state is saved."""
    num_threads: int | None = None
    tracking: Tracking | None = None
    """Experiment trackers that the runs are sent to."""
    needed_bytes: int = 0
    """Of tensors that the runs need at least; where the machine has no room for them, nothing is loaded."""
    is_alone: bool = True
    """Whether nothing else of the same command is at work beside."""
    shortage: Shortage | None = None
    """What is known already to be lacking: it is written down, and nothing is loaded."""
    doing: Callable[[MemoryPhase], None] = lambda phase: None
    """Is told what begins, so that it is known where a process was that the kernel ends."""
    leave: Leave = field(default_factory=Leave)
    """Whether the process was asked to leave off."""
