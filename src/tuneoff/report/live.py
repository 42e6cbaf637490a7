"""Shows a study while it runs: a bar for each run at work in a terminal, plain lines where the output is a file."""

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from tuneoff.analysis.time_to_go import TimeToGo
from tuneoff.report import numbers
from tuneoff.report import to_go as times
from tuneoff.report.text import clean
from tuneoff.running.events import Event
from tuneoff.running.schedule import Task

PLAIN_LINE_EVERY_S = 30.0
"""Seconds between two lines about the same run where the output is a file."""


class Live:
    """Shows events; use as a context.

    Args:
        console: where to.
        num_left: runs that the study still has to do.
    """

    def __init__(self, console: Console, num_left: int) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bars: dict[str, TaskID] = {}
        self._seen: dict[str, tuple[float, int]] = {}
        """When a run's first step of this sitting was seen, and which it was."""
        self._said: dict[str, float] = {}
        self._all = self.progress.add_task("runs", total=num_left, detail="")
        self._num_left, self._num_ended = num_left, 0
        self._start = time.monotonic()
        self._to_go: tuple[TimeToGo, float] | None = None
        """How long it still takes, and when that was reckoned."""
        self._has_said = (False, False)
        """Whether the time to go was said with its basis, once it was known and once all arms were measured."""

    def __enter__(self) -> "Live":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def __call__(self, event: Event) -> None:
        """Show an event."""
        if event.kind == "extended":
            self._num_left += event.body["num_more"]
            self.progress.update(self._all, total=self._num_left)
            self._say("search", event.body["what"])
        elif event.kind == "to_go":
            self._reckoned(event.body["to_go"])
        elif event.task is None:
            self._say("note", event.body.get("what", ""), style="yellow")
        else:
            self._of_task(event.task, event)

    def _of_task(self, task: Task, event: Event) -> None:
        handlers = {
            "start": self._started,
            "phase": self._phase,
            "resumed": self._resumed,
            "step": self._step,
            "finished": self._finished,
            "infeasible": self._infeasible,
            "pruned": self._pruned,
            "failed": self._failed,
            "left": self._left,
            "busy": self._busy,
            "problem": self._problem,
        }
        handler = handlers.get(event.kind)
        if handler is not None:
            handler(task, event.body)

    def _start_bar(self, task: Task, what: str) -> TaskID:
        key = _key(task)
        if key not in self._bars:
            bar = self.progress.add_task(clean(f"  {label(task)}"), total=None, detail=what)
            self._bars |= {_key(member): bar for member in task.members}
        return self._bars[key]

    def _reckoned(self, found: TimeToGo) -> None:
        """Show how long it still takes."""
        self._to_go = (found, time.monotonic())
        self.progress.update(self._all, detail=times.to_go(found))
        is_known = found.seconds is not None and bool(found.arms)
        has_said = (is_known, is_known and not found.is_rough)
        if is_known and has_said > self._has_said:
            self._say("time", times.explained(found))
        self._has_said = max(has_said, self._has_said)

    def _left_s(self) -> str:
        if self._to_go is None:
            return ""
        found, at = self._to_go
        said = times.to_go(found, time.monotonic() - at)
        return f", {said} in all" if said else ""

    def _started(self, task: Task, body: Mapping[str, Any]) -> None:
        self._start_bar(task, "loading")

    def _phase(self, task: Task, body: Mapping[str, Any]) -> None:
        self.progress.update(self._start_bar(task, ""), detail=body["what"])

    def _resumed(self, task: Task, body: Mapping[str, Any]) -> None:
        self._say(label(task), f"goes on from step {body['step']} of {body['num_steps']}")

    def _step(self, task: Task, body: Mapping[str, Any]) -> None:
        now, step, total = time.monotonic(), int(body["step"]), int(body["num_steps"])
        start, first = self._seen.setdefault(_key(task), (now, step))
        left = (now - start) / (step - first) * (total - step) if step > first else None
        to_go = "" if left is None else f" · {numbers.duration(left)} to go"
        speed = f"{numbers.significant(body['tokens_per_s'])} input tokens/s"
        detail = f"loss {numbers.loss(body['loss_nats'])} · {speed}{to_go}"
        self.progress.update(self._start_bar(task, ""), total=total, completed=step, detail=detail)
        if not self.console.is_terminal and now - self._said.setdefault(_key(task), now) > PLAIN_LINE_EVERY_S:
            self._said[_key(task)] = now
            self._say(label(task), f"step {step} of {total} · {detail}{self._left_s()}")

    def _finished(self, task: Task, body: Mapping[str, Any]) -> None:
        self._end(task)
        what = {"score": "test split scored", "explain": "explained", "measure": "measured alone"}.get(
            task.kind, "done"
        )
        self._say(label(task), f"{what}{_validation(body)}{self._count(task)}", style="green")

    def _count(self, task: Task) -> str:
        return f" ({self._num_ended} of {self._num_left})" if task.kind == "train" else ""

    def _infeasible(self, task: Task, body: Mapping[str, Any]) -> None:
        self._end(task)
        self._say(label(task), f"infeasible: {body['what']}", style="red")

    def _pruned(self, task: Task, body: Mapping[str, Any]) -> None:
        self._end(task)
        self._say(label(task), f"{body['what']}{self._count(task)}")

    def _failed(self, task: Task, body: Mapping[str, Any]) -> None:
        self._end(task)
        self._say(label(task), str(body["what"]), style="red")

    def _left(self, task: Task, body: Mapping[str, Any]) -> None:
        self._end(task, is_counted=False)
        where = f"left off at step {body['step']} of {body['num_steps']}" if "step" in body else "left off"
        self._say(label(task), f"{where}; the same command goes on")

    def _busy(self, task: Task, body: Mapping[str, Any]) -> None:
        self._end(task, is_counted=False)

    def _problem(self, task: Task, body: Mapping[str, Any]) -> None:
        self._end(task, is_counted=False)
        self._say(label(task), str(body["what"]), style="yellow")

    def _end(self, task: Task, *, is_counted: bool = True) -> None:
        for member in task.members:
            bar = self._bars.pop(_key(member), None)
            if bar is not None and bar not in self._bars.values():
                self.progress.remove_task(bar)
            if is_counted and task.kind == "train" and not member.is_along:
                self._num_ended += 1
                self.progress.advance(self._all)

    def _say(self, who: str, what: str, style: str = "") -> None:
        elapsed = numbers.duration(time.monotonic() - self._start)
        self.console.print(Text.assemble((f"{elapsed:>9}  ", "dim"), (clean(who), "bold"), "  ", (clean(what), style)))


def label(task: Task) -> str:
    """Return what a task is called: the arm, its rate and its seed, and how many others its pass trains."""
    run = task.shown.run
    rate = "" if run.lr is None else f" lr {run.lr:g}"
    seed = "" if run.seed is None else f" seed {run.seed}"
    others = f" and {len(task.others)} more in one pass" if task.others else ""
    return f"{task.shown.arm}{rate}{seed}{others}"


def _key(task: Task) -> str:
    return f"{task.kind}/{task.run.run_id}"


def _validation(body: Mapping[str, Any]) -> str:
    loss = body.get("validation_loss_nats")
    return "" if loss is None else f", validation loss {numbers.loss(loss)}"
