"""A study of hundreds of arms: the page draws the best, says so, and keeps every arm in its tables."""

import io
import json
import re

import pytest
from fakes import Fakes, make_study
from rich.console import Console

from tuneoff.analysis.explanation import NOTHING
from tuneoff.analysis.summary import summarise
from tuneoff.report import page
from tuneoff.report.drawn import MAX_ARMS, NUM_DRAWN, drawn_part
from tuneoff.report.tables import study_table, to_json

NUM_ARMS = MAX_ARMS + 10


@pytest.fixture(scope="module")
def fakes() -> Fakes:
    lora = {"method": "lora", "alpha": 16, "targets": ["c_attn"], "rank": 4, "lr": 3e-4}
    arms = {
        "zero-shot": {"method": "none"},
        "full": {"method": "full", "lr": 3e-5},
        "lora": {**lora, "dropout": [round(0.001 * place, 3) for place in range(NUM_ARMS)]},
    }
    return Fakes(make_study(arms=arms, seeds=[0, 1]))


def test_the_page_draws_the_best_and_says_so(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "vega_bundle", lambda: "window.vegaEmbed = () => {};")
    summary = summarise(fakes.study, fakes.records, fakes.tests)
    part, _, note = drawn_part(summary, NOTHING)
    names = {arm.name for arm in part.arms}
    assert set(summary.ranking[:NUM_DRAWN]) | {"full", "zero-shot"} == names
    assert f"show {len(names)} of {NUM_ARMS + 2} arms" in note
    assert {(one.one, one.other) for one in part.comparisons} <= {(one, other) for one in names for other in names}
    assert part.comparison(*part.ranking[:2]) == summary.comparison(*part.ranking[:2])
    html = page.render_page(fakes.study, summary, fakes.curves)
    assert note in html
    charts = re.search(r'id="charts" type="application/json">(.*?)</script>', html, re.DOTALL)
    assert charts is not None
    drawn = {
        arm
        for panel in json.loads(charts[1]).values()
        if isinstance(panel["points"], dict)
        for arm in panel["points"]["arm"]
    }
    assert drawn <= names
    assert len(drawn) >= NUM_DRAWN
    assert all(f'data-value="{arm.name}"' in html for arm in summary.arms)


def test_json_has_every_arm_and_no_spaces_between(fakes: Fakes) -> None:
    summary = summarise(fakes.study, fakes.records, fakes.tests)
    content = to_json(fakes.study, summary, fakes.records, fakes.tests)
    assert b"\n" not in content
    assert len(json.loads(content)["rows"]) == NUM_ARMS + 2


def test_the_terminal_lists_the_same_and_says_so(fakes: Fakes) -> None:
    summary = summarise(fakes.study, fakes.records, fakes.tests)
    part, _, _ = drawn_part(summary, NOTHING)
    console = Console(width=160, file=io.StringIO(), color_system=None)
    console.print(study_table(summary))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert f"Listed are {len(part.arms)} of {NUM_ARMS + 2} arms" in text
    assert f"corrected for all {len(summary.comparisons)} pairs" in " ".join(text.split())
    rows = re.findall(r"^ *(lora-dropout[\d.]+) {2,}", text, re.MULTILINE)  # a caveat may name others
    assert set(rows) == {arm.name for arm in part.arms} - {"full", "zero-shot"}


def test_of_fewer_arms_all_are_drawn(fakes: Fakes) -> None:
    summary = summarise(fakes.study, fakes.records, fakes.tests)
    few = summary.model_copy(update={"arms": summary.arms[:MAX_ARMS]})
    assert drawn_part(few, NOTHING) == (few, NOTHING, "")
