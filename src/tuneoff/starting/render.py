"""What `tuneoff init` and `tuneoff doctor` found, as tables for the terminal."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuneoff.data.survey import SplitCount, Survey
from tuneoff.planning.render import bytes_text
from tuneoff.starting.init import Started
from tuneoff.starting.lines import printable
from tuneoff.starting.write import class_shares

MAX_COLUMNS = 12
"""Names of columns that are listed."""


def started_table(started: Started) -> RenderableType:
    """Return what was found in the data, what was chosen for them, and what to do next."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, text in _rows(started):
        table.add_row(name, Text(printable(text)))
    path = started.path
    end = Text.assemble("Written: ", (str(path), "bold"), ", with the reason for every choice.")
    return Group(table, Text(), end, Text(f"Next: tuneoff plan {path}, then tuneoff run {path}"))


def _rows(started: Started) -> Iterator[tuple[str, str]]:
    survey, study = started.survey, started.study
    yield "data", f"{survey.data} ({survey.format})"
    more = f" and {len(survey.present) - MAX_COLUMNS} more" if len(survey.present) > MAX_COLUMNS else ""
    yield "columns", ", ".join(survey.present[:MAX_COLUMNS]) + more
    yield "kind", f"{survey.kind}: {'; '.join(survey.reasons) or 'the demo data'}"
    for name, counts in survey.splits.items():
        yield name, _count(survey, counts)
        if counts.labels:
            yield "", f"classes: {class_shares(counts.labels)}"
        if counts.num_contradictions:
            yield "", f"{counts.num_contradictions:,} texts with more than one class"
    needed = started.lengths.needed
    about = "" if started.lengths.whole.num_measured == survey.splits["train"].num_examples else "about "
    total = f"{about}{started.lengths.whole.total:,} in train"
    if survey.splits["train"].num_examples > 1:
        total += f"; median {needed.median:,}, 95 % {needed.p95:,}, 99 % {needed.p99:,}, longest {needed.longest:,}"
    yield "tokens", total
    if started.context:
        over = started.lengths.over_context_share
        yield (
            "model",
            f"{study.model}, sees {started.context:,} tokens"
            + (f"; {100 * over:.2g} % of the examples have more" if over and survey.kind != "text" else ""),
        )
    machine = started.machine
    yield "machine", f"{machine.device}, {bytes_text(machine.room_bytes)} free, {study.precision}"
    for note in survey.notes:
        yield "note", note
    budget = study.budget
    yield "chosen", f"max_length {study.task.max_length}, {budget.steps} steps of {budget.batch_size} sequences"
    yield "arms", ", ".join(arm.name for arm in study.arms)
    for name, why in started.left_out.items():
        if why != "an option":
            yield "left out", f"{name}: {why}"


def _count(survey: Survey, counts: SplitCount) -> str:
    """Return how much a split holds."""
    if survey.kind == "text":
        text = f"{counts.num_examples:,} document{'s' * (counts.num_examples != 1)}, {counts.num_chars:,} characters"
        text += f"; {counts.num_rows - counts.num_examples:,} rows are empty" * (counts.num_rows > counts.num_examples)
    else:
        text = f"{counts.num_rows:,} rows, {counts.num_examples:,} examples, {counts.num_units:,} independent"
    text += f"; {counts.num_copies:,} copies" if counts.num_copies else "; no copies"
    return text + (f"; {counts.num_shared:,} stand in other splits too" if counts.num_shared else "")
