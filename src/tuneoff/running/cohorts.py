"""Which LoRA runs share a pass over one frozen base: a cohort.

A run's last bits depend on who shares its pass, as sums run in another order, so a cohort is stored in each member's
setup before its first step, and formed again from there whatever else is ready by then. A stored cohort holds as long
as its first run's setup says the same. What is not begun is parted evenly, in the study's order: what is left of such
a list is parted the same way, so that a study that was killed forms the cohorts that it would have formed. For the
same reason the chosen runs of later seeds wait until every arm that may share their pass has chosen its rate.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from tuneoff.analysis.tuning import Search
from tuneoff.errors import StudyError
from tuneoff.files import remove_folder
from tuneoff.running.schedule import Task
from tuneoff.running.store import CHECKPOINT_FOLDER, Store
from tuneoff.study.identity import RUN_ID_DIGITS, Run, canonical_json, make_run
from tuneoff.study.methods import LoraMethod
from tuneoff.study.records import RECORD_VERSION, Record
from tuneoff.study.spec import Arm, Study
from tuneoff.study.value import plain

OWN_OF_RUN = ("lr", "seed")
OWN_OF_METHOD = ("rank", "alpha", "rslora", "lr_ratio")
"""What the runs of a cohort may have otherwise; all else must be the same."""

MAX_SIZE = 256

Ids = tuple[str, ...]


def asked_size(asked: int | str) -> int | None:
    """Return how many runs a new cohort is asked to have at most; none for `auto`.

    Raises:
        StudyError: it is neither a number, nor `auto`, nor `off`.
    """
    if asked == "auto":
        return None
    if asked == "off":
        return 1
    if str(asked).isdecimal() and 1 <= int(asked) <= MAX_SIZE:
        return int(asked)
    raise StudyError(
        f"--cohort {asked}: allowed are `auto`, `off` and the number of LoRA runs to train in one pass, "
        f"1 to {MAX_SIZE}."
    )


def pass_key(run: Run) -> str | None:
    """Return what the runs that may share a pass have in common; none for a run that is trained alone.

    That is all but LoRA. Runs that train the base's biases or a classifier's head are alone, too: these belong to the
    one base of the pass.
    """
    if not isinstance(run.method, LoraMethod) or run.method.bias != "none" or run.task.kind == "classification":
        return None
    body = {name: value for name, value in plain(run).items() if name not in OWN_OF_RUN}
    method = {name: value for name, value in body["method"].items() if name not in OWN_OF_METHOD}
    return canonical_json(body | {"method": method})


def unsettled(
    study: Study, arms: Sequence[Arm], records: Mapping[str, Record], given_up: Collection[str] = ()
) -> frozenset[str]:
    """Return the passes (by key) of which an arm has not chosen its rate, and will in this sitting.

    Args:
        study: the study.
        arms: those that are worked on.
        records: finished runs.
        given_up: runs that crashed in this sitting; an arm with such a trial is not waited for.
    """
    rounds = Search(study, records).rounds([arm.name for arm in arms])
    missing = {
        arm.name: [trial.run_id for trial in rounds.trials[arm.name] if trial.status == "missing"] for arm in arms
    }
    is_stuck = {name: any(run_id in given_up for run_id in own) for name, own in missing.items()}
    is_search_open = rounds.is_open and not any(is_stuck[arm.name] for arm in arms if arm.is_extended)
    found = set()
    for arm in arms:
        is_open = bool(missing[arm.name]) or (arm.is_extended and is_search_open)
        if arm.is_trained and is_open and not is_stuck[arm.name]:
            found.add(pass_key(make_run(study, arm, 1.0, study.seeds[0])))
    return frozenset(key for key in found if key is not None)


def gather(
    tasks: Iterable[Task],
    size: int,
    *,
    stored: Mapping[str, Ids],
    find: Callable[[str], Task | None],
    first_seed: int,
    waiting: Collection[str] = (),
) -> Iterator[Task]:
    """Yield tasks with the training runs that share a pass as one, where the first of them stood.

    Args:
        tasks: what can be done now, most urgent first.
        size: runs of a new cohort at most.
        stored: cohorts that were begun, by the runs that are ready.
        find: gives the task of a run of such a cohort that may be finished or not asked for; none where it is unknown.
        first_seed: of the study, on which rates are tried.
        waiting: passes of which later seeds wait (see `unsettled`).
    """
    ready = list(tasks)
    training: dict[str, Task] = {}
    for task in ready:
        if task.kind == "train":
            training.setdefault(task.run.run_id, task)  # arms of one method and rate share a run
    gathered = {task.run_ids: task for task in _begun(training, stored, find)}
    taken = {run_id for run_ids in gathered for run_id in run_ids}
    fresh: dict[tuple[str, bool], list[Task]] = {}
    held: set[str] = set()
    for run_id, task in training.items():
        key = pass_key(task.run) if size > 1 and task.halving is None and run_id not in taken else None
        is_trial = task.run.seed == first_seed
        if key is not None and key in waiting and not is_trial:
            held.add(run_id)
        elif key is not None:
            fresh.setdefault((key, is_trial), []).append(task)
    cohorts = [_cohort(part) for group in fresh.values() for part in parted(group, size)]
    gathered |= {task.run_ids: task for task in cohorts}
    by_run = {run_id: task for run_ids, task in gathered.items() for run_id in run_ids}
    yield from _in_order(ready, by_run, held)


def _begun(
    training: Mapping[str, Task], stored: Mapping[str, Ids], find: Callable[[str], Task | None]
) -> Iterator[Task]:
    """Yield the cohorts that were begun and whose runs are all known."""
    taken: set[str] = set()
    for run_id in training:
        ids = stored.get(run_id, ())
        if run_id in taken or not ids or not taken.isdisjoint(ids):
            continue
        members = [member for one in ids if (member := training.get(one) or find(one)) is not None]
        is_held = len(ids) > 1 and any(member.halving is not None for member in members)  # the study was changed
        if len(members) == len(ids) and not is_held:
            taken |= set(ids)
            yield _cohort(members)


def _in_order(ready: Sequence[Task], by_run: Mapping[str, Task], held: Collection[str]) -> Iterator[Task]:
    """Yield each task once, a cohort where the first of its runs stood, without those that wait."""
    seen: set[str] = set()
    for task in ready:
        run_id = task.run.run_id
        if task.kind != "train":
            yield task
        elif run_id not in seen and run_id not in held:
            found = by_run.get(run_id, task)
            seen |= set(found.run_ids)
            yield found


def parted(tasks: Sequence[Task], size: int) -> Iterator[Sequence[Task]]:
    """Yield parts of `size` at most, as few and as even as can be, the longer ones first."""
    start = 0
    while start < len(tasks):
        num_left = len(tasks) - start
        num_parts = -(-num_left // size)
        end = start + -(-num_left // num_parts)
        yield tasks[start:end]
        start = end


def _cohort(members: Sequence[Task]) -> Task:
    """Return one task for all."""
    return members[0].model_copy(update={"others": tuple(members[1:])}) if len(members) > 1 else members[0]


def stored_cohort(store: Store, run_id: str) -> Ids:
    """Return the runs that a run was begun with, itself among them; none where it was not begun, or is begun anew."""
    own = _listed(store, run_id)
    return own if run_id in own and _listed(store, own[0]) == own else ()


def _listed(store: Store, run_id: str) -> Ids:
    setup = store.setup(run_id)
    ids = setup.get("cohort") if setup is not None and setup.get("version") == RECORD_VERSION else None
    is_sound = isinstance(ids, list) and all(
        isinstance(one, str) and re.fullmatch(rf"[0-9a-f]{{{RUN_ID_DIGITS}}}", one) for one in ids
    )
    return tuple(ids or ()) if is_sound else ()


def part_stored(store: Store, ids: Ids, size: int, why: str) -> None:
    """Store that a cohort goes on in smaller ones, from their start.

    Its first run is written last: until then the old cohort stands, and a kill in between changes nothing.

    Args:
        store: where the runs are, which must be locked.
        ids: the cohort.
        size: of the smaller ones, at most.
        why: a note for the records.
    """
    remove_folder(store.run_folder(ids[0]) / CHECKPOINT_FOLDER)
    for start in reversed(range(0, len(ids), size)):
        part = list(ids[start : start + size])
        for run_id in reversed(part):
            setup = store.setup(run_id) or {}
            if setup.get("version") != RECORD_VERSION:
                setup = {"version": RECORD_VERSION}  # it crashed before its start, or was begun by another version
            notes = [*setup.get("notes", []), why]
            store.write_setup(run_id, setup | {"cohort": part, "num_sittings": 0, "notes": notes})
