"""The charts, as Altair: one definition serves the page, where they can be worked with, and figures in files."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt
import vl_convert

from tuneoff.analysis.measures import Measure
from tuneoff.analysis.values import Summary
from tuneoff.report.look import PAPER, SHAPES, Arms, Look, finished
from tuneoff.report.points import (
    Point,
    cost_points,
    learning_points,
    rate_points,
    tradeoff_measure,
    tradeoff_points,
    tradeoff_texts,
)
from tuneoff.report.text import clean

ROWS = "rows"
"""Name of the data set that a chart is drawn from. It is given beside the chart, so that variants share it."""

Across = Literal["step", "tokens"]
Axis = Literal["linear", "log"]
Cost = Literal["parameters", "memory", "time"]

COSTS: dict[Cost, tuple[str, Axis]] = {
    "parameters": ("trainable parameters", "log"),
    "memory": ("peak memory while training", "linear"),
    "time": ("training time of a run", "linear"),
}
"""What quality is set against: title and usual axis."""

FigureFormat = Literal["pdf", "png", "svg"]
FORMATS: tuple[FigureFormat, ...] = ("pdf", "png", "svg")
"""Kinds of file that a chart can be written as."""

HIT_AREA = 420
"""Square pixels around a point that show its tooltip: a fingertip's worth."""


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
    across = alt.X(f"{x}:Q", title=title, scale=_scale(scale, nice=False), axis=axis)
    up = alt.Y("loss:Q", title=f"loss, {arms.summary.loss_unit}", scale=_scale(scale))
    arm = arms.channels()
    shown = {"arm": ("arm", ""), title: (x, ","), "validation loss": ("loss", ".4f")}
    shown |= {"lowest seed": ("low", ".4f"), "highest seed": ("high", ".4f")}
    base = [_base_rule(chart.transform_filter("datum.kind == 'base'"), up, arms.look)]
    return finished(
        arms.look,
        340,
        *(base if _has(points, kind="base") else ()),
        train.mark_line(strokeWidth=1, opacity=0.35).encode(x=across, y=up, **arm.colour),
        validation.mark_area(opacity=0.14).encode(x=across, y=alt.Y("low:Q"), y2="high:Q", **arm.colour),
        validation.mark_line(strokeWidth=2).encode(x=across, y=up, **arm.colour, **arm.dash),
        validation.mark_point(filled=True, size=48, opacity=1).encode(x=across, y=up, **arm.colour, **arm.shape),
        _nearest(validation, arms.look, shown).encode(x=across, y=up),
        key="thick, with points: validation; thin: training",
    )


def rate_chart(points: Sequence[Point], arms: Arms, *, scale: Axis = "linear") -> alt.LayerChart:
    """Return the validation loss of every learning rate tried: a ring marks the chosen, a cross at the top a lost one.

    Args:
        points: from `rate_points`.
        arms: the study's arms.
        scale: of the loss; rates are on a logarithmic axis always.
    """
    chart = alt.Chart(alt.NamedData(ROWS))
    scored, chosen, failed = (
        chart.transform_filter(f"datum.state {test}") for test in ("!= 'infeasible'", "== 'chosen'", "== 'infeasible'")
    )
    # Beyond a dozen rates, ticks at each of them would run into one another.
    rates = sorted({point["lr"] for point in points})
    axis = alt.Axis(format=".2~e", grid=False, values=rates if len(rates) <= 12 else alt.Undefined)
    across = alt.X("lr:Q", title="learning rate", scale=alt.Scale(type="log", nice=False, padding=24), axis=axis)
    up = alt.Y("loss:Q", title=f"validation loss, {arms.summary.loss_unit}", scale=_scale(scale, padding=14))
    arm = arms.channels()
    about = [alt.Tooltip("arm:N"), alt.Tooltip("lr:Q", title="learning rate", format=".3~e")]
    tooltip = [*about, alt.Tooltip("loss:Q", title="validation loss", format=".4f"), alt.Tooltip("state:N")]
    ring = chosen.mark_point(size=230, filled=False, strokeWidth=1.5, stroke=arms.look.ink, shape="circle")
    cross = failed.mark_text(text="\u2715", fontSize=14, fontWeight="bold", baseline="top").encode(
        x=across, y=alt.value(0), tooltip=[*about, alt.Tooltip("reason:N")], **arm.colour
    )
    return finished(
        arms.look,
        300,
        scored.mark_line(strokeWidth=2).encode(x=across, y=up, **arm.colour, **arm.dash),
        *([ring.encode(x=across, y=up)] if _has(points, state="chosen") else ()),
        scored.mark_point(filled=True, size=60, opacity=1).encode(x=across, y=up, **arm.colour, **arm.shape),
        *([cross] if _has(points, state="infeasible") else ()),
        scored.mark_point(size=HIT_AREA, opacity=0).encode(x=across, y=up, tooltip=tooltip),
        key="ring: chosen; cross: no result",
    )


