"""How long a study still takes, against sums done by hand: 100 steps a run, times that are whole numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.running.test_schedule import PROVENANCE, Known, likelihood
from tests.running.world import study_of

from tuneoff.analysis.progress import progress
from tuneoff.analysis.time_to_go import ArmWork, TimeToGo, UnderWay, Workload, time_to_go
from tuneoff.study.identity import Run
from tuneoff.study.records import Costs, Parameters, Record, TestRecord, Training
from tuneoff.study.spec import Study

STEPS = 100
ARMS: dict[str, Any] = {
    "zero": {"method": "none"},
    "full": {"method": "full", "tune": {"lr": [1e-3, 1e-2]}},
    "lora": {"method": "lora", "rank": 4, "lr": 1e-3},
}
WORK = Workload(
    num_steps=STEPS,
    arms={"full": ArmWork(trainable=100, total=100), "lora": ArmWork(trainable=1, total=101)},
)
"""Operations of a step: 600 against 406."""


def study(**changes: Any) -> Study:
    budget = {"budget": {"steps": STEPS, "batch_size": 4}}
    return study_of(Path(), "s", changes.pop("arms", ARMS), **({"seeds": [0, 1, 2]} | budget | changes))


def record(run: Run, step_s: float, validate_s: float = 0.0, *, num_runs: int = 1, steps: int = STEPS) -> Record:
    """A finished run of so many seconds a step, and of all scorings of the validation split."""
    costs = Costs(
        train_s=steps * step_s,
        step_s=step_s,
        input_tokens_per_s=1.0,
        target_tokens_per_s=1.0,
        evaluate_s=validate_s,
        peak_bytes={},
        num_runs=num_runs,
        peak_kind="resident",
        optimizer_bytes=0,
        weights_bytes=0,
    )
    training = Training(
        steps=steps,
        epochs=1.0,
        num_target_tokens=1,
        num_input_tokens=1,
        batch_sequence_sha256="",
        best_step=steps,
        final_loss_nats=1.0,
    )
    return Record(
        run_id=run.run_id,
        run=run,
        status="done",
        parameters=Parameters(trainable=1, total=101),
        training=training,
        validation=likelihood(run.lr or 1.0),
        costs=costs,
        provenance=PROVENANCE,
    )


def reading(run: Run, score_s: float) -> TestRecord:
    return TestRecord(run_id=run.run_id, test=likelihood(), score_s=score_s)


def reckoned(known: Known, **options: Any) -> TimeToGo:
    own: Mapping[str, Any] = {"workload": WORK} | options
    found = progress(known.study, known.records, known.tests)
    return time_to_go(known.study, found, known.records, known.tests, **own)


def runs(known: Known, arm: str) -> list[Run]:
    return [task.run for task in known.ready() if task.arm == arm and task.kind == "train"]


def arm_of(found: TimeToGo, name: str) -> Any:
    return next(arm for arm in found.arms if arm.name == name)


def test_before_anything_is_measured_nothing_is_known() -> None:
    found = reckoned(Known(study()))
    assert found.seconds is None
    assert arm_of(found, "full").basis == "unknown"
    assert (arm_of(found, "full").num_runs, arm_of(found, "full").num_steps) == (4, 400)
    assert (arm_of(found, "lora").num_runs, arm_of(found, "lora").num_tests) == (3, 3)


def test_steps_that_are_left_times_what_a_step_took() -> None:
    known = Known(study())
    (lora,) = runs(known, "lora")
    low, _ = runs(known, "full")
    known.records = {lora.run_id: record(lora, 2.0, 30.0), low.run_id: record(low, 5.0, 50.0)}
    known.tests = {lora.run_id: reading(lora, 7.0)}
    found = reckoned(known)
    # full: one trial and two seeds of 100 steps at 5 + 0.5 s, three tests as lora's; lora: two seeds, two tests
    assert arm_of(found, "full").basis == arm_of(found, "lora").basis == "measured"
    assert arm_of(found, "full").seconds == pytest.approx(300 * 5.5 + 3 * 7.0)
    assert arm_of(found, "lora").seconds == pytest.approx(200 * 2.3 + 2 * 7.0)
    whole = 300 * 5.5 + 200 * 2.3 + 5 * 7.0 + 7.0  # and zero-shot's test
    assert found.seconds == pytest.approx(whole)
    assert not found.is_rough
    assert reckoned(known, num_jobs=2).seconds == pytest.approx(whole / 2)
    assert reckoned(known, num_jobs=50).seconds == pytest.approx(100 * 5.5)  # no sooner than its longest run


def test_an_arm_that_was_not_measured_takes_the_times_of_the_nearest_in_the_ratio_of_operations() -> None:
    known = Known(study())
    (lora,) = runs(known, "lora")
    known.records = {lora.run_id: record(lora, 2.03, 30.0)}
    own = arm_of(reckoned(known), "full")
    assert (own.basis, own.like) == ("nearest", "lora")
    assert own.step_s == pytest.approx(2.03 * 600 / 406)
    assert own.validate_s == pytest.approx(0.3)  # scoring costs all arms the same


def test_a_plan_stands_in_place_of_operations_and_of_what_nothing_was_measured_of() -> None:
    known = Known(study())
    planned = {"full": 9.0, "lora": 3.0}
    found = reckoned(known, planned_step_s=planned)
    assert (arm_of(found, "full").basis, arm_of(found, "full").step_s) == ("planned", 9.0)
    assert found.seconds == pytest.approx(400 * 9.0 + 300 * 3.0)
    (lora,) = runs(known, "lora")
    known.records = {lora.run_id: record(lora, 2.0)}
    own = arm_of(reckoned(known, planned_step_s=planned), "full")
    assert (own.basis, own.like, own.step_s) == ("nearest", "lora", pytest.approx(2.0 * 9 / 3))


def test_of_a_run_under_way_only_the_rest_is_counted_and_its_pace_counts() -> None:
    known = Known(study())
    low, high = runs(known, "full")
    begun = {low.run_id: UnderWay(step=40, step_s=3.0), high.run_id: UnderWay(step=1, step_s=99.0)}
    own = arm_of(reckoned(known, under_way=begun), "full")
    assert own.basis == "measured"
    assert own.step_s == pytest.approx(3.0)  # one step is warm-up
    assert own.num_steps == 60 + 99 + 200


def test_runs_that_share_a_pass_count_with_their_share() -> None:
    known = Known(study())
    (lora,) = runs(known, "lora")
    known.records = {lora.run_id: record(lora, 8.0, 40.0, num_runs=4)}
    own = arm_of(reckoned(known), "lora")
    assert (own.step_s, own.validate_s) == (pytest.approx(2.0), pytest.approx(0.1))
    known.records = {}
    begun = {lora.run_id: UnderWay(step=10, step_s=8.0, num_runs=4)}
    assert arm_of(reckoned(known, under_way=begun), "lora").step_s == pytest.approx(2.0)


def test_a_run_that_two_arms_want_is_counted_once() -> None:
    arms = {"tuned": ARMS["full"], "low": {"method": "full", "lr": 1e-3}}
    found = reckoned(Known(study(arms=arms, seeds=[0])))
    assert {arm.name: arm.num_steps for arm in found.arms} == {"tuned": 200, "low": 0}
    assert arm_of(found, "low").num_tests == 1


def test_how_many_steps_there_are_the_data_may_decide() -> None:
    known = Known(study(budget={"epochs": 2, "batch_size": 4}))
    assert arm_of(reckoned(known, workload=None), "lora").num_steps is None
    assert arm_of(reckoned(known), "lora").num_steps == 300
    (lora,) = runs(known, "lora")
    known.records = {lora.run_id: record(lora, 2.0)}
    assert reckoned(known, workload=None).seconds is None


def test_when_all_is_done_nothing_is_left() -> None:
    known = Known(study())
    while ready := known.ready():
        known.do(ready[0])
    found = reckoned(known)
    assert (found.arms, found.seconds) == ((), 0.0)
