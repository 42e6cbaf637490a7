"""Comparisons come out of terminal, Markdown, CSV and JSON as the same numbers, and the power is that of the test."""

import csv
import io
import json
import math
import re

import numpy as np
import pytest
from fakes import Fakes, make_classification, make_items, make_study
from rich.console import Console
from scipy import stats

from tuneoff.analysis.comparison import Comparison
from tuneoff.analysis.stats.power import seeds_power
from tuneoff.analysis.stats.twoway import two_way
from tuneoff.analysis.summary import summarise
from tuneoff.analysis.values import Summary
from tuneoff.planning.power import power_text, study_power
from tuneoff.report.comparisons import against, comparison_tables
from tuneoff.report.tables import rows, to_csv, to_json, to_markdown

FAKES = {"nats": Fakes(make_study()), "points": Fakes(make_classification())}
PLACES = {"nats": 3, "points": 1}


@pytest.fixture(scope="module", params=FAKES)
def unit(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def whole(unit: str) -> Summary:
    fakes = FAKES[unit]
    return summarise(fakes.study, fakes.records, fakes.tests, make_items(fakes, spread=0.3))


def written(value: float, places: int) -> str:
    return f"{'-' if value < 0 else '+'}{abs(value):.{places}f}"


def cells(pair: Comparison, places: int) -> tuple[str, str, str, str]:
    """Outcome, difference and the two p-values as they are to be read, written without the report's code."""
    difference, low, high = pair.difference, pair.difference.low, pair.difference.high
    assert low is not None
    assert high is not None
    more = f" (+{pair.more_seeds} seeds)" if pair.more_seeds else ""
    ps = [
        "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
        for p in (pair.p_difference_corrected, pair.p_equivalence_corrected)
    ]
    ends = f"[{written(low, places)}, {written(high, places)}]"
    return pair.outcome + more, f"{written(difference.value, places)} {ends}", ps[0], ps[1]


def test_a_comparison_is_the_two_way_interval_of_the_scores(whole: Summary, unit: str) -> None:
    fakes = FAKES[unit]
    metric = "loss" if unit == "nats" else "accuracy"
    items = make_items(fakes, spread=0.3)
    tables = {arm.name: np.array([items[run_id].scores[metric] for run_id in arm.chosen_run_ids]) for arm in whole.arms}
    by_items = []
    for pair in whole.comparisons:
        spread = two_way(tables[pair.one] - tables[pair.other])  # the base's one run stands for every seed
        low, high = spread.interval(0.95)
        assert pair.difference.value == pytest.approx(float(spread.mean), rel=1e-9)
        assert (pair.difference.low, pair.difference.high) == pytest.approx((float(low), float(high)), rel=1e-9)
        assert pair.difference.how == "3 seeds x 64 items, two-way"
        assert (pair.num_seeds, pair.num_items) == (3, 64)
        by_items.append(float(spread.by_items))
    assert len(by_items) == 10
    assert max(by_items) > 0


def test_terminal(whole: Summary, unit: str) -> None:
    console = Console(width=200, file=io.StringIO(), color_system=None)
    for part in comparison_tables(whole):
        console.print(part)
    assert isinstance(console.file, io.StringIO)
    lines = [re.split(r"\s{2,}", line.strip()) for line in console.file.getvalue().splitlines()]
    for pair in against(whole, whole.ranking[0]):
        assert [pair.one, *cells(pair, PLACES[unit])] in lines


def test_markdown(whole: Summary, unit: str) -> None:
    table = [
        [cell.strip().replace("\\", "").replace("&lt;", "<") for cell in line.strip("|").split(" | ")]
        for line in to_markdown(whole).splitlines()
        if line.startswith("|")
    ]
    for pair in whole.comparisons:
        outcome, *numbers = cells(pair, PLACES[unit])
        expected = [pair.one, outcome, pair.other, *numbers, "3", "64", pair.note]
        assert expected in [[*row[:-1], row[-1].strip()] for row in table]


def test_csv_and_json(whole: Summary, unit: str) -> None:
    fakes, best = FAKES[unit], whole.ranking[0]
    facts = json.loads(to_json(fakes.study, whole, fakes.records, fakes.tests))
    read = {row["arm"]: row for row in csv.DictReader(io.StringIO(to_csv(rows(whole)), newline=""))}
    kept = {row["arm"]: row for row in facts["rows"]}
    assert read[best]["difference_vs_best"] == ""
    for pair in against(whole, best):
        names = ("difference_vs_best", "difference_vs_best_low", "difference_vs_best_high")
        numbers = (pair.difference.value, pair.difference.low, pair.difference.high)
        assert tuple(float(read[pair.one][name]) for name in names) == numbers
        assert tuple(kept[pair.one][name] for name in names) == numbers
        assert read[pair.one]["outcome_vs_best"] == kept[pair.one]["outcome_vs_best"] == pair.outcome
    for pair, body in zip(whole.comparisons, facts["summary"]["comparisons"], strict=True):
        assert Comparison.model_validate(body) == pair


def test_every_other_arm_stands_below_the_best(whole: Summary, unit: str) -> None:
    """The signs: of a loss the best has the lowest, so that others lie above it; of points below it."""
    for pair in against(whole, whole.ranking[0]):
        assert (pair.difference.value > 0) == (unit == "nats")
        assert pair.outcome in ("worse", "equivalent", "undecided")
        (kept,) = [one for one in whole.comparisons if {one.one, one.other} == {pair.one, pair.other}]
        there, back = kept.difference, pair.difference
        assert (kept.one, pair.other) == (whole.ranking[0], whole.ranking[0])
        assert (back.value, back.low, back.high) == (-there.value, -(there.high or 0.0), -(there.low or 0.0))


@pytest.mark.parametrize("num_seeds", [3, 5])
def test_the_plans_power(num_seeds: int) -> None:
    """One pair; spread half the margin; by Owen's formula at two degrees of freedom about half the time."""
    arms = {"zero-shot": {"method": "none"}, "full": {"method": "full", "lr": 1e-4}}
    power = study_power(make_study(arms=arms, seeds=list(range(num_seeds)), margin=0.02))
    assert power is not None
    half = next(one for one in power.at if one.spread_of_margin == 0.5)
    assert half.spread == pytest.approx(0.01)
    draws = 0.01 * np.random.default_rng(4).standard_normal((40_000, num_seeds))
    error = stats.sem(draws, axis=1)
    # p of the test itself, study by study; 4.5 standard errors of a share of 40,000.
    p = np.maximum(*(stats.t.sf((0.02 + side * draws.mean(axis=1)) / error, num_seeds - 1) for side in (1, -1)))
    assert half.power == pytest.approx(np.mean(p < 0.05), abs=4.5 * math.sqrt(0.25 / 40_000))
    assert half.power_corrected == half.power
    text = power_text(power)
    assert f"at {num_seeds} seeds and a margin of 0.02 nats per token" in text
    assert f"{100 * half.power:.0f} % of the time where their difference has a spread over seeds of 0.01" in text
    assert "corrected" not in text
    if num_seeds == 3:
        assert 0.4 < half.power < 0.6
        assert "more seeds, or a wider margin" in text
    else:
        assert half.power > 0.8


def test_the_plans_power_with_many_pairs_and_with_one_seed() -> None:
    power = study_power(make_study(margin=0.02))
    assert power is not None
    assert power.num_comparisons == 10
    for one in power.at:
        assert one.power_corrected == seeds_power(0.02, one.spread, 3, 10) < one.power
        assert f"({100 * one.power_corrected:.0f} % corrected: 10 pairs)" in power_text(power)
    single = study_power(make_study(seeds=[0]))
    assert single is not None
    assert power_text(single).startswith("1 seed: no claim that one arm is better than another or equivalent")
    assert study_power(make_study(arms={"full": {"method": "full", "lr": 1e-4}})) is None
