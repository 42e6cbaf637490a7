"""Works out, while a study runs, how long its arms still take."""

from collections.abc import Mapping, Sequence
from typing import Any

from tuneoff.analysis.progress import current_tests, progress
from tuneoff.analysis.time_to_go import TimeToGo, Workload, time_to_go
from tuneoff.running.events import Event, Listener
from tuneoff.running.pace import Pace
from tuneoff.running.schedule import Task
from tuneoff.running.store import Store
from tuneoff.running.underway import planned_step_s, runs_under_way
from tuneoff.study.records import Record, TestRecord
from tuneoff.study.spec import Arm, Study

EVERY_S = 10.0
"""Seconds between two reckonings while nothing starts or ends."""


class Reckoning:
    """Reckons the time to go of a sitting, and tells it.

    Args:
        study: the study.
        arms: those that are worked on.
        store: where its results are.
        pace: what is measured in this sitting.
        workload: what the work is made of; none leaves arms unknown that were not measured.
        num_jobs: processes at a time.
        listener: is told `to_go`.
    """

    def __init__(
        self,
        study: Study,
        arms: Sequence[Arm],
        store: Store,
        pace: Pace,
        workload: Workload | None,
        num_jobs: int,
        listener: Listener,
    ) -> None:
        self._study = study.model_copy(update={"arms": tuple(arms)})
        self._store, self._pace, self._workload, self._num_jobs = store, pace, workload, num_jobs
        self._listener = listener
        self._known: tuple[Mapping[str, Record], Mapping[str, TestRecord]] = ({}, {})
        self._before: Mapping[str, Any] | None = None
        """Runs that earlier sittings left half-trained."""
        self._at = float("-inf")
        self._step_s: dict[str, float] = {}

    def reckon(self, records: Mapping[str, Record], tests: Mapping[str, TestRecord]) -> TimeToGo:
        """Reckon from what is finished, and tell it."""
        self._known = (dict(records), current_tests(self._study, tests))
        if self._before is None:
            self._before = runs_under_way(self._store, records.keys(), ())
        return self._again()

    def look(self) -> None:
        """Reckon again from what was measured meanwhile, if that is some time ago."""
        if self._pace.clock() - self._at >= EVERY_S:
            self._again()

    def step_s(self, task: Task) -> float | None:
        """Return the seconds of a task's step as they were last reckoned, all its runs together."""
        own = [self._step_s.get(member.arm) for member in task.members]
        known = [step_s for step_s in own if step_s is not None]
        return sum(known) if len(known) == len(own) else None

    def _again(self) -> TimeToGo:
        records, tests = self._known
        begun = {**(self._before or {}), **self._pace.under_way()}
        found = time_to_go(
            self._study,
            progress(self._study, records, tests),
            records,
            tests,
            workload=self._workload,
            under_way={run_id: own for run_id, own in begun.items() if run_id not in records},
            planned_step_s=planned_step_s(self._store),
            num_jobs=self._num_jobs,
        )
        self._step_s = {arm.name: arm.step_s for arm in found.arms if arm.step_s is not None}
        self._at = self._pace.clock()
        self._listener(Event("to_go", body={"to_go": found}))
        return found
