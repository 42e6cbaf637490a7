"""Cohorts through the runner: the adapters that runs train alone, the same bits after a kill, nobody's NaN but its own.

A member's fp32 sums run in another order than alone (batched products, other rows beside it), so the two agree but for
rounding, which Adam's steps amplify. The bound is that of `tests/training/test_loop.py`: 1e-4 of the largest weight.
"""

import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load
from tests.running.interrupted import assert_same
from tests.running.world import Events, scores, stamps, study_of, weights

from tuneoff import api
from tuneoff.errors import InfeasibleError
from tuneoff.report import columns
from tuneoff.running.cohorts import part_stored, stored_cohort
from tuneoff.running.events import Event
from tuneoff.running.session import Place
from tuneoff.running.store import CHECKPOINT_FOLDER, RECORD_FILE, Store
from tuneoff.running.trial import train_runs
from tuneoff.study.expand import trials
from tuneoff.study.records import Record
from tuneoff.study.spec import Study

pytestmark = pytest.mark.slow

ARMS = {
    "zero-shot": {"method": "none"},
    "lora": {"method": "lora", "rank": [2, 4], "dropout": 0.1, "tune": {"lr": [1e-3, 1e-2]}},
}
CHANGES: dict[str, Any] = {
    "budget": {"steps": 18, "batch_size": 4},
    "evaluate": {"every": 6},
    "checkpoint": {"every": 4},
    "seeds": [0, 1, 2],
}
SIZE = 4
NUM_LORA_RUNS = 8


@pytest.fixture(scope="module")
def study(world: Path) -> Study:
    return study_of(world, "cohort", ARMS, **CHANGES)


@pytest.fixture(scope="module")
def told() -> Events:
    return Events()


@pytest.fixture(scope="module")
def together(study: Study, told: Events, tmp_path_factory: pytest.TempPathFactory) -> api.Result:
    return api.run(study, tmp_path_factory.mktemp("together"), cohort=SIZE, listener=told)


@pytest.fixture(scope="module")
def alone(study: Study, tmp_path_factory: pytest.TempPathFactory) -> api.Result:
    return api.run(study, tmp_path_factory.mktemp("alone"), num_jobs=2, cohort="off")


def cohorts_of(result: api.Result) -> list[tuple[str, ...]]:
    """Return the passes that trained more than one run."""
    records, _ = result.records()
    return list(dict.fromkeys(record.provenance.cohort for record in records.values() if record.provenance.cohort))


def record_of(result: api.Result, run_id: str) -> Record:
    """Return a record that must be there."""
    record = result.store.record(run_id)
    assert record is not None
    return record


def test_the_trials_are_one_cohort_and_the_chosen_runs_of_later_seeds_another(
    together: api.Result, told: Events
) -> None:
    records, tests = together.records()
    assert not together.failed
    assert not together.summary().num_left
    found = cohorts_of(together)
    assert [len(cohort) for cohort in found] == [4, 4]
    seeds = [{records[run_id].run.seed for run_id in cohort} for cohort in found]
    assert sorted(seeds, key=min) == [{0}, {1, 2}]
    assert len(tests) == 1 + 2 * 3
    started = [event.task.run_ids for event in told.of("start") if event.task and event.task.kind == "train"]
    assert [len(run_ids) for run_ids in started] == [1, 4, 4]
    finished = [event.task.run.run_id for event in told.of("finished") if event.task and event.task.kind == "train"]
    assert sorted(finished) == sorted(records)


def test_a_cohort_trains_what_its_runs_train_alone(together: api.Result, alone: api.Result) -> None:
    (with_others, tests), (own, own_tests) = together.records(), alone.records()
    assert with_others.keys() == own.keys()
    assert tests.keys() == own_tests.keys()
    for run_id, record in with_others.items():
        other = own[run_id]
        assert record.run == other.run
        assert record.training is None or other.training is not None
        if record.training is not None and other.training is not None:
            assert record.training.batch_sequence_sha256 == other.training.batch_sequence_sha256
            assert record.training.num_target_tokens == other.training.num_target_tokens
            assert record.parameters == other.parameters
        assert record.validation is not None
        assert other.validation is not None
        assert record.validation.loss_nats == pytest.approx(other.validation.loss_nats, rel=1e-5)
    found, wanted = weights(together), weights(alone)
    assert found.keys() == wanted.keys()
    assert len(found) == NUM_LORA_RUNS
    for run_id, content in found.items():
        tensors, others = load(content), load(wanted[run_id])
        scale = max(float(tensor.abs().max()) for tensor in others.values())
        assert tensors.keys() == others.keys()
        for name, tensor in tensors.items():
            assert float((tensor - others[name]).abs().max()) <= 1e-4 * scale, (run_id, name)


