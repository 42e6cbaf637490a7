"""What `status` reads of runs that are not finished, and of what a study's work is made of."""

import json
from pathlib import Path
from typing import Any

import pytest

from tuneoff.analysis.time_to_go import ArmWork, UnderWay, Workload
from tuneoff.running.store import CHECKPOINT_FOLDER, CURVE_FILE, Store
from tuneoff.running.underway import planned_step_s, read_workload, runs_under_way, write_workload
from tuneoff.study.records import RECORD_VERSION

ONE, OTHER = "1" * 16, "2" * 16


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def begin(store: Store, run_id: str, cohort: list[str], *, steps: int = 0, saved: int = 0, tail: str = "") -> None:
    """Lay down what a run leaves that was begun: 2 s a step, and a checkpoint in the first one's folder."""
    store.write_setup(run_id, {"version": RECORD_VERSION, "cohort": cohort})
    point = {"loss_nats": 1.0, "target_tokens": 8}
    rows = [{"kind": "train", "step": step, "elapsed_s": 2.0 * step} | point for step in range(1, steps + 1)]
    rows += [{"kind": "validation", "step": steps} | point] if steps else []
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (store.run_folder(run_id) / CURVE_FILE).write_text(lines + tail, encoding="utf-8")
    if saved:
        (store.run_folder(run_id) / CHECKPOINT_FOLDER / f"step-{saved:09d}").mkdir(parents=True)


def test_a_run_that_was_left_counts_to_its_checkpoint_and_one_at_work_to_its_last_step(store: Store) -> None:
    begin(store, ONE, [ONE], steps=400, saved=390)
    assert runs_under_way(store, (), ()) == {ONE: UnderWay(step=390, step_s=2.0)}
    assert runs_under_way(store, (), {ONE}) == {ONE: UnderWay(step=400, step_s=2.0, is_at_work=True)}
    assert runs_under_way(store, {ONE}, ()) == {}


def test_a_torn_line_is_not_looked_at(store: Store) -> None:
    begin(store, ONE, [ONE], steps=3, saved=2, tail='{"kind": "train", "step": 4, "ela')
    assert runs_under_way(store, (), {ONE})[ONE].step == 3


def test_members_of_a_cohort_have_the_checkpoint_of_the_first(store: Store) -> None:
    begin(store, ONE, [ONE, OTHER], steps=6, saved=5)
    begin(store, OTHER, [ONE, OTHER], steps=6)
    assert runs_under_way(store, (), ()) == dict.fromkeys((ONE, OTHER), UnderWay(step=5, step_s=2.0, num_runs=2))


def test_a_run_without_a_checkpoint_starts_again_and_is_not_under_way(store: Store) -> None:
    begin(store, ONE, [ONE], steps=3)
    store.run_folder(OTHER).mkdir()
    assert runs_under_way(store, (), ()) == {}
    assert runs_under_way(store, (), {ONE})[ONE].is_at_work


def test_what_the_work_is_made_of(store: Store) -> None:
    assert read_workload(store) is None
    wanted = Workload(num_steps=7, num_jobs=2, arms={"lora": ArmWork(trainable=1, total=9)})
    write_workload(store, wanted)
    assert read_workload(store) == wanted
    (path,) = store.folder.glob("workload.json")
    path.write_text('{"num_steps": "many"}')
    assert read_workload(store) is None


PREDICTED = {"phases": {}, "process_bytes": 1, "micro_batch": 1}


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (
            {
                "plan": {
                    "arms": [{"name": "a", "predicted": PREDICTED | {"step_s": 2}}, {"name": "b", "predicted": None}]
                }
            },
            {"a": 2.0},
        ),
        ({"plan": {"arms": [{"name": "a", "predicted": PREDICTED}]}}, {}),
        ({"plan": None}, {}),
        ([], {}),
    ],
)
def test_what_a_plan_foretells(store: Store, body: Any, wanted: dict[str, float]) -> None:
    assert planned_step_s(store) == {}
    (store.folder / "plan.json").write_text(json.dumps(body))
    assert planned_step_s(store) == wanted
