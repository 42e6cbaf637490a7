"""How long a study still takes, in words, with what that is reckoned from."""

from collections.abc import Mapping, Sequence

from rich.text import Text

from tuneoff.analysis.progress import ArmProgress, Progress
from tuneoff.analysis.time_to_go import ArmTimeToGo, TimeToGo, UnderWay
from tuneoff.report import numbers
from tuneoff.report.text import clean

MOST_NAMES = 6
"""Arms that are named in one clause."""
LEFT_OUT = "start-up, explaining and the report left out"


def to_go(found: TimeToGo, elapsed_s: float = 0.0) -> str:
    """Return `about 1 h 20 min to go`, or `less than a minute to go`; nothing where it is not known.

    Args:
        found: as it was reckoned.
        elapsed_s: how long ago.
    """
    if found.seconds is None or not found.arms:
        return ""
    left = numbers.about(max(0.0, found.seconds - elapsed_s))
    return f"{left} to go" if left.startswith("less") else f"about {left} to go"


def explained(found: TimeToGo) -> str:
    """Return the time to go with its basis, as a sentence; what is missing where it is not known.

    Nothing where nothing is left.
    """
    if not found.arms:
        return ""
    if found.seconds is None:
        return "How long it takes is not known before a step was measured."
    said = to_go(found)
    jobs = "one process" if found.num_jobs == 1 else f"{found.num_jobs} processes"
    return f"{said[0].upper()}{said[1:]} with {jobs} ({'; '.join([*_bases(found.arms), LEFT_OUT])})."


def _bases(arms: Sequence[ArmTimeToGo]) -> list[str]:
    """Return one clause for each way in which arms are reckoned."""
    measured = [arm.name for arm in arms if arm.basis == "measured"]
    planned = [arm.name for arm in arms if arm.basis == "planned"]
    clauses = [f"{_names(measured)} as measured"] if measured else []
    for like in dict.fromkeys(arm.like for arm in arms if arm.basis == "nearest"):
        own = [arm.name for arm in arms if arm.basis == "nearest" and arm.like == like]
        clauses.append(f"{_names(own)} from {clean(like)}, by what a step costs")
    return [*clauses, *([f"{_names(planned)} as planned"] if planned else [])]


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(clean(name) for name in names[:MOST_NAMES])
    more = len(names) - MOST_NAMES
    return f"{shown} and {more} more" if more > 0 else shown


def what_is_left(found: TimeToGo, command: str) -> Text:
    """Return what a sitting that was cut short leaves, and the command that goes on.

    Args:
        found: what is left.
        command: the command.
    """
    runs = sum(arm.num_runs for arm in found.arms)
    tests = sum(arm.num_tests for arm in found.arms)
    what = f"{runs} {'run' if runs == 1 else 'runs'}, {tests} {'test' if tests == 1 else 'tests'}"
    time = f" ({to_go(found)})" if to_go(found) else ""
    return Text.assemble("Time is up. Left: ", clean(what), time, ". To go on: ", (clean(command), "bold"))


def under_way_lines(
    progress: Progress, seeds: Sequence[int], begun: Mapping[str, UnderWay], num_steps: int | None
) -> Text:
    """Return the runs that were begun and are not finished, one a line, with how far they are.

    Args:
        progress: which runs the study wants.
        seeds: the study's.
        begun: how far runs are, by run id.
        num_steps: of a run, where that is known.
    """
    lines = []
    seen: set[str] = set()
    for arm in progress.arms:
        for run_id in arm.run_ids:
            own = begun.get(run_id)
            if own is not None and run_id not in seen:
                seen.add(run_id)
                whole = own.num_steps or num_steps
                of = "" if whole is None else f" of {whole:,}"
                at = "running" if own.is_at_work else "left off"
                lines.append(f"{clean(_named(arm, run_id, seeds))}: {at} at step {own.step:,}{of}")
    return Text("\n".join(lines), style="cyan")


def _named(arm: ArmProgress, run_id: str, seeds: Sequence[int]) -> str:
    lr = next((trial.lr for trial in arm.trials if trial.run_id == run_id), arm.chosen_lr)
    place = arm.chosen_run_ids.index(run_id) if run_id in arm.chosen_run_ids else 0
    rate = "" if lr is None else f" lr {lr:g}"
    return f"{arm.name}{rate} seed {seeds[place]}"
