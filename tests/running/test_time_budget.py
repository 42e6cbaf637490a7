"""A sitting that ends early: out of time or interrupted, it leaves what the same command goes on from, bit for bit."""

import json
import os
import signal
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.running import interrupted
from tests.running.interrupted import assert_same, wait_for
from tests.running.world import NUM_JOBS, Events, study_of

from tuneoff import api
from tuneoff.running.events import Event
from tuneoff.running.pace import Pace
from tuneoff.running.run import Options, StudyRunner
from tuneoff.running.sitting import Sitting
from tuneoff.running.store import CHECKPOINT_FOLDER, Store
from tuneoff.study.spec import Study

pytestmark = pytest.mark.slow

ARMS: dict[str, Any] = {
    "full": {"method": "full", "lr": 1e-3},
    "lora": {"method": "lora", "rank": 2, "dropout": 0.1, "lr": 1e-2},
}
RANKS = {"lora": ARMS["lora"] | {"rank": [2, 4]}}
CHANGES: dict[str, Any] = {
    "budget": {"steps": 24, "batch_size": 4},
    "evaluate": {"every": 12},
    "checkpoint": {"every": 12},
}
TIME_S = 100.0


@pytest.fixture(scope="module")
def study(world: Path) -> Study:
    return study_of(world, "cut", ARMS, **CHANGES)


@pytest.fixture(scope="module")
def undisturbed(study: Study, tmp_path_factory: pytest.TempPathFactory) -> api.Result:
    return api.run(study, tmp_path_factory.mktemp("undisturbed"), num_jobs=NUM_JOBS)


class Clock(Events):
    """A clock that stands still until a step is told, and is then past the end of the time."""

    def __init__(self, kind: str, step: int) -> None:
        super().__init__()
        self.kind, self.step = kind, step
        self.now = 0.0

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if event.kind == self.kind and int(event.body.get("step", self.step)) >= self.step:
            self.now = 2 * TIME_S


def sitting(study: Study, out: Path, clock: Clock, **options: Any) -> StudyRunner:
    store = Store(out / study.name)
    store.create(study)
    own = Sitting(TIME_S, Pace(lambda: clock.now))
    runner = StudyRunner(study, store, Options(sitting=own, listener=clock, **options))
    runner.run()
    return runner


@pytest.mark.parametrize("step", [5, 12], ids=["between checkpoints", "at a validation"])
def test_what_is_trained_is_left_off_after_its_step_and_ends_the_same(
    study: Study, undisturbed: api.Result, tmp_path: Path, step: int
) -> None:
    clock = Clock("step", step)
    runner = sitting(study, tmp_path, clock, num_jobs=NUM_JOBS)
    assert runner.sitting.is_cut
    assert not runner.failed
    assert len(clock.of("ending")) == 1
    left = {
        event.task.run.run_id: event.body["step"] for event in clock.of("left") if event.task and "step" in event.body
    }
    assert left
    begun = [event.task for event in clock.of("start")]
    ended = [event.task for kind in ("finished", "left") for event in clock.of(kind)]
    assert len(begun) == len(ended)  # nothing was started after the time was up
    for run_id, at in left.items():
        assert (runner.store.run_folder(run_id) / CHECKPOINT_FOLDER / f"step-{at:09d}").is_dir()
    found = api.open_result(study, tmp_path).read()
    assert {run_id: own.step for run_id, own in found.under_way.items()} == left
    assert not any(own.is_at_work for own in found.under_way.values())
    events = Events()
    again = api.run(study, tmp_path, num_jobs=NUM_JOBS, listener=events)
    assert {event.task.run.run_id: event.body["step"] for event in events.of("resumed") if event.task} == left
    assert_same(again, undisturbed)


def test_a_cohort_is_left_off_as_one_and_ends_the_same(world: Path, tmp_path: Path) -> None:
    study = study_of(world, "cohort-cut", RANKS, **CHANGES)
    clock = Clock("step", 7)
    runner = sitting(study, tmp_path / "cut", clock, cohort_size=2)
    assert runner.sitting.is_cut
    (left,) = clock.of("left")
    assert left.task is not None
    assert len(left.task.members) == 2
    under_way = api.open_result(study, tmp_path / "cut").read().under_way
    assert {run_id: (own.step, own.num_runs) for run_id, own in under_way.items()} == dict.fromkeys(
        left.task.run_ids, (left.body["step"], 2)
    )
    again = api.run(study, tmp_path / "cut", cohort=2)
    assert_same(again, api.run(study, tmp_path / "undisturbed", cohort=2))


def test_a_sitting_of_no_time_starts_nothing_and_says_so(study: Study, tmp_path: Path) -> None:
    events = Events()
    result = api.run(study, tmp_path, time_s=1e-9, listener=events)
    assert result.is_cut
    assert not events.of("start")
    assert result.report()


def command(world: Path, out: Path) -> list[str]:
    # So many that a busy machine has not done them before the signal comes; they are never done.
    long = {"budget": {"steps": 5000, "batch_size": 4}, "evaluate": {"every": 5000}, "checkpoint": {"every": 5000}}
    return interrupted.command(world, out, "signalled", ARMS, long)


@pytest.mark.parametrize(
    ("number", "code", "is_to_all"),
    [(signal.SIGINT, 130, True), (signal.SIGTERM, 143, True), (signal.SIGTERM, 143, False)],
    ids=["Ctrl-C", "SIGTERM to all processes", "SIGTERM to the command"],
)
def test_a_signal_leaves_a_checkpoint_at_the_step_and_the_same_command_goes_on(
    world: Path, tmp_path: Path, number: signal.Signals, code: int, is_to_all: bool
) -> None:
    """No checkpoint is due before the last step, so those that are there are of the steps at which runs were left."""
    out = tmp_path / "runs"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # where the tests run in the background Ctrl-C may be ignored, and what is started inherits that
    hears = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command(world, out), **pipes, text=True, start_new_session=True, preexec_fn=hears)
    curves = "*/*/curve.jsonl"
    wait_for(lambda: sum(path.stat().st_size > 0 for path in out.glob(curves)) == 2 or process.poll() is not None)
    if is_to_all:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    text, errors = process.communicate(timeout=120)
    assert process.returncode == code, text + errors
    assert "Traceback" not in errors
    assert "the same command goes on" in errors
    assert "finishes its step and writes a checkpoint" in text
    checkpoints = list(out.glob(f"*/*/{CHECKPOINT_FOLDER}/step-*/state.json"))
    assert len(checkpoints) == 2
    steps = {path.parents[2].name: json.loads(path.read_text())["step"] for path in checkpoints}
    events = Resumed(2)
    with pytest.raises(KeyboardInterrupt):
        api.run(api.load(world / f"{out.parent.name}.yaml"), out, num_jobs=2, listener=events)
    assert {event.task.run.run_id: event.body["step"] for event in events.of("resumed") if event.task} == steps


class Resumed(Events):
    """Stops a study, as Ctrl-C twice does, once so many runs have gone on from a checkpoint."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if len(self.of("resumed")) == self.number:
            raise KeyboardInterrupt
