"""Runs a study: trains what is missing and nothing that is done. The same command resumes."""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial

from filelock import Timeout

from tuneoff.analysis.time_to_go import Workload
from tuneoff.analysis.tuning import Search
from tuneoff.errors import InfeasibleError, TuneoffError
from tuneoff.running.cohorts import gather, part_stored, stored_cohort, unsettled
from tuneoff.running.events import Event, Listener
from tuneoff.running.executors import Job, LocalExecutor, Message
from tuneoff.running.finished import Finished
from tuneoff.running.memory import Memory
from tuneoff.running.order import breadth_first
from tuneoff.running.reckoning import Reckoning
from tuneoff.running.schedule import Explained, Task, measurements, ready_tasks, unchosen
from tuneoff.running.schedule import select_arms as select_arms
from tuneoff.running.shortages import CROWDED
from tuneoff.running.sitting import Sitting
from tuneoff.running.store import FULL_WEIGHTS, Store
from tuneoff.running.threads import threads_per_job
from tuneoff.study.explained import Explaining
from tuneoff.study.records import Record, TestRecord
from tuneoff.study.spec import Study
from tuneoff.training.memory_limits import Available

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
        sitting: how long it may take, and what interrupts it.
        workload: what the work is made of, from which the time to go is reckoned; none leaves arms unknown that were
            not measured.
    """

    only: Sequence[str] = ()
    num_jobs: int = 1
    cohort_size: int = 1
    num_threads: int | None = None
    listener: Listener = lambda event: None
    sitting: Sitting = field(default_factory=Sitting)
    workload: Workload | None = None
    data_sha256: Mapping[str, str] = field(default_factory=dict)
    """Hash of each task's splits as they are now (by `task_key`); a finished run on others is done again."""
    model_sha256: str = ""
    """Hash of the base as it is now, likewise."""
    retention_sha256: str = ""
    """Hash of the retention text's tokens as they are now; runs that were scored on another text are scored anew."""
    needed_bytes: Mapping[str, int] = field(default_factory=dict)
    """That each arm's training takes at least, by its name; where there is less it is not begun."""
    available: Available | None = None
    """What a child may have before it loads anything; runs that lacked memory where there was less are tried again."""


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
        self.failed: dict[str, str] = {}
        """Runs that crashed or were killed in this sitting, with what is known of it."""
        self._begun: dict[str, tuple[str, ...]] = {}
        """With whom the runs that are ready were begun, as it was last read."""
        self._busy_until: dict[str, float] = {}
        self.memory = Memory(store, options.available)
        self._measured: set[str] = set()
        """Keys of solo costs that are there."""
        self._unmeasured: set[str] = set()
        """Runs whose costs could not be measured alone in this sitting."""
        self.finished = Finished(
            study,
            store,
            Explaining(
                asked=study.explain,
                retention=study.retention,
                retention_sha256=options.retention_sha256,
                model_sha256=options.model_sha256,
            ),
            self.memory,
            options.data_sha256,
            options.model_sha256,
            options.listener,
        )
        self._num_rounds: int | None = None
        """Rounds of the search that were said; none before anything was looked at."""
        self._lost_trackers: set[str] = set()
        """Trackers that cannot be opened, or hang: later runs of this sitting do not wait for them again."""
        self.sitting = options.sitting
        self._reckoning = Reckoning(
            study, self.arms, store, options.sitting.pace, options.workload, options.num_jobs, options.listener
        )

    def run(self) -> None:
        """Do everything that is left, or as much as the sitting allows.

        Raises:
            TuneoffError: bad input. Runs that crash do not raise: see `failed`.
            KeyboardInterrupt: Ctrl-C; once children have left off, and at once at a second one.
            SystemExit: SIGTERM, likewise.
        """
        executor = LocalExecutor(self.options.num_jobs)
        with self.sitting.heeding_signals():
            try:
                while True:
                    waiting = not self.sitting.is_ending(executor, self.options.listener) and self._fill(executor)
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
            self.sitting.is_ending(executor, self.options.listener)
            for message in executor.messages(self.sitting.wait_s(executor), self.sitting.wakers):
                self.sitting.pace.heard(message)
                self._reckoning.look()
                self._take(message)
                if message.is_last:
                    return

    def _fill(self, executor: LocalExecutor) -> bool:
        """Start what there is room for; return whether anything is left that waits for another process."""
        records, tests = self.finished.read()
        self._say_round(records)
        explained = self.finished.worked_out(tests)
        at_work = {run_id for child in executor.children for run_id in child.job.task.run_ids}
        has_room = executor.has_room and not any(self.memory.is_alone(child.job.task) for child in executor.children)
        tasks = ready_tasks(self.study, self.arms, records, tests, explained)
        ready, waiting = self._not_busy((task for task in tasks if task.run.run_id not in self.failed), at_work)
        self._reckoning.reckon(records, tests)
        if not ready and not waiting:  # last, as nothing else may be at work beside
            ready, waiting = self._not_busy(self._measurements(records), at_work)
        for task in breadth_first(self._gathered(ready, records) if has_room else (), self.study.seeds[0]):
            if at_work.isdisjoint(task.run_ids) and self.sitting.may_start(task, self._reckoning.step_s(task)):
                is_alone = self.memory.is_alone(task)
                if is_alone and executor.children:
                    break  # it waits until nothing else is at work, and nothing new begins meanwhile
                at_work |= set(task.run_ids)
                self._start(executor, task)
                if is_alone or not executor.has_room:
                    break
        self._prune(records, tests, explained)
        return waiting

    def _not_busy(self, tasks: Iterable[Task], at_work: Collection[str]) -> tuple[list[Task], bool]:
        """Return the tasks whose runs nobody is at, and whether another process is at one of the others."""
        ready, waiting = [], False
        for task in tasks:
            if task.run.run_id in at_work:
                continue
            if self._busy_until.get(task.run.run_id, 0.0) > time.monotonic():
                waiting = True
            else:
                ready.append(task)
        return ready, waiting

    def _measurements(self, records: Mapping[str, Record]) -> Iterator[Task]:
        """Yield the arms whose costs are still to be measured alone."""

        def is_measured(key: str) -> bool:
            if key not in self._measured and self.store.solo(key) is not None:
                self._measured.add(key)
            return key in self._measured

        for task in measurements(self.study, self.arms, records, is_measured):
            if task.run.run_id not in self._unmeasured:
                yield task

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
            what = f"{more} more {'trial' if more == 1 else 'trials'}, one for each arm whose search is extended"
            why = f"no rate of {', '.join(rounds.moving)} is better than those on both sides of it yet"
            self.options.listener(Event("extended", body={"num_more": more, "what": f"{what}: {why}"}))
        self._num_rounds = rounds.num_rounds

    def _start(self, executor: LocalExecutor, task: Task) -> None:
        self.memory.begun |= set(task.run_ids)
        needed = max(self.options.needed_bytes.get(member.arm, 0) for member in task.members)
        threads = self.options.num_threads or threads_per_job(self.options.num_jobs)
        self.options.listener(Event("start", task))
        self.sitting.pace.started(task)
        executor.start(
            Job(
                task=task,
                folder=self.store.folder,
                root=self.study.root,
                checkpoint=self.study.checkpoint,
                num_threads=threads,
                needed_bytes=needed if task.kind == "train" else 0,
                is_alone=self.options.num_jobs == 1 or self.memory.is_alone(task),
                shortage=self.memory.lacking(task),
                study=self.study.name,
                trackers=tuple(name for name in self.study.trackers if name not in self._lost_trackers),
                cohorts={run_id: self._begun.get(run_id, ()) for run_id in task.run_ids if run_id in self._begun},
            )
        )

    def _take(self, message: Message) -> None:
        task = message.job.task
        if message.kind == "left" or self.sitting.is_cause_of(message):
            self._left(task, message)
        elif task.kind == "measure" and message.is_last and message.kind not in ("done", "busy"):
            self._not_measured(task, message)
        elif message.kind == "error":
            self._error(task, message.body["error"])
        elif message.kind in ("starved", "crashed", "killed"):
            self._broke(task, message)
        elif message.kind == "busy":
            self._busy_until |= dict.fromkeys(task.run_ids, time.monotonic() + BUSY_WAIT_S)
            self.options.listener(Event("busy", task))
        elif message.kind == "done":
            for member in task.members:
                if not member.is_along:
                    self._done(member)
        else:
            if message.kind == "untracked" and message.body["is_for_good"]:
                self._lost_trackers.add(message.body["tracker"])
            kind = "problem" if message.kind == "untracked" else message.kind
            self.options.listener(Event(kind, task, message.body))

    def _left(self, task: Task, message: Message) -> None:
        """Say that a task was left off; where nobody here asked for it, it is not taken up again in this sitting."""
        if task.kind == "train":
            for member in task.members:
                if not member.is_along and self.store.record(member.run.run_id) is not None:
                    self._done(member)  # its training was done, and its reading of the test split is left
        if not self.sitting.ending:
            why = "left off: a signal asked its process to end"
            self.failed |= dict.fromkeys(task.run_ids, why)
            self.options.listener(Event("failed", task, {"what": why}))
        else:
            self.options.listener(Event("left", task, message.body))

    def _done(self, task: Task) -> None:
        """Say what became of a run."""
        run_id = task.run.run_id
        if task.kind in ("explain", "measure"):
            self.options.listener(Event("finished", task))
            return
        self.finished.forget(run_id, is_trained=task.kind == "train")
        record = self.store.record(run_id)
        kind = {"done": "finished", "pruned": "pruned"}.get(record.status if record is not None else "")
        reason = record.reason if record is not None else ""
        if record is not None and record.shortage is not None:
            kind, reason = "infeasible", record.shortage.reason
        loss = record.validation.loss_nats if record is not None and record.validation is not None else None
        body = {"what": reason, "validation_loss_nats": loss}
        self.options.listener(Event(kind or "infeasible", task, body))

    def _not_measured(self, task: Task, message: Message) -> None:
        """Note that an arm's costs could not be measured alone: the run itself stands as it is."""
        self._unmeasured.add(task.run.run_id)
        what = str(message.body.get("error") or message.body.get("what") or message.body.get("why") or message.kind)
        self.options.listener(Event("problem", task, {"what": f"costs are not measured alone: {what}"}))

    def _broke(self, task: Task, message: Message) -> None:
        """Note a child that crashed or was killed.

        A crash takes only its own: the runs of a cohort are then tried alone. A kill says nothing of the runs, so the
        next sitting goes on with the cohort from its checkpoint. What ended for want of memory goes on with less.
        """
        if message.kind == "starved" and self.memory.lacking(task) is None:
            self.options.listener(Event("problem", task, {"what": self.memory.starved(task, message)}))
            return
        log = self.store.run_folder(task.run.run_id) / "log.txt"
        what = message.body.get("what") or message.body.get("why") or f"exit code {message.body['exit_code']}"
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
        """Go on after an out-of-memory; anything else is bad input and ends the study."""
        run_id = task.run.run_id
        if isinstance(error, InfeasibleError):  # where less at a time may do, the child has stored it
            if error.reason == CROWDED:
                self.memory.alone |= set(task.run_ids)
            self.options.listener(Event("problem", task, {"what": str(error)}))
            return
        if task.kind == "explain":  # what was trained and tested stands, whatever comes of this
            self.failed[run_id] = f"could not be explained ({error})"
            self.options.listener(Event("failed", task, {"what": self.failed[run_id]}))
            return
        raise error

    def _prune(self, records: Mapping[str, Record], tests: Mapping[str, TestRecord], explained: Explained) -> None:
        """Remove full weights that nothing will read again; adapters are small and stay."""
        gone = list(unchosen(self.study, records))
        if self.study.keep == "none":
            gone += [run_id for run_id in tests if run_id in records and not explained.is_left(records[run_id].run)]
        for run_id in gone:
            with suppress(OSError):  # what cannot be removed now is removed another time
                (self.store.run_folder(run_id) / FULL_WEIGHTS).unlink(missing_ok=True)
