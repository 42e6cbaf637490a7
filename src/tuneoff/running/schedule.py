"""What is left to do in a study, as a pure function of its records.

Every arm at its first seed before any second one. This is the study's order, in which cohorts are parted; in what order
tasks are started says `order`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tuneoff.analysis.selection import is_current
from tuneoff.analysis.tuning import Rounds, Search
from tuneoff.errors import StudyError, did_you_mean
from tuneoff.study.expand import base_run, chosen_runs, num_runs, trials
from tuneoff.study.explained import Explaining, ExplainRecord
from tuneoff.study.identity import Run
from tuneoff.study.records import Halving, Record, TestRecord
from tuneoff.study.solo import solo_key
from tuneoff.study.spec import Arm, Study
from tuneoff.study.testing import Testing
from tuneoff.study.value import Value


class Task(Value):
    """One thing for a child process to do."""

    kind: Literal["train", "score", "explain", "measure"]
    """Train (and validate), read the test split with weights that are there, work out what these became, or measure
    what the method costs alone.
    """
    arm: str
    run: Run
    testing: Testing | None = None
    """How to read the test split; of a training task, right after it, as the rate is chosen already."""
    explaining: Explaining | None = None
    """What to work out."""
    limit_s: float = 0.0
    """About how long the steps of a measurement may take."""
    halving: Halving | None = None
    """What a trial is held against while it is trained; none trains it to the end."""
    others: tuple["Task", ...] = ()
    """Of a cohort: the runs that are trained in the same pass, in its order."""
    is_along: bool = False
    """Whether the run of a cohort is finished, and only trained along: the bits of the others depend on the pass."""
    turn: int = 0
    """Of a trial: its place among its arm's, rates rising."""

    @property
    def members(self) -> tuple["Task", ...]:
        """The task of each run: of one that is alone this task itself."""
        return (self.model_copy(update={"others": ()}), *self.others) if self.others else (self,)

    @property
    def shown(self) -> "Task":
        """The run that it is named by: the first that is to be trained."""
        return next((member for member in self.members if not member.is_along), self)

    @property
    def run_ids(self) -> tuple[str, ...]:
        """The runs in their order."""
        return tuple(member.run.run_id for member in self.members)


@dataclass(frozen=True)
class Explained:
    """What is to be worked out of tested runs, and what has been."""

    wanted: Explaining
    records: Mapping[str, ExplainRecord]

    def is_left(self, run: Run) -> bool:
        """Whether something is to be worked out of a run and has not been."""
        nothing = run.method.method == "none" and not (self.wanted.asked.samples or self.wanted.retention)
        return not (nothing or self.wanted.is_empty or self.wanted.is_met_by(self.records.get(run.run_id)))


MAX_MEASURE_S, MAX_MEASURE_SHARE = 15.0, 0.03
"""Of the steps of one arm's measurement: the shorter of the two, as a share of what its runs train in all."""


def measurements(
    study: Study, arms: Sequence[Arm], records: Mapping[str, Record], is_measured: Callable[[str], bool]
) -> Iterator[Task]:
    """Yield the arms whose costs are to be measured alone: the first seed's run is done and was not alone itself.

    Args:
        study: the study.
        arms: those to work on.
        records: finished runs.
        is_measured: says of a key (see `solo_key`) whether its measurement is there.
    """
    search = Search(study, records)
    for arm in arms if study.solo_costs else ():
        lr = search.choose(arm)
        run = chosen_runs(study, arm, lr)[0] if lr is not None or not arm.is_trained else None
        record = None if run is None else records.get(run.run_id)
        if run is None or record is None or record.status != "done" or is_measured(solo_key(record, study.testing)):
            continue
        costs = record.costs
        if costs is not None and costs.is_alone and costs.num_runs == 1:
            continue
        trained_s = 0.0 if costs is None else costs.train_s / costs.num_runs * num_runs(study, arm)
        limit_s = min(MAX_MEASURE_S, MAX_MEASURE_SHARE * trained_s)
        yield Task(kind="measure", arm=arm.name, run=run, testing=study.testing, limit_s=limit_s)


