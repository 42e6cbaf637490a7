"""A run whose loss stays worse than guessing: an infeasible row, with its learning curve, and the study goes on."""

import json
from pathlib import Path

from tests.running.world import study_of

from tuneoff import api
from tuneoff.files import file_sha256
from tuneoff.running.store import CURVE_FILE, RECORD_FILE
from tuneoff.training.divergence import WINDOW_STEPS

STEPS = 64


def test_it_is_a_row_that_says_why_and_keeps_its_curve(world: Path, tmp_path: Path) -> None:
    arms = {"full": {"method": "full", "tune": {"lr": [1e-3, 3.0]}}}
    changes = {"budget": {"steps": STEPS, "batch_size": 2}, "evaluate": {"every": 16}, "optimizer": {"warmup": 0.0}}
    study = study_of(world, "diverged", arms, **changes)
    result = api.run(study, tmp_path)
    records, tests = result.records()
    lost = next(record for record in records.values() if record.run.lr == 3.0)
    assert lost.status == "infeasible"
    assert lost.reason.startswith("diverged: the loss was above ")
    assert lost.training is not None
    assert WINDOW_STEPS <= lost.training.steps < STEPS
    rows = [row for row in result.store.curve(lost.run_id) if row["kind"] == "train"]
    assert [row["step"] for row in rows] == list(range(1, lost.training.steps + 1))
    folder = result.store.run_folder(lost.run_id)
    assert lost.files[CURVE_FILE] == file_sha256(folder / CURVE_FILE)
    assert lost.run_id not in tests
    assert [record.status for record in records.values() if record.run.lr != 3.0] == ["done"]
    (arm,) = result.summary().arms
    assert arm.num_infeasible == 1
    result.report()
    before = (folder / RECORD_FILE).stat().st_mtime_ns
    api.run(study, tmp_path)  # it is finished: nothing is trained again
    assert (folder / RECORD_FILE).stat().st_mtime_ns == before
    assert json.loads((tmp_path / "diverged" / "report.json").read_text())