def cost_chart(points: Sequence[Point], arms: Arms, cost: Cost, *, scale: Axis | None = None) -> alt.LayerChart:
    """Return the test score against one cost, with the intervals over seeds; further left is better.

    Args:
        points: from `cost_points`.
        arms: the study's arms.
        cost: what runs along the bottom.
        scale: of the cost; none takes the usual one.
    """
    unit = next((point["units"][cost] for point in points), "")
    title = f"{COSTS[cost][0]}{unit and ', '}{unit}"
    chart = alt.Chart(alt.NamedData(ROWS)).transform_filter(f"isValid(datum.{cost})")
    axis = alt.Axis(format=".3~s" if cost == "parameters" else ".3~g", grid=False, tickCount=5, labelOverlap="greedy")
    kind = scale or COSTS[cost][1]
    # From zero, since a cost is compared by its ratio: 425 and 431 MiB are the same.
    spread = alt.Scale(type=kind, zero=True, nice=True) if kind == "linear" else _scale(kind, padding=24)
    across = alt.X(f"{cost}:Q", title=title, scale=spread, axis=axis)
    up = alt.Y("score:Q", title=score_title(arms.summary.primary), scale=_scale("linear", nice=False, padding=14))
    arm = arms.channels()
    tooltip = [
        alt.Tooltip("arm:N"),
        *_score_tips(arms.summary.primary),
        alt.Tooltip(f"{cost}:Q", title=title, format=","),
    ]
    return finished(
        arms.look,
        260,
        *_whiskers(chart, points, across, arm.colour["color"]),
        chart.mark_point(filled=True, size=90, opacity=1).encode(x=across, y=up, **arm.colour, **arm.shape),
        chart.mark_point(size=HIT_AREA, opacity=0).encode(x=across, y=up, tooltip=tooltip),
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
        title=f"diversity: distinct-2 over {over} for each prompt",
        scale=_scale("linear", padding=14),
        axis=alt.Axis(format=".2f", grid=False, tickCount=6),
    )
    up = alt.Y("score:Q", title=score_title(measure), scale=_scale("linear", nice=False, padding=14))
    colour, dash = arms.lines()
    shape = alt.Shape(
        "decoding:N",
        scale=alt.Scale(domain=strategies, range=[SHAPES[place % len(SHAPES)] for place in range(len(strategies))]),
        legend=alt.Legend(
            title=None, orient="top", symbolFillColor=arms.look.muted, symbolStrokeWidth=0, symbolOpacity=1
        ),
    )
    tips = [alt.Tooltip("arm:N"), alt.Tooltip("decoding:N"), *_score_tips(measure)]
    tips += [alt.Tooltip("diversity:Q", format=".4f"), alt.Tooltip("n:Q", title="texts written for each prompt")]
    return finished(
        arms.look,
        320,
        *_whiskers(chart, points, across, colour),
        chart.mark_line(strokeWidth=1.5, opacity=0.7).encode(x=across, y=up, color=colour, strokeDash=dash),
        chart.mark_point(filled=True, size=90, opacity=1).encode(x=across, y=up, color=colour, shape=shape),
        chart.mark_point(size=HIT_AREA, opacity=0).encode(x=across, y=up, tooltip=tips),
    )


def targets_word(summary: Summary) -> str:
    """Return what a run is trained on, as its curve counts it."""
    return "training examples" if summary.kind == "classification" else "target tokens"


def score_title(measure: Measure) -> str:
    """Return the title of an axis of test scores."""
    return f"test {clean(measure.label)}{measure.unit and ', '}{measure.unit}"


