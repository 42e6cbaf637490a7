"""Tables: the same rows everywhere, readable at 80 columns, and no text that acts."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from fakes import EVERY_METHOD, HOSTILE, Fakes, make_classification, make_qa, make_study
from rich.console import Console, RenderableType

from tuneoff.analysis.summary import summarise
from tuneoff.analysis.values import ArmSummary, Summary
from tuneoff.report import numbers, settings
from tuneoff.report.decoding import decoding_rows
from tuneoff.report.status import status_table
from tuneoff.report.tables import rows, study_table, to_csv, to_json, to_markdown
from tuneoff.report.text import clean, markdown, spreadsheet
from tuneoff.report.write import write_report


def summary_of(fakes: Fakes) -> Summary:
    return summarise(fakes.study, fakes.records, fakes.tests)


def shown(renderable: RenderableType, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def whole() -> Summary:
    return summary_of(Fakes(make_study()))


def spoilt(summary: Summary) -> Summary:
    """The same summary with hostile text in every place that takes text."""
    arms = [arm.model_copy(update={"name": f"={HOSTILE}", "reason": HOSTILE}) for arm in summary.arms[:1]]
    update = {"study": HOSTILE, "verdict": HOSTILE, "caveats": (HOSTILE,), "arms": tuple(arms), "ranking": ()}
    return summary.model_copy(update=update)


@pytest.mark.parametrize("width", [80, 100, 250])
def test_terminal_fits_its_width(whole: Summary, width: int) -> None:
    lines = shown(study_table(whole), width).splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for expected in (
        "2.325 ± 0.006",
        "295 k",
        "99.76 %",
        "1.67 GiB",
        "3 of 3",
        "20 of 21 runs done",
    ):
        assert expected in text


def test_long_names_break_and_numbers_do_not(whole: Summary) -> None:
    name = "lora-rank8-alpha16-targetsattn.c_attn+attn.c_proj+mlp.c_fc+mlp.c_proj"
    arms = (whole.arms[1].model_copy(update={"name": name}), *whole.arms[2:])
    text = shown(study_table(whole.model_copy(update={"arms": arms, "ranking": (name,)})), 80)
    assert max(map(len, text.splitlines())) <= 80
    for expected in ("2.325 ± 0.006", "10.2 [10.2, 10.3]", "8 min 08 s"):
        assert expected in text


def test_headings_are_whole_at_80_columns(whole: Summary) -> None:
    text = shown(study_table(whole), 80)
    for heading in ("perplexity", "bits/byte", "trainable", "dropout", "optimizer", "vs full"):
        assert heading in text


def test_hostile_text_is_only_text(whole: Summary) -> None:
    summary = spoilt(whole)
    terminal = shown(study_table(summary), 100) + shown(status_table(summary), 200)
    assert "\x1b" not in terminal
    assert "[bold]markup[/bold]" in terminal
    assert "\u202e" not in terminal
    page = to_markdown(summary)
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count("\n#") == 1  # of the differences
    (row,) = csv.DictReader(io.StringIO(to_csv(rows(summary)), newline=""))
    assert row["arm"].startswith("'=<script>")


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r="])
def test_formulas_do_not_run(start: str) -> None:
    assert spreadsheet(f"{start}1+1").startswith("'")
    assert spreadsheet("1e-4") == "1e-4"


def test_clean_takes_out_what_a_terminal_would_obey() -> None:
    assert clean("a\x1b[31mb\x1b]0;title\x07c\x1b]8;;http://x\x1b\\d\x9b2Je\x00f\r\ng\u2066h") == "abcdef gh"
    assert clean("c_attn, ünï \u4e2d\u6587") == "c_attn, ünï \u4e2d\u6587"


def test_markdown_keeps_names_readable() -> None:
    assert markdown("lora-rank8, c_attn") == "lora-rank8, c_attn"
    assert markdown("a|b _x_ *y* [z](u)") == r"a\|b \_x\_ \*y\* \[z\](u)"


def test_csv_and_json_hold_the_same_rows(whole: Summary) -> None:
    text = to_csv(rows(whole))
    assert text.count("\r\n") == 6
    read = list(csv.DictReader(io.StringIO(text, newline="")))
    facts = json.loads(to_json(make_study(), whole, {}, {}))
    json.dumps(facts, allow_nan=False)
    for row, kept in zip(read, facts["rows"], strict=True):
        assert row == {key: "" if value is None else str(value) for key, value in kept.items()}
    full = rows(whole)[0]
    assert (full["arm"], full["trainable_parameters"], full["test_loss_nats_n"]) == ("full", 124_439_808, 3)
    assert full["test_loss_nats_low"] < full["test_loss_nats"] < full["test_loss_nats_high"]


@pytest.fixture(scope="module")
def qa() -> Summary:
    return summary_of(Fakes(make_qa(arms=EVERY_METHOD), lost=("loha",)))


@pytest.fixture(scope="module")
def classified() -> Summary:
    return summary_of(Fakes(make_classification(arms=EVERY_METHOD), lost=("loha",)))


@pytest.mark.parametrize("width", [80, 250])
def test_terminal_shows_metrics_and_strategies(qa: Summary, width: int) -> None:
    text = shown(study_table(qa), width)
    assert max(map(len, text.splitlines())) <= width
    best = qa.arm("full")
    assert best.test is not None
    for expected in (
        numbers.interval(best.test.metrics["f1"], 1),
        "best exact match",
        "top-p-0.9",
        f"{best.generated[1].distinct_2.value:.3f}",
        "QLoRA nf4",
        "Houlsby bottleneck",
        "32 wide",
        "20 tokens",
        "PEFT LOHA",
        "infeasible",
        "99.76 %",
    ):
        assert expected in text, expected


def test_texts_of_one_greedy_strategy_say_what_their_diversity_is() -> None:
    text = shown(study_table(summary_of(Fakes(make_qa(decoding=["greedy"]), share=0.5))), 100)
    assert "n is 1: a strategy wrote one text" in text
    assert "samples: 5" not in text
    assert "best F1" not in text


def test_classes_have_no_perplexity(classified: Summary) -> None:
    text = shown(study_table(classified), 80)
    assert max(map(len, text.splitlines())) <= 80
    for expected in ("accuracy", "F1", "examples/s", "head only"):
        assert expected in text
    for strange in ("perplexity", "bits/byte", "tokens/s", "Decoding"):
        assert strange not in text
    row = rows(classified)[0]
    assert row["test_accuracy_low"] < row["test_accuracy"] < row["test_accuracy_high"]
    assert "test_perplexity" not in row
    assert "test_loss_nats" in row


def test_studies_without_metrics_have_no_columns_of_them(whole: Summary) -> None:
    assert [key for key in rows(whole)[0] if key.startswith("test_") and not key.endswith(("_low", "_high", "_n"))] == [
        "test_loss_nats",
        "test_perplexity",
        "test_mean_sequence_perplexity",
        "test_bits_per_byte",
    ]
    assert "size" not in rows(whole)[0]
    assert "Decoding" not in to_markdown(whole)


def test_every_file_has_the_strategies(qa: Summary) -> None:
    found = decoding_rows(qa)
    assert len(found) == 9 * 3
    first = found[1]
    assert (first["arm"], first["decoding"], first["num_samples"]) == ("full", "top-p-0.9", 5)
    assert first["f1_low"] < first["f1"] < first["f1_high"] < first["best_f1"]
    read = list(csv.DictReader(io.StringIO(to_csv(found), newline="")))
    assert [row["decoding"] for row in read[:3]] == ["greedy", "top-p-0.9", "t-0.7"]
    page = to_markdown(qa)
    assert "## Decoding" in page
    assert page.count("| top-p-0.9 |") == 9
    fakes = Fakes(make_qa())
    facts = json.loads(to_json(fakes.study, summary_of(fakes), fakes.records, fakes.tests))
    assert len(facts["decoding"]) == 5 * 3
    tested = [run for run in facts["runs"] if run["test"] is not None]
    assert all(len(run["generated"]) == 3 and set(run["metrics"]) == {"f1", "exact_match"} for run in tested)
    json.dumps(facts, allow_nan=False)


def test_decoding_has_a_file_of_its_own(tmp_path: Path) -> None:
    fakes = Fakes(make_qa(), share=0.5)
    paths = write_report(tmp_path, fakes.study, summary_of(fakes), {}, fakes.records, fakes.tests)
    assert [path.name for path in paths][-1] == "report-decoding.csv"
    assert (tmp_path / "report-decoding.csv").read_text("utf-8").startswith("arm,decoding,num_samples,f1,f1_low")


def test_json_leaves_out_what_was_tested_in_another_way() -> None:
    fakes = Fakes(make_qa())
    other = make_qa(generate={"max_new_tokens": 9})
    facts = json.loads(to_json(other, summarise(other, fakes.records, fakes.tests), fakes.records, fakes.tests))
    assert len(facts["runs"]) == 21
    assert all(run["test"] is None for run in facts["runs"])


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ({"method": "lora", "rank": 4, "rslora": True}, "rsLoRA rank 4, alpha 16, all-linear"),
        ({"method": "lora", "dora": True, "bias": "all"}, "DoRA rank 8, alpha 16, all biases, all-linear"),
        ({"method": "lora", "lr_ratio": 16}, "LoRA+ rank 8, alpha 16, B's rate 16 x A's, all-linear"),
        ({"method": "lora", "quantize": "int8"}, "QLoRA int8 rank 8, alpha 16, all-linear"),
        ({"method": "bottleneck"}, "bottleneck adapter, 64 wide, after the MLP, relu"),
        ({"method": "prompt", "init": "random"}, "prompt tuning, 20 virtual tokens, drawn at random"),
        ({"method": "bitfit"}, "biases alone are trained"),
        ({"method": "head"}, "the output head alone is trained"),
        ({"method": "peft", "peft": {"peft_type": "IA3", "target_modules": "c_attn"}}, "PEFT IA3, c_attn"),
        ({"method": "peft", "peft": {"peft_type": "P_TUNING", "num_virtual_tokens": 9}}, "PEFT P_TUNING, 9 virtual"),
        ({"method": "load", "path": "x"}, "loaded from x"),
        ({"method": "full"}, "all weights are trained"),
    ],
)
def test_methods_in_a_line(method: dict[str, Any], says: str) -> None:
    assert settings.describe(make_study(arms={"a": method}).arms[0].method).startswith(says)


def test_json_holds_every_run() -> None:
    fakes = Fakes(make_study())
    facts = json.loads(to_json(fakes.study, summary_of(fakes), fakes.records, fakes.tests))
    assert len(facts["runs"]) == 21
    assert sum(run["test"] is not None for run in facts["runs"]) == 13


def test_status_counts_what_runs() -> None:
    fakes = Fakes(make_study(), share=0.5)
    summary = summary_of(fakes)
    waiting: ArmSummary = summary.arm("lora-rank8")
    line = next(
        line for line in shown(status_table(summary, {waiting.run_ids[0]}), 100).splitlines() if "rank8" in line
    )
    assert line.split() == ["lora-rank8", "running", "-", "1", "-", "4", "0/3", "-"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (numbers.significant(9.996), "10.0"),
        (numbers.significant(0.01234), "0.0123"),
        (numbers.significant(878_532.4), "878,532"),
        (numbers.significant(0), "0"),
        (numbers.count(124_439_808), "124 M"),
        (numbers.count(294_912), "295 k"),
        (numbers.count(999_999), "1.00 M"),
        (numbers.count(512), "512"),
        (numbers.size(1_294_336), "1.23 MiB"),
        (numbers.size(2**20 - 1), "1.00 MiB"),
        (numbers.size(100), "100 B"),
        (numbers.duration(0.0004), "0.400 ms"),
        (numbers.duration(59.96), "60.0 s"),
        (numbers.duration(125), "2 min 05 s"),
        (numbers.duration(9000), "2 h 30 min"),
        (numbers.rate(3e-4), "3e-4"),
        (numbers.rate(2.5e-5), "2.5e-5"),
        (numbers.percent(99.763), "99.76 %"),
        (numbers.percent(99.9999), "> 99.99 %"),
        (numbers.percent(0.0592), "0.059 %"),
        (numbers.percent(100), "100 %"),
    ],
)
def test_numbers(text: str, expected: str) -> None:
    assert text == expected
