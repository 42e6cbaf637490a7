"""What is left to do, as a pure function: every arm at its first seed before any second one."""

from collections.abc import Iterable
from pathlib import Path

from tests.running.world import study_of

from tuneoff.running.schedule import Task, ready_tasks, unchosen
from tuneoff.study.identity import Run
from tuneoff.study.records import Likelihood, Provenance, Record, TestRecord
from tuneoff.study.spec import Study

ARMS = {
    "zero": {"method": "none"},
    "tuned": {"method": "full", "tune": {"lr": [1e-3, 1e-2]}},
    "fixed": {"method": "lora", "lr": 1e-3},
}
PROVENANCE = Provenance(
    created_at="",
    tuneoff_version="",
    versions={},
    python="",
    platform="",
    device="cpu",
    num_threads=1,
    micro_batch=4,
    model_sha256="",
    data_sha256="",
)


def study(**changes: object) -> Study:
    return study_of(Path(), "s", ARMS, seeds=[0, 1], **changes)


def likelihood(loss: float = 1.0) -> Likelihood:
    return Likelihood(
        nll_nats=loss * 10,
        num_target_tokens=10,
        num_sequences=1,
        num_target_bytes=10,
        mean_sequence_loss_nats=loss,
        vocabulary_size=10,
    )


def done(run: Run, loss: float = 1.0) -> Record:
    return Record(run_id=run.run_id, run=run, status="done", validation=likelihood(loss), provenance=PROVENANCE)


def infeasible(run: Run) -> Record:
    return Record(run_id=run.run_id, run=run, status="infeasible", reason="diverged", provenance=PROVENANCE)


