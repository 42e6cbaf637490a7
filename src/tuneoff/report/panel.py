"""A chart on the page: what it can be switched to, its picture, its data, and the numbers behind it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert
from markupsafe import Markup

from tuneoff.report.chart_parts import ROWS
from tuneoff.report.drawing import why_not_drawn
from tuneoff.report.points import Point, arms_in
from tuneoff.report.text import clean

WIDE, HALF, NARROW = 1080, 520, 320
"""Pixels of a chart's picture; where there is less room the browser shrinks it."""

MAX_PICTURE_ARMS = 24
"""More than that nobody tells apart on a picture that cannot be worked with, and they would make the page heavy."""

_PATHS = re.compile(r'(?<= )(?:d|transform)="[^"<>]*"')
_DECIMALS = re.compile(r"\d+\.\d{2,}")


@dataclass(frozen=True)
class Control:
    """A choice above a chart."""

    label: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Numbers:
    """The numbers behind a chart, as a table: for screen readers, and for whoever wants them."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: frozenset[int] = frozenset({0})
    """Places of the columns that hold text."""


@dataclass(frozen=True)
class Panel:
    """A chart on the page, or several side by side, under one heading.

    Args:
        key: its id on the page.
        label: what it shows, for those who do not see it.
        variants: the chart for each combination of choices, in the order of `itertools.product`; they share the data.
        points: the data.
        width: pixels of its picture.
        controls: the choices.
        title: its heading, where the page has none of its own for it.
        note: how to read it, in a sentence or two.
    """

    key: str
    label: str
    variants: tuple[alt.LayerChart, ...]
    points: Sequence[Point]
    width: int = WIDE
    controls: tuple[Control, ...] = ()
    title: str = ""
    note: str = ""

    def picture(self) -> Markup:
        """Return the first variant as SVG, for where JavaScript is off. Vega escapes the texts in it."""
        if len(arms_in(self.points)) > MAX_PICTURE_ARMS:
            return Markup("<p>This chart is drawn where JavaScript is on.</p>")
        if why := why_not_drawn():
            return Markup("<p>Not drawn: {}</p>").format(why)
        spec = _spec(self.variants[0]) | {"width": self.width}
        spec["data"] = {"name": ROWS, "values": [_tidy(point) for point in self.points]}
        # A label on every mark would double the page; the figure has one, and the numbers are in a table.
        spec["config"]["aria"] = False
        return Markup(_PATHS.sub(_shortened, vl_convert.vegalite_to_svg(spec)))

    def data(self) -> dict[str, Any]:
        """Return what the page's script draws it from."""
        return {"points": _columns(self.points), "variants": [_spec(chart) for chart in self.variants]}


def _shortened(attribute: re.Match[str]) -> str:
    """Return a path with a tenth of a pixel's precision; Vega gives it to the last bit."""
    return _DECIMALS.sub(lambda number: f"{float(number[0]):.1f}", attribute[0])


def _spec(chart: alt.LayerChart) -> dict[str, Any]:
    # Checking a chart against the schema takes longer than all the rest; the charts are ours, and the tests check them.
    spec: dict[str, Any] = chart.to_dict(validate=False)
    seen = set()
    for layer in spec["layer"]:
        for channel in {"color", "shape", "strokeDash"} & set(layer.get("encoding", {})):
            # Layers share their scales, so a scale that names every arm needs to be given once.
            if channel in seen:
                layer["encoding"][channel].pop("scale", None)
            seen.add(channel)
    return spec


def _columns(points: Sequence[Point]) -> dict[str, list[Any]]:
    """Return the points column by column, each name said once: thousands of points make half a page otherwise."""
    rows = [_tidy(point) for point in points]
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _tidy(point: Point) -> Point:
    """Return the point with its texts cleaned, without what is empty or not drawn."""
    return {
        key: clean(value) if isinstance(value, str) else value
        for key, value in point.items()
        if value not in (None, "") and not isinstance(value, dict)
    }
