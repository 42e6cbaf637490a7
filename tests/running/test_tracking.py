"""Trackers get what the learning curves hold, and a run is the same with and without them."""

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tests.running.world import NUM_JOBS, study_of

from tuneoff import api
from tuneoff.errors import StudyError
from tuneoff.running import tracking
from tuneoff.study.options import Tracker

ARMS = {"full": {"method": "full", "lr": 1e-3}}
QUIET = ("WANDB_MODE", "MLFLOW_TRACKING_URI", "TRACKIO_DIR")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in QUIET:
        monkeypatch.delenv(name, raising=False)


def ran(world: Path, out: Path, *trackers: Tracker) -> tuple[Path, list[dict[str, Any]], api.Result]:
    """Run a small study; return its trackers' folder and the curve of its one run."""
    study = study_of(world, "tracked", ARMS, trackers=list(trackers))
    result = api.run(study, out, num_jobs=NUM_JOBS)
    assert not result.failed
    (run_id,) = result.records()[0]
    return result.store.folder / tracking.FOLDER, result.store.curve(run_id), result


def losses(curve: list[dict[str, Any]], kind: str = "train") -> list[tuple[int, float]]:
    return [(line["step"], line["loss_nats"]) for line in curve if line["kind"] == kind]


def test_tensorboard(world: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, curve, result = ran(world, tmp_path, "tensorboard")
    found = EventAccumulator(str(folder / "tensorboard" / "full lr 0.001 seed 0"))
    found.Reload()
    for kind in ("train", "validation"):
        seen = [(event.step, event.value) for event in found.Scalars(f"{kind}/loss_nats")]
        assert seen == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in losses(curve, kind)]
    tested = EventAccumulator(str(folder / "tensorboard" / "full lr 0.001 seed 0 test"))
    tested.Reload()
    (test,) = result.records()[1].values()
    assert [event.value for event in tested.Scalars("test/loss_nats")] == [pytest.approx(test.test.loss_nats, rel=1e-6)]


def test_mlflow(world: Path, tmp_path: Path) -> None:
    folder, curve, _ = ran(world, tmp_path, "mlflow")
    with sqlite3.connect(folder / "mlflow.db") as database:
        rows = database.execute(
            "select step, value from metrics where key = 'train/loss_nats' order by step"
        ).fetchall()
        names = {name for (name,) in database.execute("select name from runs")}
        settings = dict(database.execute("select key, value from params").fetchall())
    assert rows == losses(curve)
    assert names == {"full lr 0.001 seed 0", "full lr 0.001 seed 0 test"}
    assert (settings["lr"], settings["method.method"], settings["budget.steps"]) == ("0.001", "full", "6")


def test_wandb_offline(world: Path, tmp_path: Path) -> None:
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    folder, curve, _ = ran(world, tmp_path, "wandb")
    found: dict[str, list[tuple[int, float]]] = {}
    for path in folder.rglob("*.wandb"):
        store = DataStore()
        store.open_for_scan(str(path))
        name = ""
        while (data := store.scan_data()) is not None:
            line = wandb_internal_pb2.Record()
            line.ParseFromString(data)
            name = line.run.display_name or name
            values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in line.history.item}
            if "train/loss_nats" in values:
                found.setdefault(name, []).append((values["_step"], values["train/loss_nats"]))
        store.close()
    assert found == {"full lr 0.001 seed 0": losses(curve)}
    assert os.environ.get("WANDB_API_KEY", "no key") not in "".join(map(str, folder.rglob("*")))


def test_trackio(world: Path, tmp_path: Path) -> None:
    folder, curve, _ = ran(world, tmp_path, "trackio")
    with sqlite3.connect(folder / "trackio" / "tracked.db") as database:
        rows = database.execute("select step, metrics from metrics where run_name = 'full lr 0.001 seed 0'").fetchall()
    lines = [(step, json.loads(values)) for step, values in sorted(rows)]
    assert [(step, values["train/loss_nats"]) for step, values in lines if "train/loss_nats" in values] == losses(curve)


def test_a_run_is_the_same_without(world: Path, tmp_path: Path) -> None:
    _, tracked, one = ran(world, tmp_path / "one", "tensorboard")
    _, plain, two = ran(world, tmp_path / "two")
    assert losses(tracked) == losses(plain)
    assert one.records()[0].keys() == two.records()[0].keys()
    (a,), (b,) = one.records()[0].values(), two.records()[0].values()
    assert a.files["model.safetensors"] == b.files["model.safetensors"]


def test_a_missing_package_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"wandb was asked for.*pip install 'tuneoff\[wandb\]'"):
        tracking.check_trackers(["wandb"])


def test_a_tracker_that_fails_is_let_go(world: Path, tmp_path: Path) -> None:
    """MLflow cannot write where a folder stands in the place of its data base."""
    (tmp_path / "tracked" / tracking.FOLDER / "mlflow.db").mkdir(parents=True)
    _, curve, result = ran(world, tmp_path, "mlflow")
    assert len(losses(curve)) == 6
    (run_id,) = result.records()[0]
    log = (result.store.run_folder(run_id) / "log.txt").read_text("utf-8")
    assert "tracker mlflow failed and is let go" in log
