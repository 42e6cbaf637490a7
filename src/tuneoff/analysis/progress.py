"""How far a study is: what is done, tested, lost and left, without any score."""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, Protocol

from tuneoff.analysis.tuning import Search, Trial
from tuneoff.study.expand import chosen_run_ids
from tuneoff.study.records import Record, TestRecord
from tuneoff.study.spec import Arm, Study
from tuneoff.study.value import Value

Status = Literal["done", "partly", "missing", "infeasible"]


class HasRuns(Protocol):
    """An arm, so far as its runs are counted."""

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Every run that is wanted, so far as is known."""

    @property
    def num_wanted(self) -> int:
        """How many there will be."""

    @property
    def trials(self) -> tuple[Trial, ...]:
        """Its rates, and what became of them."""


class ArmProgress(Value):
    """How far one arm is; the fields are those of `ArmSummary`."""

    name: str
    status: Status
    reason: str = ""
    run_ids: tuple[str, ...]
    chosen_run_ids: tuple[str, ...]
    num_wanted: int
    num_done: int
    num_infeasible: int
    num_pruned: int
    num_tested: int
    num_seeds: int
    trials: tuple[Trial, ...]
    chosen_lr: float | None

    @property
    def num_left(self) -> int:
        """Runs that are still to do."""
        return self.num_wanted - self.num_done - self.num_infeasible - self.num_pruned


class Progress(Value):
    """How far a study is; the fields are those of `Summary`, for which scores are compared, which takes longer."""

    arms: tuple[ArmProgress, ...]
    num_wanted: int
    num_done: int
    num_infeasible: int
    num_pruned: int

    @property
    def num_left(self) -> int:
        """Runs that are still to do."""
        return self.num_wanted - self.num_done - self.num_infeasible - self.num_pruned


def progress(study: Study, records: Mapping[str, Record], tests: Mapping[str, TestRecord]) -> Progress:
    """Return how far the study is, as `summarise` does, without any score.

    Args:
        study: the question.
        records: finished runs by `run_id`; runs of other studies may be among them.
        tests: the readings of the test split by `run_id`; those that were made in another way do not count.
    """
    search, known = Search(study, records), current_tests(study, tests)
    arms = tuple(arm_progress(search, arm, known) for arm in study.arms)
    return Progress(arms=arms, **run_counts(arms, *finished_runs(arms, records)))


def current_tests(study: Study, tests: Mapping[str, TestRecord]) -> dict[str, TestRecord]:
    """Return the readings of the test split that were made as the study asks."""
    wanted = study.testing
    return {run_id: test for run_id, test in tests.items() if test.testing == wanted}


def finished_runs(arms: Sequence[HasRuns], records: Mapping[str, Record]) -> tuple[set[str], list[Record]]:
    """Return the names of the runs that are wanted, and the records of those that are there."""
    wanted = {run_id for arm in arms for run_id in arm.run_ids}
    return wanted, [records[run_id] for run_id in wanted if run_id in records]


def run_counts(arms: Sequence[HasRuns], wanted: Collection[str], finished: Sequence[Record]) -> dict[str, int]:
    """Return how many distinct runs are wanted, done, infeasible and stopped, by the names of the fields."""
    # The seeds' runs of an arm whose rate is not chosen yet have no name, so nothing can share them.
    num_nameless = sum(arm.num_wanted - len(arm.run_ids) for arm in arms)
    return {
        "num_wanted": len(wanted) + num_nameless,
        "num_done": sum(record.status == "done" for record in finished),
        "num_infeasible": sum(record.status == "infeasible" for record in finished),
        "num_pruned": len({trial.run_id for arm in arms for trial in arm.trials if trial.status == "pruned"}),
    }


def arm_progress(search: Search, arm: Arm, tests: Mapping[str, TestRecord]) -> ArmProgress:
    """Return how far one arm is; `tests` are those that were made as the study asks."""
    study, records = search.study, search.records
    trials = search.tried(arm)
    lr = search.choose(arm)
    is_lost = all(trial.status == "infeasible" for trial in trials)
    is_chosen = lr is not None or not arm.is_trained
    chosen = chosen_run_ids(study, arm, lr) if is_chosen else ()
    run_ids = tuple(dict.fromkeys((*(trial.run_id for trial in trials), *chosen)))
    num_pruned = sum(trial.status == "pruned" for trial in trials)
    ended = ended_runs(run_ids, trials, records)
    num_tested = sum(run_id in tests for run_id in chosen)
    num_wanted = len(trials) + (len(study.seeds) - 1 if arm.is_trained and not is_lost else 0)
    num_done = sum(record.status == "done" for record in ended.values())
    beyond = [ended[run_id] for run_id in chosen if run_id in ended and ended[run_id].is_beyond(study.testing)]
    num_to_test = sum(ended[run_id].status == "done" for run_id in chosen if run_id in ended) - len(beyond)
    is_untestable = bool(beyond) and len(beyond) == len(chosen)
    is_finished = len(ended) == num_wanted and num_tested >= num_to_test
    return ArmProgress(
        name=arm.name,
        status=_status(ended, is_lost=is_lost or is_untestable, is_finished=is_finished),
        reason=_reasons_of(trials) if is_lost else _beyond(beyond),
        run_ids=run_ids,
        chosen_run_ids=chosen,
        num_wanted=num_wanted,
        num_done=num_done,
        num_infeasible=len(ended) - num_done - num_pruned,
        num_pruned=num_pruned,
        num_tested=num_tested,
        num_seeds=len(study.seeds) if arm.is_trained else 1,
        trials=trials,
        chosen_lr=lr,
    )


def ended_runs(run_ids: Sequence[str], trials: Sequence[Trial], records: Mapping[str, Record]) -> dict[str, Record]:
    """Return the runs that nothing is left to do of; one that was stopped in another search is to be done again."""
    pruned = {trial.run_id for trial in trials if trial.status == "pruned"}
    found = ((run_id, records[run_id]) for run_id in run_ids if run_id in records)
    return {run_id: record for run_id, record in found if record.status != "pruned" or run_id in pruned}


def _status(found: Collection[str], *, is_lost: bool, is_finished: bool) -> Status:
    if is_lost:
        return "infeasible"
    if is_finished:
        return "done"
    return "partly" if found else "missing"


def _beyond(records: Sequence[Record]) -> str:
    """Return why runs that are trained could not be tested, each reason once."""
    return "; ".join(dict.fromkeys(record.shortage.reason for record in records if record.shortage is not None))


def _reasons_of(trials: Sequence[Trial]) -> str:
    """Return why an arm has no result at all: the reasons of its trials, each once, with the rates they belong to."""
    rates: dict[str, list[str]] = {}
    for trial in trials:
        if trial.status == "infeasible":
            rates.setdefault(trial.reason, []).append("" if trial.lr is None else f"{trial.lr:g}")
    return "; ".join(reason + (f" (rate {', '.join(at)})" if any(at) else "") for reason, at in rates.items())
