"""A study from end to end, in real child processes: all that it leaves is there, once, and chosen by validation."""

import json
import shutil
from pathlib import Path

import pytest
from tests.running.world import NUM_JOBS, Events, scores, stamps, study_of

from tuneoff import api
from tuneoff.analysis.selection import choose_rate
from tuneoff.errors import StudyError
from tuneoff.running.store import ADAPTER_WEIGHTS, CURVE_FILE, FULL_WEIGHTS, PREDICTIONS_FILE
from tuneoff.study.expand import chosen_runs, trials
from tuneoff.study.records import RECORD_VERSION

pytestmark = pytest.mark.slow


def copy_of(result: api.Result, folder: Path) -> api.Result:
    """Return a copy that a test may change."""
    shutil.copytree(result.store.folder, folder / result.study.name)
    return api.open_result(result.study, folder)


def test_every_record_is_there(finished: api.Result) -> None:
    records, tests = finished.records()
    assert not finished.failed
    # zero-shot; full, lora-rank2 and lora-rank4 with two rates on the first seed and the better one on the second
    assert len(records) == 1 + 3 * 3
    assert len(tests) == 1 + 3 * 2
    assert all(record.status == "done" and record.validation for record in records.values())
    assert not finished.summary().num_left
    assert not finished.running()


def test_the_rate_is_the_best_on_the_validation_split(finished: api.Result) -> None:
    records, tests = finished.records()
    for arm in finished.study.arms:
        if not arm.is_trained:
            continue
        losses = {}
        for run in trials(finished.study, arm):
            validation = records[run.run_id].validation
            assert validation is not None
            losses[run.lr] = validation.loss_nats
        best = min(losses, key=lambda lr: losses[lr])
        assert choose_rate(finished.study, arm, records) == best
        tested = {run.run_id for run in chosen_runs(finished.study, arm, best)}
        assert {run.run_id for run in trials(finished.study, arm)} & set(tests) <= tested
        assert tested <= set(tests)


def test_an_unchosen_trial_has_neither_test_nor_full_weights(finished: api.Result) -> None:
    records, tests = finished.records()
    for run_id in set(records) - set(tests):
        folder = finished.store.run_folder(run_id)
        assert not (folder / "test.json").exists()
        assert not (folder / PREDICTIONS_FILE).exists()
        assert not (folder / FULL_WEIGHTS).exists()
        assert (folder / ADAPTER_WEIGHTS).exists() == (records[run_id].run.method.method == "lora")


def test_what_a_run_leaves(finished: api.Result) -> None:
    records, tests = finished.records()
    for run_id, record in records.items():
        folder = finished.store.run_folder(run_id)
        assert not (folder / "checkpoint").exists()
        if record.run.lr is None:
            continue
        rows = finished.store.curve(run_id)
        assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
        assert [row["step"] for row in rows if row["kind"] == "validation"] == [2, 4, 6]
        assert set(record.files) >= {CURVE_FILE}
        assert record.training is not None
        assert record.training.steps == 6
        if run_id in tests:
            assert finished.store.weights(run_id) is not None
            lines = (folder / PREDICTIONS_FILE).read_text().splitlines()
            assert sum(json.loads(line)["nll_nats"] for line in lines) == pytest.approx(tests[run_id].test.nll_nats)


def test_arms_see_the_same_batches(finished: api.Result) -> None:
    by_seed: dict[int | None, set[str]] = {}
    for record in finished.records()[0].values():
        if record.training is not None:
            by_seed.setdefault(record.run.seed, set()).add(record.training.batch_sequence_sha256)
    assert [len(hashes) for _, hashes in sorted(by_seed.items(), key=str)] == [1, 1]
    assert len(set.union(*by_seed.values())) == 2


def test_running_again_trains_nothing(finished: api.Result) -> None:
    before = stamps(finished.store.folder)
    events = Events()
    api.run(finished.study, finished.store.folder.parent, num_jobs=NUM_JOBS, listener=events)
    assert stamps(finished.store.folder) == before
    assert events == []


