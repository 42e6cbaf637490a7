"""What must be said beside an arm's numbers."""

from collections.abc import Iterator, Sequence

from tuneoff.analysis.values import DecodingSummary, Flag
from tuneoff.study.records import Likelihood
from tuneoff.study.spec import Arm
from tuneoff.study.testing import TaskKind

MAX_TRUNCATED_PCT = 20.0
"""Convention: where more texts than this were cut at the limit, the limit is part of what the scores measure."""


def flags_of(arm: Arm) -> Iterator[Flag]:
    """Yield the flags that follow from the arm itself; what makes it incomparable with others is the audit's."""
    if arm.is_trained and not arm.is_tuned:
        yield Flag(kind="untuned", label="untuned", message="its learning rate was fixed, not chosen among several")
    if arm.assumed:
        names = ", ".join(arm.assumed)
        yield Flag(kind="assumed", label="assumed values", message=f"assumed, because not published: {names}")
    if arm.method.method == "load":
        yield Flag(
            kind="unverified",
            label="training not verified",
            message="training not verified: it was loaded, not trained here",
        )


def uniform_flag(seeds: Sequence[Likelihood], kind: TaskKind) -> Iterator[Flag]:
    """Yield a flag where guessing every token with equal chance would do better on the split, for at least one seed.

    Args:
        seeds: the scores of one split.
        kind: of the task; of classification the guess is among the classes.
    """
    if any(scores.is_worse_than_uniform for scores in seeds):
        size = seeds[0].vocabulary_size
        what = (
            f"its loss is above that of guessing evenly among the {size:,} classes, so its probabilities mislead"
            if kind == "classification"
            else f"perplexity above the vocabulary size ({size:,}), so worse than guessing evenly"
        )
        yield Flag(kind="worse_than_uniform", label="worse than uniform", message=what)


def truncated_flag(generated: Sequence[DecodingSummary], max_new_tokens: int) -> Iterator[Flag]:
    """Yield a flag where many texts of the strategy that decides were cut at the limit of new tokens.

    Args:
        generated: an arm's strategies, the one that decides first.
        max_new_tokens: the limit.
    """
    if generated and generated[0].truncated_pct.value > MAX_TRUNCATED_PCT:
        yield Flag(
            kind="truncated",
            label="texts cut",
            message=f"more than {MAX_TRUNCATED_PCT:g} % of the texts ({generated[0].decoding.name}) reached the limit "
            f"of {max_new_tokens} new tokens without ending, and are scored as they were cut",
        )
