"""A time budget from the shell, and how long it still takes by `status`."""

import json
import shutil
from pathlib import Path

import pytest
from tests.cli.shell import tuneoff
from tests.running.world import THREE, body

from tuneoff.api import Result
from tuneoff.running.store import RECORD_FILE, TEST_FILE


@pytest.fixture
def study_file(world: Path, tmp_path: Path) -> str:
    path = world / f"{tmp_path.name}.yaml"
    path.write_text(json.dumps(body("three", THREE, seeds=[0, 1])), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("time", ["8x", "", "0h"])
def test_what_is_no_time_is_refused_before_anything_is_read(study_file: str, tmp_path: Path, time: str) -> None:
    found = tuneoff("run", study_file, "--time", time, "--out", str(tmp_path / "runs"))
    found.is_one_error("--time")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_when_time_is_up_there_is_a_report_and_a_line_that_says_how_to_go_on(study_file: str, tmp_path: Path) -> None:
    """Looking at the data alone takes longer than that, so nothing is started."""
    arguments = ("run", study_file, "--time", "0.01s", "--out", str(tmp_path))
    found = tuneoff(*arguments)
    assert (found.code, found.errors) == (0, "")
    assert "Time is up. Left: 10 runs, 7 tests" in found.text
    assert f"To go on: tuneoff {' '.join(arguments)}" in found.text
    assert (tmp_path / "three" / "report.html").exists()


def test_status_says_how_long_it_still_takes(study_file: str, finished: Result, tmp_path: Path) -> None:
    """Of a copy without the record of one run: that run, and its test, are left."""
    folder = shutil.copytree(finished.store.folder, tmp_path / "three")
    lost = finished.progress().arms[-1].chosen_run_ids[-1]
    for name in (RECORD_FILE, TEST_FILE):
        (folder / lost / name).unlink()
    found = tuneoff("status", study_file, "--out", str(tmp_path))
    assert (found.code, found.errors) == (0, "")
    assert "Less than a minute to go with" in found.text
    assert "lora-rank4 as measured" in found.text
    as_json = json.loads(tuneoff("status", study_file, "--json", "--out", str(tmp_path)).text)
    (arm,) = as_json["time_to_go"]["arms"]
    assert (arm["name"], arm["num_runs"], arm["num_steps"], arm["num_tests"]) == ("lora-rank4", 1, 6, 1)
    assert as_json["time_to_go"]["num_jobs"] == 2  # as it was last run
    assert 0 < arm["seconds"] / 2 <= as_json["time_to_go"]["seconds"] <= arm["seconds"]
    assert as_json["progress"]["num_done"] == 9
    assert as_json["under_way"] == {}
