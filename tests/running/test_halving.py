"""Successive halving: the pruner is Optuna's, a trial that falls behind is stopped, and a killed search goes on."""

import importlib.util
import math
from pathlib import Path
from random import Random

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.running.test_schedule import Known, brief, done, infeasible
from tests.running.world import NUM_JOBS, Events, scores, study_of, weights

from tuneoff import api
from tuneoff.analysis.summary import summarise
from tuneoff.errors import StoreError, StudyError
from tuneoff.report.tables import progress
from tuneoff.running.events import Event
from tuneoff.running.halving import check_search, falls_behind
from tuneoff.running.preflight import preflight
from tuneoff.running.schedule import Task, ready_tasks, unchosen
from tuneoff.running.store import CURVE_FILE
from tuneoff.running.use import find
from tuneoff.study.records import Halving, Record
from tuneoff.study.spec import Study

RATES = [1e-3, 1e-2, 3.0, 10.0]
HALVING = {"search": "halving", "reduction": 3}


def stopped_at(curves: list[list[float]], reduction: int) -> list[int | None]:
    """Where each trial is stopped, as the runs find out: by asking after every validation but the last."""
    before: list[list[tuple[int, float]]] = []
    found: list[int | None] = []
    for losses in curves:
        own: list[tuple[int, float]] = []
        end = None
        for place, loss in enumerate(losses, start=1):
            own.append((2 * place, loss))
            if place < len(losses) and falls_behind(before, own, reduction):
                end = 2 * place
                break
        before.append(own)
        found.append(end)
    return found


