"""What of a study is under way, for whoever asks how long it still takes: half-trained runs, and what its work is.

runs/STUDY/workload.json     steps of each run, processes at a time, and parameters of each arm, as last run
runs/STUDY/plan.json         what `tuneoff plan` foretells, where the folder has one
"""

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from tuneoff.analysis.time_to_go import UnderWay, Workload
from tuneoff.files import write_synced
from tuneoff.running import curve_file
from tuneoff.running.cohorts import stored_cohort
from tuneoff.running.store import CHECKPOINT_FOLDER, CURVE_FILE, Store
from tuneoff.study.value import plain

WORKLOAD_FILE = "workload.json"
TAIL_BYTES = 4096
"""Read from the end of a learning curve: several lines."""


def write_workload(store: Store, workload: Workload) -> None:
    """Write down what the work of a study is made of, unless that stands there already."""
    if read_workload(store) != workload:
        write_synced(store.folder / WORKLOAD_FILE, json.dumps(plain(workload), indent=2).encode())


def read_workload(store: Store) -> Workload | None:
    """Return what the work of a study is made of, or none where that was not written, or by another version."""
    try:
        return Workload.model_validate(from_json((store.folder / WORKLOAD_FILE).read_bytes()))
    except (OSError, ValueError, ValidationError):
        return None


def planned_step_s(store: Store) -> dict[str, float]:
    """Return the seconds of a step that a plan foretells, by arm; nothing where there is no plan, or it tells none."""
    return {name: own.step_s for name, own in store.predicted().items() if own.step_s}


def runs_under_way(store: Store, finished: Collection[str], running: Collection[str]) -> dict[str, UnderWay]:
    """Return the runs that were begun and are not finished, by run id. Only their folders are looked into.

    Args:
        store: where they are.
        finished: runs with a record.
        running: runs that some process works on now. Their steps are those of the learning curve; of others those of
            the checkpoint, as what came after it is done again.
    """
    found = {}
    for run_id in store.run_ids():
        own = None if run_id in finished else _under_way(store, run_id, is_at_work=run_id in running)
        if own is not None:
            found[run_id] = own
    return found


def _under_way(store: Store, run_id: str, *, is_at_work: bool) -> UnderWay | None:
    cohort = stored_cohort(store, run_id)
    if not cohort:
        return None  # not begun, or to be begun anew
    last = _last_train_row(store.run_folder(run_id) / CURVE_FILE)
    step = int(last.get("step", 0))
    taken = last.get("elapsed_s", math.nan)
    saved = _checkpoint_step(store.run_folder(cohort[0]) / CHECKPOINT_FOLDER)
    if not (saved or is_at_work):
        return None
    return UnderWay(
        step=step if is_at_work else saved,
        step_s=float(taken) / step if step and curve_file.is_finite(taken) else None,
        num_runs=len(cohort),
        is_at_work=is_at_work,
    )


def _checkpoint_step(folder: Path) -> int:
    steps = (path.name.removeprefix("step-") for path in folder.glob("step-*"))
    return max((int(step) for step in steps if step.isdecimal()), default=0)


def _last_train_row(path: Path) -> Mapping[str, Any]:
    """Return the last whole line of a learning curve that is of a training step."""
    try:
        with path.open("rb") as handle:
            handle.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = handle.read().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        try:
            row: dict[str, Any] = from_json(line)
        except ValueError:
            continue
        if curve_file.is_row(row) and row["kind"] == "train":
            return row
    return {}
