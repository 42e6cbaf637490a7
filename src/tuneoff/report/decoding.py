"""What each arm wrote with each decoding strategy: the rows of a table, its columns, and what its n is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tuneoff.analysis.estimates import Estimate
from tuneoff.analysis.measures import Measure
from tuneoff.analysis.values import DecodingSummary, Summary
from tuneoff.report import numbers
from tuneoff.report.columns import Cell, Column, Raw
from tuneoff.report.text import clean


@dataclass(frozen=True)
class Texts:
    """What one arm wrote with one strategy."""

    name: str
    """Of the arm."""
    found: DecodingSummary


TextColumn = Column[Texts]


def texts_of(summary: Summary) -> tuple[Texts, ...]:
    """Return a row for each arm and strategy, the arms as they rank, the strategies as the study has them."""
    return tuple(Texts(arm.name, found) for arm in summary.ranked for found in arm.generated)


def decoding_columns(summary: Summary) -> tuple[TextColumn, ...]:
    """Return the columns of the table of strategies: every metric, and its best of n where several texts were drawn.

    Args:
        summary: what is known of the study.
    """
    has_samples = any(row.found.num_samples > 1 for row in texts_of(summary))
    best = tuple(map(_best, summary.measures)) if has_samples else ()
    return (
        ARM,
        STRATEGY,
        SAMPLES,
        *map(_metric, summary.measures),
        *best,
        DISTINCT_1,
        DISTINCT_2,
        TRUNCATED,
        TOKENS,
        *_REST,
    )


def narrow_columns(summary: Summary) -> tuple[tuple[TextColumn, ...], tuple[TextColumn, ...]]:
    """Return the columns as two narrow tables, of scores and of texts, without what few look for."""
    scores = (column for column in decoding_columns(summary) if column.group == "results")
    texts = (DISTINCT_1, DISTINCT_2, TRUNCATED, TOKENS)
    return (ARM, STRATEGY, SAMPLES, *(column for column in scores if column not in texts)), (ARM, STRATEGY, *texts)


def decoding_rows(summary: Summary) -> list[dict[str, Raw]]:
    """Return the table of strategies as one mapping per row, full precision, ends of intervals beside their values."""
    shown = decoding_columns(summary)
    return [{key: value for column in shown for key, value in fields(column, row)} for row in texts_of(summary)]


def fields(column: TextColumn, row: Texts) -> Iterator[tuple[str, Raw]]:
    """Yield the value of a cell under its column's key, and the ends of its interval where it is an estimate."""
    cell = column.cell(row)
    yield column.key, cell.raw
    if column.group == "results":
        ends = cell.estimate
        yield f"{column.key}_low", None if ends is None else ends.low
        yield f"{column.key}_high", None if ends is None else ends.high


def texts_note(summary: Summary) -> str:
    """Return what n is in this study, and which numbers it makes incomparable, in a sentence or two."""
    counts = sorted({row.found.num_samples for row in texts_of(summary)})
    items = " or ".join(f"{number:,}" for number in sorted({row.found.num_items for row in texts_of(summary)}))
    if counts == [1]:
        is_drawn = any(row.found.decoding.is_sampled for row in texts_of(summary))
        more = " `samples: 5` beside a strategy draws more." if is_drawn else ""
        return (
            f"n is 1: a strategy wrote one text for each of {items} prompts. Distinct-1 and distinct-2 then say how "
            f"little a text repeats itself, not how far texts differ from one another.{more}"
        )
    drawn = " or ".join(map(str, counts))
    return (
        f"n is the texts that a strategy drew for each of {items} prompts ({drawn}); greedy and beam search would "
        "write the same text each time, so they wrote one. A score is the mean over the n texts, best of n that of "
        "their best one, which takes an oracle to pick. Distinct-1 and distinct-2 are over a prompt's n texts "
        "together, so they compare only where n is the same."
    )


def _plain(read: Callable[[DecodingSummary], Raw], write: Callable[[Raw], str] = str) -> Callable[[Texts], Cell]:
    return lambda row: Cell(read(row.found), clean(write(read(row.found))))


def _estimated(read: Callable[[DecodingSummary], Estimate | None], decimals: int) -> Callable[[Texts], Cell]:
    def cell(row: Texts) -> Cell:
        found = read(row.found)
        if found is None:
            return Cell()
        title = f"{found.value:.6f}; {found.how}"
        shown = numbers.interval(found, decimals)
        return Cell(found.value, f"{found.value:.{decimals}f}", title, found, shown)

    return cell


def _metric(measure: Measure) -> TextColumn:
    cell = _estimated(lambda found: found.metrics.get(measure.name), measure.decimals)
    about = "mean over the texts of an item, then over items"
    return TextColumn(clean(measure.name), clean(measure.label), "results", cell, about)


def _best(measure: Measure) -> TextColumn:
    cell = _estimated(lambda found: found.best_of_n.get(measure.name), measure.decimals)
    about = "the best of an item's n texts, mean over items"
    return TextColumn(f"best_{clean(measure.name)}", f"best {clean(measure.label)}", "results", cell, about)


ARM = TextColumn("arm", "arm", "arm", lambda row: Cell(row.name, row.name), is_number=False)
STRATEGY = TextColumn("decoding", "decoding", "arm", _plain(lambda found: found.decoding.name), is_number=False)
SAMPLES = TextColumn("num_samples", "n", "arm", _plain(lambda found: found.num_samples), "texts for each prompt")
DISTINCT_1 = TextColumn(
    "distinct_1", "distinct-1", "results", _estimated(lambda found: found.distinct_1, 3), "distinct words over all"
)
DISTINCT_2 = TextColumn(
    "distinct_2", "distinct-2", "results", _estimated(lambda found: found.distinct_2, 3), "distinct pairs of words"
)
TRUNCATED = TextColumn(
    "truncated_pct",
    "cut, %",
    "results",
    _estimated(lambda found: found.truncated_pct, 1),
    "texts in per cent that reached the limit of new tokens without ending",
)
TOKENS = TextColumn(
    "mean_new_tokens", "tokens", "results", _estimated(lambda found: found.mean_new_tokens, 1), "new tokens of a text"
)
_REST = (
    TextColumn("num_near_ties", "near ties", "costs", _plain(lambda found: found.num_near_ties), "over all seeds"),
    TextColumn("num_items", "prompts", "costs", _plain(lambda found: found.num_items), "of one seed"),
    TextColumn(
        "generate_s",
        "time",
        "costs",
        lambda row: Cell(row.found.generate_s, numbers.duration(row.found.generate_s), f"{row.found.generate_s:.2f} s"),
        "median over seeds",
    ),
)
