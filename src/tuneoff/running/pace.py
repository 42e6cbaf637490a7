"""How fast tasks go in this sitting, by the clock: what the time budget and the time to go are reckoned from."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from tuneoff.analysis.time_to_go import UnderWay
from tuneoff.running.executors import Message
from tuneoff.running.schedule import Task

Clock = Callable[[], float]


@dataclass
class _Watched:
    """A task at work."""

    task: Task
    started_at: float
    first_step: int = 0
    """The first step of this sitting that was told, and when."""
    first_at: float = 0.0
    step: int = 0
    step_at: float = 0.0
    num_steps: int | None = None
    validate_s: float = 0.0
    """What the last scoring of the validation split took."""
    since_step_s: float = 0.0
    """What it took if no step followed it yet."""
    scored_s: float = 0.0
    """What all of them took that lie between the two steps."""

    @property
    def step_s(self) -> float | None:
        """Seconds of a step, without the scorings between them; none before two of them are known."""
        done = self.step - self.first_step
        return (self.step_at - self.first_at - self.scored_s) / done if done > 0 else None

    @property
    def train_left_s(self) -> float | None:
        """Seconds until its training is done, scorings and all; none where that is not known."""
        done = self.step - self.first_step
        if done <= 0 or self.num_steps is None:
            return None
        return (self.num_steps - self.step) * (self.step_at - self.first_at) / done + self.validate_s


class Pace:
    """Watches the tasks of a sitting.

    Args:
        clock: gives seconds, of any beginning.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self._at_work: dict[tuple[str, ...], _Watched] = {}
        self._startup_s: list[tuple[str, float]] = []
        """From a child's start to the end of its first step, by arm."""
        self._whole_s: list[tuple[str, str, float]] = []
        """What tasks took that are no training, by kind and arm."""

    def started(self, task: Task) -> None:
        """Note that a child starts."""
        self._at_work[_key(task)] = _Watched(task, self.clock())

    def heard(self, message: Message) -> None:
        """Note what a child said."""
        task, kind, body = message.job.task, message.kind, message.body
        own, now = self._at_work.get(_key(task)), self.clock()
        if own is None:
            return
        if message.is_last:
            del self._at_work[_key(task)]
            if kind == "done" and task.kind != "train":
                self._whole_s.append((task.kind, task.arm, now - own.started_at))
        elif kind == "step":
            if own.num_steps is None:
                own.first_step, own.first_at, own.num_steps = int(body["step"]), now, int(body["num_steps"])
                self._startup_s.append((task.arm, now - own.started_at))
            own.scored_s += own.since_step_s
            own.step, own.step_at, own.since_step_s = int(body["step"]), now, 0.0
        elif kind == "validation":
            own.validate_s = own.since_step_s = now - own.step_at  # of a cohort all its members'

    def left_s(self, task: Task) -> float | None:
        """Return the seconds until a task at work is done; none where nothing like it was measured.

        Of a training task until its record is written; its reading of the test split can be done another time.
        """
        own = self._at_work.get(_key(task))
        if own is None:
            return None
        if task.kind == "train":
            left, at = own.train_left_s, own.step_at
        else:
            left, at = self._whole(task), own.started_at
        return None if left is None else left - (self.clock() - at)

    def needed_s(self, task: Task, step_s: float | None) -> float | None:
        """Return the seconds that a task needs before anything of it is kept; none where that is not known.

        Training can be left off after any step: start-up and one step. Anything else is done whole.

        Args:
            task: that is not at work yet.
            step_s: of its arm, where it is known.
        """
        if task.kind != "train":
            return self._whole(task)
        startup = _typical([taken for arm, taken in self._startup_s if arm == task.arm])
        startup = startup if startup is not None else _typical([taken for _, taken in self._startup_s])
        return None if startup is None and step_s is None else max(startup or 0.0, step_s or 0.0)

    def under_way(self) -> dict[str, UnderWay]:
        """Return how far the runs are that are trained now, by run id."""
        return {
            member.run.run_id: UnderWay(
                step=own.step,
                num_steps=own.num_steps,
                step_s=own.step_s,
                num_runs=len(own.task.members),
                is_at_work=True,
            )
            for own in self._at_work.values()
            if own.task.kind == "train"
            for member in own.task.members
            if not member.is_along
        }

    def startup_s(self) -> float | None:
        """Return what it typically takes from a child's start to the end of its first step."""
        return _typical([taken for _, taken in self._startup_s])

    def _whole(self, task: Task) -> float | None:
        alike = [(arm, taken) for kind, arm, taken in self._whole_s if kind == task.kind]
        own = _typical([taken for arm, taken in alike if arm == task.arm])
        return own if own is not None else _typical([taken for _, taken in alike])


def _key(task: Task) -> tuple[str, ...]:
    return (task.kind, *task.run_ids)


def _typical(values: list[float]) -> float | None:
    return median(values) if values else None
