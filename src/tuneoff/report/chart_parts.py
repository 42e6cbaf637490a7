"""What charts are made of: scales, intervals, tooltips, and the one data set that each is drawn from."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt

from tuneoff.analysis.measures import Measure
from tuneoff.analysis.values import Summary
from tuneoff.report.look import Look
from tuneoff.report.points import Point
from tuneoff.report.text import clean

ROWS = "rows"
"""Name of the data set that a chart is drawn from. It is given beside the chart, so that variants share it."""

Across = Literal["step", "tokens"]
Axis = Literal["linear", "log"]

HIT_AREA = 420
"""Square pixels around a point that show its tooltip: a fingertip's worth."""


def targets_word(summary: Summary) -> str:
    """Return what a run is trained on, as its curve counts it."""
    return "training examples" if summary.kind == "classification" else "target tokens"


def score_title(measure: Measure) -> str:
    """Return the title of an axis of test scores."""
    return f"test {clean(measure.label)}{measure.unit and ', '}{measure.unit}"


def score_tips(measure: Measure) -> list[alt.Tooltip]:
    """Return what a tooltip says of a test score."""
    form = f".{measure.decimals + 1}f"
    return [
        alt.Tooltip("score:Q", title=f"test {clean(measure.label)}", format=form),
        alt.Tooltip("low:Q", title="95 % from", format=form),
        alt.Tooltip("high:Q", title="95 % to", format=form),
    ]


def whiskers(chart: alt.Chart, points: Sequence[Point], across: alt.X, colour: alt.Color) -> tuple[alt.Chart, ...]:
    """Return the intervals of the scores; nothing where there are none, since Vega warns of a layer without points."""
    if all(point["low"] is None for point in points):
        return ()
    drawn = chart.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2)
    return (drawn.encode(x=across, y=alt.Y("low:Q"), y2="high:Q", color=colour),)


def has(points: Sequence[Point], **fields: Any) -> bool:
    """Return whether a point has these values."""
    return any(all(point.get(key) == value for key, value in fields.items()) for point in points)


def drawn(chart: alt.LayerChart, points: Sequence[Point]) -> alt.LayerChart:
    """Return the chart with its data in it."""
    return chart.properties(datasets={ROWS: list(points)})


def scale_of(kind: Axis, *, nice: bool = True, padding: int = 0) -> alt.Scale:
    """Return a scale that need not hold zero, with some pixels around the points."""
    if kind == "linear":
        return alt.Scale(type=kind, zero=False, nice=nice, padding=padding)
    # Whole powers of ten would press losses between 2 and 3 into a sixth of the chart. `zero` would be warned of.
    return alt.Scale(type=kind, nice=False, padding=max(padding, 8))


def nearest(chart: alt.Chart, look: Look, fields: Mapping[str, tuple[str, str]]) -> alt.Chart:
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
    # Said by its class, here and elsewhere: of a plain mapping Altair looks through its schema for what it may be.
    opacity = alt.OpacityValue(0, condition=[{"param": "near", "value": 1, "empty": False}])
    ringed: alt.Chart = mark.encode(opacity=opacity).add_params(near)
    return ringed
