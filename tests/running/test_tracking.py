"""Trackers get what the learning curves hold, and a run is the same with and without them."""

import json
import sqlite3
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.running.interrupted import KILL_AT_STEP, Killer
from tests.running.world import NUM_JOBS, Events, body, scores, study_of, weights

from tuneoff import api
from tuneoff.errors import StudyError
from tuneoff.report.reproduce import study_yaml
from tuneoff.running import tracking
from tuneoff.running.tracking import RunTrackers, Tracking
from tuneoff.study.identity import make_run
from tuneoff.study.loading import load_study, study_from
from tuneoff.study.options import Tracker

ARMS = {"full": {"method": "full", "lr": 1e-3}}
ALL = ("tensorboard", "wandb", "mlflow", "trackio")


Ran = tuple[Path, list[dict[str, Any]], api.Result]
"""A folder of trackers, a curve, and where both come from."""


def ran(world: Path, out: Path, *trackers: Tracker, **changes: Any) -> Ran:
    """Run a small study; return its trackers' folder and the curve of its one run."""
    study = study_of(world, "tracked", ARMS, trackers=list(trackers), **changes)
    result = api.run(study, out, num_jobs=NUM_JOBS)
    assert not result.failed
    (run_id,) = result.records()[0]
    return result.store.folder / tracking.FOLDER, result.store.curve(run_id), result


