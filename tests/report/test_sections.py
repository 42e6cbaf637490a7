"""The page's sections: what each says of a made-up study, and the order in which they say it."""

import json
import re
from collections.abc import Iterator
from typing import get_args

import pytest
from fakes import Fakes, make_study
from fakes_why import explanation_of, samples_of, summary_of, whole_page
from reader import Reader, section

from tuneoff.analysis.findings import Audit, Finding
from tuneoff.analysis.summary import summarise
from tuneoff.analysis.values import Summary
from tuneoff.report import page
from tuneoff.report.examples import examples
from tuneoff.report.points import difference_points, far_off
from tuneoff.study.explained import Sample
from tuneoff.study.options import Invariant


@pytest.fixture(scope="module", autouse=True)
def _small_bundle() -> Iterator[None]:
    """The real one takes seconds to make."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "vega_bundle", lambda: "window.vegaEmbed = () => {};")
        yield


@pytest.fixture(scope="module")
def plain() -> tuple[Fakes, Summary]:
    """A made-up study and its answer; only to be read."""
    fakes = Fakes(make_study())
    return fakes, summary_of(fakes)


@pytest.fixture(scope="module")
def whole(_small_bundle: None) -> str:
    return whole_page(Fakes(make_study()))


def test_sections_stand_in_the_order_of_what_a_reader_asks(whole: str) -> None:
    headings = re.findall(r"<h2[^>]*>([^<]+)</h2>", whole)
    assert headings == [
        *("Verdict", "Results", "Differences between arms", "Quality against cost", "Learning curves"),
        *("Learning rates", "When, why and how", "Samples side by side", "Audit", "Provenance", "How to reproduce"),
    ]


def test_the_score_stands_before_what_is_made_of_it(whole: str) -> None:
    heads = re.findall(r"<th scope=\"col\"[^>]*><button type=\"button\">([^<]+)</button>", whole)
    assert heads[:3] == ["arm", "loss", "against the best"]


def test_an_untrained_arm_that_lies_far_off_is_left_out_of_the_chart_and_named(
    whole: str, plain: tuple[Fakes, Summary]
) -> None:
    _, summary = plain
    assert far_off(summary) == ("zero-shot",)
    drawn = {point["arm"] for point in difference_points(summary)}
    assert drawn == {arm.name for arm in summary.arms} - {"full", "zero-shot"}
    words = section(whole, "Differences between arms")
    assert "Not drawn, since far off: zero-shot." in words
    assert words.count("zero-shot") == 2  # in the note, and in the table


def test_points_that_charts_share_are_on_the_page_once(whole: str) -> None:
    charts = json.loads(Reader(whole).scripts[0])
    assert charts["intruders"]["points"] == "norms"
    assert set(charts["norms"]["points"]) >= {"arm", "layer", "norm", "intruders"}
    assert {one["points"] for one in charts.values() if isinstance(one["points"], str)} <= set(charts)


def test_every_difference_is_in_the_numbers(whole: str, plain: tuple[Fakes, Summary]) -> None:
    _, summary = plain
    words = section(whole, "Differences between arms")
    for pair in summary.comparisons:
        if pair.one == summary.ranking[0]:  # against full too, which is the best here
            assert f"{-pair.difference.value:+.3f}" in words
    assert "within the margin of 0.01 nats per token" in words
    assert f"corrected for all {len(summary.comparisons)} pairs" in words


def test_each_arm_says_how_it_stands_to_the_best(whole: str, plain: tuple[Fakes, Summary]) -> None:
    _, summary = plain
    best, *others = summary.ranking
    for arm in others:
        pair = summary.comparison(best, arm)
        assert pair is not None
        outcome = {"better": "worse", "worse": "better"}.get(pair.outcome, pair.outcome)
        assert re.search(rf"{re.escape(arm)}\W+{outcome}", Reader(whole).text), arm


def test_the_audit_is_quiet_where_nothing_is_broken(whole: str) -> None:
    words = section(whole, "Audit")
    assert "none broken" in words
    assert words.count("kept") == 12
    assert "not comparable" not in words
    assert "Audit : all 12 invariants of a fair comparison hold." in section(whole, "Verdict").replace(
        "Audit:", "Audit :"
    )


def test_the_audit_names_what_is_broken() -> None:
    fakes = Fakes(make_study())
    arm = "lora-rank8"
    for run_id in summary_of(fakes).arm(arm).chosen_run_ids:
        record = fakes.records[run_id]
        fakes.records[run_id] = record.model_copy(update={"run": record.run.model_copy(update={"precision": "bf16"})})
    text = whole_page(fakes)
    words = section(text, "Audit")
    assert "1 broken" in words
    assert "1 of 12 invariants of a fair comparison is broken." in section(text, "Verdict")
    assert words.count("kept") == 11
    assert "its precision differs (bf16; the others: fp32)" in words
    assert "not comparable" in Reader(text).text.partition("Differences between arms")[0]  # beside the numbers


@pytest.mark.parametrize("kind", get_args(Invariant))
def test_each_kind_of_unfairness_is_said_in_the_verdict_in_the_audit_and_beside_the_numbers(
    kind: Invariant, plain: tuple[Fakes, Summary], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "panels", lambda *_: {})  # charts take most of a page's time
    monkeypatch.setattr(page, "topics", lambda *_: ())
    fakes, summary = plain
    found = Finding(kind=kind, arms=("lora-rank8",), label="unlike", message=f"its <{kind}> differs")
    own = [arm.model_copy(update={"findings": (found,) if arm.name == "lora-rank8" else ()}) for arm in summary.arms]
    broken = summary.audit.model_copy(update={"findings": (found,)})
    text = page.render_page(fakes.study, summary.model_copy(update={"audit": broken, "arms": tuple(own)}), fakes.curves)
    assert "1 of 12 invariants of a fair comparison is broken." in section(text, "Verdict")
    assert f"not comparable because its <{kind}> differs" in section(text, "Results")
    words = section(text, "Audit")
    assert f"lora-rank8: not comparable because its <{kind}> differs." in words
    assert (words.count("kept"), words.count(" broken")) == (11, 2)  # once of that invariant, once in the first line


def test_a_difference_that_is_meant_breaks_nothing(plain: tuple[Fakes, Summary]) -> None:
    fakes, summary = plain
    found = Finding(kind="budget", arms=("full",), label="budget", message="its budget differs", is_declared=True)
    meant: Audit = summary.audit.model_copy(update={"findings": (found,)})
    text = page.render_page(fakes.study, summary.model_copy(update={"audit": meant}), fakes.curves)
    assert "hold, but for what the study declares." in section(text, "Verdict")
    words = section(text, "Audit")
    assert "none broken" in words
    assert "Differences that the study declares" in words
    assert (words.count("kept"), words.count(" meant")) == (11, 1)


def test_every_sentence_and_every_part_of_the_explanation_is_shown(whole: str, plain: tuple[Fakes, Summary]) -> None:
    explanation = explanation_of(*plain)
    words = section(whole, "When, why and how")
    assert len(explanation.sentences) >= 6
    for sentence in explanation.sentences:
        assert sentence in words
    for heading in ("When: leaving the common curve", "How: the change of the weights", "forgetting", "Why: capacity"):
        assert heading in words
    for one in explanation.forgetting:
        assert f"{one.difference.value:+.3f}" in words


def test_without_an_explanation_there_is_no_section_for_it() -> None:
    fakes = Fakes(make_study())
    summary = summarise(fakes.study, fakes.records, fakes.tests)
    words = Reader(page.render_page(fakes.study, summary, fakes.curves)).text
    assert "When, why and how" not in words
    assert "Samples side by side" not in words


@pytest.mark.parametrize(
    ("prompts", "titles"),
    [
        (["# Do:\nCook eggs\n# Answer:", "# Do:\nFeed cats\n\n# Answer:"], ["Cook eggs", "Feed cats"]),
        (["Same words", "Same words"], ["Same words", "Same words"]),
        (["Only one\n"], ["Only one"]),
        (["", " \n"], ["", ""]),
        ([f"Long {'x' * 200}"], [f"Long {'x' * 85}\u2026"]),
    ],
)
def test_a_sample_is_named_by_what_is_its_own(
    prompts: list[str], titles: list[str], plain: tuple[Fakes, Summary]
) -> None:
    _, summary = plain
    own = [Sample(item=f"{place}", prompt=text, reference="", text="") for place, text in enumerate(prompts)]
    assert [example.title for example in examples(summary, {"full": own})] == titles


def test_samples_stand_side_by_side_as_text(whole: str, plain: tuple[Fakes, Summary]) -> None:
    samples = samples_of(*plain)
    words = section(whole, "Samples side by side")
    assert len(samples) >= 4
    for arm in samples:
        assert f"{arm} says" in words
    assert "<script>alert('x')</script>" in words
    assert "What is the capital of France?" in words
