"""Solo costs: measured once, alone, whatever else is at work; nothing of the runs is touched."""

import json
from pathlib import Path

import pytest
from tests.running.world import THREE, Events, stamps, study_of

from tuneoff import api
from tuneoff.running.events import Event
from tuneoff.running.measure import MIN_STEPS
from tuneoff.study.solo import solo_key
from tuneoff.study.spec import Study

pytestmark = pytest.mark.slow


class Beside(Events):
    """Notes which other tasks are at work when one is measured."""

    def __init__(self) -> None:
        super().__init__()
        self.at_work: list[str] = []
        self.beside: list[list[str]] = []

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if event.task is None:
            return
        what = f"{event.task.kind} {event.task.run.run_id}"
        if event.kind == "start":
            if "measure" in (event.task.kind, *(other.split()[0] for other in self.at_work)):
                self.beside.append([*self.at_work])
            self.at_work.append(what)
        elif event.kind in ("finished", "infeasible", "pruned", "failed"):
            self.at_work.remove(what)


def test_every_arm_is_measured_once_and_alone(world: Path, tmp_path: Path) -> None:
    task = {"kind": "instruction", "data": "rows.jsonl", "max_length": 48, "metrics": ["rouge1"]}
    wanted = study_of(world, "solo", THREE, solo_costs=True, task=task, generate={"max_new_tokens": 4, "limit": 4})
    told = Beside()
    result = api.run(wanted, tmp_path, num_jobs=2, listener=told)
    assert told.beside == [[]] * 4  # zero-shot, full and two ranks, with nothing beside
    records, _ = result.records()
    summary = result.summary()
    for arm in summary.arms:
        record = records[arm.chosen_run_ids[0]]
        solo = result.store.solo(solo_key(record, wanted.testing))
        assert solo is not None
        assert solo == arm.solo
        assert set(solo.peak_bytes) == (
            {"load", "evaluate", "generate"} | ({"train", "save"} if arm.is_trained else set())
        )
        assert solo.evaluate_tokens_per_s > 0
        assert solo.generate_tokens_per_s is not None
        if not arm.is_trained:
            assert solo.num_steps == 0
            continue
        weights = result.store.weights(record.run_id)
        assert record.costs is not None
        assert arm.costs is not None
        assert record.training is not None
        assert not record.costs.is_alone
        assert arm.costs.source == "solo"
        assert solo.num_steps == MIN_STEPS  # of so short a run no more are worth it
        assert arm.costs.step_s == solo.step_s
        assert solo.optimizer_bytes == record.costs.optimizer_bytes
        assert weights is None or solo.weights_bytes == weights.stat().st_size
        assert solo.checkpoint_bytes > solo.weights_bytes + solo.optimizer_bytes
        # A run's time is that of its tokens at the measured speed.
        assert solo.input_tokens_per_s is not None
        assert arm.costs.train_s == pytest.approx(record.training.num_input_tokens / solo.input_tokens_per_s)
    assert not [path for path in (result.store.folder / "costs").iterdir() if path.suffix != ".json"]
    before = stamps(result.store.folder)
    api.run(wanted, tmp_path, num_jobs=2)
    assert stamps(result.store.folder) == before
    # A torn file is measured again, and so is nothing else.
    torn = next((result.store.folder / "costs").glob("*.json"))
    torn.write_bytes(torn.read_bytes()[:-20])
    again = Events()
    api.run(wanted, tmp_path, num_jobs=2, listener=again)
    assert [event.task.kind for event in again.of("start") if event.task] == ["measure"]
    written = json.loads(torn.read_bytes())
    assert written["run_id"] in records


def test_runs_that_were_alone_are_not_measured_again(world: Path, tmp_path: Path) -> None:
    lora = {"lora": {"method": "lora", "rank": 4, "lr": 1e-2}}
    wanted = study_of(world, "own", lora, solo_costs=True)
    told = Events()
    result = api.run(wanted, tmp_path, listener=told)
    assert {event.task.kind for event in told.of("start") if event.task} == {"train"}
    costs = result.summary().arm("lora").costs
    assert costs is not None
    assert costs.source == "own"


def test_it_is_no_part_of_a_runs_identity(world: Path) -> None:
    def run_ids(study: Study) -> list[str]:
        from tuneoff.study.expand import trials

        return [run.run_id for arm in study.arms for run in trials(study, arm)]

    assert run_ids(study_of(world, "s", THREE)) == run_ids(study_of(world, "s", THREE, solo_costs=True))