@pytest.fixture(scope="module")
def told(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A run that was told to all trackers at once; only to be read."""
    return ran(world, tmp_path_factory.mktemp("told"), *ALL)


def losses(curve: list[dict[str, Any]], kind: str = "train") -> list[tuple[int, float]]:
    return [(line["step"], line["loss_nats"]) for line in curve if line["kind"] == kind]


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Read a curve as TensorBoard does."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return [(event.step, event.value) for event in found.Scalars(tag)]


def approximate(curve: list[tuple[int, float]]) -> list[tuple[int, Any]]:
    """Return what a curve is in single precision, to six digits."""
    return [(step, pytest.approx(loss, rel=1e-6)) for step, loss in curve]


@pytest.mark.slow
def test_tensorboard(told: Ran) -> None:
    folder, curve, result = told
    run = folder / "tensorboard" / "full lr 0.001 seed 0"
    for kind in ("train", "validation"):
        assert scalars(run, f"{kind}/loss_nats") == approximate(losses(curve, kind))
    (test,) = result.records()[1].values()
    assert scalars(run.with_name(f"{run.name} test"), "test/loss_nats") == approximate([(0, test.test.loss_nats)])


@pytest.mark.slow
def test_mlflow(world: Path, tmp_path: Path) -> None:
    """It refuses most signs in names of metrics, and by itself writes down whose account and which program it was."""
    task = body("tracked", ARMS)["task"] | {"metrics": [r"regex:^\d+ (it|is)?"]}
    generate = {"max_new_tokens": 4, "limit": 2}
    folder, curve, result = ran(world, tmp_path, "mlflow", task=task, generate=generate)
    with sqlite3.connect(folder / "mlflow.db") as database:
        rows = database.execute("select key, step, value from metrics order by step").fetchall()
        runs = set(database.execute("select name, user_id, source_name from runs"))
        settings = dict(database.execute("select key, value from params").fetchall())
    assert [(step, value) for key, step, value in rows if key == "train/loss_nats"] == losses(curve)
    (test,) = result.records()[1].values()
    tested = {key: value for key, _, value in rows if key.startswith("test/")}
    assert list(test.metrics.values()) == [tested["test/regex:__d___it_is__"]]
    assert runs == {(f"full lr 0.001 seed 0{test}", "tuneoff", "") for test in ("", " test")}
    assert (settings["lr"], settings["method.method"], settings["budget.steps"]) == ("0.001", "full", "6")


def wandb_records(path: Path) -> Iterator[bytes]:
    """Yield the records of an offline W&B file: LevelDB's log format, after 7 bytes of W&B's own."""
    content, at, record = path.read_bytes(), 7, b""
    assert content[:4] == b":W&B"
    while at < len(content):
        left = 32768 - at % 32768
        if left < 7:  # no room for a header: the rest of the block is zeros
            at += left
            continue
        checksum, length, kind = struct.unpack_from("<IHB", content, at)
        piece = content[at + 7 : at + 7 + length]
        assert checksum == zlib.crc32(piece, zlib.crc32(bytes([kind])))
        at, record = at + 7 + length, record + piece
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


@pytest.mark.slow
def test_wandb_offline(told: Ran) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    folder, curve, _ = told
    found: dict[str, list[tuple[int, float]]] = {}
    for path in folder.rglob("*.wandb"):
        name = ""
        for line in map(Record.FromString, wandb_records(path)):
            name = line.run.display_name or name
            assert line.run.host in ("", "tuneoff")
            values = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in line.history.item}
            if "train/loss_nats" in values:
                found.setdefault(name, []).append((values["_step"], values["train/loss_nats"]))
    assert found == {"full lr 0.001 seed 0": losses(curve)}


@pytest.mark.slow
def test_trackio(told: Ran) -> None:
    folder, curve, _ = told
    with sqlite3.connect(folder / "trackio" / "tracked.db") as database:
        rows = database.execute("select step, metrics from metrics where run_name = 'full lr 0.001 seed 0'").fetchall()
    lines = [(step, json.loads(values)) for step, values in sorted(rows)]
    assert [(step, values["train/loss_nats"]) for step, values in lines if "train/loss_nats" in values] == losses(curve)


@pytest.mark.slow
def test_a_run_is_the_same_without(told: Ran, world: Path, tmp_path: Path) -> None:
    folder, _, tracked = told
    plain = api.run(study_of(world, "tracked", ARMS), tmp_path, num_jobs=NUM_JOBS)
    assert {path.name for path in folder.iterdir()} >= {"tensorboard", "wandb", "mlflow.db", "trackio"}
    assert scores(tracked) == scores(plain)
    assert weights(tracked) == weights(plain)


@pytest.mark.slow
def test_a_resumed_run_doubles_no_step(world: Path, tmp_path: Path) -> None:
    """TensorBoard drops what the killed sitting sent after its checkpoint; MLflow has the second sitting beside it."""
    longer = {"budget": {"steps": 20, "batch_size": 4}, "checkpoint": {"every": 4}}
    study = study_of(world, "tracked", ARMS, trackers=["tensorboard", "mlflow"], **longer)
    killer = Killer("step")
    assert api.run(study, tmp_path, listener=killer).failed
    result = api.run(study, tmp_path)
    (run_id,) = result.records()[0]
    curve = losses(result.store.curve(run_id))
    assert [step for step, _ in curve] == list(range(1, 21))
    folder = result.store.folder / tracking.FOLDER
    assert scalars(folder / "tensorboard" / "full lr 0.001 seed 0", "train/loss_nats") == approximate(curve)
    with sqlite3.connect(folder / "mlflow.db") as database:
        rows = database.execute(
            "select name, step from metrics join runs using (run_uuid) where key = 'train/loss_nats' order by step"
        ).fetchall()
    steps = [[step for found, step in rows if found == f"full lr 0.001 seed 0{name}"] for name in ("", " (sitting 2)")]
    assert steps[0][:KILL_AT_STEP] == list(range(1, KILL_AT_STEP + 1))
    assert steps[1] == list(range(steps[1][0], 21))
    assert 1 < steps[1][0] <= KILL_AT_STEP


def test_a_missing_package_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"wandb was asked for.*pip install 'tuneoff\[wandb\]'"):
        tracking.check_trackers(["wandb"])


def test_one_name_and_a_list_are_read_and_written_back(tmp_path: Path) -> None:
    for given, read in (("wandb", ("wandb",)), (["mlflow", "trackio"], ("mlflow", "trackio"))):
        study = study_from(body("tracked", ARMS, trackers=given), tmp_path)
        assert study.trackers == read
        (tmp_path / "again.yaml").write_text(study_yaml(study), "utf-8")
        assert load_study(tmp_path / "again.yaml").trackers == read


@pytest.mark.parametrize(
    ("given", "message"),
    [("tensorbord", "found 'tensorbord'. Did you mean tensorboard?"), (["wandb", "wandb"], "trackers must differ")],
)
def test_an_unknown_or_double_name_is_refused(given: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError) as refused:
        study_from(body("tracked", ARMS, trackers=given), tmp_path)
    assert message in str(refused.value)


def test_a_tracker_that_cannot_be_opened_is_let_go(world: Path, tmp_path: Path) -> None:
    """TensorBoard cannot make its folder where a file stands: the runs end as ever, and the first one says it."""
    folder = tmp_path / "tracked" / tracking.FOLDER
    folder.mkdir(parents=True)
    (folder / "tensorboard").touch()
    events = Events()
    study = study_of(world, "tracked", ARMS, seeds=[0, 1], trackers=["tensorboard", "trackio"])
    result = api.run(study, tmp_path, listener=events)
    assert len(result.records()[1]) == 2
    (event,) = events.of("problem")  # neither its test nor the second run tries again
    assert str(event.body["what"]).startswith("tracker tensorboard is let go until the study is run again: ")
    assert (folder / "trackio" / "tracked.db").exists()


class Broken(tracking.GeneralTracker):  # type: ignore[misc]
    """Fails, or hangs until it is freed, from the second line of a curve on."""

    name, requires_logging_directory, tracker = "broken", False, None

    def __init__(self, hangs: bool) -> None:
        super().__init__()
        self.hangs = hangs
        self.steps: list[int] = []
        self.at_fault, self.freed = threading.Event(), threading.Event()

    def log(self, values: dict[str, float], step: int | None = None, **kwargs: Any) -> None:
        self.steps.append(step or 0)
        if len(self.steps) < 2:
            return
        self.at_fault.set()
        if not self.hangs:
            raise ValueError("no room")
        self.freed.wait()


@pytest.mark.parametrize("hangs", [False, True])
def test_a_tracker_is_asked_nothing_after_it_failed_or_hung(
    hangs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Broken(hangs)
    monkeypatch.setattr(tracking, "_open", lambda *arguments: broken)
    study = study_from(body("tracked", ARMS), tmp_path)
    told: list[tuple[str, dict[str, Any]]] = []
    trackers = RunTrackers(
        Tracking(("wandb",), "tracked", "full", tmp_path),
        make_run(study, study.arms[0], 1e-3, 0),
        lambda kind, what: told.append((kind, what)),
    )
    trackers.curve({"kind": "train", "step": 1, "loss_nats": 1.0})
    if hangs:
        monkeypatch.setattr(tracking, "PATIENCE_S", 0.01)
    for step in range(2, 5):
        trackers.curve({"kind": "train", "step": step, "loss_nats": 1.0})
    trackers.finish()
    broken.at_fault.wait()
    broken.freed.set()
    assert broken.steps == [1, 2]
    why = "no answer within 0.01 s" if hangs else "ValueError: no room"
    what = f"tracker wandb is let go {'until the study is run again' if hangs else 'for this run'}: {why}"
    assert told == [("untracked", {"what": what, "tracker": "wandb", "is_for_good": hangs})]