def optuna_alone(curves: list[list[float]], reduction: int) -> list[int | None]:
    """The same as one writes it with Optuna: one study, its trials one after another."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=2, reduction_factor=reduction)
    study = optuna.create_study(pruner=pruner)

    def objective(trial: optuna.Trial) -> float:
        losses = curves[trial.number]
        for place, loss in enumerate(losses, start=1):
            trial.report(loss, 2 * place)
            if trial.should_prune() and place < len(losses):
                raise optuna.TrialPruned
        return losses[-1]

    study.optimize(objective, n_trials=len(curves))
    pruned = optuna.trial.TrialState.PRUNED
    return [trial.last_step if trial.state == pruned else None for trial in study.trials]


CURVES = st.integers(1, 10).flatmap(
    lambda length: st.lists(st.lists(st.floats(0, 10), min_size=length, max_size=length), min_size=1, max_size=6)
)


@settings(max_examples=40)
@given(CURVES, st.integers(2, 4))
def test_stops_where_optuna_does(curves: list[list[float]], reduction: int) -> None:
    found = stopped_at(curves, reduction)
    assert found == optuna_alone(curves, reduction)
    assert found[0] is None  # so that an arm has a rate whatever the curves


def test_a_trial_that_falls_behind_at_a_rung() -> None:
    good, bad = [3.0, 2.9, 2.8, 2.7, 2.6], [3.1, 2.0, 2.0, 2.0, 2.0]
    late = [2.5, 3.0, 3.1, 2.0, 2.0]
    assert stopped_at([good, bad, late], 3) == [None, 2, 6]  # rungs at the steps 2, 6, 18
    assert stopped_at([bad, good], 3) == [None, 6]  # ahead at the first rung, behind at the second
    assert stopped_at([good, good], 3) == [None, None]


def known_of(**arms: object) -> Known:
    return Known(study_of(Path(), "s", arms, seeds=[0, 1], tuning=HALVING))


def pruned(task: Task) -> Record:
    assert task.halving is not None
    return infeasible(task.run).model_copy(update={"status": "pruned", "halving": task.halving})


LORA = {"method": "lora", "tune": {"lr": [1e-4, 3e-4, 1e-3]}}


def test_trials_of_an_arm_run_one_after_another() -> None:
    known = known_of(
        one=LORA, other={"method": "full", "tune": {"lr": [1e-3, 1e-2]}}, fixed={"method": "bitfit", "lr": 1e-3}
    )
    ready = known.ready()
    assert brief(ready) == [("train", "one", 1e-4, 0), ("train", "other", 1e-3, 0), ("train", "fixed", 1e-3, 0)]
    assert [task.halving for task in ready] == [Halving(reduction=3, before=())] * 2 + [None]
    first = ready[0]
    known.do(first)
    (second,) = (task for task in known.ready() if task.arm == "one")
    assert second.halving == Halving(reduction=3, before=(first.run.run_id,))
    known.records[second.run.run_id] = pruned(second)
    (third,) = (task for task in known.ready() if task.arm == "one" and task.kind == "train")
    assert third.halving == Halving(reduction=3, before=(first.run.run_id, second.run.run_id))
    known.records[third.run.run_id] = infeasible(third.run)
    assert ("score", "one", 1e-4, 0) in brief(known.ready())
    assert ("train", "one", 1e-4, 1) in brief(known.ready())
    assert all(task.halving is None for task in known.ready() if task.run.seed == 1)  # what is chosen is never cut
    assert set(unchosen(known.study, known.records)) == {second.run.run_id, third.run.run_id}


def test_nothing_is_held_against_a_trial_without_a_result() -> None:
    known = known_of(one=LORA)
    first = known.ready()[0]
    known.records[first.run.run_id] = infeasible(first.run)
    assert known.ready()[0].halving == Halving(reduction=3, before=())


def test_arms_that_share_runs_are_trained_to_the_end() -> None:
    known = known_of(one=LORA, published={"method": "lora", "lr": 3e-4})
    assert len(known.ready()) == 4
    assert all(task.halving is None for task in known.ready())


LANDSCAPES = st.lists(st.tuples(st.floats(-6, 0), st.floats(-5, 1)), min_size=1, max_size=3)
"""Of each arm: logarithm of the best rate, and of the rate from which on it diverges."""


@settings(max_examples=40)
@given(LANDSCAPES, st.integers(0, 2**32))
def test_a_search_that_is_extended_and_halved_ends_the_same_in_any_order(
    shapes: list[tuple[float, float]], seed: int
) -> None:
    arms = {
        f"r{place + 1}": {"method": "lora", "rank": place + 1, "tune": {"lr": "auto"}} for place in range(len(shapes))
    }

    def loss(task: Task) -> float:
        best, limit = shapes[int(task.arm[1:]) - 1]
        place = math.log10(task.run.lr or 1.0)
        return 1 + (place - best) ** 2 if place <= limit else math.nan

    def ended(order: Random | None) -> Known:
        known = known_of(**arms)
        while ready := [task for task in known.ready() if task.run.seed == 0 and task.kind == "train"]:
            task = order.choice(ready) if order else ready[0]
            assert task.halving is not None
            found, run_id = loss(task), task.run.run_id
            before = [known.records[name] for name in task.halving.before]
            behind = [one for one in before if one.validation and one.validation.loss_nats + 0.5 < found]
            if math.isnan(found):
                known.records[run_id] = infeasible(task.run)
            else:
                known.records[run_id] = pruned(task) if behind else done(task.run, found)
        return known

    first, other = ended(None), ended(Random(seed))
    assert first.records == other.records
    summary = summarise(first.study, first.records, {})
    assert len({len(arm.trials) for arm in summary.arms}) == 1
    for arm in summary.arms:
        losses = {trial.lr: trial.loss_nats for trial in arm.trials if trial.loss_nats is not None}
        is_lost = all(trial.status == "infeasible" for trial in arm.trials)
        assert arm.chosen_lr == (None if is_lost else min(losses, key=lambda lr: losses[lr]))
        assert arm.num_pruned == sum(trial.status == "pruned" for trial in arm.trials)
        assert arm.num_infeasible + arm.num_pruned + arm.num_done == len(arm.trials)


def test_a_trial_that_was_stopped_in_another_search_is_done_again() -> None:
    known = known_of(one=LORA)
    known.do(known.ready()[0])
    (second,) = (task for task in known.ready() if task.kind == "train")
    known.records[second.run.run_id] = pruned(second)
    grid = known.study.model_copy(update={"tuning": known.study.tuning.model_copy(update={"search": "grid"})})
    again = [task for task in ready_tasks(grid, grid.arms, known.records, {}) if task.run == second.run]
    assert [(task.kind, task.halving) for task in again] == [("train", None)]
    other = known.study.model_copy(update={"tuning": known.study.tuning.model_copy(update={"reduction": 2})})
    assert second.run in [task.run for task in ready_tasks(other, other.arms, known.records, {})]


def test_optuna_is_asked_for_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    study = known_of(one=LORA).study
    check_search(study)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"tuning\.search: .* not installed\. Run `pip install 'tuneoff\[optuna\]'`"):
        preflight(study)
    check_search(study.model_copy(update={"tuning": study.tuning.model_copy(update={"search": "grid"})}))


@pytest.fixture(scope="module")
def halved(world: Path) -> Study:
    arms = {"full": {"method": "full", "tune": {"lr": RATES}}, "zero": {"method": "none"}}
    return study_of(world, "halved", arms, seeds=[0, 1], tuning=HALVING, checkpoint={"every": 1})


class Stop(Events):
    """Stops the study, as Ctrl-C does, at a step of a run's."""

    def __init__(self, lr: float, step: int) -> None:
        super().__init__()
        self.lr, self.step = lr, step

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if event.kind == "step" and event.task and event.task.run.lr == self.lr and event.body["step"] == self.step:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_bad_rate_is_stopped_and_a_killed_search_ends_the_same(halved: Study, tmp_path: Path) -> None:
    told = Events()
    undisturbed = api.run(halved, tmp_path / "undisturbed", num_jobs=NUM_JOBS, listener=told)
    summary = undisturbed.summary()
    arm = summary.arm("full")
    assert [(trial.lr, trial.status) for trial in arm.trials] == [
        (1e-3, "done"),
        (1e-2, "done"),
        (3.0, "pruned"),
        (10.0, "pruned"),
    ]
    assert arm.trials[2].reason.startswith("stopped at step 2 by successive halving: its validation loss, ")
    assert arm.trials[2].reason.endswith("is behind the best of the 2 trials before it")
    assert [event.task.run.lr for event in told.of("pruned") if event.task] == RATES[2:]
    assert (arm.chosen_lr, arm.edge, arm.status, arm.num_tested) == (1e-2, None, "done", 2)
    assert (arm.num_wanted, arm.num_done, arm.num_pruned, arm.num_infeasible, arm.num_left) == (5, 3, 2, 0, 0)
    assert (summary.num_done, summary.num_pruned, summary.num_infeasible, summary.num_left) == (4, 2, 0, 0)
    assert not [one for one in summary.audit.findings if one.kind in ("num_trials", "edge", "lost_seed", "budget")]
    assert progress(summary) == "4 of 6 runs done, 2 stopped early"

    records, tests = undisturbed.records()
    for trial in arm.trials[2:]:
        record, curve = records[trial.run_id], undisturbed.store.curve(trial.run_id)
        assert trial.run_id not in tests
        assert record.training is not None
        assert record.training.steps == 2 == curve[-1]["step"]
        assert set(record.files) >= {CURVE_FILE}
        with pytest.raises(StoreError, match="stopped at step 2"):
            find(tmp_path / "undisturbed", f"halved/{trial.run_id}")
    assert all(records[run_id].training.steps == 6 for run_id in arm.chosen_run_ids)  # type: ignore[union-attr]

    for lr, step in ((1e-2, 3), (3.0, 1)):
        with pytest.raises(KeyboardInterrupt):
            api.run(halved, tmp_path / "killed", num_jobs=NUM_JOBS, listener=Stop(lr, step))
    result = api.run(halved, tmp_path / "killed", num_jobs=NUM_JOBS)
    assert not result.failed
    assert scores(result) == scores(undisturbed)
    assert weights(result) == weights(undisturbed)
    assert {run_id: record.reason for run_id, record in result.records()[0].items()} == {
        run_id: record.reason for run_id, record in records.items()
    }

    # Without halving the same folder is completed: what was stopped is trained to the end, and nothing else again.
    grid = halved.model_copy(update={"tuning": halved.tuning.model_copy(update={"search": "grid"})})
    again = Events()
    whole = api.run(grid, tmp_path / "killed", num_jobs=NUM_JOBS, listener=again)
    assert [event.task.run.lr for event in again.of("start") if event.task] == RATES[2:]
    assert not again.of("problem")
    assert [trial.status for trial in whole.summary().arm("full").trials] == ["done"] * 4
    assert whole.summary().num_left == 0
    assert whole.summary().arm("full").chosen_lr == arm.chosen_lr
