"""Charts of growth: one panel a measure, both scales logarithmic, the fitted exponent written beside each curve."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import vl_convert

from tuneoff.report.look import COLOURS, DASHES, FONT, PAPER, SHAPES

PANEL_WIDTH, PANEL_HEIGHT = 230, 210
PNG_SCALE = 2
ROOM = 0.32
"""How far the scale across goes beyond the last point, as a share of its length: the exponents stand there."""
MARGIN = 1.3
FEW = 6.0
"""Largest over smallest up to which an axis has ticks at every multiple of a power of ten."""
MANY = 2000.0
"""Largest over smallest from which an axis has ticks at powers of ten alone."""


def draw(
    figures: Sequence[Mapping[str, Any]], title: str, exponents: Mapping[tuple[str, str], float]
) -> dict[str, bytes]:
    """Return the chart of one axis as SVG and PNG.

    Args:
        figures: of `benchmarks.growth.Figure`, as mappings.
        title: of the axis.
        exponents: by measure and contender.
    """
    contenders = list(dict.fromkeys(one["contender"] for one in figures))
    measures = list(dict.fromkeys(one["measure"] for one in figures))
    panels = [
        panel([one for one in figures if one["measure"] == name], title, exponents, contenders) for name in measures
    ]
    config = alt.Config(
        background=PAPER.background,
        font=FONT,
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(
            labelColor=PAPER.muted, titleColor=PAPER.ink, gridColor=PAPER.line, domain=False, tickColor=PAPER.line,
            labelFontSize=12, titleFontSize=12, titleFontWeight="normal",
        ),
        legend=alt.LegendConfig(labelColor=PAPER.ink, labelFontSize=12, orient="top", title=None, symbolSize=80),
    )  # fmt: skip
    chart = alt.hconcat(*panels, config=config, spacing=28).properties(padding=12)
    body = chart.to_dict()
    return {
        "svg": vl_convert.vegalite_to_svg(body).encode(),
        "png": vl_convert.vegalite_to_png(body, scale=PNG_SCALE),
    }


def panel(
    points: Sequence[Mapping[str, Any]],
    title: str,
    exponents: Mapping[tuple[str, str], float],
    contenders: Sequence[str],
) -> alt.LayerChart:
    """Return one measure's curves."""
    measure = points[0]["measure"]
    values = sorted({one["value"] for one in points})
    lowest, highest = min(one["low"] for one in points) / MARGIN, max(one["high"] for one in points) * MARGIN
    ends = {
        name: max((one for one in points if one["contender"] == name), key=_value, default=None) for name in contenders
    }
    labels = sorted((one for one in ends.values() if one is not None), key=lambda one: one["median"])
    across = alt.X(
        "value:Q",
        title=title,
        scale=alt.Scale(type="log", domain=[values[0], values[-1] * (values[-1] / values[0]) ** ROOM], nice=False),
        axis=alt.Axis(values=values, format=",d", labelOverlap="greedy"),
    )
    up = alt.Y(
        "median:Q",
        title=measure,
        scale=alt.Scale(type="log", domain=[lowest, highest], nice=False),
        axis=alt.Axis(values=_ticks(lowest, highest), format="~g"),
    )
    ranges = {"color": COLOURS, "shape": SHAPES, "strokeDash": [list(dash) for dash in DASHES]}
    colour, shape, dash = (
        alt.Scale(domain=list(contenders), range=list(kinds[: len(contenders)])) for kinds in ranges.values()
    )
    coloured = alt.Color("contender:N", scale=colour)
    chart = alt.Chart(alt.Data(values=[dict(one) for one in points]))
    layers = [
        chart.mark_rule(strokeWidth=2).encode(x=across, y=alt.Y("low:Q", title=measure), y2="high:Q", color=coloured),
        chart.mark_line(strokeWidth=2).encode(
            x=across, y=up, color=coloured, strokeDash=alt.StrokeDash("contender:N", scale=dash, legend=None)
        ),
        chart.mark_point(filled=True, size=60, opacity=1).encode(
            x=across, y=up, color=coloured, shape=alt.Shape("contender:N", scale=shape)
        ),
    ]
    for place, one in enumerate(labels):  # from the lowest to the highest, so that close ones make way
        if (measure, one["contender"]) in exponents:
            text = f"power {exponents[measure, one['contender']]:.2f}"
            layers.append(
                alt.Chart(alt.Data(values=[dict(one) | {"text": text}]))
                .mark_text(align="left", dx=8, dy=0 if len(labels) == 1 else 7 - 14 * place, fontSize=11)
                .encode(x=across, y=up, text="text:N", color=coloured)
            )
    layered: alt.LayerChart = alt.layer(*layers).properties(width=PANEL_WIDTH, height=PANEL_HEIGHT)
    return layered.resolve_legend(strokeDash="independent")


def _value(one: Mapping[str, Any]) -> int:
    value: int = one["value"]
    return value


def _ticks(lowest: float, highest: float) -> list[float]:
    """Return the ticks of a logarithmic axis: powers of ten, 1, 2 and 5 times those, or all of their multiples."""
    powers = range(math.floor(math.log10(lowest)), math.ceil(math.log10(highest)) + 1)
    ratio = highest / lowest
    steps = tuple(range(1, 10)) if ratio < FEW else (1, 2, 5) if ratio < MANY else (1,)
    return [step * 10.0**power for power in powers for step in steps if lowest <= step * 10.0**power <= highest]
