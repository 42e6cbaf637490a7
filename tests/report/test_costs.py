"""Costs in tables: measured alone where they were, the plan's beside them, and each says where it is from."""

import io
import json

import pytest
from fakes import Fakes, make_study
from rich.console import Console

from tuneoff.analysis.summary import summarise
from tuneoff.analysis.values import Summary
from tuneoff.report.columns import MEMORY, STEP, columns_of
from tuneoff.report.page import render_page
from tuneoff.report.tables import rows, study_table, to_csv, to_json, to_markdown
from tuneoff.study.predicted import Predicted, PredictedPhase
from tuneoff.study.solo import SoloCosts

SOLO = SoloCosts(
    run_id="0123456789abcdef", measured_at="2026-11-28T12:00:00+00:00", device="cpu", platform="Linux", num_threads=1,
    micro_batch=16, num_steps=12, step_s=0.25, input_tokens_per_s=4_000.0, target_tokens_per_s=1_000.0,
    evaluate_tokens_per_s=9_000.0, generate_tokens_per_s=120.0,
    peak_bytes={"load": 2_000_000_000, "train": 3_000_000_000, "evaluate": 2_500_000_000, "save": 2_100_000_000},
    peak_kind="resident", optimizer_bytes=10_000_000, weights_bytes=5_000_000, checkpoint_bytes=15_000_000,
    measure_s=9.0,
)  # fmt: skip
FORETOLD = Predicted(
    phases={"train": PredictedPhase(peak_bytes=2_400_000_000, parts={"weights": 2_400_000_000}, flop=1e12)},
    process_bytes=450_000_000,
    micro_batch=16,
    step_s=0.27,
    run_s=216.0,
)


@pytest.fixture(scope="module")
def fakes() -> Fakes:
    return Fakes(make_study())


@pytest.fixture(scope="module")
def summary(fakes: Fakes) -> Summary:
    trained = [arm.name for arm in fakes.study.arms if arm.is_trained]
    return summarise(
        fakes.study, fakes.records, fakes.tests, solo={trained[0]: SOLO}, predicted=dict.fromkeys(trained, FORETOLD)
    )


def test_an_arm_that_was_measured_alone_has_those_figures(fakes: Fakes, summary: Summary) -> None:
    measured, *others = [arm for arm in summary.arms if arm.is_trained]
    assert measured.costs is not None
    assert measured.costs.source == "solo"
    assert (STEP.cell(measured).raw, MEMORY.cell(measured).raw) == (0.25, 3_000_000_000)
    assert "measured alone" in STEP.cell(measured).title
    training = fakes.records[measured.chosen_run_ids[0]].training
    assert training is not None
    assert measured.costs.train_s == pytest.approx(training.num_input_tokens / 4_000)
    plain = summarise(fakes.study, fakes.records, fakes.tests)
    for arm in others:
        assert arm.costs == plain.arm(arm.name).costs
        assert "beside others" in STEP.cell(arm).title


def test_what_was_foretold_stands_behind_what_was_measured(fakes: Fakes, summary: Summary) -> None:
    keys = [column.key for column in columns_of(summary).costs]
    for measured, foretold in (
        ("train_s", "predicted_run_s"), ("step_s", "predicted_step_s"), ("peak_bytes", "predicted_peak_bytes"),
    ):  # fmt: skip
        assert keys.index(foretold) == keys.index(measured) + 1
    row = next(row for row in rows(summary) if row["peak_bytes"] == 3_000_000_000)
    assert row["predicted_peak_bytes"] == 2_850_000_000  # the process's own counts where resident memory is measured
    assert (row["predicted_step_s"], row["predicted_run_s"]) == (0.27, 216.0)
    assert "predicted_step_s" in to_csv(rows(summary)).splitlines()[0]
    assert "memory, predicted" in to_markdown(summary)
    assert "memory, predicted" in render_page(fakes.study, summary, fakes.curves)
    facts = json.loads(to_json(fakes.study, summary, fakes.records, fakes.tests))
    assert any(arm["solo"] and arm["solo"]["checkpoint_bytes"] == 15_000_000 for arm in facts["summary"]["arms"])


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_parts_what_does_not_fit(summary: Summary, width: int) -> None:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(study_table(summary))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert max(map(len, text.splitlines())) <= width
    assert "time, predicted" in text


def test_without_a_plan_nothing_is_foretold(fakes: Fakes) -> None:
    keys = [column.key for column in columns_of(summarise(fakes.study, fakes.records, fakes.tests)).costs]
    assert not [key for key in keys if key.startswith("predicted")]
