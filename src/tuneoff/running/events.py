"""What happens while a study runs, for whoever shows it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tuneoff.running.schedule import Task


@dataclass(frozen=True)
class Event:
    """Something to show while a study runs.

    Attributes:
        kind: of a task `start`, `resumed`, `phase`, `step`, `validation`, and at its end `finished`, `infeasible`,
            `pruned`, `failed`, `left` (off, to be gone on with another time) or `busy` (another process is at it);
            `problem` is something to know that stops nothing, `extended` that there are more trials than were known
            (`num_more`), `to_go` how long the study still takes, `ending` that the sitting is to end.
        task: the task, where it is about one.
        body: details.
    """

    kind: str
    task: Task | None = None
    body: Mapping[str, Any] = field(default_factory=dict)


Listener = Callable[[Event], Any]
