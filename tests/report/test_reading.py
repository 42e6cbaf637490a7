"""A study's folder is read once for its page and its table, and a torn curve costs its torn line."""

import json
from pathlib import Path
from typing import Any

import pytest
from fakes import Fakes, make_curve, make_study

from tuneoff.analysis.progress import ArmProgress
from tuneoff.api import Result
from tuneoff.errors import StoreError
from tuneoff.report import page
from tuneoff.running.store import CURVE_FILE, EXPLAIN_FILE, RECORD_FILE, TEST_FILE, Store


@pytest.fixture
def result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Result:
    """The folder of a finished study, as the store itself writes it; the real bundle takes seconds to make."""
    monkeypatch.setattr(page, "vega_bundle", lambda: "window.vegaEmbed = () => {};")
    fakes = Fakes(make_study())
    store = Store(tmp_path / "runs")
    store.create(fakes.study)
    for run_id in fakes.records.keys() | fakes.explained.keys():
        store.run_folder(run_id).mkdir(parents=True)
    for run_id, record in fakes.records.items():
        store.write_record(record.model_copy(update={"files": {}}))
        lines = "".join(json.dumps(line) + "\n" for line in fakes.curves.get(run_id, ()))
        (store.run_folder(run_id) / CURVE_FILE).write_text(lines, encoding="utf-8")
    for test in fakes.tests.values():
        store.write_test(test.model_copy(update={"files": {}}))
    for explained in fakes.explained.values():
        store.write_explained(explained)
    return Result(fakes.study, store)


def test_a_page_and_a_table_are_made_from_one_reading(
    result: Result, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Path] = []
    read = Store._read

    def counted(self: Store, path: Path, kind: Any, **options: Any) -> Any:
        asked.append(path)
        return read(self, path, kind, **options)

    monkeypatch.setattr(Store, "_read", counted)
    reading = result.read()
    paths = result.report(reading=reading)
    result.table(reading)
    assert len(asked) == len(set(asked)) > len(reading.records)
    assert "lora-rank32" in capsys.readouterr().out
    whole = json.loads(next(path for path in paths if path.suffix == ".json").read_text("utf-8"))
    assert whole["summary"]["ranking"] == list(reading.summary.ranking)
    assert reading.samples.keys() == {arm.name for arm in reading.summary.arms}
    assert set(reading.curves) == {run_id for arm in reading.summary.arms for run_id in arm.chosen_run_ids}


def test_a_reading_is_of_one_moment_and_another_one_of_another(result: Result) -> None:
    before = result.read()
    (run_id,) = before.summary.arm("full").chosen_run_ids[-1:]
    result.store.set_aside(run_id)
    assert before.summary.num_left == 0
    assert result.read().summary.num_left == result.summary().num_left == 1


def test_runs_of_another_study_are_counted_and_make_no_report(result: Result) -> None:
    other = Result(make_study(budget={"steps": 7, "batch_size": 16}), result.store)
    assert result.num_other_runs() == 0
    assert other.num_other_runs() == len(result.records()[0])
    with pytest.raises(StoreError, match="none of the 21 finished runs"):
        other.report()


POINT = {"kind": "train", "step": 99, "loss_nats": 1.5, "target_tokens": 8}


@pytest.mark.parametrize("end", ["", '{"kind": "train", "st', json.dumps(POINT) + '\n{"kind"', "\x00\x00"])
def test_a_torn_end_of_a_curve_is_left_out(result: Result, end: str) -> None:
    study = result.study
    run_id = result.summary().arm("full").chosen_run_ids[0]
    lines = make_curve(study.arm("full"), result.records()[0][run_id].run, 20)
    path = result.store.run_folder(run_id) / CURVE_FILE
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + end, encoding="utf-8")
    whole = [POINT] if "}\n" in end else []
    assert result.store.curve(run_id) == [*lines, *whole]
    validated = [line for line in lines if line["kind"] == "validation"]
    assert result.store.curve(run_id, "validation") == validated
    assert len(validated) > 1
    assert result.store.curve(run_id, "none of these") == [*lines, *whole]


def test_a_curve_is_read_when_it_is_asked_for(result: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    read = Store.curve

    def counted(self: Store, run_id: str, kind: str = "") -> Any:
        asked.append(run_id)
        return read(self, run_id, kind)

    monkeypatch.setattr(Store, "curve", counted)
    curves = result.read().curves
    names = list(curves)
    assert "another" not in curves
    assert curves.get("another") is None
    assert not asked
    assert curves[names[0]] is curves[names[0]]
    assert (asked, len(curves)) == (names[:1], len(names))


@pytest.mark.parametrize("num_gone", [0, 1, 5, 20])
def test_progress_is_that_of_the_summary(result: Result, num_gone: int) -> None:
    for run_id in sorted(result.records()[0])[:num_gone]:
        result.store.set_aside(run_id)
    reading = result.read()
    for field in ("num_wanted", "num_done", "num_infeasible", "num_pruned", "num_left"):
        assert getattr(reading.progress, field) == getattr(reading.summary, field)
    for far, arm in zip(reading.progress.arms, reading.summary.arms, strict=True):
        assert far.model_dump() == {
            name: value for name, value in arm.model_dump().items() if name in ArmProgress.model_fields
        }
        assert far.num_left == arm.num_left


def test_what_the_disk_does_not_give_leaves_the_page_of_before(result: Result) -> None:
    """A folder in a file's place is what every system refuses to read."""
    page_of_before = result.store.folder / "report.html"
    page_of_before.write_text("A page of before.")
    (run_id,) = result.summary().arm("lora-rank32").chosen_run_ids[-1:]
    for name in (RECORD_FILE, TEST_FILE, EXPLAIN_FILE, CURVE_FILE):
        path = result.store.run_folder(run_id) / name
        whole = path.rename(path.with_suffix(".away"))
        path.mkdir()
        with pytest.raises(StoreError, match=rf"{name} cannot be read"):
            Result(result.study, Store(result.store.folder)).report()
        path.rmdir()
        whole.rename(path)
    assert page_of_before.read_text() == "A page of before."
