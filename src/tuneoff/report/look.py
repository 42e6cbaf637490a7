"""How charts look: colours, shapes and dashes of the arms, type, and where a chart is shown.

Colours are those of Okabe and Ito (2008), which people with any colour vision tell apart; yellow is left out, since it
vanishes on white. Shapes and dashes differ too, so that nothing is said by colour alone.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt

from tuneoff.analysis.values import Summary

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
DASHES = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3), (4, 2))
"""The three counts share no factor, so the first 210 arms differ from one another."""

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True)
class Look:
    """What a chart takes from where it is shown: colours, width in pixels, and whether it carries its own legend."""

    colours: tuple[str, ...]
    """Of the arms, in turn."""
    ink: str
    muted: str
    line: str
    background: str
    width: int | Literal["container"]
    has_legend: bool


PAGE = Look(
    colours=tuple(f"var(--arm{place})" for place in range(len(COLOURS))),
    ink="var(--ink)",
    muted="var(--muted)",
    line="var(--line)",
    background="transparent",
    width="container",
    has_legend=False,
)
"""On the page, whose style sheet knows whether it is dark or light."""
PAPER = Look(
    colours=COLOURS, ink="#1b1f24", muted="#5b6470", line="#e3e6ea", background="#ffffff", width=360, has_legend=True
)
"""In a file. So narrow that at the width of a paper's column (84 mm) its type is still 7 points high."""


@dataclass(frozen=True)
class Channels:
    """How a mark shows which arm it belongs to, ready to be passed to `encode`."""

    colour: dict[str, alt.Color]
    shape: dict[str, alt.Shape]
    dash: dict[str, alt.StrokeDash]


class Arms:
    """The trained arms of a study, so that each keeps its colour, shape and dash in every chart.

    Args:
        summary: what is known of the study.
        look: where its charts are shown.
    """

    def __init__(self, summary: Summary, look: Look) -> None:
        self.look = look
        self.summary = summary
        self.names = [arm.name for arm in summary.arms if arm.is_trained]
        self._places = {name: place for place, name in enumerate(self.names)}
        self.bases = [arm.name for arm in summary.arms if not arm.is_trained]

    def colour(self, name: str) -> str:
        """Return the colour of an arm; grey for one that is not trained."""
        if name in self.bases:
            return self.look.muted
        return self.look.colours[self._places[name] % len(self.look.colours)]

    def shape(self, name: str) -> str:
        """Return the shape of an arm's points."""
        return SHAPES[0] if name in self.bases else SHAPES[self._places[name] % len(SHAPES)]

    def dash(self, name: str) -> list[int]:
        """Return the dashes of an arm's line."""
        return list(DASHES[0] if name in self.bases else DASHES[self._places[name] % len(DASHES)])

    def channels(self, names: Sequence[str] = ()) -> Channels:
        """Return the encodings of the arm.

        Args:
            names: arms that are drawn, which may be untrained ones; none is every trained one.
        """
        drawn = list(names or self.names)
        legend = self.legend() if self.look.has_legend else None
        colours, shapes, dashes = (_scale(drawn, style) for style in (self.colour, self.shape, self.dash))
        return Channels(
            colour={"color": alt.Color("arm:N", scale=colours, legend=legend)},
            shape={"shape": alt.Shape("arm:N", scale=shapes, legend=legend)},
            dash={"strokeDash": alt.StrokeDash("arm:N", scale=dashes, legend=None)},
        )

    def lines(self) -> tuple[alt.Color, alt.StrokeDash]:
        """Return the colour and the dash of every arm, those that are not trained too, where shapes say something else.

        The legend shows lines, since colours alone begin again after a few arms.
        """
        names = [*self.names, *self.bases]
        legend = self.legend(symbolType="stroke", symbolStrokeWidth=2, symbolSize=260) if self.look.has_legend else None
        colours = self.line_colours()
        dashes = _scale(names, self.dash)
        return alt.Color("arm:N", scale=colours, legend=legend), alt.StrokeDash("arm:N", scale=dashes, legend=legend)

    def line_colours(self) -> alt.Scale:
        """Return the colour of every arm, those that are not trained too."""
        names = [*self.names, *self.bases]
        return _scale(names, self.colour)

    def legend(self, **symbols: Any) -> alt.Legend:
        """Return a legend below the chart, in as many columns as fit.

        Args:
            **symbols: how its symbols look; points by default.
        """
        longest = max(map(len, self.names), default=0)
        columns = 3 if longest <= 14 else 2 if longest <= 24 else 1
        look = {"symbolOpacity": 1, "symbolStrokeWidth": 0} | symbols
        return alt.Legend(title=None, orient="bottom", columns=columns, **look)


def _scale(names: Sequence[str], style: Callable[[str], Any]) -> alt.Scale:
    """Return the scale of what tells arms apart; as tuples, which Altair does not copy with each layer that has it."""
    return alt.Scale(domain=tuple(names), range=tuple(style(name) for name in names))


def finished(look: Look, height: int, *layers: alt.Chart | alt.LayerChart, key: str = "") -> alt.LayerChart:
    """Return the layers as one chart in the type and the colours of the look.

    Args:
        look: where it is shown.
        height: in pixels.
        *layers: from the back to the front.
        key: what its marks mean; set above a chart that stands alone.
    """
    config = alt.Config(
        background=look.background,
        font=FONT,
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(
            labelColor=look.muted,
            titleColor=look.muted,
            gridColor=look.line,
            domain=False,
            tickColor=look.line,
            labelFontSize=12,
            labelPadding=6,
            labelSeparation=6,
            titleFontSize=12,
            titleFontWeight="normal",
            titlePadding=10,
        ),
        # Half a number at the edge of a phone reads as another number.
        axisX=alt.AxisConfig(labelBound=4),
        legend=alt.LegendConfig(labelColor=look.ink, labelFontSize=12, symbolSize=80, labelLimit=340),
    )
    chart = alt.LayerChart(layer=list(layers), config=config, width=look.width, height=height)
    if not (key and look.has_legend):
        return chart
    title = alt.TitleParams(text=key, anchor="start", fontSize=12, fontWeight="normal", color=look.muted, offset=10)
    return chart.properties(title=title)
