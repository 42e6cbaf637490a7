"""How far a study is: for each arm what is done, running, infeasible and left."""

import json
from collections.abc import Mapping, Set
from typing import TYPE_CHECKING

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tuneoff.analysis.progress import ArmProgress, Progress
from tuneoff.analysis.time_to_go import TimeToGo, UnderWay
from tuneoff.report import numbers
from tuneoff.report.text import clean

if TYPE_CHECKING:
    from tuneoff.analysis.values import ArmSummary, Summary

SHOWN_DIGITS = 8
"""Of a run's id, enough to tell it from others in one study."""
_STYLES = {"done": "green", "partly": "yellow", "missing": "dim", "infeasible": "red"}


def status_table(
    summary: "Summary | Progress",
    running: Set[str] = frozenset(),
    begun: Set[str] = frozenset(),
    to_go: TimeToGo | None = None,
) -> RenderableType:
    """Return the state of every arm for the terminal.

    Args:
        summary: what is known.
        running: ids of the runs that some process works on now.
        begun: ids of the runs that were begun and are not finished.
        to_go: how long each arm still takes; none leaves the column out.
    """
    times = {} if to_go is None else {arm.name: arm.seconds for arm in to_go.arms}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("arm", no_wrap=True)
    table.add_column("state")
    stopped = ("stopped",) if summary.num_pruned else ()
    for heading in ("done", "running", "infeasible", *stopped, "left", "tested"):
        table.add_column(heading, justify="right")
    table.add_column("rate", justify="right")
    if to_go is not None:
        table.add_column("to go", justify="right")
    for arm in summary.arms:
        left = [] if to_go is None else [_time(times.get(arm.name))]
        table.add_row(*_row(arm, running, begun, has_stopped=bool(stopped)), *left)
    working = sum(len(running & set(arm.run_ids)) for arm in summary.arms)
    table.add_section()
    ended = (summary.num_infeasible, *((summary.num_pruned,) if stopped else ()))
    totals = (summary.num_done, working, *ended, max(summary.num_left - working, 0))
    table.add_row(Text("all", style="bold"), "", *(Text(f"{total}", style="bold") for total in totals), "", "")
    return table


def status_json(progress: Progress, to_go: TimeToGo, begun: Mapping[str, UnderWay]) -> str:
    """Return how far a study is, how long it still takes, and the runs under way by run id, as JSON."""
    body = {
        "progress": progress.model_dump(mode="json"),
        "time_to_go": to_go.model_dump(mode="json"),
        "under_way": {run_id: own.model_dump(mode="json") for run_id, own in begun.items()},
    }
    return json.dumps(body, indent=2, ensure_ascii=False)


def _time(seconds: float | None) -> str:
    return numbers.NONE if not seconds else numbers.about(seconds)


def run_listing(summary: "Summary | Progress") -> Text:
    """Return the runs at each arm's chosen rate, by the start of their ids, seeds in the study's order."""
    lines = [
        f"{clean(arm.name)}: {' '.join(run_id[:SHOWN_DIGITS] for run_id in arm.chosen_run_ids)}"
        for arm in summary.arms
        if arm.chosen_run_ids and arm.num_done
    ]
    return Text("\n".join(["Runs at the chosen rates:", *lines]) if lines else "No rate is chosen yet.", style="dim")


def _row(arm: "ArmSummary | ArmProgress", running: Set[str], begun: Set[str], *, has_stopped: bool) -> tuple[Text, ...]:
    own = set(arm.run_ids)
    working = len(running & own)
    is_partial = arm.status == "partly" or (arm.status == "missing" and not begun.isdisjoint(own))
    state = "running" if working and arm.status in ("missing", "partly") else "partly" if is_partial else arm.status
    ended = (arm.num_infeasible, *((arm.num_pruned,) if has_stopped else ()))
    counts = (arm.num_done, working, *ended, max(arm.num_left - working, 0))
    lr = numbers.NONE if arm.chosen_lr is None else numbers.rate(arm.chosen_lr)
    return (
        Text(clean(arm.name)),
        Text(state if not arm.reason else clean(f"{state}: {arm.reason}"), style=_STYLES.get(state, "cyan")),
        *(Text(str(value) if value else numbers.NONE) for value in counts),
        Text(f"{arm.num_tested}/{arm.num_seeds}"),
        Text(lr),
    )
