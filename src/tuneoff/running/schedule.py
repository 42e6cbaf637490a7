"""What is left to do in a study, as a pure function of its records.

Every arm at its first seed before any second one.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

from tuneoff.analysis.selection import choose_rate, is_current
from tuneoff.study.expand import chosen_runs, trials
from tuneoff.study.identity import Run
from tuneoff.study.records import Record, TestRecord
from tuneoff.study.spec import Arm, Study
from tuneoff.study.testing import Testing
from tuneoff.study.value import Value


class Task(Value):
    """One thing for a child process to do."""

    kind: Literal["train", "score"]
    """Train (and validate), or read the test split with weights that are there."""
    arm: str
    run: Run
    testing: Testing | None = None
    """How to read the test split; of a training task, right after it, as the rate is chosen already."""


def ready_tasks(
    study: Study, arms: tuple[Arm, ...], records: Mapping[str, Record], tests: Mapping[str, TestRecord]
) -> Iterator[Task]:
    """Yield what can be done now, most urgent first; what waits for a rate to be chosen is not among it.

    Args:
        study: the study.
        arms: those to work on.
        records: finished runs.
        tests: readings of the test split.
    """
    for arm in arms:
        for run in trials(study, arm):
            if run.run_id not in records:
                yield Task(kind="train", arm=arm.name, run=run, testing=None if arm.is_tuned else study.testing)
    for index in range(len(study.seeds)):
        for arm in arms:
            yield from _seed(study, arm, index, records, tests)


def _seed(
    study: Study, arm: Arm, index: int, records: Mapping[str, Record], tests: Mapping[str, TestRecord]
) -> Iterator[Task]:
    lr = choose_rate(study, arm, records)
    if arm.is_trained and lr is None:
        return  # not all of its trials are done, or none of them is feasible
    runs = chosen_runs(study, arm, lr)
    if index >= len(runs):
        return
    run = runs[index]
    record = records.get(run.run_id)
    if record is None:
        if index:  # the first seed's runs are the trials
            yield Task(kind="train", arm=arm.name, run=run, testing=study.testing)
    elif record.status == "done" and not is_current(tests.get(run.run_id), study):
        yield Task(kind="score", arm=arm.name, run=run, testing=study.testing)


def unchosen(study: Study, records: Mapping[str, Record]) -> Iterator[str]:
    """Yield the trials that no arm will read again: arms of one method and rate share a run, so all are looked at."""
    tried: dict[str, None] = {}
    needed: set[str] = set()
    for arm in study.arms:
        runs = trials(study, arm)
        lr = choose_rate(study, arm, records)
        tried |= {run.run_id: None for run in runs}
        needed |= {run.run_id for run in runs if lr is None or run.lr == lr}
    yield from (run_id for run_id in tried if run_id not in needed)
