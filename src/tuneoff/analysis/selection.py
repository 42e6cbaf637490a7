"""Which learning rate an arm goes on with: chosen on the validation split of the first seed, by nothing else."""

from collections.abc import Mapping
from typing import Literal

from tuneoff.study.expand import trials
from tuneoff.study.records import Record, TestRecord
from tuneoff.study.spec import Arm, Study
from tuneoff.study.value import Value

Edge = Literal["lowest", "highest"]


class Trial(Value):
    """One candidate learning rate on the first seed."""

    run_id: str
    lr: float | None
    """None where nothing is trained."""
    status: Literal["done", "infeasible", "missing"]
    reason: str = ""
    """Why it is infeasible."""
    loss_nats: float | None = None
    """Validation loss; none unless done."""


def tried(study: Study, arm: Arm, records: Mapping[str, Record]) -> tuple[Trial, ...]:
    """Return what became of each candidate rate, rates rising; the one scoring of an arm that is not trained."""
    return tuple(_trial(run.run_id, run.lr, records.get(run.run_id)) for run in trials(study, arm))


def choose_rate(study: Study, arm: Arm, records: Mapping[str, Record]) -> float | None:
    """Return the candidate with the lowest validation loss on the first seed.

    Args:
        study: the study that `arm` belongs to.
        arm: the arm whose rate is wanted.
        records: the finished runs by `run_id`; others may be among them.

    Returns:
        The rate, the lower of two that tie. None until every candidate is done or infeasible, where all are
        infeasible, and where nothing is trained.
    """
    candidates = tried(study, arm, records)
    if any(trial.status == "missing" for trial in candidates):
        return None
    scored = [(t.loss_nats, t.lr) for t in candidates if t.loss_nats is not None and t.lr is not None]
    return min(scored)[1] if scored else None


def edge_of(arm: Arm, lr: float | None) -> Edge | None:
    """Return at which end of its grid the chosen rate lies, beyond which a better may lie; none inside or untuned."""
    if lr is None or not arm.is_tuned:
        return None
    return "lowest" if lr == arm.lr[0] else "highest" if lr == arm.lr[-1] else None


def _trial(run_id: str, lr: float | None, record: Record | None) -> Trial:
    if record is None:
        return Trial(run_id=run_id, lr=lr, status="missing")
    if record.status == "infeasible" or record.validation is None:
        return Trial(run_id=run_id, lr=lr, status="infeasible", reason=record.reason or "no validation score")
    return Trial(run_id=run_id, lr=lr, status="done", loss_nats=record.validation.loss_nats)


def is_current(test: TestRecord | None, study: Study) -> bool:
    """Whether a reading of the test split is there and is what the study asks for; another is made again."""
    return test is not None and test.testing == study.testing
