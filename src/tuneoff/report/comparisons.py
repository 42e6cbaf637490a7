"""Arms held against each other: each against the best, and against full fine-tuning, as text and as columns."""

from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from tuneoff.analysis.comparison import Comparison, Outcome
from tuneoff.analysis.values import Summary
from tuneoff.report.columns import Raw
from tuneoff.report.text import clean, markdown

TITLE = "Differences between arms"
_REVERSED: Mapping[Outcome, Outcome] = {"better": "worse", "worse": "better"}


def turned(comparison: Comparison, one: str) -> Comparison:
    """Return a comparison as seen from `one` of its arms: the difference is that arm's value minus the other's."""
    if comparison.one == one:
        return comparison
    difference = comparison.difference
    low, high = (None if end is None else -end for end in (difference.high, difference.low))
    return comparison.model_copy(
        update={
            "one": comparison.other,
            "other": comparison.one,
            "difference": difference.model_copy(update={"value": -difference.value, "low": low, "high": high}),
            "outcome": _REVERSED.get(comparison.outcome, comparison.outcome),
        }
    )


def against(summary: Summary, reference: str) -> tuple[Comparison, ...]:
    """Return every other tested arm against `reference`, in the order of the ranking."""
    # One pass: a study of hundreds of arms has tens of thousands of pairs.
    found = {
        one.one if one.other == reference else one.other: one
        for one in summary.comparisons
        if reference in (one.one, one.other)
    }
    return tuple(turned(found[name], name) for name in summary.ranking if name in found)


def references(summary: Summary) -> tuple[str, ...]:
    """Return the arms that others are held against: the best, and the best that trains every weight."""
    trains_all = {arm.name for arm in summary.arms if arm.method.method == "full"}
    full = [name for name in summary.ranking if name in trains_all]
    return tuple(dict.fromkeys((*summary.ranking[:1], *full[:1])))


def comparison_tables(summary: Summary, part: Summary | None = None) -> Iterator[Table | Text]:
    """Yield the comparisons with the best arm, and with full fine-tuning, for the terminal, and their notes.

    Args:
        summary: what is known.
        part: of the arms that are listed; none lists all.
    """
    if not summary.comparisons:
        return
    notes: dict[str, list[str]] = {}
    for reference in references(summary):
        table = Table(
            title=clean(f"{TITLE}: against {reference}"),
            box=box.SIMPLE_HEAD,
            title_justify="left",
            title_style="bold",
            pad_edge=False,
            collapse_padding=True,
        )
        table.add_column("arm", overflow="fold")
        table.add_column("outcome", no_wrap=True)
        for name in (f"difference{_in_unit(summary)}", "p", "p equiv."):
            table.add_column(clean(name), justify="right", overflow="fold")
        for pair in against(part or summary, reference):
            cells = (pair.one, outcome(pair), difference(summary, pair), p_difference(pair), p_equivalence(pair))
            table.add_row(*(Text(clean(cell)) for cell in cells))
            if pair.note:
                notes.setdefault(pair.note, []).append(f"{pair.one} against {reference}")
        yield table
    yield Text(clean(about(summary)), style="dim")
    for note, pairs in notes.items():
        yield Text(clean(f"{', '.join(pairs)}: {note}"), style="dim")


def comparisons_markdown(summary: Summary) -> list[str]:
    """Return every comparison as lines of Markdown; nothing where there is none."""
    if not summary.comparisons:
        return []
    heads = ("arm", "outcome", "against", f"difference{_in_unit(summary)}", "p", "p equiv.", "seeds", "items", "note")
    return [
        *("", f"## {TITLE}", "", markdown(about(summary)), ""),
        *(_row(heads), _row(["---"] * 3 + ["---:"] * 5 + ["---"], is_rule=True)),
        *_pair_rows(summary),
    ]


def _pair_rows(summary: Summary) -> Iterator[str]:
    """Yield a row of Markdown for each comparison; a study of hundreds of arms has tens of thousands."""
    places = summary.primary.decimals
    for pair in summary.comparisons:
        apart = _difference(pair, places).replace("[", "\\[").replace("]", "\\]")  # all that Markdown reads in numbers
        before = f"| {markdown(pair.one)} | {outcome(pair)} | {markdown(pair.other)} | {apart} "
        ps = f"| {markdown(p_difference(pair))} | {markdown(p_equivalence(pair))} "
        yield f"{before}{ps}| {pair.num_seeds} | {pair.num_items or 'not known'} | {markdown(pair.note)} |"


def comparison_fields(pair: Comparison | None) -> dict[str, Raw]:
    """Return how an arm stands to the best, as columns of a file; empty for the best itself and where it is not known.

    Args:
        pair: the arm against the best, from `against`.
    """
    return {
        "outcome_vs_best": None if pair is None else pair.outcome,
        "difference_vs_best": None if pair is None else pair.difference.value,
        "difference_vs_best_low": None if pair is None else pair.difference.low,
        "difference_vs_best_high": None if pair is None else pair.difference.high,
    }


def about(summary: Summary) -> str:
    """Return what the table's numbers mean."""
    margin = f"{summary.margin:g} {summary.primary.unit}".rstrip()
    return (
        f"Test {summary.primary.label} of the arm minus that of the other, with its 95 % interval. p: that they "
        f"differ; p equiv.: that they lie within the margin of {margin}; both corrected for all "
        f"{len(summary.comparisons)} pairs (Holm, Shaffer). Below 0.05 is a claim."
    )


def outcome(pair: Comparison) -> str:
    """Return the outcome, with how many seeds more would decide an open one."""
    return f"{pair.outcome} (+{pair.more_seeds} seeds)" if pair.more_seeds else pair.outcome


def difference(summary: Summary, pair: Comparison) -> str:
    """Return the difference with the ends of its interval, signs included."""
    return _difference(pair, summary.primary.decimals)


def _difference(pair: Comparison, places: int) -> str:
    value, low, high = pair.difference.value, pair.difference.low, pair.difference.high
    text = f"{value:+.{places}f}"
    return text if low is None or high is None else f"{text} [{low:+.{places}f}, {high:+.{places}f}]"


def p_difference(pair: Comparison) -> str:
    """Return the corrected p-value of the difference."""
    return _p(pair.p_difference_corrected)


def p_equivalence(pair: Comparison) -> str:
    """Return the corrected p-value of the equivalence."""
    return _p(pair.p_equivalence_corrected)


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _in_unit(summary: Summary) -> str:
    return f", {summary.primary.unit}" if summary.primary.unit else ""


def _row(cells: Sequence[str], *, is_rule: bool = False) -> str:
    return "| " + " | ".join(cell if is_rule else markdown(cell) for cell in cells) + " |"
