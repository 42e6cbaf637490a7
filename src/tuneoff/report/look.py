"""How charts look: colours, shapes and dashes of the arms, type, and where a chart is shown.

Colours are those of Okabe and Ito (2008), which people with any colour vision tell apart; yellow is left out, since it
vanishes on white. Shapes and dashes differ too, so that nothing is said by colour alone.
"""

from dataclasses import dataclass
from typing import Literal

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

    def colour(self, name: str) -> str:
        """Return the colour of an arm."""
        return self.look.colours[self.names.index(name) % len(self.look.colours)]

    def shape(self, name: str) -> str:
        """Return the shape of an arm's points."""
        return SHAPES[self.names.index(name) % len(SHAPES)]

    def dash(self, name: str) -> list[int]:
        """Return the dashes of an arm's line."""
        return list(DASHES[self.names.index(name) % len(DASHES)])

    def channels(self) -> Channels:
        """Return the encodings of the arm."""
        legend = self.legend() if self.look.has_legend else None
        colours, shapes, dashes = (
            alt.Scale(domain=self.names, range=[style(name) for name in self.names])
            for style in (self.colour, self.shape, self.dash)
        )
        return Channels(
            colour={"color": alt.Color("arm:N", scale=colours, legend=legend)},
            shape={"shape": alt.Shape("arm:N", scale=shapes, legend=legend)},
            dash={"strokeDash": alt.StrokeDash("arm:N", scale=dashes, legend=None)},
        )

    def legend(self) -> alt.Legend:
        """Return a legend below the chart, in as many columns as fit."""
        longest = max((len(name) for name in self.names), default=0)
        columns = 3 if longest <= 14 else 2 if longest <= 24 else 1
        return alt.Legend(title=None, orient="bottom", columns=columns, symbolOpacity=1, symbolStrokeWidth=0)

    def colour_with_bases(self) -> alt.Color:
        """Return the colour of the arm, where those that are not trained are drawn as well: they are grey."""
        bases = [arm.name for arm in self.summary.arms if not arm.is_trained]
        colours = [*map(self.colour, self.names), *(self.look.muted for _ in bases)]
        scale = alt.Scale(domain=[*self.names, *bases], range=colours)
        return alt.Color("arm:N", scale=scale, legend=self.legend() if self.look.has_legend else None)


def finished(look: Look, height: int, *layers: alt.Chart | alt.LayerChart) -> alt.LayerChart:
    """Return the layers as one chart of `height` pixels, in the type and the colours of the look."""
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
            titleFontSize=12,
            titleFontWeight="normal",
            titlePadding=10,
        ),
        legend=alt.LegendConfig(labelColor=look.ink, labelFontSize=12, symbolSize=80, labelLimit=340),
    )
    return alt.LayerChart(layer=list(layers), config=config, width=look.width, height=height)
