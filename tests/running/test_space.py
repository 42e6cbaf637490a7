"""Disk space: counted before the first step, refused where it cannot fit, and told when it runs out."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.running.world import Events, scores, study_of, weights

from tuneoff import api
from tuneoff.analysis.progress import progress
from tuneoff.errors import StoreError
from tuneoff.planning.plan import plan
from tuneoff.running.full_disk import is_disk_full
from tuneoff.running.space import HEADER_BYTES, Space, check_space, needed_space
from tuneoff.study.spec import Study

FULL = {"full": {"method": "full", "tune": {"lr": [1e-4, 1e-3, 1e-2]}}}
LORA = {"lora": {"method": "lora", "rank": 4, "tune": {"lr": [1e-3, 1e-2]}}}
CHANGES: dict[str, Any] = {
    "budget": {"steps": 12, "batch_size": 4},
    "evaluate": {"every": 4},
    "checkpoint": {"every": 4},
}


def needed(study: Study, **options: Any) -> Space:
    found = progress(study, options.pop("records", {}), {})
    own = {"num_steps": 12, "num_test_sequences": 4} | options
    return needed_space(study, study.arms, plan(study), found, **own)


def test_weights_and_checkpoints_are_counted_as_they_lie_on_the_disk(world: Path) -> None:
    study = study_of(world, "s", FULL | LORA, seeds=[0, 1])
    trained = {arm.name: arm.parameters.trainable for arm in plan(study).arms}
    found = needed(study, num_jobs=2)
    assert found.weights_bytes == {
        "full": 3 * (4 * trained["full"] + HEADER_BYTES),  # three trials until the rate is chosen, then two seeds
        "lora": 3 * (4 * trained["lora"] + HEADER_BYTES),  # two trials and a second seed
    }
    assert found.checkpoint_bytes == 2 * 2 * ((4 + 8) * trained["full"] + HEADER_BYTES)
    none = needed(study.model_copy(update={"keep": "none"}), num_jobs=2)
    assert none.weights_bytes == found.weights_bytes  # the trials are there together all the same
    many = study_of(world, "s", {"full": {"method": "full", "lr": 1e-3}}, seeds=list(range(9)))
    assert needed(many).weights_bytes["full"] == 9 * (4 * trained["full"] + HEADER_BYTES)
    none = needed(many.model_copy(update={"keep": "none"}))
    assert none.weights_bytes["full"] == 4 * trained["full"] + HEADER_BYTES
    assert needed(study, num_present={"full": 2}).weights_bytes["full"] == 4 * trained["full"] + HEADER_BYTES


def test_a_cohort_has_one_checkpoint_of_all_its_runs(world: Path) -> None:
    study = study_of(world, "s", LORA)
    (trained,) = (arm.parameters.trainable for arm in plan(study).arms)
    assert needed(study, cohort_size=8).checkpoint_bytes == 2 * 2 * (12 * trained + HEADER_BYTES)


def test_what_is_done_is_not_counted_again(finished: api.Result) -> None:
    records, tests = finished.records()
    study = finished.study
    found = needed_space(
        study, study.arms, plan(study), progress(study, records, tests), num_steps=6, num_test_sequences=4
    )
    assert (found.weights_bytes, found.checkpoint_bytes) == ({}, 0)


SPACE = Space(weights_bytes={"full": 3 << 30, "lora": 1 << 20}, checkpoint_bytes=2 << 30, results_bytes=1 << 20)


def test_what_cannot_fit_is_refused_with_what_to_do(tmp_path: Path) -> None:
    lean = SPACE.model_copy(update={"weights_bytes": {"full": 1 << 30, "lora": 1 << 20}})
    with pytest.raises(StoreError) as caught:
        check_space(SPACE, tmp_path / "new", lean=lean, num_jobs=2, free_bytes=4 << 30)
    message = str(caught.value)
    assert (
        "still writes about 5 GiB (weights of full 3 GiB, lora 1 MiB; checkpoints of 2 runs at a time 2 GiB" in message
    )
    assert "4 GiB are free there" in message
    assert "--out" in message
    assert "--set keep=none: 3 GiB (which fits)" in message
    assert "--jobs" in message


def test_what_fits_barely_is_a_warning_and_what_fits_is_none(tmp_path: Path) -> None:
    assert "which is tight" in check_space(SPACE, tmp_path, free_bytes=6 << 30)
    assert not check_space(SPACE, tmp_path, free_bytes=7 << 30)
    assert not check_space(Space(weights_bytes={}, checkpoint_bytes=0, results_bytes=1), tmp_path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(122, "quota"), OSError(27, "large")])
def test_errors_of_a_full_disk(error: Exception) -> None:
    assert is_disk_full(error)
    assert not is_disk_full(OSError(2, "No such file"))
    assert not is_disk_full(ValueError("28"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB, where this user may mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if os.name != "posix" or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_disk_that_cannot_hold_the_study_is_refused_before_anything_is_written(world: Path, small_disk: Path) -> None:
    study = study_of(world, "large", FULL, **CHANGES)
    with pytest.raises(StoreError, match=r"still writes about .* are free there. What to do: make room"):
        api.run(study, small_disk)
    assert not list(small_disk.iterdir())


@pytest.mark.slow
def test_a_disk_that_runs_full_is_told_and_the_same_command_goes_on_once_there_is_room(
    world: Path, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Something else fills the disk after the study was let start; what is there stays whole, and ends the same."""
    study = study_of(world, "fills", {"full": {"method": "full", "lr": 1e-3}}, **CHANGES)
    undisturbed = api.run(study, tmp_path / "undisturbed")
    monkeypatch.setattr("tuneoff.running.space.REPORT_BYTES", 0)
    filler = small_disk / "filler"

    class Filler(Events):
        def __call__(self, event: Any) -> None:
            super().__call__(event)
            if event.kind == "step" and event.body["step"] == 6 and not filler.exists():
                free = shutil.disk_usage(small_disk).free
                filler.write_bytes(bytes(max(0, free - 8192)))

    with pytest.raises(StoreError, match=r"there is no room left to write .* Make room, and the same command goes on"):
        api.run(study, small_disk, listener=Filler())
    assert filler.exists()
    folder = small_disk / study.name
    assert not [path for path in folder.rglob("*") if path.name.startswith(".") and path.name not in (".lock",)]
    assert not api.open_result(study, small_disk).store.problems
    filler.unlink()
    events = Events()
    again = api.run(study, small_disk, listener=events)
    assert [event.body["step"] for event in events.of("resumed")] == [4]
    assert scores(again) == scores(undisturbed)
    assert weights(again) == weights(undisturbed)
