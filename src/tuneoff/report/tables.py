"""The main table in the terminal and in files: rich, Markdown, CSV, JSON."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic_core import to_json as write_json
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from tuneoff.analysis.explanation import NOTHING, Explanation
from tuneoff.analysis.progress import current_tests
from tuneoff.analysis.values import ArmSummary, Summary
from tuneoff.report import columns as col
from tuneoff.report.auditing import audit_line, comparable
from tuneoff.report.columns import ArmColumn, Cell, Column, Raw, Row, columns_of, shown_columns
from tuneoff.report.comparisons import against, comparison_fields, comparison_tables, comparisons_markdown
from tuneoff.report.decoding import Texts, decoding_columns, decoding_rows, narrow_columns, texts_note, texts_of
from tuneoff.report.drawn import MAX_ARMS, WHICH, drawn_part
from tuneoff.report.explaining import explanation_fields, explanation_lines, explanation_markdown
from tuneoff.report.text import clean, markdown, spreadsheet
from tuneoff.study.records import Record, TestRecord
from tuneoff.study.spec import Study

_PLAIN_METHODS = ("none", "full", "lora", "load")
"""Methods that a rank, or its lack, and the arm's name tell well enough apart where there is little room."""


class StudyTable:
    """The study's tables, which fit themselves to the width of the terminal: three narrow ones, or a single wide one.

    Of a study of hundreds of arms they list those that a page draws.

    Args:
        summary: what is known.
        explanation: when, why and how the arms differ.
    """

    def __init__(self, summary: Summary, explanation: Explanation = NOTHING) -> None:
        self.summary = summary
        self.part, self.explanation, _ = drawn_part(summary, explanation)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        def fits(table: Table) -> bool:
            unlimited = options.update(max_width=10_000)
            return console.measure(table, options=unlimited).maximum <= options.max_width

        yield Text(progress(self.summary), style="dim")
        wide = self._table(columns_of(self.summary).all)
        yield from [wide] if fits(wide) else self._narrow(fits)
        yield from self._texts(fits)
        yield from comparison_tables(self.summary, self.part)
        yield from explanation_lines(self.summary, self.explanation)
        if len(self.part.arms) < len(self.summary.arms):
            listed = f"Listed are {len(self.part.arms)} of {len(self.summary.arms)} arms: {WHICH}."
            yield Text(f"\n{listed} A report's files have all.", style="dim")
        yield Text("")
        yield Text(clean(self.summary.verdict), style="bold")
        yield Text(audit_line(self.summary.audit), style="dim")
        for caveat in self.summary.caveats:
            yield Text(f"- {clean(caveat)}")

    def _table(self, shown: Sequence[ArmColumn], title: str = "") -> Table:
        best = self.summary.ranking[0] if self.summary.ranking else ""
        return rich_table(shown, self.part.ranked, lambda arm: arm.name == best, title)

    def _narrow(self, fits: Callable[[Table], bool]) -> Iterator[RenderableType]:
        arms, found = self.part.ranked, columns_of(self.summary)
        scores = [column for column in found.scores if column is not col.SEQUENCE_PERPLEXITY]
        losses = [column for column in scores if column.key not in found.metric_keys]
        metrics = [column for column in scores if column.key in found.metric_keys]
        yield from self._fitted(
            fits,
            "Results on the test split",
            (col.SEEDS, *scores, found.validation),
            (col.SEEDS, *metrics),
            (col.SEEDS, *losses, found.validation),
        )
        named = any(arm.method.method not in _PLAIN_METHODS for arm in arms)
        left_out = (col.TARGETS,) if named else (col.TARGETS, col.METHOD)
        methods = [column for column in found.method if column not in left_out]
        settings = [column for column in methods if column not in col.COUNT_COLUMNS]
        yield from self._fitted(fits, "Methods", methods, settings, col.COUNT_COLUMNS)
        targets = {arm.name: col.TARGETS.cell(arm).text for arm in arms if col.TARGETS.cell(arm).raw}
        for shown in dict.fromkeys(targets.values()):
            names = [name for name, text in targets.items() if text == shown]
            yield Text(clean(f"targets of {', '.join(names)}: {shown}"), style="dim")
        if any(arm.costs for arm in arms):
            foretold = [column for column in found.costs if column in col.PREDICTED.values()]
            measured = [column for column in found.costs if column not in foretold]
            yield from self._fitted(fits, col.costs_title(self.summary), found.costs, measured, foretold)

    def _fitted(
        self, fits: Callable[[Table], bool], title: str, whole: Sequence[ArmColumn], *parts: Sequence[ArmColumn]
    ) -> Iterator[Table]:
        """Yield one table where it fits or cannot be parted, else one for each part."""
        table = self._table((col.NAME, *whole), title)
        if fits(table) or not all(set(part) - {col.SEEDS} for part in parts):
            yield table
        else:
            yield from (self._table((col.NAME, *part), title if not place else "") for place, part in enumerate(parts))

    def _texts(self, fits: Callable[[Table], bool]) -> Iterator[RenderableType]:
        """Yield the table of decoding strategies; where there is little room, the scores and the rest apart."""
        rows = texts_of(self.part)
        if not rows:
            return
        best = self.summary.ranking[0] if self.summary.ranking else ""

        def table(shown: Sequence[Column[Texts]], title: str = "") -> Table:
            return rich_table(shown, rows, lambda row: row.name == best, title)

        title = "Decoding: scores and diversity of texts"
        wide = table(decoding_columns(self.summary), title)
        if fits(wide):
            yield wide
        else:
            scores, texts = narrow_columns(self.summary)
            yield from (table(scores, title), table(texts))
        yield Text(clean(texts_note(self.summary)), style="dim")


