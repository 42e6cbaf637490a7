"""The charts of when, why and how arms differ: partings, weight changes, forgetting, capacity."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt

from tuneoff.analysis.explanation import Explanation
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
from tuneoff.report.look import PAPER, Arms, finished
from tuneoff.report.points import Point, arms_in
from tuneoff.report.points_why import (
    capacity_points,
    forgetting_points,
    gap_points,
    held_points,
    module_points,
    spectrum_points,
)

Change = Literal["norm", "intruders"]

MAX_TICKS = 12
ENOUGH = 0.5
"""Trainable parameters for each target token at which they could hold all: 2 bits a parameter, 1 bit a token.

A rule of thumb (Schulman et al., 2025, "LoRA Without Regret"; Allen-Zhu and Li, 2024, arXiv:2404.05405), not a law.
"""


def gap_chart(
    points: Sequence[Point], arms: Arms, margin: float, *, x: Across = "step", scale: Axis = "linear"
) -> alt.LayerChart:
    """Return how far each arm's validation loss lies above the reference's; a ring marks where it leaves for good.

    Args:
        points: from `gap_points`.
        arms: the study's arms.
        margin: how far above counts as having left, in nats; shaded.
        x: what runs along the bottom.
        scale: of what runs along the bottom; a gap may be negative, so its own scale is linear.
    """
    title = {"step": "optimizer steps", "tokens": targets_word(arms.summary)}[x]
    chart = alt.Chart(alt.NamedData(ROWS))
    placed = chart.transform_filter(f"isValid(datum.{x})" + (f" && datum.{x} > 0" if scale == "log" else ""))
    gaps, left = (placed.transform_filter(f"datum.kind == '{kind}'") for kind in ("gap", "leaves"))
    whole = chart.transform_aggregate(n="count()")
    axis = alt.Axis(format="~s", grid=False, tickCount=8, tickMinStep=1)
    across = alt.X(f"{x}:Q", title=title, scale=scale_of(scale, nice=False), axis=axis)
    named = f"above {points[0]['reference']}" if len({point["reference"] for point in points}) == 1 else "above it"
    up = alt.Y("gap:Q", title=f"validation loss {named}, {arms.summary.loss_unit}", scale=scale_of("linear"))
    arm = arms.channels(arms_in(points))
    shown = {"arm": ("arm", ""), title: (x, ","), "above": ("gap", "+.4f")}
    shown |= {"lowest seed": ("low", "+.4f"), "highest seed": ("high", "+.4f")}
    ring = left.mark_point(size=260, filled=False, strokeWidth=2, stroke=arms.look.ink, shape="circle")
    return finished(
        arms.look,
        300,
        whole.mark_rect(color=arms.look.muted, opacity=0.16).encode(y=alt.YDatum(-margin), y2=alt.Y2Datum(margin)),
        whole.mark_rule(color=arms.look.muted, strokeWidth=1).encode(y=alt.YDatum(0)),
        gaps.mark_area(opacity=0.14).encode(x=across, y=alt.Y("low:Q"), y2="high:Q", **arm.colour),
        gaps.mark_line(strokeWidth=2).encode(x=across, y=up, **arm.colour, **arm.dash),
        *([ring.encode(x=across, y=up)] if has(points, kind="leaves") else ()),
        gaps.mark_point(filled=True, size=44, opacity=1).encode(x=across, y=up, **arm.colour, **arm.shape),
        nearest(gaps, arms.look, shown).encode(x=across, y=up),
        key="ring: leaves for good; shaded: within the margin",
    )


def spectrum_chart(points: Sequence[Point], arms: Arms, *, scale: Axis = "log") -> alt.LayerChart:
    """Return the singular values of each arm's weight change over the largest one, by their place.

    Args:
        points: from `spectrum_points`.
        arms: the study's arms.
        scale: of both axes.
    """
    across = alt.X(
        "direction:Q",
        title="direction, the strongest first",
        scale=scale_of(scale, nice=False, padding=8),
        axis=alt.Axis(format="d", grid=False, tickCount=6, tickMinStep=1, labelOverlap="greedy"),
    )
    axis = alt.Axis(format="~g", tickCount=6, labelOverlap="greedy")
    up = alt.Y("value:Q", title="singular value over the largest", scale=scale_of(scale), axis=axis)
    shown = {"arm": ("arm", ""), "direction": ("direction", "d"), "over the largest": ("value", ".3~g")}
    return _lines(points, arms, across, up, shown)


def held_chart(points: Sequence[Point], arms: Arms) -> alt.LayerChart:
    """Return the share of each arm's weight change that an approximation of each rank holds.

    Args:
        points: from `held_points`.
        arms: the study's arms.
    """
    ranks = sorted({point["rank"] for point in points})
    across = alt.X(
        "rank:Q",
        title="rank",
        scale=alt.Scale(type="log", base=2, nice=False, padding=10),
        axis=alt.Axis(format="d", grid=False, values=ranks if len(ranks) <= 10 else alt.Undefined),
    )
    up = alt.Y("held:Q", title="share of the change held, %", scale=alt.Scale(domain=[0, 100]))
    shown = {"arm": ("arm", ""), "rank": ("rank", "d"), "held, %": ("held", ".1f")}
    if any(point["low"] is not None for point in points):
        shown |= {"95 % from": ("low", ".1f"), "95 % to": ("high", ".1f")}
    return _lines(points, arms, across, up, shown)


def _lines(
    points: Sequence[Point], arms: Arms, across: alt.X, up: alt.Y, shown: Mapping[str, tuple[str, str]]
) -> alt.LayerChart:
    """Return a line with points for each arm."""
    chart = alt.Chart(alt.NamedData(ROWS))
    arm = arms.channels(arms_in(points))
    return finished(
        arms.look,
        260,
        chart.mark_line(strokeWidth=2).encode(x=across, y=up, **arm.colour, **arm.dash),
        chart.mark_point(filled=True, size=36, opacity=1).encode(x=across, y=up, **arm.colour, **arm.shape),
        nearest(chart, arms.look, shown).encode(x=across, y=up),
    )


def module_chart(points: Sequence[Point], arms: Arms, change: Change, *, kind: int | None = None) -> alt.LayerChart:
    """Return how much the weights change, or how many leading directions are new, layer by layer.

    Args:
        points: from `module_points`.
        arms: the study's arms.
        change: the relative norm, or the intruder dimensions in per cent of the directions that were looked at.
        kind: place of the modules' kind in `kinds_of`; none takes all modules of a layer together.
    """
    chart = alt.Chart(alt.NamedData(ROWS)).transform_filter("isValid(datum.layer)")
    if kind is not None:
        chart = chart.transform_filter(f"datum.kind == {kind}")
    if change == "norm":
        summed = chart.transform_filter("isValid(datum.norm)").transform_aggregate(
            value="mean(norm)", groupby=["arm", "layer"]
        )
        title, form, scale = "norm of the change over that of the weights", ".3~g", scale_of("linear")
    else:
        summed = chart.transform_aggregate(
            new="sum(intruders)", top="sum(top)", groupby=["arm", "layer"]
        ).transform_calculate(value="datum.top > 0 ? 100 * datum.new / datum.top : 0")
        title, form, scale = "intruder dimensions, % of leading directions", ".1f", alt.Scale(zero=True)
    layers = sorted({point["layer"] for point in points})
    axis = alt.Axis(format="d", grid=False, values=layers[:: max(1, math.ceil(len(layers) / MAX_TICKS))])
    across = alt.X("layer:Q", title="layer", scale=scale_of("linear", nice=False, padding=10), axis=axis)
    up = alt.Y("value:Q", title=title, scale=scale)
    shown = {"arm": ("arm", ""), "layer": ("layer", "d"), "value": ("value", form)}
    arm = arms.channels(arms_in(points))
    return finished(
        arms.look,
        260,
        summed.mark_line(strokeWidth=2).encode(x=across, y=up, **arm.colour, **arm.dash),
        summed.mark_point(filled=True, size=44, opacity=1).encode(x=across, y=up, **arm.colour, **arm.shape),
        nearest(summed, arms.look, shown).encode(x=across, y=up),
    )


def forgetting_chart(points: Sequence[Point], arms: Arms) -> alt.LayerChart:
    """Return the test score against what was forgotten of general text, with intervals both ways.

    Args:
        points: from `forgetting_points`.
        arms: the study's arms.
    """
    chart = alt.Chart(alt.NamedData(ROWS))
    whole = chart.transform_aggregate(n="count()")
    across = alt.X(
        "forgot:Q",
        title="loss gained on general text, nats per token",
        scale=scale_of("linear", padding=14),
        axis=alt.Axis(grid=False, tickCount=5),
    )
    up = alt.Y("score:Q", title=score_title(arms.summary.primary), scale=scale_of("linear", nice=False, padding=14))
    spread = chart.transform_filter("isValid(datum.from)").mark_rule(strokeWidth=2)
    tips = [
        alt.Tooltip("arm:N"),
        alt.Tooltip("forgot:Q", title="loss gained", format="+.4f"),
        alt.Tooltip("from:Q", title="95 % from", format="+.4f"),
        alt.Tooltip("to:Q", title="95 % to", format="+.4f"),
        *score_tips(arms.summary.primary),
    ]
    arm = arms.channels(arms_in(points))
    return finished(
        arms.look,
        280,
        whole.mark_rule(color=arms.look.muted, strokeWidth=1).encode(x=alt.XDatum(0)),
        *whiskers(chart, points, across, arm.colour["color"]),
        *([spread.encode(x=alt.X("from:Q"), x2="to:Q", y=up, **arm.colour)] if _has_ends(points) else ()),
        chart.mark_point(filled=True, size=90, opacity=1).encode(x=across, y=up, **arm.colour, **arm.shape),
        chart.mark_point(size=HIT_AREA, opacity=0).encode(x=across, y=up, tooltip=tips),
    )


def capacity_chart(points: Sequence[Point], arms: Arms) -> alt.LayerChart:
    """Return the test score against trainable parameters for each target token; a line marks the rule of thumb.

    Args:
        points: from `capacity_points`.
        arms: the study's arms.
    """
    chart = alt.Chart(alt.NamedData(ROWS))
    whole = chart.transform_aggregate(n="count()")
    across = alt.X(
        "ratio:Q",
        title=f"trainable parameters per {targets_word(arms.summary).removesuffix('s')}",
        scale=scale_of("log", padding=24),
        axis=alt.Axis(format=".3~g", grid=False, tickCount=5, labelOverlap="greedy"),
    )
    up = alt.Y("score:Q", title=score_title(arms.summary.primary), scale=scale_of("linear", nice=False, padding=14))
    tips = [
        alt.Tooltip("arm:N"),
        alt.Tooltip("ratio:Q", title="parameters a token", format=".3~g"),
        alt.Tooltip("parameters:Q", title="trainable parameters", format=","),
        alt.Tooltip("tokens:Q", title=targets_word(arms.summary), format=","),
        *score_tips(arms.summary.primary),
    ]
    arm = arms.channels(arms_in(points))
    return finished(
        arms.look,
        280,
        whole.mark_rule(color=arms.look.muted, strokeDash=[5, 4], strokeWidth=1.5).encode(x=alt.XDatum(ENOUGH)),
        *whiskers(chart, points, across, arm.colour["color"]),
        chart.mark_point(filled=True, size=90, opacity=1).encode(x=across, y=up, **arm.colour, **arm.shape),
        chart.mark_point(size=HIT_AREA, opacity=0).encode(x=across, y=up, tooltip=tips),
        key="dashed: 2 bits a parameter, 1 bit a token",
    )


def _has_ends(points: Sequence[Point]) -> bool:
    return any(point["from"] is not None for point in points)


def figures_why(
    summary: Summary, explanation: Explanation, curves: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, alt.LayerChart]:
    """Return the explanation's charts that have something to show, by name, as figures for paper.

    Args:
        summary: what is known.
        explanation: when, why and how the arms differ.
        curves: the lines of each run's `curve.jsonl`.
    """
    arms = Arms(summary, PAPER)
    gaps, modules = gap_points(summary, explanation, curves), module_points(explanation)
    spectra, held = spectrum_points(explanation), held_points(explanation)
    forgot, capacity = forgetting_points(summary, explanation), capacity_points(summary, explanation)
    margin = explanation.loss_margin_nats
    return {
        **({"leaving": drawn(gap_chart(gaps, arms, margin), gaps)} if gaps else {}),
        **({"spectrum": drawn(spectrum_chart(spectra, arms), spectra)} if spectra else {}),
        **({"held": drawn(held_chart(held, arms), held)} if held else {}),
        **({"norms": drawn(module_chart(modules, arms, "norm"), modules)} if modules else {}),
        **({"intruders": drawn(module_chart(modules, arms, "intruders"), modules)} if modules else {}),
        **({"forgetting": drawn(forgetting_chart(forgot, arms), forgot)} if forgot else {}),
        **({"capacity": drawn(capacity_chart(capacity, arms), capacity)} if capacity else {}),
    }
