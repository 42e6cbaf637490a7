"""Killed, torn and shared: the same command goes on and ends with the bits of an undisturbed study."""

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
from tests.running import interrupted
from tests.running.interrupted import WAIT_S, Killer, assert_same, wait_for
from tests.running.world import NUM_JOBS, Events, study_of

from tuneoff import api
from tuneoff.running.store import (
    ADAPTER_WEIGHTS,
    CHECKPOINT_FOLDER,
    CURVE_FILE,
    PREDICTIONS_FILE,
    RECORD_FILE,
    TEST_FILE,
    Store,
)
from tuneoff.study.spec import Study

pytestmark = pytest.mark.slow

ARMS = {
    "lora": {"method": "lora", "rank": 4, "dropout": 0.1, "lr": 1e-2},
    "full": {"method": "full", "lr": 1e-3},
}
CHANGES: dict[str, Any] = {
    "budget": {"steps": 60, "batch_size": 4},
    "evaluate": {"every": 15},
    "checkpoint": {"every": 4},
}


@pytest.fixture(scope="module")
def study(world: Path) -> Study:
    return study_of(world, "killed", ARMS, **CHANGES)


@pytest.fixture(scope="module")
def undisturbed(study: Study, tmp_path_factory: pytest.TempPathFactory) -> api.Result:
    return api.run(study, tmp_path_factory.mktemp("undisturbed"), num_jobs=NUM_JOBS)


@pytest.mark.parametrize("kind", ["step", "phase"])
def test_a_killed_child(study: Study, undisturbed: api.Result, tmp_path: Path, kind: str) -> None:
    killer = Killer(kind)
    first = api.run(study, tmp_path, num_jobs=NUM_JOBS, listener=killer)
    assert killer.has_killed
    ((run_id, what),) = first.failed.items()
    assert "killed" in what
    assert (first.store.record(run_id) is None) == (kind == "step")
    assert len(first.records()[1]) == 1  # the study went on with the other arm
    events = Events()
    second = api.run(study, tmp_path, num_jobs=NUM_JOBS, listener=events)
    assert not second.failed
    assert len(events.of("resumed")) == (kind == "step")
    assert_same(second, undisturbed)
    setup = second.store.setup(run_id)
    assert setup is not None
    assert setup["num_sittings"] == 2


def command(world: Path, out: Path) -> list[str]:
    return interrupted.command(world, out, "killed", ARMS, CHANGES)


@pytest.mark.parametrize("whole_group", [True, False], ids=["the whole group", "the parent alone"])
def test_a_killed_command(world: Path, undisturbed: api.Result, tmp_path: Path, whole_group: bool) -> None:
    out = tmp_path / "runs"
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(command(world, out), stdout=output, stderr=output, start_new_session=True)
    wait_for(lambda: any(out.glob(f"*/*/{CHECKPOINT_FOLDER}/step-*")) or process.poll() is not None)
    assert process.poll() is None, (tmp_path / "output").read_text()
    children = psutil.Process(process.pid).children(recursive=True)
    if whole_group:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=WAIT_S)
    assert not alive  # a child ends with its parent, and lets go of its run
    store = Store(out / "killed")
    assert len(store.records()[0]) < 2
    if whole_group:
        again = subprocess.run(command(world, out), capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        assert not again.stderr
    else:  # the same from Python, which spares the imports of another process
        api.run(undisturbed.study, out, num_jobs=NUM_JOBS)
    assert_same(api.open_result(undisturbed.study, out), undisturbed)


@pytest.fixture
def copied(undisturbed: api.Result, tmp_path: Path) -> api.Result:
    """A copy of the undisturbed study that a test may spoil."""
    shutil.copytree(undisturbed.store.folder, tmp_path / undisturbed.study.name)
    return api.open_result(undisturbed.study, tmp_path)


def lora_folder(result: api.Result) -> Path:
    (run_id,) = (run_id for run_id, record in result.records()[0].items() if record.run.method.method == "lora")
    return result.store.run_folder(run_id)


@pytest.mark.parametrize(
    ("name", "is_cut", "num_trained"),
    [
        (RECORD_FILE, False, 1),
        (ADAPTER_WEIGHTS, True, 1),
        (CURVE_FILE, True, 1),
        (PREDICTIONS_FILE, False, 0),
        (TEST_FILE, True, 0),
    ],
)
def test_a_spoilt_file(copied: api.Result, undisturbed: api.Result, name: str, is_cut: bool, num_trained: int) -> None:
    path = lora_folder(copied) / name
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    path.write_bytes(content[:middle] if is_cut else flipped)
    events = Events()
    result = api.run(copied.study, copied.store.folder.parent, num_jobs=NUM_JOBS, listener=events)
    said = [event.body["what"] for event in events.of("problem")]
    assert any(str(path) in line and "done again" in line for line in said), said
    assert [event.task.kind for event in events.of("finished") if event.task] == ["train" if num_trained else "score"]
    assert_same(result, undisturbed)


def test_an_altered_checkpoint_is_not_gone_on_from(study: Study, undisturbed: api.Result, tmp_path: Path) -> None:
    first = api.run(study, tmp_path, num_jobs=NUM_JOBS, listener=Killer("step"))
    (tensors,) = first.store.folder.glob(f"*/{CHECKPOINT_FOLDER}/step-*/tensors.safetensors")
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    events = Events()
    second = api.run(study, tmp_path, num_jobs=NUM_JOBS, listener=events)
    assert not events.of("resumed")
    assert any("step-" in event.body["what"] and "torn" in event.body["what"] for event in events.of("problem"))
    assert_same(second, undisturbed)


def test_a_curve_that_is_shorter_than_its_checkpoint(study: Study, undisturbed: api.Result, tmp_path: Path) -> None:
    first = api.run(study, tmp_path, num_jobs=NUM_JOBS, listener=Killer("step"))
    curve = first.store.run_folder(next(iter(first.failed))) / CURVE_FILE
    curve.write_bytes(b"".join(curve.read_bytes().splitlines(keepends=True)[:3]))
    events = Events()
    second = api.run(study, tmp_path, num_jobs=NUM_JOBS, listener=events)
    assert not events.of("resumed")
    assert any("the learning curve is torn" in event.body["what"] for event in events.of("problem"))
    assert_same(second, undisturbed)


def test_two_commands_at_once_share_the_work(world: Path, undisturbed: api.Result, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    line = command(world, out)
    processes = [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0, errors
        assert not errors
    result = api.open_result(undisturbed.study, out)
    assert_same(result, undisturbed)
    for run_id in result.records()[0]:
        setup = result.store.setup(run_id)
        assert setup is not None
        assert setup["num_sittings"] == 1
