"""Scores of saved predictions as a table for the terminal."""

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuneoff.evaluation.scoring import Scored, Scoring
from tuneoff.report.numbers import NONE
from tuneoff.report.text import clean


def score_table(scoring: Scoring) -> RenderableType:
    """Return what was scored, and the scores: a row for each metric, a column for each decoding strategy.

    Where items have several samples, the best of them and their diversity follow the means.
    """
    noun = "classes" if scoring.kind == "classification" else "texts"
    lines = [
        f"predictions: {scoring.predictions}",
        f"references: {scoring.references}",
        f"scored as {noun}, matched by {scoring.matched_by}",
        *scoring.notes,
    ]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("metric", no_wrap=True)
    for scored in scoring.scores:
        table.add_column(Text(clean(scored.decoding or "score")), justify="right", no_wrap=True)
    columns = [_cells(scored) for scored in scoring.scores]
    for name in dict.fromkeys(name for cells in columns for name in cells):
        table.add_row(Text(clean(name)), *(cells.get(name, NONE) for cells in columns))
    return Group(*(Text(clean(line)) for line in lines), table)


def _cells(scored: Scored) -> dict[str, str]:
    cells = {name: f"{value:.2f}" for name, value in scored.metrics.items()}
    if scored.num_samples > 1:
        cells |= {
            f"{name}, best of {scored.num_samples}": f"{value:.2f}" for name, value in (scored.best_of_n or {}).items()
        }
        cells |= {"distinct-1": f"{scored.distinct_1:.3f}", "distinct-2": f"{scored.distinct_2:.3f}"}
    return cells