def study_table(summary: Summary, explanation: Explanation = NOTHING) -> RenderableType:
    """Return the study's tables and its verdict for a terminal of any width."""
    return StudyTable(summary, explanation)


def progress(summary: Summary) -> str:
    """Return how far the study is: `3 of 12 runs done, 1 infeasible, 2 stopped early`."""
    lost = f", {summary.num_infeasible} infeasible" if summary.num_infeasible else ""
    stopped = f", {summary.num_pruned} stopped early" if summary.num_pruned else ""
    return f"{summary.num_done} of {summary.num_wanted} runs done{lost}{stopped}"


def rich_table(
    shown: Sequence[Column[Row]], rows: Sequence[Row], is_best: Callable[[Row], bool], title: str = ""
) -> Table:
    """Return a table for the terminal. Text is never read as markup, and control characters are taken out.

    Args:
        shown: the columns.
        rows: what each row shows, such as an arm.
        is_best: tells the rows that are set in bold.
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
    for row in rows:
        cells = [Text(clean(column.shown(row))) for column in shown]
        table.add_row(*cells, style="bold green" if is_best(row) else None)
    return table


def rows(summary: Summary) -> list[dict[str, Raw]]:
    """Return the table as one mapping per arm, full precision, ends of intervals beside their values."""
    shown = columns_of(summary).all
    against_best = {pair.one: pair for pair in against(summary, summary.ranking[0])} if summary.ranking else {}
    return [
        {key: value for column in shown for key, value in _fields(column, column.cell(arm)).items()}
        | comparison_fields(against_best.get(arm.name))
        | comparable(arm)
        for arm in summary.ranked
    ]


def _fields(column: ArmColumn, cell: Cell) -> dict[str, Raw]:
    if column.group != "results" or not column.is_number:
        return {column.key: cell.raw}
    ends = cell.estimate
    return {
        column.key: cell.raw,
        f"{column.key}_low": None if ends is None else ends.low,
        f"{column.key}_high": None if ends is None else ends.high,
        f"{column.key}_n": None if ends is None else ends.n,
    }


def to_csv(table: Sequence[Mapping[str, Raw]]) -> str:
    """Return rows as CSV (RFC 4180: CRLF, quotes doubled), with text that would run as a formula made harmless.

    Args:
        table: at least one row, from `rows` or `decoding_rows`.
    """
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(table[0]), lineterminator="\r\n")
    writer.writeheader()
    for row in table:
        writer.writerow({key: spreadsheet(value) if isinstance(value, str) else value for key, value in row.items()})
    return buffer.getvalue()


def to_markdown(summary: Summary, explanation: Explanation = NOTHING) -> str:
    """Return the verdict and the tables as Markdown."""
    arms, found = summary.ranked, columns_of(summary)
    candidates = (col.NAME, *found.results, col.FLAGS, *found.method, *found.costs)
    lines = [f"# {markdown(summary.study)}", "", f"**{markdown(summary.verdict)}**", "", f"{progress(summary)}.", ""]
    lines += [f"{audit_line(summary.audit)}", ""] if audit_line(summary.audit) else []
    lines += [f"- {markdown(caveat)}" for caveat in summary.caveats]
    lines += [""] if summary.caveats else []
    lines += _markdown_table(shown_columns(candidates, arms), arms)
    lines += comparisons_markdown(summary)
    lines += explanation_markdown(summary, explanation)
    texts = texts_of(summary)
    if texts:
        lines += ["", "## Decoding", "", markdown(texts_note(summary)), ""]
        lines += _markdown_table(decoding_columns(summary), texts)
    return "\n".join(lines) + "\n"


def _markdown_table(shown: Sequence[Column[Row]], rows: Sequence[Row]) -> Iterator[str]:
    yield "| " + " | ".join(markdown(column.heading) for column in shown) + " |"
    yield "|" + "|".join("---:" if column.is_number else "---" for column in shown) + "|"
    for row in rows:
        yield "| " + " | ".join(markdown(column.shown(row)) for column in shown) + " |"


def to_json(
    study: Study,
    summary: Summary,
    records: Mapping[str, Record],
    tests: Mapping[str, TestRecord],
    explanation: Explanation = NOTHING,
) -> bytes:
    """Return the study, what is known of it, the table's rows and every run's scores as JSON, NaN as null.

    It is indented, but for a study of which a page draws a part alone: four tenths of its file would be spaces.

    Args:
        study: the question.
        summary: what is known.
        records: finished runs by `run_id`.
        tests: the readings of the test split by `run_id`; those that were made in another way are left out.
        explanation: when, why and how the arms differ.
    """
    current = current_tests(study, tests)
    runs = [
        _run(arm, records[run_id], current.get(run_id))
        for arm in summary.arms
        for run_id in arm.run_ids
        if run_id in records
    ]
    facts = {
        "version": 1,
        "study": study,
        "summary": summary,
        "rows": rows(summary),
        **({"decoding": decoding_rows(summary)} if texts_of(summary) else {}),
        **explanation_fields(explanation),
        "runs": runs,
    }
    return write_json(facts, indent=2 if len(summary.arms) <= MAX_ARMS else None, inf_nan_mode="null")


def _run(arm: ArmSummary, record: Record, test: TestRecord | None) -> dict[str, Any]:
    return {
        "run_id": record.run_id,
        "arm": arm.name,
        "lr": record.run.lr,
        "seed": record.run.seed,
        "status": record.status,
        "reason": record.reason,
        "validation": record.validation,
        "test": None if test is None else test.test,
        **_measured(test),
    }


def _measured(test: TestRecord | None) -> dict[str, Any]:
    """Return what was measured beside the loss, where anything was."""
    if test is None or not (test.metrics or test.generated):
        return {}
    return {"metrics": test.metrics, "generated": test.generated}
