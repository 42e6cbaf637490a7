"""The time to go and the runs under way, as a person reads them."""

import io

import pytest
from rich.console import Console
from tests.report.fakes import make_study

from tuneoff.analysis.progress import progress
from tuneoff.analysis.time_to_go import ArmTimeToGo, Basis, TimeToGo, UnderWay
from tuneoff.report import numbers, to_go
from tuneoff.report.live import Live
from tuneoff.report.status import status_table
from tuneoff.running.events import Event
from tuneoff.running.schedule import Task
from tuneoff.study.expand import trials


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (20, "less than a minute"),
        (90, "2 min"),
        (1500, "25 min"),
        (3599, "1 h 00 min"),
        (4800, "1 h 20 min"),
        (2 * 86400, "2 d 0 h"),
        (2.5 * 86400, "2 d 12 h"),
    ],
)
def test_about_how_long(seconds: float, text: str) -> None:
    assert numbers.about(seconds) == text


def arm(name: str, basis: Basis = "measured", like: str = "", num_tests: int = 2) -> ArmTimeToGo:
    return ArmTimeToGo(
        name=name, basis=basis, like=like, num_runs=3, num_steps=300, num_tests=num_tests, seconds=4800.0
    )


def found(*arms: ArmTimeToGo, seconds: float | None = 4800.0, num_jobs: int = 1) -> TimeToGo:
    return TimeToGo(seconds=seconds, num_jobs=num_jobs, arms=arms)


def test_the_time_is_said_with_what_it_is_reckoned_from() -> None:
    arms = (arm("lora"), arm("full", "nearest", "lora"), arm("head", "nearest", "lora"), arm("prompt", "planned"))
    assert to_go.explained(found(*arms, num_jobs=2)) == (
        "About 1 h 20 min to go with 2 processes (lora as measured; full, head from lora, by what a step costs; "
        "prompt as planned; start-up, explaining and the report left out)."
    )
    assert "not known" in to_go.explained(found(arm("lora", "unknown"), seconds=None))
    assert to_go.explained(found()) == ""
    assert to_go.to_go(found(arm("lora")), elapsed_s=4790.0) == "less than a minute to go"


def test_what_is_left_is_said_with_the_command_that_goes_on() -> None:
    text = to_go.what_is_left(found(arm("lora"), arm("full")), "tuneoff run s.yaml --time 8h").plain
    assert text == "Time is up. Left: 6 runs, 4 tests (about 1 h 20 min to go). To go on: tuneoff run s.yaml --time 8h"


def test_a_half_trained_run_is_shown_with_its_step_and_makes_its_arm_partly_done() -> None:
    study = make_study()
    tuned = next(arm for arm in study.arms if arm.is_tuned)
    run = trials(study, tuned)[0]
    known = progress(study, {}, {})
    begun = {run.run_id: UnderWay(step=40)}
    assert to_go.under_way_lines(known, study.seeds, begun, 60).plain == (
        f"{tuned.name} lr {run.lr:g} seed {study.seeds[0]}: left off at step 40 of 60"
    )
    at_work = {run.run_id: UnderWay(step=40, is_at_work=True)}
    assert "running at step 40" in to_go.under_way_lines(known, study.seeds, at_work, None).plain
    out = io.StringIO()
    Console(file=out, width=160).print(status_table(known, begun=begun.keys(), to_go=found(arm(tuned.name))))
    (line,) = (line for line in out.getvalue().splitlines() if line.strip().startswith(f"{tuned.name} "))
    assert "partly" in line
    assert "1 h 20 min" in line


def test_while_a_study_runs_the_time_is_said_once_it_is_known_and_once_all_of_it_is_measured() -> None:
    study = make_study()
    tuned = next(arm for arm in study.arms if arm.is_tuned)
    task = Task(kind="train", arm=tuned.name, run=trials(study, tuned)[0])
    out = io.StringIO()
    with Live(Console(file=out, width=250), num_left=2) as shown:
        for reckoned in (
            found(arm("lora", "unknown"), seconds=None),
            found(arm("lora"), arm("full", "nearest", "lora")),
            found(arm("lora"), arm("full", "nearest", "lora")),
            found(arm("lora"), arm("full")),
            found(arm("lora"), arm("full")),
        ):
            shown(Event("to_go", body={"to_go": reckoned}))
        shown(Event("left", task, {"step": 7, "num_steps": 9}))
        shown(Event("left", task, {}))
    lines = out.getvalue().splitlines()
    assert ["to go with one process" in line for line in lines] == [True, True, False, False]
    assert "left off at step 7 of 9; the same command goes on" in lines[2]
    assert lines[3].rstrip().endswith("left off; the same command goes on")