def test_what_a_cohort_cost_is_nobodys_own(together: api.Result, alone: api.Result) -> None:
    summary = together.summary()
    for arm in summary.arms:
        if arm.is_trained:
            assert arm.costs is not None
            assert (arm.costs.num_runs, arm.costs.train_s, arm.costs.step_s) == (0, None, None)
            assert arm.costs.train_peak_bytes is None
            own = alone.summary().arm(arm.name).costs
            assert own is not None
            assert own.train_s is not None
            assert (arm.costs.optimizer_bytes, arm.costs.weights_bytes) == (own.optimizer_bytes, own.weights_bytes)
    assert [found.num_runs for found in summary.cohorts] == [4, 4]
    assert any(
        caveat.startswith("No time and memory of their own: lora-rank2, lora-rank4") for caveat in summary.caveats
    )
    assert not alone.summary().cohorts
    assert {columns.TIME.cell(arm).text for arm in summary.arms if arm.is_trained} == {"shared"}


class KillAt(Events):
    """Kills the child of a cohort with signal 9, once, from a step on."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.at = step
        self.has_killed = False

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        is_late = event.kind == "step" and event.body["step"] >= self.at
        if is_late and not self.has_killed and event.task is not None and event.task.others:
            self.has_killed = True
            (child,) = (one for one in multiprocessing.active_children() if one.name.startswith("tuneoff "))
            os.kill(child.pid or 0, signal.SIGKILL)


@pytest.mark.parametrize("again", ["off", 3])
def test_a_killed_cohort_is_formed_again_whatever_the_flag_says(
    study: Study, together: api.Result, tmp_path: Path, again: str | int
) -> None:
    """Both cohorts are begun before the flag changes, so both end in the bits of the undisturbed study."""
    draws = np.random.default_rng(len(str(again)))
    for which in (1, 2):
        step = int(draws.integers(1, CHANGES["budget"]["steps"]))
        broken = api.run(study, tmp_path, cohort=SIZE, listener=KillAt(step))
        assert len(broken.failed) == SIZE, which
    events = Events()
    result = api.run(study, tmp_path, cohort=again, listener=events)
    assert not result.failed
    assert_same(result, together)


def test_a_run_whose_record_was_spoilt_is_trained_in_its_cohort_again(
    study: Study, together: api.Result, tmp_path: Path
) -> None:
    """As after a kill between the records of a cohort: the others are trained along, and their files stay."""
    shutil.copytree(together.store.folder, tmp_path / study.name)
    store = Store(tmp_path / study.name)
    cohort = next(cohort for cohort in cohorts_of(together) if record_of(together, cohort[0]).run.seed == 0)
    (store.run_folder(cohort[1]) / RECORD_FILE).unlink()
    before = {path: stamp for path, stamp in stamps(store.folder).items() if cohort[1] not in path.parts}
    events = Events()
    result = api.run(study, tmp_path, listener=events)
    assert_same(result, together)
    trained = [event.task for event in events.of("start") if event.task and event.task.kind == "train"]
    assert [task.run_ids for task in trained] == [cohort]
    told = [event.task.run.run_id for event in events.of("finished") if event.task and event.task.kind == "train"]
    assert told == [cohort[1]]
    after = stamps(store.folder)
    changed = {path.name for path, stamp in before.items() if after.get(path) != stamp}
    assert changed <= {"setup.json", "log.txt"}


@pytest.mark.parametrize("is_whole", [True, False], ids=["all are recorded", "one is not"])
def test_a_checkpoint_that_a_cohort_left_goes_with_the_last_of_its_runs(
    study: Study, together: api.Result, tmp_path: Path, is_whole: bool
) -> None:
    """As after a kill behind the last record of a cohort, or between two."""
    shutil.copytree(together.store.folder, tmp_path / study.name)
    store = Store(tmp_path / study.name)
    cohort = next(cohort for cohort in cohorts_of(together) if record_of(together, cohort[0]).run.seed == 0)
    left = store.run_folder(cohort[0]) / CHECKPOINT_FOLDER
    (left / "step-000000016").mkdir(parents=True)
    if not is_whole:
        (store.run_folder(cohort[1]) / RECORD_FILE).unlink()
    store.tidy(cohort[0])
    assert left.exists() is not is_whole
    if is_whole:
        assert_same(api.run(study, tmp_path), together)


def test_a_member_that_diverges_leaves_the_others_alone(world: Path, tmp_path: Path) -> None:
    """Its weights are not finite from its first steps on; the others end in the bits of a cohort without a NaN."""
    changes = CHANGES | {
        "seeds": [0],
        "optimizer": {"clip": None, "warmup": 0.0},
        "budget": {"steps": 8, "batch_size": 4},
    }
    rates = ([1e-3, 1e-2, 1e30], [1e-3, 1e-2, 3e-3])
    results = []
    for place, own in enumerate(rates):
        arms = {"lora": {"method": "lora", "rank": 4, "dropout": 0.1, "tune": {"lr": own}}}
        ordered = study_of(world, f"diverges-{place}", arms, **changes)
        results.append(api.run(ordered, tmp_path, cohort=SIZE))
    ill, sound = results
    records, others = ill.records()[0], sound.records()[0]
    (lost,) = (record for record in records.values() if record.run.lr == 1e30)
    assert lost.status == "infeasible"
    assert lost.reason.startswith("diverged")
    assert lost.training is not None
    assert lost.training.steps == int(lost.reason.rpartition("step ")[2]) < 8  # not those of the whole cohort
    assert lost.training.epochs == lost.training.steps * 4 / 32
    shared = records.keys() & others.keys()
    assert {records[run_id].run.lr for run_id in shared} == {1e-3, 1e-2}
    for run_id in shared:
        assert records[run_id].validation == others[run_id].validation
        assert weights(ill)[run_id] == weights(sound)[run_id]
        assert scores(ill)[run_id] == scores(sound)[run_id]


def test_a_cohort_that_was_parted_goes_on_in_its_parts(study: Study, tmp_path: Path) -> None:
    """What is stored after an out-of-memory: halves, from their start, with a note in the records."""
    broken = api.run(study, tmp_path, cohort=SIZE, listener=KillAt(6))
    ids = stored_cohort(broken.store, next(iter(broken.failed)))
    assert len(ids) == SIZE
    part_stored(broken.store, ids, 2, "out of memory in a cohort of 4")
    assert [stored_cohort(broken.store, run_id) for run_id in ids] == [ids[:2], ids[:2], ids[2:], ids[2:]]
    assert not (broken.store.run_folder(ids[0]) / CHECKPOINT_FOLDER).exists()
    events = Events()
    result = api.run(study, tmp_path, cohort=SIZE, listener=events)
    assert not events.of("resumed")
    started = [event.task.run_ids for event in events.of("start") if event.task and event.task.kind == "train"]
    assert started[:2] == [ids[:2], ids[2:]]
    records, _ = result.records()
    for run_id in ids:
        assert "out of memory in a cohort of 4" in records[run_id].provenance.notes


class Elsewhere(Events):
    """Another process that is at one run of a cohort, and lets go of it when it was found there."""

    def __init__(self, store: Store, run_id: str, setup: dict[str, Any]) -> None:
        super().__init__()
        self.store, self.run_id, self.setup = store, run_id, setup
        self.lock = store.lock(run_id)
        self.lock.acquire()

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if event.kind == "busy" and self.lock.is_locked:
            self.store.write_setup(self.run_id, self.setup)
            self.lock.release()


def test_a_run_that_another_process_began_alone_is_gone_on_with_alone(
    study: Study, together: api.Result, alone: api.Result, tmp_path: Path
) -> None:
    """Nothing is trained twice: the cohort waits for the run, and is then formed of the others."""
    store = Store(tmp_path / study.name)
    first = next(cohort for cohort in cohorts_of(together) if record_of(together, cohort[0]).run.seed == 0)
    setup = alone.store.setup(first[1])
    assert setup is not None
    other = Elsewhere(store, first[1], setup)
    result = api.run(study, tmp_path, only=["lora"], cohort=SIZE, listener=other)
    started = [event.task.run_ids for event in other.of("start") if event.task and event.task.kind == "train"]
    assert started[0] == first
    rest = tuple(run_id for run_id in first if run_id != first[1])
    assert sorted(started[1:3]) == sorted([(first[1],), rest])
    assert weights(result)[first[1]] == weights(alone)[first[1]]


def test_out_of_memory_parts_a_cohort_before_the_micro_batch(study: Study, world: Path, tmp_path: Path) -> None:
    """The error is raised within the first step, where a real one would come from; what follows is stored at once."""

    def tell(kind: str, body: dict[str, Any]) -> None:
        if kind == "step":
            raise MemoryError

    place = Place(Store(tmp_path), world, num_threads=1)
    runs = [run for arm in study.arms if arm.is_trained for run in trials(study, arm)]
    ids = tuple(run.run_id for run in runs)
    with pytest.raises(InfeasibleError, match="cohort of 4; trained in cohorts of 2 at most"):
        train_runs(runs, place, tell)
    assert [stored_cohort(place.store, run_id) for run_id in ids] == [ids[:2], ids[:2], ids[2:], ids[2:]]
    with pytest.raises(InfeasibleError, match="cohort of 2; trained in cohorts of 1 at most"):
        train_runs(runs[2:], place, tell)
    assert [stored_cohort(place.store, run_id) for run_id in ids] == [ids[:2], ids[:2], ids[2:3], ids[3:]]
    with pytest.raises(InfeasibleError, match="out of memory"):
        train_runs(runs[3:], place, tell)
    setup = place.store.setup(ids[3])
    assert setup is not None
    # Alone, it has half a micro-batch the next time, and a third note says so.
    assert (setup["micro_batch"], setup["num_sittings"], len(setup["notes"])) == (2, 1, 3)
    assert not place.store.records()[0]
