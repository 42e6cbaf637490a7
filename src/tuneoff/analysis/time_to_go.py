"""How long a study still takes, reckoned from what its runs took so far.

Steps that are left of an arm, times the seconds that a step of it took; likewise what scoring the validation split
takes, by step, and reading the test split, by reading. An arm of which nothing was measured takes the times of the
measured arm that is nearest to it in operations, in their ratio. Those of a step that trains P_t of P parameters are as
4 P + 2 P_t: two a parameter and token in the forward pass, two for the gradients of what goes through it, and two for
those of trainable weights (Kaplan et al., 2020, arXiv:2001.08361, section 2.1, with the last part where it is due).
Where the study's folder has a plan, the seconds that it foretells of a step stand in place of the operations.

Of runs that share a pass each is counted with its share. Start-up, the weights' explanation and the report are not in
it, nor are trials that the search may add.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, log
from statistics import fmean
from typing import Literal

from tuneoff.analysis.progress import ArmProgress, Progress
from tuneoff.study.records import Record, TestRecord
from tuneoff.study.spec import Study
from tuneoff.study.value import Value

MIN_STEPS = 2
"""Of a run under way, before its pace counts."""


class ArmWork(Value):
    """What an arm's runs are made of."""

    trainable: int
    total: int

    @property
    def operations(self) -> float:
        """Of a step, up to a factor that all arms share."""
        return 4.0 * self.total + 2.0 * self.trainable


class Workload(Value):
    """What the work of a study is made of, as it was found when it was last run; kept beside its records."""

    num_steps: int
    """Optimizer steps of each run."""
    num_jobs: int = 1
    """Processes at a time."""
    arms: Mapping[str, ArmWork] = {}
    """By name."""


class UnderWay(Value):
    """A run that was begun and is not finished."""

    step: int
    """Steps that are done: of one that nobody works on now, those of its checkpoint."""
    num_steps: int | None = None
    step_s: float | None = None
    """Seconds of a step, as far as is known."""
    num_runs: int = 1
    """Runs that share its pass, itself among them."""
    is_at_work: bool = False
    """Whether some process is at it."""


Basis = Literal["measured", "nearest", "planned", "unknown"]


class ArmTimeToGo(Value):
    """How long one arm still takes, in one process."""

    name: str
    basis: Basis
    like: str = ""
    """The measured arm that it is reckoned from; empty where it is its own."""
    num_runs: int
    """Runs that are left, those under way among them."""
    num_steps: int | None
    """Optimizer steps that are left; none where the data decide, and were not looked at yet."""
    step_s: float | None = None
    """Seconds of a step; of runs that share a pass the share of one."""
    validate_s: float | None = None
    """Seconds of scoring the validation split, by step."""
    test_s: float | None = None
    """Seconds of reading the test split once, generation and all."""
    num_tests: int
    """Readings of the test split that are left."""
    seconds: float | None
    """All of it; none where it cannot be told."""


class TimeToGo(Value):
    """How long a study still takes."""

    seconds: float | None
    """By the clock, with so many processes at a time; none where nothing is known yet, or an arm is unknown."""
    num_jobs: int
    arms: tuple[ArmTimeToGo, ...]
    """Those of which something is left."""

    @property
    def num_runs(self) -> int:
        """Runs that are left."""
        return sum(arm.num_runs for arm in self.arms)

    @property
    def is_rough(self) -> bool:
        """Whether an arm is reckoned from another, or from the plan."""
        return any(arm.basis != "measured" for arm in self.arms)


@dataclass
class _Pace:
    """What was measured of one arm."""

    steps: float = 0.0
    train_s: float = 0.0
    scored_steps: float = 0.0
    validate_s: float = 0.0
    tests: list[float] = field(default_factory=list)

    @property
    def step_s(self) -> float | None:
        return self.train_s / self.steps if self.steps else None

    @property
    def validate_step_s(self) -> float:
        return self.validate_s / self.scored_steps if self.scored_steps else 0.0


