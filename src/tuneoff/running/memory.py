"""What a sitting of a study knows of memory: which runs go alone, which lack it for good, and which may try again."""

from contextlib import ExitStack

from filelock import Timeout

from tuneoff.running.executors import CRASHED, Message
from tuneoff.running.schedule import Task
from tuneoff.running.shortages import take_less
from tuneoff.running.store import Store
from tuneoff.study.shortage import Shortage
from tuneoff.training.memory_limits import Available, shared_bytes


class Memory:
    """Memory's part of the runner's state.

    Args:
        store: where the runs are.
        available: what a child may have before it loads anything; none where nobody looked.
    """

    def __init__(self, store: Store, available: Available | None) -> None:
        self.alone: set[str] = set()
        """Runs that ran out of memory beside others with the least at a time: they are tried with nothing beside."""
        self.begun: set[str] = set()
        """Runs that were begun in this sitting; what they lacked then they lack still."""
        self._store = store
        self._available = available
        self._lacking: dict[str, Shortage] = {}
        """Of runs that the kernel ended with the least at a time and alone: a child is to write it down."""

    def is_alone(self, task: Task) -> bool:
        """Whether nothing else may be at work beside a task."""
        return task.kind == "measure" or not self.alone.isdisjoint(task.run_ids)

    def lacking(self, task: Task) -> Shortage | None:
        """Return what a task's runs lack for good; none where that is not known."""
        return next((self._lacking[run_id] for run_id in task.run_ids if run_id in self._lacking), None)

    def is_enough(self, run_id: str, shortage: Shortage | None) -> bool:
        """Whether a run lacked memory in an earlier sitting, and it is there now."""
        if shortage is None or self._available is None or run_id in self.begun:
            return False
        return shortage.is_over(self._available.num_bytes)

    def starved(self, task: Task, message: Message) -> str:
        """Go on with less at a time after a child was ended for want of memory, as it could not store that itself.

        Returns:
            What happened and what is done, for people.
        """
        phase, why = message.body["phase"], message.body["why"]
        runs = [member.run for member in task.members]
        try:
            with ExitStack() as locks:
                for run_id in sorted(task.run_ids):
                    locks.enter_context(self._store.lock(run_id))
                what = take_less(self._store, runs, task.run_ids, phase, task.testing)
        except Timeout:
            return f"{why}; another process goes on with it"
        if what is not None:
            return f"{why}; {what}"
        if message.body["num_others"] and not self.is_alone(task):
            self.alone |= set(task.run_ids)
            return f"{why}; it is tried again with nothing else beside it"
        had = self._available or shared_bytes()
        lacking = Shortage(
            phase=phase,
            available_bytes=had.num_bytes,
            source=had.source,
            is_killed=message.body["exit_code"] != CRASHED,
        )
        self._lacking |= dict.fromkeys(task.run_ids, lacking)
        return f"{why}; there is no less at a time to try"
