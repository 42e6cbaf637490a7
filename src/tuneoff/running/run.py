"""Runs a study: trains what is missing and nothing that is done. The same command resumes."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial

from filelock import Timeout

from tuneoff.analysis.selection import is_current
from tuneoff.analysis.tuning import Search
from tuneoff.errors import InfeasibleError, StudyError, TuneoffError, did_you_mean
from tuneoff.running.cohorts import gather, part_stored, stored_cohort, unsettled
from tuneoff.running.events import Event, Listener
from tuneoff.running.executors import Job, LocalExecutor, Message
from tuneoff.running.schedule import Explained, Task, ready_tasks, unchosen
from tuneoff.running.store import FULL_WEIGHTS, Store
from tuneoff.study.expand import base_run
from tuneoff.study.explained import Explaining, ExplainRecord
from tuneoff.study.identity import task_key
from tuneoff.study.records import Record, TestRecord
from tuneoff.study.spec import Arm, Study

BUSY_WAIT_S = 1.0
"""How long to wait before looking again at a run that another process is at."""


@dataclass(frozen=True)
class Options:
    """How a study is run. The number of threads moves the last bits of a result; it is stored before the first step.

    Attributes:
        only: arms (or families of arms) to work on; none is all.
        num_jobs: children at a time.
        cohort_size: LoRA runs that are trained in one pass at most; cohorts that were begun are gone on with.
        num_threads: CPU threads of each child; none shares the processors out.
        listener: is told what happens.
    """

    only: Sequence[str] = ()
    num_jobs: int = 1
    cohort_size: int = 1
    num_threads: int | None = None
    listener: Listener = lambda event: None
    data_sha256: Mapping[str, str] = field(default_factory=dict)
    """Hash of each task's splits as they are now (by `task_key`); a finished run on others is done again."""
    model_sha256: str = ""
    """Hash of the base as it is now, likewise."""
    retention_sha256: str = ""
    """Hash of the retention text's tokens as they are now; runs that were scored on another text are scored anew."""