def time_to_go(
    study: Study,
    progress: Progress,
    records: Mapping[str, Record],
    tests: Mapping[str, TestRecord],
    *,
    workload: Workload | None = None,
    under_way: Mapping[str, UnderWay] | None = None,
    planned_step_s: Mapping[str, float] | None = None,
    num_jobs: int | None = None,
) -> TimeToGo:
    """Return how long the study still takes.

    Args:
        study: the question.
        progress: how far it is.
        records: finished runs by `run_id`.
        tests: the readings of the test split by `run_id`, made as the study asks.
        workload: what its work is made of; none where it was never run.
        under_way: runs that were begun and are not finished, by `run_id`.
        planned_step_s: seconds of a step that a plan foretells, by arm.
        num_jobs: processes at a time; none takes the workload's.
    """
    begun, planned = under_way or {}, planned_step_s or {}
    num_jobs = num_jobs or (workload.num_jobs if workload is not None else 1)
    num_steps = _num_steps(study, workload, begun)
    paces = {arm.name: _measured(arm, records, tests, begun) for arm in progress.arms}
    weights = _weights(progress, records, workload, planned)
    seen: set[str] = set()
    arms, longest = [], 0.0
    for arm in progress.arms:
        left = [run_id for run_id in _left(arm, records) if run_id not in seen]  # arms of one method and rate share it
        seen |= set(left)
        found, longest_run = _arm_to_go(arm, left, num_steps, paces, weights, planned, begun)
        if found.num_runs or found.num_tests:
            arms.append(found)
            longest = max(longest, longest_run)
    parts = [arm.seconds for arm in arms]
    known = [part for part in parts if part is not None]
    seconds = max(sum(known) / num_jobs, longest) if len(known) == len(parts) else None
    return TimeToGo(seconds=seconds, num_jobs=num_jobs, arms=tuple(arms))


def _left(arm: ArmProgress, records: Mapping[str, Record]) -> list[str]:
    """Return the runs with a name that are left to train; one that was stopped in another search is done again."""
    again = {trial.run_id for trial in arm.trials if trial.status == "missing"}
    return [run_id for run_id in arm.run_ids if run_id in again or run_id not in records]


def _arm_to_go(
    arm: ArmProgress,
    left: list[str],
    num_steps: int | None,
    paces: Mapping[str, _Pace],
    weights: Mapping[str, float],
    planned: Mapping[str, float],
    begun: Mapping[str, UnderWay],
) -> tuple[ArmTimeToGo, float]:
    """Return how long one arm takes, and the longest of its runs: no number of processes ends sooner."""
    num_nameless = arm.num_wanted - len(arm.run_ids)
    is_trained = any(trial.lr is not None for trial in arm.trials)
    num_runs = len(left) + num_nameless
    num_tests = 0 if arm.status == "infeasible" else max(0, arm.num_seeds - arm.num_tested - _num_lost(arm))
    basis, like, step_s, validate_s, test_s = _reckoned(arm.name, paces, weights, planned)
    steps: int | None = 0
    longest = 0
    if is_trained and num_runs:
        whole = num_steps
        owed = [_steps_left(whole, begun.get(run_id)) for run_id in left] + [whole] * num_nameless
        steps = None if None in owed else sum(step for step in owed if step is not None)
        longest = max((step for step in owed if step is not None), default=0)
    per_step = None if step_s is None else step_s + (validate_s or 0.0)
    seconds = 0.0
    is_known = steps is not None and (not steps or per_step is not None)
    if is_known and steps:
        seconds += steps * (per_step or 0.0)
    if num_tests:
        seconds += num_tests * (test_s or 0.0)
    return ArmTimeToGo(
        name=arm.name,
        basis=basis if is_trained else "measured" if test_s is not None else "unknown",
        like=like,
        num_runs=num_runs,
        num_steps=steps,
        step_s=step_s if is_trained else None,
        validate_s=validate_s if is_trained else None,
        test_s=test_s,
        num_tests=num_tests,
        seconds=seconds if is_known else None,
    ), longest * (per_step or 0.0)


