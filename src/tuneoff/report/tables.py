"""The main table in the terminal and in files: rich, Markdown, CSV, JSON."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from tuneoff.analysis.values import ArmSummary, Summary
from tuneoff.report import columns as col
from tuneoff.report import numbers
from tuneoff.report.columns import Cell, Column, Raw
from tuneoff.report.text import clean, markdown, spreadsheet
from tuneoff.study.records import Record, TestRecord
from tuneoff.study.spec import Study
from tuneoff.study.value import plain

_METHOD_TABLE = (
    col.NAME,
    col.RANK,
    col.ALPHA,
    col.DROPOUT,
    col.RATE,
    col.TRAINABLE,
    col.TOTAL,
    col.SHARE,
    col.REDUCTION,
)
_RESULT_TABLE = (col.NAME, col.SEEDS, col.LOSS, col.PERPLEXITY, col.BITS, col.VALIDATION)
_COST_TABLE = (col.NAME, *col.COST_COLUMNS)
_WITH_INTERVAL = {col.LOSS.key: numbers.loss_interval, col.PERPLEXITY.key: numbers.perplexity_interval}


class StudyTable:
    """The study's tables, which fit themselves to the width of the terminal: three narrow ones, or a single wide one.

    Args:
        summary: what is known.
    """

    def __init__(self, summary: Summary) -> None:
        self.summary = summary

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(progress(self.summary), style="dim")
        best = self.summary.ranking[0] if self.summary.ranking else ""
        wide = rich_table(col.COLUMNS, self.summary.ranked, best)
        fits = console.measure(wide, options=options.update(max_width=10_000)).maximum <= options.max_width
        yield from [wide] if fits else self._narrow(best)
        yield Text("")
        yield Text(clean(self.summary.verdict), style="bold")
        for caveat in self.summary.caveats:
            yield Text(f"- {clean(caveat)}")

    def _narrow(self, best: str) -> Iterable[RenderableType]:
        arms = self.summary.ranked
        yield rich_table(_RESULT_TABLE, arms, best, title="Results on the test split")
        yield rich_table(_METHOD_TABLE, arms, best, title="Methods")
        targets = {arm.name: col.TARGETS.cell(arm).text for arm in arms if col.TARGETS.cell(arm).raw}
        for shown in dict.fromkeys(targets.values()):
            names = [name for name, text in targets.items() if text == shown]
            yield Text(clean(f"targets of {', '.join(names)}: {shown}"), style="dim")
        if any(arm.costs for arm in arms):
            yield rich_table(_COST_TABLE, arms, best, title="Costs (medians over seeds)")


def study_table(summary: Summary) -> RenderableType:
    """Return the study's tables and its verdict for a terminal of any width."""
    return StudyTable(summary)


def progress(summary: Summary) -> str:
    """Return how far the study is: `3 of 12 runs done, 1 infeasible`."""
    lost = f", {summary.num_infeasible} infeasible" if summary.num_infeasible else ""
    return f"{summary.num_done} of {summary.num_wanted} runs done{lost}"


def rich_table(shown: Sequence[Column], arms: Sequence[ArmSummary], best: str, title: str = "") -> Table:
    """Return a table for the terminal. Text is never read as markup, and control characters are taken out.

    Args:
        shown: the columns.
        arms: the rows.
        best: name of the arm with the lowest test loss, which is set in bold.
        title: what stands above it.
    """
    table = Table(
        title=title or None,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
        collapse_padding=True,
        title_style="bold",
    )
    for column in shown:
        # A long name may break; a number may not.
        justify: Literal["left", "right"] = "right" if column.is_number else "left"
        table.add_column(Text(column.heading), justify=justify, no_wrap=column.is_number, overflow="fold")
    for arm in arms:
        cells = [Text(clean(shown_with_interval(column, arm))) for column in shown]
        table.add_row(*cells, style="bold green" if arm.name == best else None)
    return table


def shown_with_interval(column: Column, arm: ArmSummary) -> str:
    """Return the cell as people read it, with its interval behind it for the loss and the perplexity."""
    cell = column.cell(arm)
    write = _WITH_INTERVAL.get(column.key)
    return cell.text if write is None or cell.estimate is None else write(cell.estimate)


def rows(summary: Summary) -> list[dict[str, Raw]]:
    """Return the table as one mapping per arm, full precision, ends of intervals beside their values."""
    return [
        {key: value for column in col.COLUMNS for key, value in _fields(column, column.cell(arm)).items()}
        for arm in summary.ranked
    ]


def _fields(column: Column, cell: Cell) -> dict[str, Raw]:
    if column.group != "results" or not column.is_number:
        return {column.key: cell.raw}
    ends = cell.estimate
    return {
        column.key: cell.raw,
        f"{column.key}_low": None if ends is None else ends.low,
        f"{column.key}_high": None if ends is None else ends.high,
        f"{column.key}_n": None if ends is None else ends.n,
    }


def to_csv(summary: Summary) -> str:
    """Return the rows as CSV (RFC 4180: CRLF, quotes doubled), with text that would run as a formula made harmless."""
    buffer = io.StringIO()
    table = rows(summary)
    writer = csv.DictWriter(buffer, fieldnames=list(table[0]), lineterminator="\r\n")
    writer.writeheader()
    for row in table:
        writer.writerow({key: spreadsheet(value) if isinstance(value, str) else value for key, value in row.items()})
    return buffer.getvalue()


def to_markdown(summary: Summary) -> str:
    """Return the verdict and the table as Markdown."""
    arms = summary.ranked
    candidates = (col.NAME, *col.RESULT_COLUMNS, col.FLAGS, *col.METHOD_COLUMNS, *col.COST_COLUMNS)
    shown = [column for column in candidates if any(column.cell(arm).raw is not None for arm in arms)]
    lines = [f"# {markdown(summary.study)}", "", f"**{markdown(summary.verdict)}**", "", f"{progress(summary)}.", ""]
    lines += [f"- {markdown(caveat)}" for caveat in summary.caveats]
    lines += [""] if summary.caveats else []
    lines.append("| " + " | ".join(markdown(column.heading) for column in shown) + " |")
    lines.append("|" + "|".join("---:" if column.is_number else "---" for column in shown) + "|")
    for arm in arms:
        cells = (markdown(shown_with_interval(column, arm)) for column in shown)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def to_json(
    study: Study, summary: Summary, records: Mapping[str, Record], tests: Mapping[str, TestRecord]
) -> dict[str, Any]:
    """Return the study, what is known of it, the table's rows and every run's scores, as JSON types.

    Args:
        study: the question.
        summary: what is known.
        records: finished runs by `run_id`.
        tests: the readings of the test split by `run_id`.
    """
    runs = [
        _run(arm, records[run_id], tests.get(run_id))
        for arm in summary.arms
        for run_id in arm.run_ids
        if run_id in records
    ]
    return {
        "version": 1,
        "study": plain(study),
        "summary": summary.model_dump(mode="json"),
        "rows": rows(summary),
        "runs": runs,
    }


def _run(arm: ArmSummary, record: Record, test: TestRecord | None) -> dict[str, Any]:
    return {
        "run_id": record.run_id,
        "arm": arm.name,
        "lr": record.run.lr,
        "seed": record.run.seed,
        "status": record.status,
        "reason": record.reason,
        "validation": None if record.validation is None else plain(record.validation),
        "test": None if test is None else plain(test.test),
    }