class StudyRunner:
    """Works through a study's tasks.

    Args:
        study: the study.
        store: where its results are.
        options: how to run it.
    """

    def __init__(self, study: Study, store: Store, options: Options) -> None:
        self.study = study
        self.store = store
        self.options = options
        self.arms = select_arms(study, options.only)
        self.explaining = Explaining(
            asked=study.explain,
            retention=study.retention,
            retention_sha256=options.retention_sha256,
            model_sha256=options.model_sha256,
        )
        self.failed: dict[str, str] = {}
        """Runs that crashed or were killed in this sitting, with what is known of it."""
        self._begun: dict[str, tuple[str, ...]] = {}
        """With whom the runs that are ready were begun, as it was last read."""
        self._busy_until: dict[str, float] = {}
        self._micro_batch: dict[str, int] = {}
        self._verified: dict[str, tuple[Record, TestRecord | None]] = {}
        self._explained: dict[str, ExplainRecord] = {}
        self._num_said = 0
        """Problems of the store that were told."""
        self._num_rounds: int | None = None
        """Rounds of the search that were said; none before anything was looked at."""
        self._lost_trackers: set[str] = set()
        """Trackers that cannot be opened, or hang: later runs of this sitting do not wait for them again."""

    def run(self) -> None:
        """Do everything that is left.

        Raises:
            TuneoffError: bad input. Runs that crash do not raise: see `failed`.
        """
        executor = LocalExecutor(self.options.num_jobs)
        try:
            while True:
                waiting = self._fill(executor)
                if executor.children:
                    self._listen(executor)
                elif waiting:
                    time.sleep(BUSY_WAIT_S)
                else:
                    return
        finally:
            executor.stop()

    def _listen(self, executor: LocalExecutor) -> None:
        """Take what children say until one of them has ended."""
        while True:
            for message in executor.messages():
                self._take(message)
                if message.is_last:
                    return

    def _fill(self, executor: LocalExecutor) -> bool:
        """Start what there is room for; return whether anything is left that waits for another process."""
        records, tests = self._finished()
        self._say_round(records)
        explained = self._worked_out(tests)
        at_work = {run_id for child in executor.children for run_id in child.job.task.run_ids}
        ready, waiting = [], False
        for task in ready_tasks(self.study, self.arms, records, tests, explained):
            run_id = task.run.run_id
            if run_id in self.failed or run_id in at_work:
                continue
            if self._busy_until.get(run_id, 0.0) > time.monotonic():
                waiting = True
                continue
            ready.append(task)
        for task in self._gathered(ready, records) if executor.has_room else ():
            if at_work.isdisjoint(task.run_ids):
                at_work |= set(task.run_ids)
                self._start(executor, task)
                if len(executor.children) == executor.num_jobs:
                    break
        self._prune(records, tests, explained)
        return waiting

    def _gathered(self, ready: Sequence[Task], records: Mapping[str, Record]) -> Iterator[Task]:
        """Yield what can be done with the runs that share a pass as one task."""
        self._begun = {
            task.run.run_id: stored_cohort(self.store, task.run.run_id) for task in ready if task.kind == "train"
        }
        waiting: frozenset[str] = frozenset()
        if self.options.cohort_size > 1:
            waiting = unsettled(self.study, self.arms, records, self.failed)
        yield from gather(
            ready,
            self.options.cohort_size,
            stored=self._begun,
            find=partial(self._find, records),
            first_seed=self.study.seeds[0],
            waiting=waiting,
        )

    def _find(self, records: Mapping[str, Record], run_id: str) -> Task | None:
        """Return the task of a cohort's run that is finished, or that belongs to an arm that is not asked for."""
        if run_id in records and records[run_id].status == "pruned":
            return None  # it was stopped in a search since; the cohort is begun anew without it
        if run_id in records:
            return Task(kind="train", arm="", run=records[run_id].run, is_along=True)
        everything = ready_tasks(self.study, self.study.arms, records, {})
        return next((task for task in everything if task.kind == "train" and task.run.run_id == run_id), None)

    def _say_round(self, records: Mapping[str, Record]) -> None:
        """Tell that the search goes on, once for each round that opens in this sitting."""
        arms = [arm for arm in self.arms if arm.is_extended]
        if not arms:
            return
        rounds = Search(self.study, records).rounds([arm.name for arm in arms])
        if self._num_rounds is not None and rounds.num_rounds > self._num_rounds:
            more = sum(trial.status == "missing" for arm in arms for trial in rounds.trials[arm.name])
            what = f"{more} more {'trial' if more == 1 else 'trials'}, one for each arm with `lr: auto`"
            why = f"no rate of {', '.join(rounds.moving)} is better than those on both sides of it yet"
            self.options.listener(Event("extended", body={"num_more": more, "what": f"{what}: {why}"}))
        self._num_rounds = rounds.num_rounds

    def _start(self, executor: LocalExecutor, task: Task) -> None:
        threads = self.options.num_threads or max(1, (os.cpu_count() or 1) // self.options.num_jobs)
        self.options.listener(Event("start", task))
        executor.start(
            Job(
                task=task,
                folder=self.store.folder,
                root=self.study.root,
                checkpoint=self.study.checkpoint,
                num_threads=threads,
                micro_batch=self._micro_batch.get(task.run.run_id),
                study=self.study.name,
                trackers=tuple(name for name in self.study.trackers if name not in self._lost_trackers),
                cohorts={run_id: self._begun.get(run_id, ()) for run_id in task.run_ids if run_id in self._begun},
            )
        )

    def _finished(self) -> tuple[dict[str, Record], dict[str, TestRecord]]:
        """Return what is done, each file verified once in a sitting."""
        for run_id in self.store.run_ids():
            record, test = self._verified.get(run_id, (None, None))
            if record is None:
                record = self._unless_stale(self.store.record(run_id, verify=True))
                if record is not None:
                    self.store.tidy(run_id)
            if record is not None and not is_current(test, self.study):
                test = self.store.test(run_id, verify=True)
            if record is not None:
                self._verified[run_id] = (record, test)
        for problem in self.store.problems[self._num_said :]:
            self.options.listener(Event("problem", body={"what": problem}))
        self._num_said = len(self.store.problems)
        records = {run_id: record for run_id, (record, _) in self._verified.items()}
        return records, {run_id: test for run_id, (_, test) in self._verified.items() if test is not None}

    def _worked_out(self, tests: Mapping[str, TestRecord]) -> Explained:
        """Return what is to be worked out of tested runs, and what is there of it, each file read once in a sitting."""
        if not self.explaining.is_empty:
            current = [run_id for run_id, test in tests.items() if is_current(test, self.study)]
            for run_id in (base_run(self.study).run_id, *current):
                if run_id not in self._explained:
                    found = self.store.explained(run_id)
                    if found is not None and self.explaining.is_met_by(found):
                        self._explained[run_id] = found
        return Explained(wanted=self.explaining, records=self._explained)

    def _unless_stale(self, record: Record | None) -> Record | None:
        """Pass a record on; one of other data or another base is set aside, and its run is done again."""
        if record is None:
            return None
        now = {
            "data": self.options.data_sha256.get(task_key(record.run.task), ""),
            "base model": self.options.model_sha256,
        }
        then = {"data": record.provenance.data_sha256, "base model": record.provenance.model_sha256}
        changed = [what for what, sha256 in now.items() if sha256 and sha256 != then[what]]
        if not changed:
            return record
        self.store.set_aside(record.run_id)
        what = f"run {record.run_id}: the {' and the '.join(changed)} changed since; it will be done again"
        self.options.listener(Event("problem", body={"what": what}))
        return None

    def _take(self, message: Message) -> None:
        task = message.job.task
        if message.kind == "error":
            self._error(task, message.body["error"])
        elif message.kind in ("crashed", "killed"):
            self._broke(task, message)
        elif message.kind == "busy":
            self._busy_until |= dict.fromkeys(task.run_ids, time.monotonic() + BUSY_WAIT_S)
            self.options.listener(Event("busy", task))
        elif message.kind == "done":
            for member in task.members:
                if not member.is_along:
                    self._done(member)
        elif message.kind == "untracked":
            if message.body["is_for_good"]:
                self._lost_trackers.add(message.body["tracker"])
            self.options.listener(Event("problem", task, message.body))
        else:
            self.options.listener(Event(message.kind, task, message.body))

    def _done(self, task: Task) -> None:
        """Say what became of a run."""
        run_id = task.run.run_id
        if task.kind == "explain":
            self.options.listener(Event("finished", task))
            return
        self._explained.pop(run_id, None)  # what was worked out before went with the old record
        if task.kind == "train":
            self._verified.pop(run_id, None)  # of a run that was stopped in another search
        record = self.store.record(run_id)
        kind = {"done": "finished", "pruned": "pruned"}.get(record.status if record is not None else "")
        loss = record.validation.loss_nats if record is not None and record.validation is not None else None
        body = {"what": record.reason if record is not None else "", "validation_loss_nats": loss}
        self.options.listener(Event(kind or "infeasible", task, body))

    def _broke(self, task: Task, message: Message) -> None:
        """Note a child that crashed or was killed.

        A crash takes only its own: the runs of a cohort are then tried alone. A kill says nothing of the runs, so the
        next sitting goes on with the cohort from its checkpoint.
        """
        log = self.store.run_folder(task.run.run_id) / "log.txt"
        what = message.body.get("what") or f"exit code {message.body['exit_code']}"
        reason = f"{message.kind} ({what}); its log is {log}"
        if task.others and message.kind == "crashed" and self._part(task.run_ids, reason):
            said = f"{reason}; its {len(task.run_ids)} runs are tried one at a time"
            self.options.listener(Event("problem", task, {"what": said}))
            return
        for member in task.members:
            if not member.is_along and self.store.record(member.run.run_id) is None:
                self.failed[member.run.run_id] = reason
        if not task.others:  # a cohort's runs that are recorded go on alone: nothing of theirs is lost
            self.failed.setdefault(task.run.run_id, reason)
        self.options.listener(Event("failed", task, {"what": reason}))

    def _part(self, run_ids: tuple[str, ...], why: str) -> bool:
        """Store that a cohort's runs go on alone; not where all are finished, or another process is at them."""
        try:
            with ExitStack() as locks:
                for run_id in sorted(run_ids):
                    locks.enter_context(self.store.lock(run_id))
                if all(self.store.record(run_id) is not None for run_id in run_ids):
                    return False
                part_stored(self.store, run_ids, 1, f"trained alone after a cohort of {len(run_ids)} {why}")
        except Timeout:
            return False
        return True

    def _error(self, task: Task, error: TuneoffError) -> None:
        """Go on with less at a time after an out-of-memory; anything else is bad input and ends the study."""
        run_id = task.run.run_id
        if task.kind == "explain":  # what was trained and tested stands, whatever comes of this
            self.failed[run_id] = f"could not be explained ({error})"
            self.options.listener(Event("failed", task, {"what": self.failed[run_id]}))
            return
        if not isinstance(error, InfeasibleError):
            raise error
        if task.others:  # the child stored its halves
            self.options.listener(Event("problem", task, {"what": str(error)}))
            return
        micro_batch = int((self.store.setup(run_id) or {}).get("micro_batch", 2))
        self._micro_batch[run_id] = micro_batch // 2
        what = f"out of memory; trying again with a micro-batch of {micro_batch // 2} (the effective batch stays)"
        self.options.listener(Event("problem", task, {"what": what}))

    def _prune(self, records: Mapping[str, Record], tests: Mapping[str, TestRecord], explained: Explained) -> None:
        """Remove full weights that nothing will read again; adapters are small and stay."""
        gone = list(unchosen(self.study, records))
        if self.study.keep == "none":
            gone += [run_id for run_id in tests if run_id in records and not explained.is_left(records[run_id].run)]
        for run_id in gone:
            with suppress(OSError):  # what cannot be removed now is removed another time
                (self.store.run_folder(run_id) / FULL_WEIGHTS).unlink(missing_ok=True)


def select_arms(study: Study, only: Sequence[str]) -> tuple[Arm, ...]:
    """Return the arms that `only` names, by name or by family; all where it is empty.

    Raises:
        StudyError: a name that is no arm.
    """
    for name in only:
        if not any(name in (arm.name, arm.family) for arm in study.arms):
            names = [arm.name for arm in study.arms]
            raise StudyError(
                f"--only {name}: no arm is called so.{did_you_mean(name, names)} Arms: {', '.join(names)}."
            )
    return tuple(arm for arm in study.arms if not only or arm.name in only or arm.family in only)
