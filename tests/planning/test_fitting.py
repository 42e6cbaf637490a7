"""Studies that are made to fit before they run: the same runs at every later command, and what was foretold of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tuneoff import api
from tuneoff.errors import StoreError
from tuneoff.planning.fit import Change
from tuneoff.running import fitting
from tuneoff.study.loading import study_from
from tuneoff.study.predicted import PLAN_FILE
from tuneoff.study.spec import Study

RAW = {
    "name": "fitting",
    "model": "demo",
    "task": {"kind": "instruction", "data": "demo", "max_length": 48, "limit": 48},
    "budget": {"steps": 2, "batch_size": 4},
    "seeds": [0],
    "arms": {"lora": {"method": "lora", "rank": 2, "targets": ["c_attn"], "lr": 1e-3}},
}


@pytest.fixture
def study() -> Study:
    return study_from(RAW, Path())


def test_changes_are_found_once_and_followed_by_later_commands(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def found(work: Any, *given: Any) -> dict[str, Change]:
        asked.append(given)
        return {"lora": Change(micro_batch=1, gradient_checkpointing=True)}

    monkeypatch.setattr(fitting, "in_child", found)
    changed, lines = api.fit(study, tmp_path, "same")
    assert lines == ["changed to fit: lora: micro_batch 1, gradient checkpointing"]
    own = changed.for_arm(changed.arms[0])
    assert (own.micro_batch, own.gradient_checkpointing, own.budget) == (1, True, study.budget)
    assert api.fit(study, tmp_path, "same")[0] == changed  # the memory that is free now is not looked at
    assert len(asked) == 1
    assert api.open_result(study, tmp_path).study == changed
    other = study.model_copy(update={"seeds": (1,)})
    assert api.open_result(other, tmp_path).study == other
    assert api.fit(other, tmp_path) == (other, [])  # nor is what was kept of this one lost by it
    # A study that was begun with --fit goes on as it was begun, and says so.
    goes_on, (line,) = api.fit(study, tmp_path)
    assert goes_on == changed
    assert line.startswith(
        "goes on as it was made to fit (lora: micro_batch 1, gradient checkpointing); --fit=off runs"
    )
    assert api.fit(study, tmp_path, "off") == (study, [])
    assert api.open_result(study, tmp_path).study == study
    assert api.fit(study, tmp_path) == (study, [])


def test_a_torn_file_of_changes_is_worked_out_again(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "in_child", lambda *_: {})
    api.fit(study, tmp_path, "same")
    path = tmp_path / "fitting" / fitting.FIT_FILE
    path.write_bytes(path.read_bytes()[:10])
    assert api.open_result(study, tmp_path).study == study
    api.fit(study, tmp_path, "same")
    assert json.loads(path.read_bytes())["changes"] == {}


@pytest.mark.slow
def test_changes_that_the_disk_does_not_give_are_not_taken_for_none(study: Study, tmp_path: Path) -> None:
    """Without them it would be another study. A folder in a file's place is what every system refuses to read."""
    (tmp_path / "fitting" / fitting.FIT_FILE).mkdir(parents=True)
    with pytest.raises(StoreError, match=rf"{fitting.FIT_FILE} cannot be read"):
        fitting.as_last_run(study, tmp_path / "fitting")


def test_a_run_keeps_what_was_foretold(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(fitting.SWITCH)
    fitting_study, lines = api.fit(study, tmp_path, "same")  # so small a study fits
    assert (fitting_study, lines) == (study, [])
    result = api.run(study, tmp_path)
    assert not result.failed
    body = json.loads((tmp_path / "fitting" / PLAN_FILE).read_bytes())["plan"]
    (arm,) = body["arms"]
    assert arm["predicted"]["step_s"] > 0
    assert set(arm["predicted"]["phases"]) == {"train", "evaluate"}
    assert arm["fit"]["needed_bytes"] <= arm["fit"]["room_bytes"]


def test_what_cannot_be_foretold_stops_no_study(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no numbers here")

    monkeypatch.setattr(fitting, "in_child", broken)
    monkeypatch.delenv(fitting.SWITCH)
    fitting.write_plan(study, tmp_path)
    assert not (tmp_path / PLAN_FILE).exists()
