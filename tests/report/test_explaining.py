"""The explanation in the terminal, in Markdown and in JSON: the same facts, at any width, and no text that acts."""

import io
import json
from pathlib import Path

import pytest
from fakes import EVERY_METHOD, HOSTILE, Fakes, make_classification, make_items, make_qa, make_study
from rich.console import Console, Group

from tuneoff.analysis.explain import explain
from tuneoff.analysis.explanation import NOTHING, Explanation, Frontier
from tuneoff.analysis.summary import summarise
from tuneoff.analysis.values import Summary
from tuneoff.report.explaining import explanation_fields, explanation_lines, explanation_markdown, parts
from tuneoff.report.tables import study_table, to_json, to_markdown
from tuneoff.report.text import markdown
from tuneoff.report.write import write_report

Told = tuple[Fakes, Summary, Explanation]


def told(fakes: Fakes) -> Told:
    summary = summarise(fakes.study, fakes.records, fakes.tests, make_items(fakes))
    return fakes, summary, explain(fakes.study, summary, fakes.records, fakes.curves, fakes.explained)


@pytest.fixture(scope="module")
def whole() -> Told:
    return told(Fakes(make_study()))


def shown(summary: Summary, explanation: Explanation, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(Group(*explanation_lines(summary, explanation)))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 200])
def test_terminal_fits_its_width(whole: Told, width: int) -> None:
    _, summary, explanation = whole
    text = shown(summary, explanation, width)
    assert max(map(len, text.splitlines())) <= width
    together = " ".join(text.split())
    for sentence in explanation.sentences:
        assert f"- {sentence}" in together
    for expected in (
        "3.1e-4  1e-4 to 1e-3",  # fitted, and between which rates
        "+0.309 [+0.301, +0.317]",  # forgotten
        "-0.281 [-0.304, -0.258]",  # beyond full fine-tuning
        "0.681 ± 0.013",  # relative norm
        "85.6",  # share that rank 32 could hold
        "12/40",  # intruders
        "294,912        832,000",  # capacity
    ):
        assert expected in text


def test_it_stands_between_the_comparisons_and_the_verdict(whole: Told) -> None:
    _, summary, explanation = whole
    console = Console(width=120, file=io.StringIO(), color_system=None)
    console.print(study_table(summary, explanation))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    places = [
        next(place for place, line in enumerate(lines) if line.startswith(start))
        for start in ("Differences between arms", "Why", summary.verdict[:40], "Audit:")
    ]
    assert places == sorted(places)


def test_the_same_numbers_in_markdown_and_json(whole: Told) -> None:
    fakes, summary, explanation = whole
    text = to_markdown(summary, explanation)
    assert text.count("## Why") == 1
    assert all(markdown(cell) in text for part in parts(summary, explanation) for row in part.rows for cell in row)
    kept = json.loads(to_json(fakes.study, summary, fakes.records, fakes.tests, explanation))["explanation"]
    assert Explanation.model_validate(json.loads(json.dumps(kept, allow_nan=False))) == explanation
    full = next(one for one in kept["weights"] if one["arm"] == "full")
    assert f"{100 * full['share_held']['32']['value']:.1f}" == "85.6"


def test_rows_have_as_many_cells_as_heads() -> None:
    for fakes in (Fakes(make_study(arms=EVERY_METHOD)), Fakes(make_classification()), Fakes(make_study(seeds=[0]))):
        _, summary, explanation = told(fakes)
        found = parts(summary, explanation)
        assert len(found) >= 5
        for part in found:
            assert {len(row) for row in part.rows} == {len(part.heads)}
            assert len(set(part.heads)) >= len(part.heads) - 1


def test_what_is_not_known_is_a_dash() -> None:
    arms = {"lora": {"method": "lora", "rank": [2, 8], "targets": ["c_attn"], "tune": {"lr": [1e-4, 3e-4, 1e-3]}}}
    _, summary, explanation = told(Fakes(make_study(arms=arms)))
    found = {part.title.partition(":")[0].partition(",")[0]: part for part in parts(summary, explanation)}
    assert found["Best learning rate"].heads == ("arm", "chosen", "fitted", "between")  # nothing to divide by
    assert found["Forgetting"].heads == ("arm", "gained by training")
    leaving = next(part for title, part in found.items() if title.startswith("When a rank leaves"))
    assert [row[0:2] for row in leaving.rows] == [("lora-rank2", "lora-rank8")]


def test_of_nothing_nothing_is_said(whole: Told) -> None:
    fakes, summary, _ = whole
    assert shown(summary, NOTHING, 80).strip() == ""
    only_notes = Explanation(notes=("Forgetting is not measured.",))
    assert shown(summary, only_notes, 80).strip() == ""
    assert explanation_markdown(summary, NOTHING) == explanation_markdown(summary, only_notes) == []
    assert explanation_fields(NOTHING) == {}
    assert "explanation" not in json.loads(to_json(fakes.study, summary, fakes.records, fakes.tests))
    assert "## Why" not in to_markdown(summary)


def test_hostile_text_is_only_text(whole: Told) -> None:
    _, summary, explanation = whole
    hostile = explanation.model_copy(
        update={
            "sentences": (HOSTILE,),
            "notes": (f"{HOSTILE} | end",),
            "leaving": tuple(one.model_copy(update={"arm": HOSTILE}) for one in explanation.leaving),
            "frontiers": (Frontier(cost="time", arms=(HOSTILE,), contested=(HOSTILE,)),),
        }
    )
    terminal = shown(summary, hostile, 100)
    assert "[bold]markup[/bold]" in terminal
    assert not {"\x1b", "\u202e"} & set(terminal)
    text = "\n".join(explanation_markdown(summary, hostile))
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert r"\| end" in text
    assert not {"\x1b", "\u202e"} & set(text)


@pytest.mark.parametrize("make", [make_study, make_qa, make_classification])
def test_the_files_have_it(tmp_path: Path, make: type) -> None:
    fakes, summary, explanation = told(Fakes(make()))
    write_report(tmp_path, fakes.study, summary, fakes.curves, fakes.records, fakes.tests, explanation=explanation)
    facts = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert Explanation.model_validate(facts["explanation"]) == explanation
    text = (tmp_path / "report.md").read_text("utf-8")
    assert text.count("\n- By the test's") == 1
