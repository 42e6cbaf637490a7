"""What of a study is finished and still holds: each file verified once in a sitting."""

from collections.abc import Mapping

from tuneoff.analysis.selection import is_current
from tuneoff.running.events import Event, Listener
from tuneoff.running.memory import Memory
from tuneoff.running.schedule import Explained
from tuneoff.running.store import Store
from tuneoff.study.expand import base_run
from tuneoff.study.explained import Explaining, ExplainRecord
from tuneoff.study.identity import task_key
from tuneoff.study.records import Record, TestRecord
from tuneoff.study.spec import Study


class Finished:
    """Reads finished runs; one of other data, or that lacked memory which there is now, is set aside.

    Args:
        study: the study.
        store: its folder.
        explaining: what is to be worked out of tested runs.
        memory: what is known of the memory that runs lacked.
        data_sha256: hash of each task's splits as they are now, by `task_key`.
        model_sha256: hash of the base as it is now.
        listener: is told what is set aside, and why.
    """

    def __init__(
        self,
        study: Study,
        store: Store,
        explaining: Explaining,
        memory: Memory,
        data_sha256: Mapping[str, str],
        model_sha256: str,
        listener: Listener,
    ) -> None:
        self.study, self.store, self.explaining, self.memory = study, store, explaining, memory
        self._now = (data_sha256, model_sha256)
        self._listener = listener
        self._verified: dict[str, tuple[Record, TestRecord | None]] = {}
        self._explained: dict[str, ExplainRecord] = {}
        self._num_said = 0
        """Problems of the store that were told."""

    def forget(self, run_id: str, *, is_trained: bool) -> None:
        """Read a run anew: what was worked out of it before went with its old record.

        Args:
            run_id: the run.
            is_trained: whether it was trained again, and not only tested.
        """
        self._explained.pop(run_id, None)
        if is_trained:
            self._verified.pop(run_id, None)  # of a run that was stopped in another search

    def read(self) -> tuple[dict[str, Record], dict[str, TestRecord]]:
        """Return what is done, each file verified once in a sitting."""
        for run_id in self.store.run_ids():
            record, test = self._verified.get(run_id, (None, None))
            if record is None:
                record = self._unless_lacking(self._unless_stale(self.store.record(run_id, verify=True)))
                if record is not None:
                    self.store.tidy(run_id)
            if record is not None and not is_current(test, self.study):
                test = self.store.test(run_id, verify=True)
            if record is not None:
                self._verified[run_id] = (record, test)
        for problem in self.store.problems[self._num_said :]:
            self._listener(Event("problem", body={"what": problem}))
        self._num_said = len(self.store.problems)
        records = {run_id: record for run_id, (record, _) in self._verified.items()}
        return records, {run_id: test for run_id, (_, test) in self._verified.items() if test is not None}

    def worked_out(self, tests: Mapping[str, TestRecord]) -> Explained:
        """Return what is to be worked out of tested runs, and what is there of it, each file read once in a sitting."""
        if not self.explaining.is_empty:
            current = [run_id for run_id, test in tests.items() if is_current(test, self.study)]
            for run_id in (base_run(self.study).run_id, *current):
                if run_id not in self._explained:
                    found = self.store.explained(run_id)
                    if (
                        found is not None
                        and self.explaining.is_met_by(found)
                        and not self.memory.is_enough(run_id, found.shortage)
                    ):
                        self._explained[run_id] = found
        return Explained(wanted=self.explaining, records=self._explained)

    def _unless_stale(self, record: Record | None) -> Record | None:
        """Pass a record on; one of other data or another base is set aside, and its run is done again."""
        if record is None:
            return None
        data_sha256, model_sha256 = self._now
        now = {"data": data_sha256.get(task_key(record.run.task), ""), "base model": model_sha256}
        then = {"data": record.provenance.data_sha256, "base model": record.provenance.model_sha256}
        changed = [what for what, sha256 in now.items() if sha256 and sha256 != then[what]]
        if not changed:
            return record
        self.store.set_aside(record.run_id)
        what = f"run {record.run_id}: the {' and the '.join(changed)} changed since; it will be done again"
        self._listener(Event("problem", body={"what": what}))
        return None

    def _unless_lacking(self, record: Record | None) -> Record | None:
        """Pass a record on; a run that lacked memory is tried again where there is more by now."""
        if record is None or not self.memory.is_enough(record.run_id, record.shortage):
            return record
        what = f"run {record.run_id}: it lacked memory, and there is more now; it will be tried again"
        self._listener(Event("problem", body={"what": what}))
        if record.status == "done":
            return record.model_copy(update={"shortage": None})
        self.store.begin_anew(record.run_id)
        return None
