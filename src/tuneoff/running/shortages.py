"""What is done where memory runs out: less at a time, stored before anything else is done, and then the same again.

| while | what is halved | the least |
|---|---|---|
| training | runs of a cohort, then the micro-batch | one sequence |
| scoring | tokens of one forward | one sequence |
| generating | texts in the making | one text |
| loading | nothing: another machine may do | |

A run goes on from its last checkpoint in a new process. What its last bits depend on is in its setup by then, so a kill
in between changes nothing. With the least at a time it is tried once more with nothing else of the command beside it;
after that the run is infeasible (or its test is), and the record says where memory ran out, and how much there was.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from tuneoff.errors import InfeasibleError
from tuneoff.evaluation.likelihood import EVALUATION_TOKENS
from tuneoff.running.cohorts import part_stored
from tuneoff.running.session import Session
from tuneoff.running.store import Store
from tuneoff.study.identity import Run
from tuneoff.study.shortage import DOING, OUT_OF_MEMORY, MemoryPhase, Shortage
from tuneoff.study.testing import Testing

CROWDED = "crowded"
"""Reason of an error: with the least at a time memory ran out beside other runs, so it is to be tried alone."""
HALVED = "out_of_memory"
"""Reason of an error: less at a time is stored now."""
MEANS: dict[MemoryPhase, str] = {
    "train": "micro_batch",
    "validate": "evaluation_tokens",
    "test": "evaluation_tokens",
    "generate": "generation_rows",
}
NAMES = {
    "micro_batch": "the micro-batch",
    "evaluation_tokens": "the tokens of one forward",
    "generation_rows": "the texts in the making",
}


def take_less(
    store: Store, runs: Sequence[Run], cohort: Sequence[str], phase: MemoryPhase, testing: Testing | None
) -> str | None:
    """Store that runs go on with less at a time; return what was done, or none where there is no less.

    Args:
        store: where the runs are, which must be locked.
        runs: those of one process.
        cohort: names of all runs of their pass, in its order; one where a run is alone.
        phase: what was going on.
        testing: how the test split is read, where it is.
    """
    setups = {run.run_id: store.setup(run.run_id) or {} for run in runs}
    first = setups[runs[0].run_id]
    in_pass = phase in ("load", "train", "validate")
    if len(cohort) > 1 and in_pass and (phase != "validate" or _halved(first, runs[0], phase, testing) is None):
        size = (len(cohort) + 1) // 2
        what = f"{OUT_OF_MEMORY} in a cohort of {len(cohort)}; trained in cohorts of {size} at most"
        part_stored(store, tuple(cohort), size, what)
        return what
    found = _halved(first, runs[0], phase, testing)
    if found is None:
        return None
    name, old, new = found
    kept = " (the effective batch stays)" if name == "micro_batch" else ""
    what = f"{OUT_OF_MEMORY} while {DOING[phase]}: {NAMES[name]} halved from {old:,} to {new:,}{kept}"
    for run_id, setup in reversed(setups.items()):  # the first one's is what counts, so it is written last
        store.write_setup(run_id, setup | {name: new, "notes": [*setup.get("notes", []), what]})
    return what


def _halved(
    setup: Mapping[str, Any], run: Run, phase: MemoryPhase, testing: Testing | None
) -> tuple[str, int, int] | None:
    """Return what can be less, how much it was, and half of it; none at the least."""
    name = MEANS.get(phase)
    if name is None or not setup:
        return None
    usual = {
        "micro_batch": 1,
        "evaluation_tokens": EVALUATION_TOKENS,
        "generation_rows": testing.generate.batch_size if testing is not None else 1,
    }
    least = run.task.max_length if name == "evaluation_tokens" else 1
    old = int(setup.get(name) or usual[name])
    return (name, old, max(least, old // 2)) if old > least else None


def settle(session: Session, error: Exception, testing: Testing | None = None) -> Shortage:
    """Store that a session's runs go on with less at a time, and end it; or return what is lacking at the least.

    Args:
        session: in which an error was raised.
        error: the error.
        testing: how the test split is read, where it is.

    Raises:
        InfeasibleError: the runner is to start the runs again.
        Exception: the error itself, where it is not about memory.
    """
    shortage = session.lacking(error)
    what = take_less(session.place.store, session.runs, session.setup["cohort"], session.phase, testing)
    if what is not None:
        raise InfeasibleError(f"{what}; {shortage.found}", HALVED) from None
    return settled(session, shortage, testing)


def settled(session: Session, shortage: Shortage, testing: Testing | None = None) -> Shortage:
    """Return what is lacking for good.

    Raises:
        InfeasibleError: it ran out beside other runs, which share it; of an address space each process has its own.
    """
    if not session.place.is_alone and session.place.shortage is None and shortage.source != "ulimit -v":
        what = f"{OUT_OF_MEMORY} while {DOING[shortage.phase]}, beside other runs"
        raise InfeasibleError(what, CROWDED) from None
    of_test = shortage.phase in ("test", "generate")
    return shortage.model_copy(update={"testing": testing}) if of_test else shortage
