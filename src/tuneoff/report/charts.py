"""The charts, as Altair: one definition serves the page, where they can be worked with, and figures in files."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt
import vl_convert

from tuneoff.analysis.explanation import NOTHING, Cost, Explanation
from tuneoff.analysis.values import Summary
from tuneoff.report.chart_parts import (
    HIT_AREA,
    ROWS,
    Across,
    Axis,
    drawn,
    has,
    nearest,
    scale_of,
    score_tips,
    score_title,
    targets_word,
    whiskers,
)
from tuneoff.report.charts_compare import forest_chart
from tuneoff.report.charts_why import figures_why
from tuneoff.report.look import PAPER, SHAPES, Arms, Look, finished
from tuneoff.report.points import (
    Point,
    cost_points,
    difference_points,
    learning_points,
    optimum_points,
    rate_points,
    tradeoff_measure,
    tradeoff_points,
    tradeoff_texts,
)

COSTS: dict[Cost, tuple[str, Axis]] = {
    "parameters": ("trainable parameters", "log"),
    "memory": ("peak memory while training", "linear"),
    "time": ("training time of a run", "linear"),
    "disk": ("size of the saved weights", "log"),
}
"""What quality is set against: title and usual axis."""

FigureFormat = Literal["pdf", "png", "svg"]
FORMATS: tuple[FigureFormat, ...] = ("pdf", "png", "svg")
"""Kinds of file that a chart can be written as."""


def learning_chart(
    points: Sequence[Point], arms: Arms, *, x: Across = "step", scale: Axis = "linear"
) -> alt.LayerChart:
    """Return the loss while training: thin in training; thick, with points and the seeds' band, in validation.

    Args:
        points: from `learning_points`.
        arms: the study's arms.
        x: what runs along the bottom.
        scale: of both axes.
    """
    title = {"step": "optimizer steps", "tokens": targets_word(arms.summary)}[x]
    chart = alt.Chart(alt.NamedData(ROWS))
    placed = chart.transform_filter(f"isValid(datum.{x})" + (f" && datum.{x} > 0" if scale == "log" else ""))
    train, validation = (placed.transform_filter(f"datum.kind == '{kind}'") for kind in ("train", "validation"))
    axis = alt.Axis(format="~s", grid=False, tickCount=8, tickMinStep=1)
    across = alt.X(f"{x}:Q", title=title, scale=scale_of(scale, nice=False), axis=axis)
    up = alt.Y("loss:Q", title=f"loss, {arms.summary.loss_unit}", scale=scale_of(scale))
    arm = arms.channels()
    shown = {"arm": ("arm", ""), title: (x, ","), "validation loss": ("loss", ".4f")}
    shown |= {"lowest seed": ("low", ".4f"), "highest seed": ("high", ".4f")}
    base = [_base_rule(chart.transform_filter("datum.kind == 'base'"), up, arms.look)]
    return finished(
        arms.look,
        340,
        *(base if has(points, kind="base") else ()),
        train.mark_line(strokeWidth=1, opacity=0.35).encode(x=across, y=up, **arm.colour),
        validation.mark_area(opacity=0.14).encode(x=across, y=alt.Y("low:Q"), y2="high:Q", **arm.colour),
        validation.mark_line(strokeWidth=2).encode(x=across, y=up, **arm.colour, **arm.dash),
        validation.mark_point(filled=True, size=48, opacity=1).encode(x=across, y=up, **arm.colour, **arm.shape),
        nearest(validation, arms.look, shown).encode(x=across, y=up),
        key="thick, with points: validation; thin: training",
    )


def rate_chart(points: Sequence[Point], arms: Arms, *, scale: Axis = "linear") -> alt.LayerChart:
    """Return the validation loss of every learning rate tried.

    A ring marks the chosen rate, a cross at the top a lost one, a triangle at the bottom where a parabola through the
    best rate and its neighbours is lowest.

    Args:
        points: from `rate_points` and `optimum_points`.
        arms: the study's arms.
        scale: of the loss; rates are on a logarithmic axis always.
    """
    chart = alt.Chart(alt.NamedData(ROWS))
    scored = chart.transform_filter("isValid(datum.loss)")
    chosen, failed, fitted = (
        chart.transform_filter(f"datum.state == '{state}'") for state in ("chosen", "infeasible", "fitted")
    )
    # Beyond a dozen rates, ticks at each of them would run into one another.
    rates = sorted({point["lr"] for point in points if point["state"] != "fitted"})
    axis = alt.Axis(format=".2~e", grid=False, values=rates if len(rates) <= 12 else alt.Undefined)
    across = alt.X("lr:Q", title="learning rate", scale=alt.Scale(type="log", nice=False, padding=24), axis=axis)
    up = alt.Y("loss:Q", title=f"validation loss, {arms.summary.loss_unit}", scale=scale_of(scale, padding=14))
    arm = arms.channels()
    about = [alt.Tooltip("arm:N"), alt.Tooltip("lr:Q", title="learning rate", format=".3~e")]
    tooltip = [*about, alt.Tooltip("loss:Q", title="validation loss", format=".4f"), alt.Tooltip("state:N")]
    ring = chosen.mark_point(size=230, filled=False, strokeWidth=1.5, stroke=arms.look.ink, shape="circle")
    cross = failed.mark_text(text="\u2715", fontSize=14, fontWeight="bold", baseline="top").encode(
        x=across, y=alt.value(0), tooltip=[*about, alt.Tooltip("reason:N")], **arm.colour
    )
    bounds = [
        alt.Tooltip("from:Q", title="lies above", format=".3~e"),
        alt.Tooltip("to:Q", title="below", format=".3~e"),
    ]
    lowest = fitted.mark_text(text="\u25b2", fontSize=15, baseline="bottom").encode(
        x=across,
        y=alt.value("height"),
        tooltip=[about[0], alt.Tooltip("lr:Q", title="fitted optimum", format=".3~e"), *bounds],
        **arm.colour,
    )
    return finished(
        arms.look,
        300,
        scored.mark_line(strokeWidth=2).encode(x=across, y=up, **arm.colour, **arm.dash),
        *([ring.encode(x=across, y=up)] if has(points, state="chosen") else ()),
        scored.mark_point(filled=True, size=60, opacity=1).encode(x=across, y=up, **arm.colour, **arm.shape),
        *([cross] if has(points, state="infeasible") else ()),
        *([lowest] if has(points, state="fitted") else ()),
        scored.mark_point(size=HIT_AREA, opacity=0).encode(x=across, y=up, tooltip=tooltip),
        key="ring: chosen; cross: no result" + ("; triangle: fitted optimum" if has(points, state="fitted") else ""),
    )


def cost_chart(points: Sequence[Point], arms: Arms, cost: Cost, *, scale: Axis | None = None) -> alt.LayerChart:
    """Return the test score against one cost, with the intervals of the scores; further left is better.

    A step line joins the arms of the frontier, which no other beats in both.

    Args:
        points: from `cost_points`.
        arms: the study's arms.
        cost: what runs along the bottom.
        scale: of the cost; none takes the usual one.
    """
    unit = next((point["units"][cost] for point in points), "")
    title = f"{COSTS[cost][0]}{unit and ', '}{unit}"
    chart = alt.Chart(alt.NamedData(ROWS)).transform_filter(f"isValid(datum.{cost})")
    axis = alt.Axis(format=".3~s" if cost == "parameters" else ".3~r", grid=False, tickCount=5, labelOverlap="greedy")
    kind = scale or COSTS[cost][1]
    # From zero, since a cost is compared by its ratio: 425 and 431 MiB are the same.
    spread = alt.Scale(type=kind, zero=True, nice=True) if kind == "linear" else scale_of(kind, padding=24)
    across = alt.X(f"{cost}:Q", title=title, scale=spread, axis=axis)
    up = alt.Y("score:Q", title=score_title(arms.summary.primary), scale=scale_of("linear", nice=False, padding=14))
    arm = arms.channels()
    has_frontier = has(points, **{f"{cost}_frontier": "on it"})
    tooltip = [
        alt.Tooltip("arm:N"),
        *score_tips(arms.summary.primary),
        alt.Tooltip(f"{cost}:Q", title=title, format=","),
        *([alt.Tooltip(f"{cost}_frontier:N", title="frontier")] if has_frontier else ()),
    ]
    # Between two arms of the frontier a reader gets no more than the cheaper one: a step, not a slope.
    frontier = chart.transform_filter(f"datum.{cost}_frontier == 'on it'").mark_line(
        interpolate="step-after", strokeWidth=1.5, strokeDash=[5, 4], color=arms.look.muted
    )
    return finished(
        arms.look,
        260,
        *([frontier.encode(x=across, y=up, order=f"{cost}:Q")] if has_frontier else ()),
        *whiskers(chart, points, across, arm.colour["color"]),
        chart.mark_point(filled=True, size=90, opacity=1).encode(x=across, y=up, **arm.colour, **arm.shape),
        chart.mark_point(size=HIT_AREA, opacity=0).encode(x=across, y=up, tooltip=tooltip),
        key="dashed: the frontier, which no arm beats in both" if has_frontier else "",
    )


def tradeoff_chart(points: Sequence[Point], arms: Arms) -> alt.LayerChart:
    """Return the score of generated text against its diversity; one point for each arm and decoding strategy.

    The colour and the dash of the line through an arm's points say which arm, the shape which strategy. Further up and
    further right is better.

    Args:
        points: from `tradeoff_points`.
        arms: the study's arms.
    """
    measure = tradeoff_measure(arms.summary)
    assert measure is not None  # else there is no point
    strategies = list(dict.fromkeys(point["decoding"] for point in points))
    chart = alt.Chart(alt.NamedData(ROWS))
    n = tradeoff_texts(arms.summary)
    over = "one text" if n == 1 else f"{n} texts"
    across = alt.X(
        "diversity:Q",
        title=["diversity: distinct-2", f"over {over} for each prompt"],
        scale=scale_of("linear", padding=14),
        axis=alt.Axis(format=".2f", grid=False, tickCount=6),
    )
    up = alt.Y("score:Q", title=score_title(measure), scale=scale_of("linear", nice=False, padding=14))
    colour, dash = arms.lines()
    shape = alt.Shape(
        "decoding:N",
        scale=alt.Scale(domain=strategies, range=[SHAPES[place % len(SHAPES)] for place in range(len(strategies))]),
        legend=alt.Legend(
            title=None, orient="top", symbolFillColor=arms.look.muted, symbolStrokeWidth=0, symbolOpacity=1
        ),
    )
    tips = [alt.Tooltip("arm:N"), alt.Tooltip("decoding:N"), *score_tips(measure)]
    tips += [alt.Tooltip("diversity:Q", format=".4f"), alt.Tooltip("n:Q", title="texts written for each prompt")]
    return finished(
        arms.look,
        320,
        *whiskers(chart, points, across, colour),
        chart.mark_line(strokeWidth=1.5, opacity=0.7).encode(x=across, y=up, color=colour, strokeDash=dash),
        chart.mark_point(filled=True, size=90, opacity=1).encode(x=across, y=up, color=colour, shape=shape),
        chart.mark_point(size=HIT_AREA, opacity=0).encode(x=across, y=up, tooltip=tips),
    )


def figures(
    summary: Summary, curves: Mapping[str, Sequence[Mapping[str, Any]]], explanation: Explanation = NOTHING
) -> dict[str, alt.LayerChart]:
    """Return the charts that have something to show, by name, as figures for paper.

    Args:
        summary: what is known.
        curves: the lines of each run's `curve.jsonl`.
        explanation: when, why and how the arms differ.
    """
    arms = Arms(summary, PAPER)
    learning, costs = learning_points(summary, curves), cost_points(summary, explanation)
    rates, differences = rate_points(summary), difference_points(summary)
    found = {}
    if differences:
        found["differences"] = drawn(forest_chart(differences, arms), differences)
    if any(point["kind"] != "base" for point in learning):
        found["learning"] = drawn(learning_chart(learning, arms), learning)
    if rates:
        rates += optimum_points(explanation)
        found["rates"] = drawn(rate_chart(rates, arms), rates)
    for cost in COSTS:
        if any(point[cost] is not None for point in costs):
            found[cost] = drawn(cost_chart(costs, arms, cost), costs)
    texts = tradeoff_points(summary)
    if len({point["decoding"] for point in texts}) > 1:
        found["tradeoff"] = drawn(tradeoff_chart(texts, arms), texts)
    return found | figures_why(summary, explanation, curves)


def picture(chart: alt.LayerChart, form: FigureFormat) -> bytes:
    """Return a chart as a picture file.

    Args:
        chart: from `figures`, its data in it.
        form: the kind of file.
    """
    spec = chart.to_dict(validate=False)
    if form == "svg":
        return vl_convert.vegalite_to_svg(spec).encode()
    drawn: bytes = vl_convert.vegalite_to_pdf(spec) if form == "pdf" else vl_convert.vegalite_to_png(spec, scale=3)
    return drawn


def _base_rule(chart: alt.Chart, up: alt.Y, look: Look) -> alt.LayerChart:
    """Return a dashed line across the chart at the loss of an arm that is not trained, with its name."""
    tooltip = [alt.Tooltip("arm:N"), alt.Tooltip("loss:Q", title="validation loss", format=".4f")]
    rule = chart.mark_rule(strokeDash=[5, 4], strokeWidth=1.5, color=look.muted).encode(y=up, tooltip=tooltip)
    name = chart.mark_text(align="right", dy=-8, color=look.muted, fontSize=12)
    return alt.LayerChart(layer=[rule, name.encode(x=alt.value("width"), y=up, text="arm:N", tooltip=tooltip)])
