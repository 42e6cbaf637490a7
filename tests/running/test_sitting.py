"""When a sitting ends, what it still starts, and what it lets finish; the clock is the test's own."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.running.test_schedule import study

from tuneoff.errors import StudyError
from tuneoff.running.events import Event
from tuneoff.running.executors import Job, Message
from tuneoff.running.pace import Pace
from tuneoff.running.schedule import Task, ready_tasks
from tuneoff.running.sitting import MAX_GRACE_S, Sitting, seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("8h", 28800),
        ("90m", 5400),
        ("90min", 5400),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("1.5H", 5400),
        ("45s", 45),
        ("3600", 3600),
        ("2d", 172800),
        ("1d2h3m4s", 93784),
    ],
)
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", " ", "8x", "h", "30m1h", "1h1h", "-5", "1e3", "eight hours", "1h30"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(StudyError, match=r"--time .*: expected a length of time, such as 8h, 90m, 1h30m"):
        seconds_of(text)


@pytest.mark.parametrize("text", ["0", "0h", "0s"])
def test_no_time_at_all(text: str) -> None:
    with pytest.raises(StudyError, match="no time at all"):
        seconds_of(text)


@dataclass
class OneChild:
    """A child as the executor has it."""

    job: Job
    is_leaving: bool = False


@dataclass
class Children:
    """An executor's children, and which of them were asked to leave off."""

    children: list[Any] = field(default_factory=list)

    def ask_to_leave(self, child: OneChild) -> None:
        child.is_leaving = True


class Watch:
    """A sitting of 1000 seconds (a grace of 20), one child, and a clock."""

    def __init__(self, time_s: float | None = 1000.0) -> None:
        self.now = 0.0
        self.pace = Pace(lambda: self.now)
        self.sitting = Sitting(time_s, self.pace)
        own = study()
        self.tasks = list(ready_tasks(own, own.arms, {}, {}))
        self.told: list[Event] = []
        self.executor: Any = Children()

    def job(self, task: Task) -> Job:
        return Job(task, Path(), Path(), None, None)

    def start(self, task: Task) -> OneChild:
        child = OneChild(self.job(task))
        self.executor.children.append(child)
        self.pace.started(task)
        return child

    def say(self, task: Task, kind: str, **body: Any) -> None:
        self.pace.heard(Message(self.job(task), kind, body))

    def is_ending(self) -> bool:
        return self.sitting.is_ending(self.executor, self.told.append)


def test_without_a_budget_nothing_ends() -> None:
    watch = Watch(None)
    child = watch.start(watch.tasks[1])
    watch.now = 1e9
    assert not watch.is_ending()
    assert watch.sitting.may_start(watch.tasks[2])
    assert watch.sitting.wait_s(watch.executor) is None
    assert not child.is_leaving
    assert not watch.sitting.is_cut


def test_when_time_is_up_a_run_is_asked_once_and_nothing_is_started() -> None:
    watch = Watch()
    child = watch.start(watch.tasks[1])
    for step in range(1, 11):
        watch.now += 50.0
        watch.say(watch.tasks[1], "step", step=step, num_steps=40)
    assert not watch.is_ending()
    assert watch.sitting.wait_s(watch.executor) == pytest.approx(500.0)
    watch.now = 1000.0
    assert watch.is_ending()
    assert watch.is_ending()
    assert child.is_leaving
    assert [event.kind for event in watch.told] == ["ending"]
    assert not watch.sitting.may_start(watch.tasks[2])
    assert watch.sitting.is_cut
    assert watch.sitting.wait_s(watch.executor) is None  # nothing is waited for but what the child says


def test_a_run_that_will_be_done_within_the_grace_is_let_finish_until_it_is_used_up() -> None:
    watch = Watch()
    child = watch.start(watch.tasks[1])
    for step in range(1, 39):
        watch.now += 26.0  # after 38 steps 988 s; two more take 52 s, which is more than the grace of 20 s
        watch.say(watch.tasks[1], "step", step=step, num_steps=38 + 1)
    watch.now = 1000.0  # 14 s of the last step are left
    assert watch.is_ending()
    assert not child.is_leaving
    assert watch.sitting.wait_s(watch.executor) == pytest.approx(20.0)
    watch.now = 1020.0  # it took longer
    assert watch.is_ending()
    assert child.is_leaving


def test_a_run_that_will_not_be_done_within_the_grace_is_asked_at_once() -> None:
    watch = Watch()
    child = watch.start(watch.tasks[1])
    for step in range(1, 39):
        watch.now += 26.0
        watch.say(watch.tasks[1], "step", step=step, num_steps=40)
    watch.now = 1000.0  # 40 s are left
    assert watch.is_ending()
    assert child.is_leaving


def test_the_grace_is_a_small_share_of_the_time_and_never_long() -> None:
    assert Watch(100.0).sitting.grace_s == pytest.approx(2.0)
    assert Watch(1e6).sitting.grace_s == MAX_GRACE_S
    assert Watch(None).sitting.grace_s == 0.0


def test_a_run_is_not_started_that_cannot_reach_a_checkpoint() -> None:
    """Start-up with the first step took 30 s; a run can be left off after any step."""
    watch = Watch()
    first, second = watch.tasks[1], watch.tasks[2]
    assert watch.sitting.may_start(first)  # nothing is known yet
    watch.start(first)
    watch.now = 30.0
    watch.say(first, "step", step=1, num_steps=10)
    watch.say(first, "done")
    watch.now = 969.0
    assert watch.sitting.may_start(second)
    assert not watch.sitting.may_start(second, step_s=40.0)
    watch.now = 971.0
    assert not watch.sitting.may_start(second)
    assert watch.sitting.is_cut
    assert not watch.is_ending()  # shorter tasks may still be done


def test_a_test_is_started_only_if_it_will_be_done_as_nothing_of_it_is_kept() -> None:
    watch = Watch()
    score = watch.tasks[1].model_copy(update={"kind": "score"})
    watch.start(score)
    watch.now = 100.0
    watch.say(score, "done")
    watch.now = 915.0
    assert watch.sitting.may_start(score)  # within the grace
    watch.now = 925.0
    assert not watch.sitting.may_start(score)


def test_the_pace_of_a_step_leaves_out_what_validation_takes() -> None:
    watch = Watch()
    task = watch.tasks[1]
    watch.start(task)
    for step in range(1, 11):
        watch.now += 2.0
        watch.say(task, "step", step=step, num_steps=20)
        if step % 5 == 0:
            watch.now += 15.0
            watch.say(task, "validation", step=step, loss_nats=1.0)
    (own,) = watch.pace.under_way().values()
    assert (own.step, own.num_steps, own.step_s, own.is_at_work) == (10, 20, pytest.approx(2.0), True)
    # The run's own end counts scorings between steps at their share, and the one that follows the last step.
    assert watch.pace.left_s(task) == pytest.approx(10 * (9 * 2.0 + 15.0) / 9 + 15.0 - 15.0)
