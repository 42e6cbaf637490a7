"""Runs tasks in child processes: one precision and one device set-up each, and a crash takes only its own.

Children are forked from a server that has imported the libraries and done nothing else, so each starts in a fraction
of a second.
"""

import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneoff import fork_server
from tuneoff.errors import DeviceError, TuneoffError
from tuneoff.files import make_folder, on_disk
from tuneoff.running.full_disk import full_disk, is_disk_full
from tuneoff.running.lease import LOST
from tuneoff.running.leaving import LEAVE, LEFT, Leave, LeftOffError, heed, listen_to_parent
from tuneoff.running.schedule import Task
from tuneoff.running.store import LOG_FILE
from tuneoff.running.watch import KILLED_BY_KERNEL, LOOK_S, Watch
from tuneoff.study.options import Tracker
from tuneoff.study.shortage import OUT_OF_MEMORY, MemoryPhase, Shortage
from tuneoff.study.spec import CheckpointSpec
from tuneoff.training.memory_limits import available_bytes, shown_bytes
from tuneoff.training.out_of_memory import is_out_of_memory

if TYPE_CHECKING:
    from tuneoff.running.session import Place
    from tuneoff.running.store import Store

CRASHED = 3
"""Exit code of a child that met an error which is no `TuneoffError`."""


@dataclass(frozen=True)
class Job:
    """A task with all that a child needs to do it; it can be pickled."""

    task: Task
    folder: Path
    root: Path
    checkpoint: CheckpointSpec
    num_threads: int | None
    needed_bytes: int = 0
    """That the task takes in all at least."""
    is_alone: bool = True
    """Whether nothing else is started beside."""
    shortage: Shortage | None = None
    """What is lacking for good, where the kernel ended the child that was to say so itself."""
    study: str = ""
    trackers: tuple[Tracker, ...] = ()
    cohorts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """With whom each run to be trained was begun, when the task was made: where that is otherwise now, another process
    was at it."""


@dataclass
class Child:
    """A child at work."""

    job: Job
    process: BaseProcess
    connection: Connection
    watch: Watch
    phase: MemoryPhase = "load"
    """What it said last that it was doing."""
    is_leaving: bool = False
    """Whether it was asked to leave off."""


@dataclass(frozen=True)
class Message:
    """What a child said.

    Attributes:
        job: whose it is.
        kind: step, validation, phase, resumed, untracked, or at the end done, left, busy, error, crashed, killed, or
            starved (ended for want of memory).
        body: details, as JSON types; `error` has the exception.
    """

    job: Job
    kind: str
    body: dict[str, Any]

    @property
    def is_last(self) -> bool:
        """Whether the child has ended."""
        return self.kind in ("done", "left", "busy", "error", "crashed", "killed", "starved")


class LocalExecutor:
    """Child processes on this machine.

    Args:
        num_jobs: children at a time.
    """

    def __init__(self, num_jobs: int = 1) -> None:
        self.num_jobs = num_jobs
        self.children: list[Child] = []

    @property
    def has_room(self) -> bool:
        """Whether another child may be started."""
        return len(self.children) < self.num_jobs

    def start(self, job: Job) -> None:
        """Start a child."""
        log = job.folder / job.task.run.run_id / LOG_FILE
        log_bytes = log.stat().st_size if log.exists() else 0
        process, connection = _fork(_work, job, f"tuneoff {job.task.shown.arm}")
        watch = Watch(process.pid, log, log_bytes)
        self.children.append(Child(job, process, connection, watch))

    def ask_to_leave(self, child: Child) -> None:
        """Ask a child, once, to leave off: its last message then says how far it came."""
        if not child.is_leaving:
            child.is_leaving = True
            with suppress(OSError):  # it has just ended
                child.connection.send(LEAVE)

    def messages(self, timeout_s: float | None = None, wakers: Sequence[int] = ()) -> Iterator[Message]:
        """Wait until a child says something, and yield what has come.

        Of an ended child the last message says how it ended.

        Args:
            timeout_s: how long to wait; none waits until something comes.
            wakers: file descriptors that end the wait, too, when they can be read.
        """
        ready = self._wait([*(child.connection for child in self.children), *wakers], timeout_s)
        for child in [child for child in self.children if child.connection in ready]:
            yield from self._drain(child)

    def _wait(self, sources: Sequence[Any], timeout_s: float | None) -> Sequence[Any]:
        """Wait until something can be read, or time is up, and look at the children's memory meanwhile."""
        end = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left = LOOK_S if end is None else min(LOOK_S, max(0.0, end - time.monotonic()))
            ready = wait(sources, left)
            if ready or (end is not None and time.monotonic() >= end):
                return ready
            for child in self.children:
                child.watch.look()

    def _drain(self, child: Child) -> Iterator[Message]:
        try:
            while child.connection.poll():
                kind, body = child.connection.recv()
                if kind == "doing":
                    child.phase = body["phase"]
                    continue
                message = Message(child.job, kind, body)
                if message.is_last:
                    self._forget(child)
                    body |= {"phase": child.phase, "num_others": len(self.children)}
                yield message
                if message.is_last:
                    return
        except (EOFError, OSError):
            yield self._ended(child)

    def _ended(self, child: Child) -> Message:
        """Say how a child ended that could not say it itself.

        How a child that ended for want of memory is told from one that somebody killed, and from a crash: see
        `tuneoff.running.watch`.
        """
        self._forget(child)
        code = child.process.exitcode
        why = child.watch.why_starved(code)
        if why == KILLED_BY_KERNEL:
            for other in self.children:
                other.watch.num_oom_kills += 1  # that kill is accounted for
        kind = "starved" if why else "killed" if code is not None and code < 0 else "crashed"
        kind = "left" if code == LEFT else "busy" if code == LOST else kind
        body = {"exit_code": code, "why": why, "phase": child.phase, "num_others": len(self.children)}
        return Message(child.job, kind, body)

    def _forget(self, child: Child) -> None:
        child.process.join()
        child.connection.close()
        self.children.remove(child)

    def stop(self) -> None:
        """End all children at once; their runs go on from their last checkpoints another time."""
        for child in self.children:
            child.process.kill()  # to SIGTERM they would finish their step first
        for child in list(self.children):
            self._forget(child)


