"""When, why and how arms differ, in the terminal, in Markdown and in JSON: what it comes to, then the numbers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from tuneoff.analysis.estimates import Estimate
from tuneoff.analysis.explaining.leaving import is_with_it
from tuneoff.analysis.explaining.wording import digits, times
from tuneoff.analysis.explanation import NOTHING, Explanation, Leaving, OptimumRatio, Weights
from tuneoff.analysis.values import Summary
from tuneoff.report import numbers
from tuneoff.report.text import clean, markdown
from tuneoff.study.methods import rank_of

TITLE = "Why"
MAX_RANKS = 4
"""Ranks that a table has a column for, the study's own first; JSON has them all."""


@dataclass(frozen=True)
class Part:
    """One of the tables.

    Attributes:
        title: what stands above it.
        heads: of its columns.
        rows: its cells.
        texts: places of the columns that hold text, which may break; a number may not.
    """

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    texts: frozenset[int] = frozenset({0})


def parts(summary: Summary, explanation: Explanation) -> tuple[Part, ...]:
    """Return the tables that have something to show.

    Args:
        summary: what is known.
        explanation: when, why and how the arms differ.
    """
    found = (
        _optima(explanation),
        _leaving(summary, explanation),
        _weights(summary, explanation),
        _forgetting(explanation),
        _capacity(summary, explanation),
        _frontiers(explanation),
    )
    return tuple(part for part in found if part.rows)


def explanation_lines(summary: Summary, explanation: Explanation) -> Iterator[Table | Text]:
    """Yield the section for the terminal: sentences, tables, what is not known; nothing where none of them is."""
    found = parts(summary, explanation)
    if not (found or explanation.sentences):
        return
    yield Text(f"\n{TITLE}", style="bold")
    yield _list(explanation.sentences)
    yield from map(_table, found)
    yield _list(explanation.notes, style="dim")


def explanation_markdown(summary: Summary, explanation: Explanation) -> list[str]:
    """Return the section as lines of Markdown; nothing where there is nothing to say."""
    found = parts(summary, explanation)
    if not (found or explanation.sentences):
        return []
    lines = ["", f"## {TITLE}", ""]
    lines += [f"- {markdown(sentence)}" for sentence in explanation.sentences]
    for part in found:
        lines += ["", f"### {markdown(part.title)}", "", _row(part.heads)]
        lines.append("|" + "|".join("---" if place in part.texts else "---:" for place in range(len(part.heads))) + "|")
        lines += [_row(row) for row in part.rows]
    if explanation.notes:
        lines += ["", *(f"- {markdown(note)}" for note in explanation.notes)]
    return lines


def explanation_fields(explanation: Explanation) -> dict[str, Any]:
    """Return the explanation under its key of the JSON file; nothing where there is none."""
    return {} if explanation == NOTHING else {"explanation": explanation}


def _list(lines: Sequence[str], style: str = "") -> Table:
    table = Table.grid(padding=(0, 1))
    for line in lines:
        table.add_row("-", Text(clean(line)), style=style)
    return table


def _table(part: Part) -> Table:
    table = Table(
        title=clean(part.title),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        title_style="bold",
        pad_edge=False,
        collapse_padding=True,
    )
    for place, head in enumerate(part.heads):
        is_text = place in part.texts
        table.add_column(
            Text(clean(head)), justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold"
        )
    for row in part.rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    return table


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(markdown, cells)) + " |"


def _optima(explanation: Explanation) -> Part:
    ratios = {ratio.arm: ratio for ratio in explanation.ratios}
    rows = []
    for one in explanation.optima:
        ratio = ratios.get(one.arm)
        rows.append(
            (
                one.arm,
                numbers.rate(one.chosen_lr),
                numbers.NONE if one.fitted_lr is None else numbers.rate(float(f"{one.fitted_lr:.1e}")),
                _enclosed(one.low_lr, one.high_lr, numbers.rate),
                numbers.NONE if ratio is None or not _is_enclosed(ratio) else digits(ratio.fitted or ratio.chosen),
                numbers.NONE if ratio is None else _enclosed(ratio.low, ratio.high, digits),
            )
        )
    base = explanation.ratios[0].base if explanation.ratios else ""
    heads = ("arm", "chosen", "fitted", "between", f"over {base}'s", "between")
    places = range(len(heads) if base else 4)
    return Part(
        "Best learning rate, by the parabola through it and its neighbours",
        tuple(heads[place] for place in places),
        tuple(tuple(row[place] for place in places) for row in rows),
    )


