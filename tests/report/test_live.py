"""What a person reads while a study runs, where the output is a file."""

import io

import pytest
from rich.console import Console
from tests.report.fakes import make_study

from tuneoff.report import live
from tuneoff.report.live import Live
from tuneoff.running.events import Event
from tuneoff.running.schedule import Task
from tuneoff.study.expand import trials


def test_a_steps_line_is_written_as_people_read_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PLAIN_LINE_EVERY_S", -1.0)
    study = make_study()
    arm = next(arm for arm in study.arms if arm.is_trained)
    task = Task(kind="train", arm=arm.name, run=trials(study, arm)[0])
    out = io.StringIO()
    with Live(Console(file=out, width=200), num_left=1) as shown:
        shown(Event("start", task))
        for step in (1, 2):
            shown(Event("step", task, {"step": step, "num_steps": 9, "loss_nats": 2.3456, "tokens_per_s": 925.71}))
    line = out.getvalue().splitlines()[-1]
    assert "step 2 of 9 · loss 2.346 · 926 input tokens/s" in line


def test_a_round_of_the_search_is_said_and_counted() -> None:
    study = make_study()
    arm = next(arm for arm in study.arms if arm.is_trained)
    task = Task(kind="train", arm=arm.name, run=trials(study, arm)[0])
    out = io.StringIO()
    with Live(Console(file=out, width=200), num_left=1) as shown:
        shown(Event("finished", task))
        shown(Event("extended", body={"num_more": 3, "what": "3 more trials"}))
        shown(Event("finished", task))
    lines = out.getvalue().splitlines()
    assert "(1 of 1)" in lines[0]
    assert "search  3 more trials" in lines[1]
    assert "(2 of 4)" in lines[2]


def test_a_cohort_is_shown_as_one_and_its_runs_are_counted_one_by_one() -> None:
    study = make_study()
    arm = next(arm for arm in study.arms if arm.is_tuned)
    first, *others = (Task(kind="train", arm=arm.name, run=run) for run in trials(study, arm))
    along = first.model_copy(update={"is_along": True})
    cohort = along.model_copy(update={"others": tuple(others)})
    assert live.label(cohort) == f"{live.label(others[0])} and {len(others)} more in one pass"
    out = io.StringIO()
    with Live(Console(file=out, width=200), num_left=len(others)) as shown:
        shown(Event("start", cohort))
        for task in others:
            shown(Event("finished", task))
    lines = out.getvalue().splitlines()
    assert [f"({place + 1} of {len(others)})" in line for place, line in enumerate(lines)] == [True] * len(others)