def in_child(function: Callable[[Any], Any], argument: Any) -> Any:
    """Call a function of this package in a child and return what it returns; both ways must be picklable.

    Raises:
        TuneoffError: what the function raised.
        DeviceError: there is not the memory for it, or the child was killed.
        RuntimeError: the child crashed; the message has the traceback.
    """
    process, connection = _fork(_answer, (function, argument), "tuneoff")
    try:
        kind, body = connection.recv()
    except EOFError:
        process.join()
        what = f"a child process ended with exit code {process.exitcode} and said nothing"
        left = available_bytes()
        if left.source == "ulimit -v":
            raise DeviceError(
                f"{what}. `ulimit -v` leaves {shown_bytes(left.num_bytes)} of address space, of which the libraries "
                "alone take about 2 GB. Raise it."
            ) from None
        if (process.exitcode or 0) < 0:
            raise DeviceError(
                f"the process that was to look at the study was ended by signal {-(process.exitcode or 0)} before it "
                "could answer. Nothing was trained. Where nobody ended it, memory ran out: make room; the same command "
                "tries again."
            ) from None
        raise RuntimeError(what) from None
    except BaseException:  # Ctrl-C: on its way out the interpreter would wait for an answer that nobody wants
        process.kill()
        raise
    process.join()
    if kind == "error":
        raise body
    if kind == "crashed":
        raise RuntimeError(body)
    return body


def _fork(target: Callable[..., None], argument: Any, name: str) -> tuple[BaseProcess, Connection]:
    """Start a child with one argument and our end of a pipe to it."""
    context = fork_server.context()
    ours, theirs = context.Pipe()
    process: BaseProcess = context.Process(target=target, args=(argument, theirs), name=name)  # type: ignore[attr-defined]
    fork_server.start(process)
    theirs.close()
    return process, ours


def _answer(call: tuple[Callable[[Any], Any], Any], connection: Connection) -> None:
    function, argument = call
    try:
        connection.send(("done", function(argument)))
    except TuneoffError as error:
        connection.send(("error", error))
    except BaseException as error:  # the child's last line of defence: the parent shows the traceback
        if is_out_of_memory(error):
            what = f"{OUT_OF_MEMORY} before anything was trained ({error or type(error).__name__})"
            found = f"{available_bytes()} was left. Free memory or raise the limit."
            connection.send(("error", DeviceError(f"{what}; {found}")))
            os._exit(0)
        connection.send(("crashed", traceback.format_exc()))
    os._exit(0)