def ready_tasks(
    study: Study,
    arms: tuple[Arm, ...],
    records: Mapping[str, Record],
    tests: Mapping[str, TestRecord],
    explained: Explained | None = None,
) -> Iterator[Task]:
    """Yield what can be done now, most urgent first; what waits for a rate to be chosen is not among it.

    Args:
        study: the study.
        arms: those to work on.
        records: finished runs.
        tests: readings of the test split.
        explained: what is to be worked out of them beside; none works out nothing.
    """
    search = Search(study, records)
    rounds = search.rounds([arm.name for arm in arms])
    for arm in arms:
        yield from _trials(search, rounds, arm)
    for index in range(len(study.seeds)):
        for arm in arms:
            yield from _seed(study, arm, rounds.choose(arm), index, records, tests)
        if explained is not None:
            yield from _explain(study, arms, rounds, index, records, tests, explained)


def _trials(search: Search, rounds: Rounds, arm: Arm) -> Iterator[Task]:
    """Yield the trials that an arm has still to do: one after another where each is held against those before it."""
    study = search.study
    missing = {trial.run_id for trial in rounds.trials[arm.name] if trial.status == "missing"}
    for turn, run in enumerate(trials(study, arm, rounds.rates(arm))):
        if run.run_id in missing:
            halving = search.halving(arm, run.run_id)
            testing = None if arm.is_tuned else study.testing
            yield Task(kind="train", arm=arm.name, run=run, testing=testing, halving=halving, turn=turn)
            if halving is not None:
                return


def _seed(
    study: Study,
    arm: Arm,
    lr: float | None,
    index: int,
    records: Mapping[str, Record],
    tests: Mapping[str, TestRecord],
) -> Iterator[Task]:
    if arm.is_trained and lr is None:
        return  # not all of its trials are done, more may follow, or none of them is feasible
    runs = chosen_runs(study, arm, lr)
    if index >= len(runs):
        return
    run = runs[index]
    record = records.get(run.run_id)
    if record is None or record.status == "pruned":
        if index:  # the first seed's runs are the trials
            yield Task(kind="train", arm=arm.name, run=run, testing=study.testing)
    elif (
        record.status == "done" and not is_current(tests.get(run.run_id), study) and not record.is_beyond(study.testing)
    ):
        yield Task(kind="score", arm=arm.name, run=run, testing=study.testing)


def _explain(
    study: Study,
    arms: tuple[Arm, ...],
    rounds: Rounds,
    index: int,
    records: Mapping[str, Record],
    tests: Mapping[str, TestRecord],
    explained: Explained,
) -> Iterator[Task]:
    """Yield the tested runs of one seed of which something is to be worked out; first the base, on general text."""
    base = base_run(study)
    if index == 0 and explained.wanted.retention is not None and base.run_id not in records and explained.is_left(base):
        yield Task(kind="explain", arm="base", run=base, explaining=explained.wanted)
    for arm in arms:
        runs = chosen_runs(study, arm, rounds.choose(arm))[index : index + 1]
        for run in runs:
            if is_current(tests.get(run.run_id), study) and run.run_id in records and explained.is_left(run):
                yield Task(kind="explain", arm=arm.name, run=run, explaining=explained.wanted)


def unchosen(study: Study, records: Mapping[str, Record]) -> Iterator[str]:
    """Yield the trials that no arm will read again: arms of one method and rate share a run, so all are looked at."""
    rounds = Search(study, records).rounds([arm.name for arm in study.arms])
    tried: dict[str, None] = {}
    needed: set[str] = set()
    for arm in study.arms:
        runs = trials(study, arm, rounds.rates(arm))
        lr = rounds.choose(arm)
        tried |= {run.run_id: None for run in runs}
        needed |= {run.run_id for run in runs if lr is None or run.lr == lr}
    yield from (run_id for run_id in tried if run_id not in needed)


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