class Known:
    """Records and tests as they come in."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.records: dict[str, Record] = {}
        self.tests: dict[str, TestRecord] = {}

    def ready(self) -> list[Task]:
        return list(ready_tasks(self.study, self.study.arms, self.records, self.tests))

    def do(self, task: Task) -> None:
        run_id = task.run.run_id
        if task.kind == "train":
            assert run_id not in self.records
            self.records[run_id] = done(task.run, loss=task.run.lr or 1.0)
        if task.kind == "score" or task.testing is not None:
            assert run_id not in self.tests
            self.tests[run_id] = TestRecord(run_id=run_id, test=likelihood(), score_s=0.0)


def brief(tasks: Iterable[Task]) -> list[tuple[str, str, float | None, int | None]]:
    return [(task.kind, task.arm, task.run.lr, task.run.seed) for task in tasks]


def test_the_first_seed_of_every_arm_comes_first() -> None:
    known = Known(study())
    assert brief(known.ready()) == [
        ("train", "zero", None, None),
        ("train", "tuned", 1e-3, 0),
        ("train", "tuned", 1e-2, 0),
        ("train", "fixed", 1e-3, 0),
    ]
    assert [task.testing is not None for task in known.ready()] == [True, False, False, True]


def test_every_run_is_done_once_and_first_seeds_before_second_ones() -> None:
    known = Known(study())
    order = []
    while ready := known.ready():
        known.do(ready[0])
        order += brief(ready[:1])
    assert len(known.records) == 6
    assert len(known.tests) == 5
    seconds = [index for index, (_, _, _, seed) in enumerate(order) if seed == 1]
    assert seconds == [len(order) - 2, len(order) - 1]
    assert order.index(("score", "tuned", 1e-3, 0)) < seconds[0]


def test_a_second_seed_waits_for_the_rate_of_its_own_arm_alone() -> None:
    known = Known(study())
    for task in known.ready():
        if task.arm == "fixed":
            known.do(task)
    assert brief(known.ready()) == [
        ("train", "zero", None, None),
        ("train", "tuned", 1e-3, 0),
        ("train", "tuned", 1e-2, 0),
        ("train", "fixed", 1e-3, 1),
    ]


def test_the_order_in_which_runs_end_does_not_matter() -> None:
    forward, backward = Known(study()), Known(study())
    while ready := forward.ready():
        forward.do(ready[0])
    while ready := backward.ready():
        backward.do(ready[-1])
    assert forward.records == backward.records
    assert forward.tests == backward.tests


def test_an_infeasible_trial_is_not_chosen() -> None:
    known = Known(study())
    low, high = (task for task in known.ready() if task.arm == "tuned")
    known.records = {low.run.run_id: infeasible(low.run), high.run.run_id: done(high.run)}
    assert ("score", "tuned", 1e-2, 0) in brief(known.ready())


def test_nothing_follows_where_no_trial_is_feasible() -> None:
    known = Known(study())
    for task in known.ready():
        known.records[task.run.run_id] = infeasible(task.run)
    assert known.ready() == []


def test_unchosen_trials() -> None:
    known = Known(study())
    low, high = (task for task in known.ready() if task.arm == "tuned")
    known.do(low)
    assert list(unchosen(known.study, known.records)) == []
    known.do(high)
    assert list(unchosen(known.study, known.records)) == [high.run.run_id]


def test_a_trial_that_another_arm_reads_is_not_unchosen() -> None:
    """Arms of one method and rate share a run: its weights may be pruned only when no arm needs them."""
    arms = {"tuned": ARMS["tuned"], "high": {"method": "full", "lr": 1e-2}}
    known = Known(study_of(Path(), "s", arms))
    for task in [task for task in known.ready() if task.arm == "tuned"]:
        known.do(task)
    assert ("score", "high", 1e-2, 0) in brief(known.ready())
    assert list(unchosen(known.study, known.records)) == []


def test_extended_arms_wait_for_one_another_and_then_go_on() -> None:
    auto = {"tune": {"lr": "auto"}}
    arms = {"one": {"method": "full", **auto}, "other": {"method": "lora", "rank": 4, **auto}}
    arms["fixed"] = ARMS["fixed"]
    known = Known(study_of(Path(), "s", arms, seeds=[0, 1], tuning={"extend": 1}))  # the lowest rate is the best
    for task in [task for task in known.ready() if task.arm != "other"]:
        known.do(task)
    assert brief(known.ready()) == [
        *(("train", "other", lr, 0) for lr in (1e-4, 3e-4, 1e-3)),
        ("train", "fixed", 1e-3, 1),
    ]
    for task in [task for task in known.ready() if task.arm == "other"]:
        known.do(task)
    ready = known.ready()
    assert brief(ready)[:2] == [("train", "one", 3e-6, 0), ("train", "other", 3e-5, 0)]
    assert [task.testing for task in ready[:2]] == [None, None]
    assert not [task for task in ready if task.kind == "score"]
    assert list(unchosen(known.study, known.records)) == []
    for task in ready[:2]:
        known.do(task)
    assert [one for one in brief(known.ready()) if one[1] != "fixed"] == [
        ("score", "one", 3e-6, 0),
        ("score", "other", 3e-5, 0),
        ("train", "one", 3e-6, 1),
        ("train", "other", 3e-5, 1),
    ]
    left = {known.records[run_id].run.lr for run_id in unchosen(known.study, known.records)}
    assert left == {1e-5, 3e-5, 1e-4, 3e-4, 1e-3} - {3e-6}


def test_arms_that_are_not_worked_on_hold_up_nothing() -> None:
    auto = {"tune": {"lr": "auto"}}
    known = Known(study_of(Path(), "s", {"one": {"method": "full", **auto}, "other": {"method": "lora", **auto}}))
    only = (known.study.arms[0],)
    done = []
    while ready := list(ready_tasks(known.study, only, known.records, known.tests)):
        known.do(ready[0])
        done += brief(ready[:1])
    assert [lr for kind, _, lr, _ in done if kind == "train"][:7] == [1e-5, 3e-5, 1e-4, 3e-6, 1e-6, 3e-7, 1e-7]
    assert len(known.tests) == len(known.study.seeds)
