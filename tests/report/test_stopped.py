"""Trials that successive halving stopped, where people read of them."""

import io

from rich.console import Console, RenderableType
from tests.report.fakes import Fakes, make_study

from tuneoff.analysis.summary import summarise
from tuneoff.analysis.tuning import Search
from tuneoff.analysis.values import Summary
from tuneoff.report.columns import RATE
from tuneoff.report.live import Live
from tuneoff.report.panels import trial_numbers
from tuneoff.report.points import rate_points
from tuneoff.report.status import status_table
from tuneoff.report.tables import progress
from tuneoff.running.events import Event
from tuneoff.running.schedule import Task
from tuneoff.study.expand import trials

REASON = "stopped at step 80 by successive halving: its validation loss, 2.9012, is behind that of the trial before it"


def stopped() -> Summary:
    """A study of which the last trial of full was stopped."""
    fakes = Fakes(make_study(tuning={"search": "halving"}))
    arm = fakes.study.arm("full")
    last = trials(fakes.study, arm)[-1].run_id
    search = Search(fakes.study, fakes.records)
    search.tried(arm)
    change = {"status": "pruned", "reason": REASON, "halving": search.halving(arm, last)}
    fakes.records[last] = fakes.records[last].model_copy(update=change)
    return summarise(fakes.study, fakes.records, fakes.tests)


def shown(what: RenderableType) -> list[str]:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(what)
    return console.export_text().splitlines()


def test_it_is_counted_apart() -> None:
    summary = stopped()
    arm = summary.arm("full")
    assert (arm.num_done, arm.num_pruned, arm.num_infeasible, arm.num_left, arm.status) == (4, 1, 0, 0, "done")
    assert progress(summary) == "19 of 21 runs done, 1 infeasible, 1 stopped early"
    lines = shown(status_table(summary))
    assert "stopped" in lines[1]
    (line,) = (line for line in lines if line.split()[:1] == ["full"])
    assert line.split() == ["full", "done", "4", "-", "-", "1", "-", "3/3", "3e-5"]
    assert "stopped" not in shown(status_table(summarise(make_study(), {}, {})))[1]


def test_it_is_shown_with_its_reason() -> None:
    summary = stopped()
    (row,) = (row for row in trial_numbers(summary).rows if "pruned" in row[3])
    assert row == ("full", "1e-4", "-", f"pruned: {REASON}")
    (point,) = (point for point in rate_points(summary) if point["reason"] == REASON)
    assert (point["arm"], point["lr"], point["loss"]) == ("full", 1e-4, None)
    assert RATE.cell(summary.arm("full")).title == "chosen among 1e-5, 3e-5, 1e-4 (1 stopped early)"


def test_it_is_said_while_the_study_runs() -> None:
    study = make_study()
    arm = study.arm("full")
    out = io.StringIO()
    with Live(Console(file=out, width=200), num_left=2) as live:
        live(Event("pruned", Task(kind="train", arm=arm.name, run=trials(study, arm)[2]), {"what": REASON}))
    assert f"full lr 0.0001 seed 0  {REASON} (1 of 2)" in out.getvalue()
