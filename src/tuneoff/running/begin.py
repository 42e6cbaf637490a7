"""What is done once, before the first step of a sitting: is there room, and what does the study's folder say of it."""

from collections.abc import Sequence

from tuneoff.running.events import Event, Listener
from tuneoff.running.preflight import Preflight
from tuneoff.running.run import Options
from tuneoff.running.schedule import select_arms
from tuneoff.running.sitting import Sitting
from tuneoff.running.space import check_room
from tuneoff.running.store import Store
from tuneoff.running.underway import write_workload
from tuneoff.study.spec import Study


def begin(
    study: Study,
    store: Store,
    found: Preflight,
    *,
    only: Sequence[str],
    num_jobs: int,
    cohort_size: int,
    sitting: Sitting,
    listener: Listener,
) -> Options:
    """Hold what will be written against what is free, then write down the study and what its work is made of.

    Args:
        study: the study.
        store: its folder.
        found: what looking at its model and data found.
        only: arms, or families of arms, to work on; none is all.
        num_jobs: processes at a time.
        cohort_size: LoRA runs of one pass at most.
        sitting: how long it may take.
        listener: is told what happens, first of all where room is tight.

    Returns:
        How the study is run.

    Raises:
        StoreError: the disk cannot hold it, or cannot be written to.
    """
    warning = check_room(study, select_arms(study, only), store, found, num_jobs, cohort_size)
    if warning:
        listener(Event("problem", body={"what": warning}))
    store.create(study)
    workload = found.workload(num_jobs)
    write_workload(store, workload)
    return Options(
        only=only,
        num_jobs=num_jobs,
        cohort_size=cohort_size,
        listener=listener,
        sitting=sitting,
        workload=workload,
        data_sha256=found.data_sha256,
        model_sha256=found.model_sha256,
        retention_sha256=found.retention_sha256,
        needed_bytes={arm.name: arm.least_bytes for arm in found.plan.arms},
        available=found.available,
    )