def _score_tips(measure: Measure) -> list[alt.Tooltip]:
    form = f".{measure.decimals + 1}f"
    return [
        alt.Tooltip("score:Q", title=f"test {clean(measure.label)}", format=form),
        alt.Tooltip("low:Q", title="95 % from", format=form),
        alt.Tooltip("high:Q", title="95 % to", format=form),
    ]


def _whiskers(chart: alt.Chart, points: Sequence[Point], across: alt.X, colour: alt.Color) -> tuple[alt.Chart, ...]:
    """Return the intervals of the scores; nothing where there are none, since Vega warns of a layer without points."""
    if all(point["low"] is None for point in points):
        return ()
    drawn = chart.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2)
    return (drawn.encode(x=across, y=alt.Y("low:Q"), y2="high:Q", color=colour),)


def figures(summary: Summary, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, alt.LayerChart]:
    """Return the charts that have something to show, by name, as figures for paper.

    Args:
        summary: what is known.
        curves: the lines of each run's `curve.jsonl`.
    """
    arms = Arms(summary, PAPER)
    learning, rates, costs = learning_points(summary, curves), rate_points(summary), cost_points(summary)
    found = {}
    if any(point["kind"] != "base" for point in learning):
        found["learning"] = _drawn(learning_chart(learning, arms), learning)
    if rates:
        found["rates"] = _drawn(rate_chart(rates, arms), rates)
    for cost in COSTS:
        if any(point[cost] is not None for point in costs):
            found[cost] = _drawn(cost_chart(costs, arms, cost), costs)
    texts = tradeoff_points(summary)
    if len({point["decoding"] for point in texts}) > 1:
        found["tradeoff"] = _drawn(tradeoff_chart(texts, arms), texts)
    return found


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


def _has(points: Sequence[Point], **fields: Any) -> bool:
    """Return whether a point has these values."""
    return any(all(point.get(key) == value for key, value in fields.items()) for point in points)


def _drawn(chart: alt.LayerChart, points: Sequence[Point]) -> alt.LayerChart:
    """Return the chart with its data in it."""
    return chart.properties(datasets={ROWS: list(points)})


def _scale(kind: Axis, *, nice: bool = True, padding: int = 0) -> alt.Scale:
    """Return a scale that need not hold zero, with some pixels around the points."""
    if kind == "linear":
        return alt.Scale(type=kind, zero=False, nice=nice, padding=padding)
    # Whole powers of ten would press losses between 2 and 3 into a sixth of the chart. `zero` would be warned of.
    return alt.Scale(type=kind, nice=False, padding=max(padding, 8))


def _nearest(chart: alt.Chart, look: Look, fields: Mapping[str, tuple[str, str]]) -> alt.Chart:
    """Return unseen points of which the one nearest to the pointer is ringed and says its values.

    Args:
        chart: the points.
        look: where the chart is shown.
        fields: title of each value, its field, and its number format (empty for text).
    """
    near = alt.selection_point(name="near", nearest=True, on="pointerover", clear="pointerout", empty=False)
    # Where a selection is of the nearest, Vega-Lite 6.4 reads texts one level too high; so we say where.
    row = "(datum.datum || datum)"
    values = (f"{row}.{field}" if not form else f"format({row}.{field}, '{form}')" for field, form in fields.values())
    text = ", ".join(f"'{title}': {value}" for title, value in zip(fields, values, strict=True))
    mark = chart.mark_point(
        size=160, filled=False, strokeWidth=2, stroke=look.ink, shape="circle", tooltip=alt.expr(f"{{{text}}}")
    )
    opacity = alt.when(near).then(alt.value(1)).otherwise(alt.value(0))
    ringed: alt.Chart = mark.encode(opacity=opacity).add_params(near)
    return ringed


def _base_rule(chart: alt.Chart, up: alt.Y, look: Look) -> alt.LayerChart:
    """Return a dashed line across the chart at the loss of an arm that is not trained, with its name."""
    tooltip = [alt.Tooltip("arm:N"), alt.Tooltip("loss:Q", title="validation loss", format=".4f")]
    rule = chart.mark_rule(strokeDash=[5, 4], strokeWidth=1.5, color=look.muted).encode(y=up, tooltip=tooltip)
    name = chart.mark_text(align="right", dy=-8, color=look.muted, fontSize=12)
    return alt.LayerChart(layer=[rule, name.encode(x=alt.value("width"), y=up, text="arm:N", tooltip=tooltip)])
