"""How long a sitting goes on: until its work is done, its time is up, or a signal asks it to end.

When it is to end no task is started any more. Children that train finish their step and write a checkpoint, others
leave at once; the same command goes on another time. A run that will be done within a short grace by its measured pace
is let finish. Ctrl-C a second time leaves at once.
"""

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Literal

from tuneoff.errors import StudyError
from tuneoff.running.events import Event, Listener
from tuneoff.running.executors import Child, LocalExecutor, Message
from tuneoff.running.pace import Pace
from tuneoff.running.schedule import Task

GRACE_SHARE = 0.02
"""Of the time budget, by which it may be exceeded to let a run finish."""
MAX_GRACE_S = 300.0
UNITS = {"d": 86400, "h": 3600, "min": 60, "m": 60, "s": 1}
_PARTS = re.compile(r"(?:(?P<d>N)d)?(?:(?P<h>N)h)?(?:(?P<m>N)(?:min|m))?(?:(?P<s>N)s)?".replace("N", r"\d+(?:\.\d+)?"))
ENDING = "what is trained finishes its step and writes a checkpoint"
"""What happens once a sitting is to end."""
EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""What a shell returns of a command that such a signal ended."""

Ending = Literal["", "time", "signal"]


def seconds_of(text: str, option: str = "--time") -> float:
    """Return a length of time in seconds: `8h`, `90m`, `1h30m`, `45s`, `1d`, or seconds alone (`3600`).

    Raises:
        StudyError: it is none, or no time at all.
    """
    plain = re.sub(r"\s+", "", text).casefold()
    found = _PARTS.fullmatch(plain) if plain else None
    if found is not None:
        total = sum(float(value) * UNITS[unit] for unit, value in found.groupdict().items() if value)
    elif re.fullmatch(r"\d+(\.\d+)?", plain):
        total = float(plain)
    else:
        raise StudyError(
            f"{option} {text}: expected a length of time, such as 8h, 90m, 1h30m, 45s, 2d, or seconds alone (3600). "
            "Units go from the largest to the smallest: d, h, m (or min), s."
        )
    if total <= 0:
        raise StudyError(f"{option} {text}: that is no time at all; give at least a second, or leave {option} out")
    return total


class Sitting:
    """One sitting of a study.

    Args:
        time_s: how long it may take from now; none takes as long as the work does.
        pace: watches its tasks, and has the clock.
    """

    def __init__(self, time_s: float | None = None, pace: Pace | None = None) -> None:
        self.pace = pace or Pace()
        self.time_s = time_s
        self.grace_s = min(GRACE_SHARE * time_s, MAX_GRACE_S) if time_s is not None else 0.0
        self.deadline = self.pace.clock() + time_s if time_s is not None else None
        self.signal: signal.Signals | None = None
        """The first signal that asked for an end."""
        self.has_refused = False
        """Whether a task was not started as it could not come to anything in the time that is left."""
        self._is_said = False
        self._read = self._write = -1

    @property
    def left_s(self) -> float | None:
        """Seconds until time is up; none where it never is."""
        return None if self.deadline is None else self.deadline - self.pace.clock()

    @property
    def ending(self) -> Ending:
        """Why no task is started any more; empty while it goes on."""
        if self.signal is not None:
            return "signal"
        return "time" if self.left_s is not None and self.left_s <= 0 else ""

    @property
    def is_cut(self) -> bool:
        """Whether it ends, or ended, before its work was done for want of time."""
        return self.signal is None and (self.ending == "time" or self.has_refused)

    def may_start(self, task: Task, step_s: float | None = None) -> bool:
        """Whether a task can come to anything that is kept in the time that is left.

        Args:
            task: the task.
            step_s: seconds of a step of its arm, where they are known.
        """
        if self.ending:
            return False
        needed = None if self.left_s is None else self.pace.needed_s(task, step_s)
        if needed is None or self.left_s is None:
            return True
        room = self.left_s if task.kind == "train" else self.left_s + self.grace_s
        if needed <= room:
            return True
        self.has_refused = True
        return False

    def is_ending(self, executor: LocalExecutor, listener: Listener) -> bool:
        """Whether it is to end; then those children are asked to leave off whose time is up.

        Args:
            executor: has the children.
            listener: is told, once.
        """
        with suppress(BlockingIOError):
            while self._read >= 0 and os.read(self._read, 1024):
                pass
        if self.ending and executor.children and not self._is_said:
            self._is_said = True
            why = "time is up" if self.ending == "time" else "stopping (Ctrl-C again leaves at once)"
            listener(Event("ending", body={"what": f"{why}: {ENDING}"}))
        for child in executor.children if self.ending else ():
            if not self._may_finish(child):
                executor.ask_to_leave(child)
        return bool(self.ending)

    def is_cause_of(self, message: Message) -> bool:
        """Whether a child ended with no word of its own because a signal went to all processes of the command."""
        return self.signal is not None and message.kind in ("killed", "crashed") and "what" not in message.body

    def wait_s(self, executor: LocalExecutor) -> float | None:
        """Return how long there is nothing to look at but what children say; none for as long as that lasts."""
        if self.left_s is None or all(child.is_leaving for child in executor.children):
            return None
        return max(0.0, self.left_s if self.left_s > 0 else self.left_s + self.grace_s)

    @property
    def wakers(self) -> tuple[int, ...]:
        """File descriptors that can be read when a signal has come."""
        return (self._read,) if self._read >= 0 else ()

    def _may_finish(self, child: Child) -> bool:
        """Whether a child is let finish after time is up: it will be done within the grace."""
        if self.ending != "time" or self.left_s is None:
            return False
        room = self.left_s + self.grace_s
        left = self.pace.left_s(child.job.task)
        return room > 0 and left is not None and left <= room

    @contextmanager
    def heeding_signals(self) -> Iterator[None]:
        """Within the context Ctrl-C and SIGTERM end the sitting; Ctrl-C once more raises `KeyboardInterrupt` at once.

        A signal that the process ignores, or handles in its own way, is left as it is.

        Raises:
            KeyboardInterrupt: at the end, if Ctrl-C came.
            SystemExit: at the end, if SIGTERM came; with the exit code that a shell gives.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        usual: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
        heeded = [number for number, handler in usual.items() if signal.getsignal(number) is handler]
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        try:
            for number in heeded:
                signal.signal(number, self._heed)
            yield
        finally:
            for number in heeded:
                signal.signal(number, usual[number])
            os.close(self._read)
            os.close(self._write)
            self._read = self._write = -1
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is not None:
            raise SystemExit(EXIT_CODES[self.signal])

    def _heed(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal is None:
            self.signal = signal.Signals(number)
        with suppress(OSError):
            os.write(self._write, b"!")