def _num_lost(arm: ArmProgress) -> int:
    """Return how many of the seeds' runs ended without a result, so that nothing of them is tested."""
    lost = arm.num_infeasible - sum(trial.status == "infeasible" for trial in arm.trials)
    return max(0, lost)


def _steps_left(num_steps: int | None, own: UnderWay | None) -> int | None:
    if own is None:
        return num_steps
    whole = own.num_steps if own.num_steps is not None else num_steps
    return None if whole is None else max(0, whole - own.step)


def _num_steps(study: Study, workload: Workload | None, begun: Mapping[str, UnderWay]) -> int | None:
    """Return the steps of a run: as the study says, as they were found when it was run, or as a run tells."""
    if study.budget.steps is not None:
        return study.budget.steps
    if workload is not None:
        return workload.num_steps
    known = [own.num_steps for own in begun.values() if own.num_steps is not None]
    return known[0] if known else None


def _measured(
    arm: ArmProgress,
    records: Mapping[str, Record],
    tests: Mapping[str, TestRecord],
    begun: Mapping[str, UnderWay],
) -> _Pace:
    """Return what the runs of an arm took; of runs that shared a pass, each its share."""
    pace = _Pace()
    for run_id in arm.run_ids:
        record, test, own = records.get(run_id), tests.get(run_id), begun.get(run_id)
        if record is not None and record.costs is not None and record.training is not None and record.training.steps:
            shared = record.costs.num_runs
            pace.steps += record.training.steps
            pace.train_s += record.costs.train_s / shared
            pace.scored_steps += record.training.steps
            pace.validate_s += record.costs.evaluate_s / shared
        if own is not None and own.step_s is not None and own.step >= MIN_STEPS and run_id not in records:
            pace.steps += own.step
            pace.train_s += own.step * own.step_s / own.num_runs
        if test is not None:
            pace.tests.append(test.score_s + sum(one.generate_s for one in test.generated))
    return pace


def _weights(
    progress: Progress, records: Mapping[str, Record], workload: Workload | None, planned: Mapping[str, float]
) -> dict[str, float]:
    """Return what a step of each arm costs up to a common factor, for those of which it is known."""
    trained = [arm for arm in progress.arms if any(trial.lr is not None for trial in arm.trials)]
    if trained and all(arm.name in planned for arm in trained):
        return {arm.name: planned[arm.name] for arm in trained}
    found = {name: work.operations for name, work in workload.arms.items()} if workload is not None else {}
    for arm in trained:
        own = (records[run_id].parameters for run_id in arm.run_ids if run_id in records)
        counted = next((one for one in own if one is not None), None)
        if arm.name not in found and counted is not None:
            found[arm.name] = ArmWork(trainable=counted.trainable, total=counted.total).operations
    return found


def _reckoned(
    name: str, paces: Mapping[str, _Pace], weights: Mapping[str, float], planned: Mapping[str, float]
) -> tuple[Basis, str, float | None, float | None, float | None]:
    """Return how the times of an arm are known, the arm they are taken from, and seconds by step, scoring and test."""
    own = paces[name]
    measured = {other: pace for other, pace in paces.items() if pace.step_s is not None}
    tested = [taken for pace in paces.values() for taken in pace.tests]
    test_s = fmean(own.tests or tested) if tested else None
    scoring = [pace.validate_step_s for pace in measured.values() if pace.scored_steps]
    validate_s = fmean(scoring) if scoring else None
    if own.step_s is not None:
        return "measured", "", own.step_s, own.validate_step_s if own.scored_steps else validate_s, test_s
    if measured:
        like = min(measured, key=lambda other: _distance(weights.get(name), weights.get(other)))
        step_s = measured[like].step_s or 0.0
        if name in weights and like in weights:
            step_s *= weights[name] / weights[like]
        return "nearest", like, step_s, validate_s, test_s
    if name in planned:
        return "planned", "", planned[name], None, test_s
    return "unknown", "", None, None, test_s


def _distance(one: float | None, other: float | None) -> float:
    return abs(log(one / other)) if one and other else inf
