"""Makes a study fit into this machine's memory before it starts, and keeps what was foretold of it beside its runs.

runs/STUDY/fit.json     the changes that --fit made, under which every later command goes on until --fit=off
runs/STUDY/plan.json    what its arms were foretold to need and take
"""

import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tuneoff.files import make_folder, on_disk, read_if_there, write_synced
from tuneoff.running.executors import in_child
from tuneoff.study.identity import digest
from tuneoff.study.predicted import PLAN_FILE
from tuneoff.study.spec import Study
from tuneoff.study.value import plain

if TYPE_CHECKING:
    from tuneoff.planning.fit import Change, Kind
    from tuneoff.planning.room import Room

FIT_FILE = "fit.json"
OFF = "off"
"""Of `--fit`, for the study as its file has it."""
SWITCH = "TUNEOFF_PLAN"
"""Environment variable; `off` writes no plan at the start of a run."""
_logger = logging.getLogger(__name__)

OWN_SPACE_BYTES = 50_000_000
"""Of address space that a run's process maps before it loads anything, beside what it is forked with: the stacks of its
threads, the tokenizer, modules (a run of 160 MB of tensors ended well where 200 MB were left to its process, in the
study of `python -m benchmarks.limits ulimit`).
"""
RUN_BUDGET_S = 2.0
"""Seconds that measuring this machine may take before a study starts, beside two where nothing was measured before."""


def fit(study: Study, folder: Path, kinds: str | None) -> tuple[Study, list[str]]:
    """Return a study with what makes its arms fit, and lines that say so; see `tuneoff.api.fit`.

    Args:
        study: the study.
        folder: where its results are, or will be.
        kinds: changes that may be made; none makes no others than those that were kept, `off` drops those.
    """
    from tuneoff.planning.fit import fitted

    if kinds == OFF:
        with suppress(OSError):  # a folder that cannot be written to is told of where the study begins
            (folder / FIT_FILE).unlink()
        return study, []
    allowed = allowed_kinds(kinds)
    if allowed is None:
        changes = _kept(study, folder)
        return (fitted(study, changes), [_goes_on(changes)]) if changes else (study, [])
    kept = _kept(study, folder)
    if kept is None or not set().union(*(change.kinds for change in kept.values())) <= set(allowed):
        found: dict[str, Change] = in_child(_changes, (study, allowed))
        with on_disk(folder, "written"):
            make_folder(folder)
        body = {"study": _key(study), "changes": {name: plain(change) for name, change in found.items()}}
        write_synced(folder / FIT_FILE, json.dumps(body, sort_keys=True).encode())
        kept = found
    return fitted(study, kept), [f"changed to fit: {name}: {change.text()}" for name, change in kept.items()]


def allowed_kinds(kinds: str | None) -> "tuple[Kind, ...] | None":
    """Return the changes that may be made; none of `off`, and where no others may be made than those that were kept.

    Raises:
        StudyError: a change that is not known.
    """
    from tuneoff.planning.fit import parse_kinds

    return None if kinds in (None, OFF) else parse_kinds(kinds)


def _goes_on(changes: "Mapping[str, Change]") -> str:
    """Return the line that says under which changes a study goes on; arms that are changed alike are named together."""
    arms: dict[str, list[str]] = {}
    for name, change in changes.items():
        arms.setdefault(change.text(), []).append(name)
    said = "; ".join(f"{', '.join(names)}: {text}" for text, names in arms.items())
    return f"goes on as it was made to fit ({said}); --fit={OFF} runs it as it is written"


def _changes(given: "tuple[Study, tuple[Kind, ...]]") -> "dict[str, Change]":
    """Look for what makes a study's arms fit, of the changes that are allowed."""
    from tuneoff.planning.costs import Basis, changes_of, foretell
    from tuneoff.training.runtime import device_bytes

    study, allowed = given
    basis = Basis(_room(), None, "cuda" if device_bytes() else "cpu")
    return changes_of(foretell(study, basis, kinds=allowed))


def _room() -> "Room":
    """Return the room of a run that is forked, as this process is, from one that holds the libraries.

    So on a CPU they are taken off already, and what counts is what a run's process adds of its own.
    """
    from tuneoff.planning.resident import FIRST_USE_BYTES
    from tuneoff.planning.room import machine_room
    from tuneoff.training.memory_limits import available_bytes
    from tuneoff.training.runtime import device_bytes

    found = machine_room()
    if device_bytes():
        return found
    own = OWN_SPACE_BYTES if available_bytes().source == "ulimit -v" else FIRST_USE_BYTES
    return found.model_copy(update={"process_bytes": own})


def as_last_run(study: Study, folder: Path) -> Study:
    """Return a study with the changes under which it was last run; itself where there are none."""
    if not (folder / FIT_FILE).exists():
        return study
    from tuneoff.planning.fit import fitted

    kept = _kept(study, folder)
    return fitted(study, kept) if kept else study


def _kept(study: Study, folder: Path) -> "dict[str, Change] | None":
    """Return the changes that are kept of this very study; none where there are none, or they are torn.

    Raises:
        StoreError: the disk does not give them; without them it would be another study.
    """
    from tuneoff.planning.fit import Change

    content = read_if_there(folder / FIT_FILE)
    try:
        if content is None:
            return None
        body = json.loads(content)
        if body["study"] != _key(study):
            return None
        return {str(name): Change.model_validate(change) for name, change in body["changes"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _key(study: Study) -> str:
    return digest(plain(study))


def write_plan(study: Study, folder: Path) -> None:
    """Write down what the arms are foretold to need and take, unless that is there; without it nothing is lost.

    It takes some seconds, which `TUNEOFF_PLAN=off` spares.
    """
    if os.environ.get(SWITCH) == "off":
        return
    path = folder / PLAN_FILE
    key = _key(study)
    try:
        if json.loads(path.read_bytes())["study_sha256"] == key:
            return
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    try:
        body = in_child(_foretold, study)
    except Exception as error:  # whatever a trace comes to: the study runs without it
        _logger.warning("%s is not written (%s: %s)", path, type(error).__name__, error)
        return
    write_synced(path, json.dumps({"study_sha256": key, "plan": body}).encode())


def _foretold(study: Study) -> dict[str, object]:
    from tuneoff.planning.costs import basis_of, foretell

    return foretell(study, basis_of(budget_s=RUN_BUDGET_S)).model_dump(mode="json")
