"""The chart of differences: every arm held against the best, or against full fine-tuning."""

from collections.abc import Sequence

import altair as alt

from tuneoff.analysis.comparison import Outcome
from tuneoff.report.chart_parts import HIT_AREA, ROWS, scale_of
from tuneoff.report.look import Arms, finished
from tuneoff.report.points import Point
from tuneoff.report.text import clean

OUTCOME_SHAPES: dict[Outcome, str] = {
    "better": "triangle-up",
    "equivalent": "circle",
    "undecided": "cross",
    "worse": "triangle-down",
}
ROW = 30
"""Pixels of an arm's row."""


def forest_chart(points: Sequence[Point], arms: Arms, *, reference: int = 0) -> alt.LayerChart:
    """Return each arm's difference to one of them with its 95 % interval; what counts as equal is shaded.

    The shape says the outcome, the place on the left the arm, in the order of the ranking.

    Args:
        points: from `difference_points`.
        arms: the study's arms.
        reference: which of the arms that others are held against.
    """
    summary = arms.summary
    own = [point for point in points if point["reference"] == reference]
    other = clean(own[0]["other"])
    chart = alt.Chart(alt.NamedData(ROWS)).transform_filter(f"datum.reference == {reference}")
    whole = chart.transform_aggregate(n="count()")  # one row, where a row for each arm would shade one upon another
    primary = summary.primary
    worse = "right is worse" if primary.is_loss else "left is worse"
    title = [f"test {clean(primary.label)} minus that of {other}", f"{primary.unit}{primary.unit and '; '}{worse}"]
    scale = scale_of("linear", nice=False, padding=16)
    across = alt.X("difference:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5))
    up = alt.Y(
        "arm:N",
        sort=[point["arm"] for point in own],
        title=None,
        axis=alt.Axis(labelLimit=170, labelColor=arms.look.ink, grid=False, ticks=False, labelPadding=10),
    )
    colour = alt.Color("arm:N", scale=arms.line_colours(), legend=None)
    outcomes = [outcome for outcome in OUTCOME_SHAPES if any(point["outcome"] == outcome for point in own)]
    shape = alt.Shape(
        "outcome:N",
        scale=alt.Scale(domain=outcomes, range=[OUTCOME_SHAPES[outcome] for outcome in outcomes]),
        legend=alt.Legend(
            title=None, orient="top", symbolFillColor=arms.look.muted, symbolStrokeWidth=0, symbolOpacity=1
        ),
    )
    form = f"+.{primary.decimals + 1}f"
    tips = [
        alt.Tooltip("arm:N"),
        alt.Tooltip("other:N", title="against"),
        alt.Tooltip("outcome:N"),
        alt.Tooltip("difference:Q", format=form),
        alt.Tooltip("low:Q", title="95 % from", format=form),
        alt.Tooltip("high:Q", title="95 % to", format=form),
    ]
    spread = chart.transform_filter("isValid(datum.low)").mark_rule(strokeWidth=2)
    band = whole.mark_rect(color=arms.look.muted, opacity=0.16)
    return finished(
        arms.look,
        ROW * len(own),
        *([band.encode(x=alt.XDatum(-summary.margin), x2=alt.X2Datum(summary.margin))] if summary.margin else ()),
        whole.mark_rule(color=arms.look.muted, strokeWidth=1).encode(x=alt.XDatum(0)),
        *([spread.encode(x=alt.X("low:Q"), x2="high:Q", y=up, color=colour)] if _has_spread(own) else ()),
        chart.mark_point(filled=True, size=90, opacity=1).encode(x=across, y=up, color=colour, shape=shape),
        chart.mark_point(size=HIT_AREA, opacity=0).encode(x=across, y=up, tooltip=tips),
        key="shaded: within the margin",
    )


def _has_spread(points: Sequence[Point]) -> bool:
    return any(point["low"] is not None for point in points)