def _work(job: Job, connection: Connection) -> None:
    """Do a job in the child and exit."""
    leave = Leave()
    heed(leave)
    threading.Thread(target=listen_to_parent, args=(connection, leave), daemon=True).start()
    code = 0
    try:
        _log_to(job.folder / job.task.run.run_id)
        kind, body = _do(job, connection, leave)
        connection.send((kind, body))
    except LeftOffError as left:
        connection.send(("left", left.body))
    except TuneoffError as error:
        connection.send(("error", {"error": error}))
    except BrokenPipeError:
        code = 1
    except BaseException as error:  # the child's last line of defence: the log has the traceback, the parent is told
        if is_out_of_memory(error):
            with suppress(OSError):
                traceback.print_exc()
            why = f"{OUT_OF_MEMORY} ({traceback.format_exception_only(error)[-1].strip()})"
            connection.send(("starved", {"exit_code": CRASHED, "why": why}))
            os._exit(CRASHED)
        code = CRASHED
        if is_disk_full(error):
            connection.send(("error", {"error": full_disk(job.folder, error)}))
        else:
            what = traceback.format_exc(limit=0).strip()
            with suppress(OSError):  # the disk that the log is on may be full
                traceback.print_exc()
            connection.send(("crashed", {"exit_code": CRASHED, "what": what}))
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # not sys.exit: nothing of the libraries' clean-up is needed, and some of it can hang


def _do(job: Job, connection: Connection, leave: Leave) -> tuple[str, dict[str, Any]]:
    from filelock import Timeout

    from tuneoff.running.explain import explain_run
    from tuneoff.running.measure import measure_run
    from tuneoff.running.session import Place
    from tuneoff.running.store import Store
    from tuneoff.running.tracking import Tracking
    from tuneoff.running.trial import score_run, train_runs

    def tell(kind: str, body: dict[str, Any]) -> None:
        connection.send((kind, body))

    task = job.task
    store = Store(job.folder)
    try:
        with ExitStack() as locks:
            for run_id in sorted(task.run_ids):
                locks.enter_context(store.lock(run_id))
            arms = {member.run.run_id: member.arm for member in task.members}
            tracking = Tracking(job.trackers, job.study, task.arm, job.folder, arms=arms) if job.trackers else None
            place = Place(
                store,
                job.root,
                job.checkpoint,
                job.num_threads,
                tracking,
                needed_bytes=job.needed_bytes,
                is_alone=job.is_alone,
                shortage=job.shortage,
                doing=lambda phase: tell("doing", {"phase": phase}),
                leave=leave,
            )
            if task.kind == "explain" and task.explaining is not None:
                if not task.explaining.is_met_by(store.explained(task.run.run_id)):
                    explain_run(task.run, place, tell, task.explaining)
            elif task.kind == "measure" and task.testing is not None:
                measure_run(task.run, place, tell, task.testing, task.limit_s)
            elif task.kind == "score" and task.testing is not None:
                test = store.test(task.run.run_id, verify=True)
                if test is None or test.testing != task.testing:
                    if task.run.lr is not None and store.weights(task.run.run_id) is None:
                        # They were pruned, and the study was changed so that this run is chosen after all.
                        train_runs([task.run], place, tell, [task.testing])
                    else:
                        score_run(task.run, place, tell, task.testing)
            else:
                return _train(job, place, tell)
    except Timeout:
        return "busy", {}  # another process is at this run
    return "done", {}


def _train(job: Job, place: "Place", tell: Callable[[str, dict[str, Any]], None]) -> tuple[str, dict[str, Any]]:
    """Train what is not trained yet of a task; what another process finished meanwhile is trained along."""
    from tuneoff.running.cohorts import stored_cohort
    from tuneoff.running.trial import train_runs

    members, store = job.task.members, place.store
    along = [index for index, member in enumerate(members) if _is_trained(store, member)]
    if len(along) == len(members):
        return "done", {}
    if any(stored_cohort(store, run_id) != cohort for run_id, cohort in job.cohorts.items()):
        return "busy", {}  # it was begun in another cohort meanwhile, which is now gone on with
    testing = [member.testing for member in members]
    train_runs([member.run for member in members], place, tell, testing, job.task.halving, along)
    return "done", {}


def _is_trained(store: "Store", task: Task) -> bool:
    """Whether a run is finished as it is asked for; one that was stopped in another search is set aside."""
    record = store.record(task.run.run_id, verify=True)
    if record is not None and record.status == "pruned" and record.halving != task.halving:
        store.set_aside(task.run.run_id)
        return False
    return record is not None


def _log_to(folder: Path) -> None:
    """Send everything that libraries print to the run's log, on the level of file descriptors."""
    with on_disk(folder, "written"):
        make_folder(folder)
        log = os.open(folder / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    faulthandler.enable()
