"""What is done once, before the first step of a sitting: is there room, and what does the study's folder say of it."""

from collections.abc import Sequence

from tuneoff.analysis.time_to_go import Workload
from tuneoff.running.events import Event, Listener
from tuneoff.running.preflight import Preflight
from tuneoff.running.space import check_room
from tuneoff.running.store import Store
from tuneoff.running.underway import write_workload
from tuneoff.study.spec import Arm, Study


def begin(
    study: Study,
    arms: Sequence[Arm],
    store: Store,
    found: Preflight,
    *,
    num_jobs: int,
    cohort_size: int,
    listener: Listener,
) -> Workload:
    """Hold what will be written against what is free, then write down the study and what its work is made of.

    Args:
        study: the study.
        arms: those that are worked on.
        store: its folder.
        found: what looking at its model and data found.
        num_jobs: processes at a time.
        cohort_size: LoRA runs of one pass at most.
        listener: is told where room is tight.

    Raises:
        StoreError: the disk cannot hold it, or cannot be written to.
    """
    warning = check_room(study, arms, store, found, num_jobs, cohort_size)
    if warning:
        listener(Event("problem", body={"what": warning}))
    store.create(study)
    workload = found.workload(num_jobs)
    write_workload(store, workload)
    return workload