def test_only_one_arm(world: Path, tmp_path: Path) -> None:
    arms = {"zero": {"method": "none"}, "lora": {"method": "lora", "rank": [2, 4], "lr": 1e-2}}
    study = study_of(world, "only", arms, seeds=[0])
    result = api.run(study, tmp_path, only=["lora-rank4"])
    assert {record.run.method.method for record in result.records()[0].values()} == {"lora"}
    assert result.summary().num_left == 2
    result = api.run(study, tmp_path, only=["lora"], num_jobs=NUM_JOBS)
    assert result.summary().num_left == 1


def test_an_unknown_arm_leaves_nothing(world: Path, tmp_path: Path) -> None:
    study = study_of(world, "only", {"lora": {"method": "lora", "lr": 1e-2}})
    with pytest.raises(StudyError, match=r"--only lroa: no arm is called so. Did you mean lora\? Arms: lora"):
        api.run(study, tmp_path / "runs", only=["lroa"])
    assert not (tmp_path / "runs").exists()


def test_a_diverging_arm_is_a_row_and_the_study_goes_on(world: Path, tmp_path: Path) -> None:
    arms = {"wild": {"method": "full", "lr": 1e30}, "calm": {"method": "full", "lr": 1e-3}}
    study = study_of(world, "wild", arms, optimizer={"clip": None, "warmup": 0})
    events = Events()
    result = api.run(study, tmp_path, listener=events)
    wild, calm = result.summary().arms
    assert (wild.status, calm.status) == ("infeasible", "done")
    assert "diverged" in wild.reason
    assert not result.failed
    assert [event.task.arm for event in events.of("infeasible") if event.task] == ["wild"]
    before = stamps(result.store.folder)
    api.run(study, tmp_path)
    assert stamps(result.store.folder) == before


def test_arms_that_share_a_run_do_not_lose_its_weights(world: Path, tmp_path: Path) -> None:
    arms = {"tuned": {"method": "full", "tune": {"lr": [1e-3, 1e-2]}}, "low": {"method": "full", "lr": 1e-3}}
    result = api.run(study_of(world, "shared", arms), tmp_path, num_jobs=NUM_JOBS)
    records, tests = result.records()
    assert len(records) == len(tests) == 2
    assert all(result.store.weights(run_id) for run_id in records)


def test_a_pruned_trial_that_is_chosen_after_all_is_trained_again(finished: api.Result, tmp_path: Path) -> None:
    result = copy_of(finished, tmp_path)
    records, tests = result.records()
    (pruned,) = (run_id for run_id in set(records) - set(tests) if records[run_id].run.method.method == "full")
    fixed = {"full": {"method": "full", "lr": records[pruned].run.lr}}
    changed = study_of(finished.study.root, finished.study.name, fixed, seeds=[0])
    again = api.run(changed, tmp_path)
    assert again.records()[1].keys() - tests.keys() == {pruned}
    assert scores(again)[pruned][:3] == scores(finished)[pruned][:3]


def test_keep_none_leaves_no_full_weights(world: Path, tmp_path: Path) -> None:
    arms = {"full": {"method": "full", "lr": 1e-3}}
    result = api.run(study_of(world, "none", arms, keep="none"), tmp_path)
    ((run_id, _),) = result.records()[1].items()
    assert result.store.weights(run_id) is None
    assert result.store.record(run_id, verify=True) is not None


def test_keep_last_is_tested_with_the_last_weights(world: Path, tmp_path: Path) -> None:
    arms = {"full": {"method": "full", "lr": 1e-2}}
    study = study_of(world, "last", arms, keep="last", optimizer={"schedule": "constant"})
    result = api.run(study, tmp_path)
    ((run_id, record),) = result.records()[0].items()
    rows = [row for row in result.store.curve(run_id) if row["kind"] == "validation"]
    assert record.validation is not None
    assert record.validation.loss_nats == rows[-1]["loss_nats"]


def test_a_run_of_another_version_is_done_again(finished: api.Result, tmp_path: Path) -> None:
    copy = copy_of(finished, tmp_path)
    run_id = next(iter(copy.records()[1]))
    copy.store.write_record(copy.records()[0][run_id].model_copy(update={"version": 1}))
    events = Events()
    again = api.run(finished.study, tmp_path, num_jobs=NUM_JOBS, listener=events)
    assert any(
        f"has version 1; this program writes version {RECORD_VERSION}" in str(e.body) for e in events.of("problem")
    )
    assert again.records()[0][run_id].version == RECORD_VERSION
    assert scores(again) == scores(finished)