def _is_enclosed(ratio: OptimumRatio) -> bool:
    """Whether both ends are known; where they are not, the rates that were tried are no estimate of the ratio."""
    return ratio.low is not None and ratio.high is not None


def _enclosed(low: float | None, high: float | None, write: Callable[[float], str]) -> str:
    if low is None:
        return numbers.NONE if high is None else f"at most {write(high)}"
    return f"at least {write(low)}" if high is None else f"{write(low)} to {write(high)}"


def _leaving(summary: Summary, explanation: Explanation) -> Part:
    what = "examples" if summary.kind == "classification" else "target tokens"
    rows = [
        (
            one.arm,
            one.reference,
            _when(one, explanation.loss_margin_nats),
            numbers.NONE if one.target_tokens is None else f"{one.target_tokens:,}",
            _signed(one.gap_nats),
        )
        for one in explanation.leaving
    ]
    title = f"When a rank leaves the common curve (margin {explanation.loss_margin_nats:g} {summary.loss_unit})"
    return Part(title, ("arm", "held against", "by step", what, "gap at the end"), tuple(rows), frozenset({0, 1}))


def _when(one: Leaving, margin: float) -> str:
    if one.step is not None:
        return f"{one.step:,}, the first" if one.is_from_start else f"{one.step:,}"
    return "stays" if is_with_it(one, margin) else "undecided"


def _weights(summary: Summary, explanation: Explanation) -> Part:
    own = {rank_of(arm.method) for arm in summary.arms}
    known = sorted({rank for one in explanation.weights for rank in one.share_held})
    ranks = sorted(sorted(known, key=lambda rank: (rank not in own, rank))[:MAX_RANKS])
    rows = [
        (
            one.arm,
            numbers.NONE if one.relative_norm is None else numbers.interval(one.relative_norm, 3),
            numbers.NONE if one.rank_90 is None else numbers.interval(one.rank_90, 1),
            *(_share(one, rank) for rank in ranks),
            f"{times(one.num_intruders.value)}/{one.num_top:,}",
        )
        for one in explanation.weights
    ]
    heads = ("arm", "relative", "for 90 %", *(f"rank {rank}" for rank in ranks), "intruders")
    title = "Weight change: size, directions that carry 90 % of it, per cent that a rank holds"
    return Part(title, heads, tuple(rows))


def _share(weights: Weights, rank: int) -> str:
    share = weights.share_held.get(rank)
    return numbers.NONE if share is None else f"{100 * share.value:.1f}"


def _forgetting(explanation: Explanation) -> Part:
    rows = [
        (
            one.arm,
            _signed(one.difference),
            numbers.NONE if one.beyond_reference is None else _signed(one.beyond_reference),
        )
        for one in explanation.forgetting
    ]
    reference = next((one.reference for one in explanation.forgetting if one.reference), "")
    base = explanation.base_retention_nats
    before = "" if base is None else f", {numbers.loss(base)} before"
    places = range(3 if reference else 2)
    heads = ("arm", "gained by training", f"beyond {reference}")
    return Part(
        f"Forgetting: loss on the retention text (nats per token{before})",
        tuple(heads[place] for place in places),
        tuple(tuple(row[place] for place in places) for row in rows),
    )


def _capacity(summary: Summary, explanation: Explanation) -> Part:
    what = "examples" if summary.kind == "classification" else "target tokens"
    rows = [
        (
            one.arm,
            f"{one.trainable:,}",
            f"{one.num_target_tokens:,}",
            numbers.NONE if one.num_unique_target_tokens is None else f"{one.num_unique_target_tokens:,}",
            digits(one.trainable / (one.num_unique_target_tokens or one.num_target_tokens or 1)),
        )
        for one in explanation.capacity
    ]
    heads = ("arm", "trainable", what, "without repeats", "parameters for each")
    return Part(f"Capacity: trainable parameters against {what}", heads, tuple(rows))


def _frontiers(explanation: Explanation) -> Part:
    rows = [
        (one.cost, ", ".join(one.arms) or numbers.NONE, ", ".join(one.contested) or numbers.NONE)
        for one in explanation.frontiers
    ]
    heads = ("cost", "on the frontier, the cheapest first", "off it, but not for certain")
    return Part("Frontiers of quality against cost", heads, tuple(rows), frozenset({0, 1, 2}))


def _signed(estimate: Estimate) -> str:
    text = f"{estimate.value:+.3f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{estimate.low:+.3f}, {estimate.high:+.3f}]"
