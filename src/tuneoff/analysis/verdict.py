"""The answer in two sentences: who is the best and how sure that is, and what follows for who has to choose."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from tuneoff.analysis.comparison import Comparison
from tuneoff.analysis.estimates import Estimate
from tuneoff.analysis.measures import Measure
from tuneoff.analysis.values import ArmSummary

MIN_SEEDS = 3
"""Convention: with fewer, the noise of seeds is hardly known."""


def verdict(
    arms: Sequence[ArmSummary],
    ranking: Sequence[str],
    primary: Measure,
    comparisons: Sequence[Comparison],
    margin: float,
) -> str:
    """Return what is known about which arm is the best on the test split, in two sentences.

    Args:
        arms: every arm of the study.
        ranking: names of those with a test score, the best first.
        primary: what ranks them.
        comparisons: of every two of them.
        margin: how close counts as equal.
    """
    by_name = {arm.name: arm for arm in arms}
    if not ranking:
        return "No arm has a test score yet, so there is nothing to compare."
    first = by_name[ranking[0]]
    best = "lowest" if primary.is_loss else "highest"
    head = f"{first.name} has the {best} test {primary.label} ({_said(first, primary)})"
    if len(ranking) == 1:
        return f"{head}. No other arm has a test score yet, so there is nothing to compare it with."
    found = {pair.other: pair for pair in comparisons if pair.one == first.name}
    told = _Verdict(by_name, ranking, primary, found, margin)
    return f"{head}{told.how_sure()}. {told.what_follows()}"


def caveats(arms: Sequence[ArmSummary], ranking: Sequence[str]) -> tuple[str, ...]:
    """Return what else must be known before the verdict is used: arms without a result, and flags."""
    return tuple(_caveats(arms, ranking))


class _Verdict:
    """The two sentences.

    Args:
        arms: by name.
        ranking: names of at least two arms that have a test score, the best first.
        primary: what ranks them.
        found: the best one against each of the others, by the other's name.
        margin: how close counts as equal.
    """

    def __init__(
        self,
        arms: Mapping[str, ArmSummary],
        ranking: Sequence[str],
        primary: Measure,
        found: Mapping[str, Comparison],
        margin: float,
    ) -> None:
        self.arms, self.primary, self.found, self.margin = arms, primary, found, margin
        self.best, self.next = ranking[0], ranking[1]
        self.open = [name for name in ranking[1:] if found[name].outcome == "undecided"]
        self.equal = [name for name in ranking[1:] if found[name].outcome == "equivalent"]

    def how_sure(self) -> str:
        """Return the end of the first sentence: how the best arm stands to the next."""
        pair = self.found[self.next]
        size = self._size(pair.difference)
        if pair.outcome == "better":
            return f" and is better than the next, {self.next}, by {size}"
        if pair.outcome == "equivalent":
            return f" and is equivalent to the next, {self.next}, within the margin of {self._amount(self.margin)}"
        return f", but whether it is better than the next, {self.next}, is undecided (ahead by {size})"

    def what_follows(self) -> str:
        """Return the second sentence: the cheapest arm that is as good, or what would decide."""
        cheaper = self._cheapest()
        if cheaper is not None:
            return f"{cheaper}."
        if self.open:
            return f"{self._to_decide()}."
        return f"Every other arm is worse: none is equivalent to {self.best} within {self._amount(self.margin)}."

    def _cheapest(self) -> str | None:
        counts = {name: self._trainable(name) for name in (self.best, *self.equal)}
        known = {name: count for name, count in counts.items() if count is not None}
        if not self.equal:
            return None
        if not known:
            return f"Equivalent to it: {', '.join(self.equal)}"
        name = min(known, key=lambda name: (known[name], name != self.best))
        still = f"; not decided yet: {', '.join(self.open)}" if self.open else ""
        if name == self.best:
            return f"It is also the cheapest of the arms that are equivalent, with {_count(known[name])}{still}"
        return f"The cheapest arm that is equivalent to it is {name}, with {_count(known[name])}{still}"

    def _to_decide(self) -> str:
        pairs = [self.found[name] for name in self.open]
        who = f"{self.best} and {', '.join(self.open)}"
        if any(pair.num_seeds == 1 for pair in pairs):
            return f"One seed cannot tell {who} apart; run at least {MIN_SEEDS} seeds"
        pair = next((pair for pair in pairs if pair.more_seeds is not None), None)
        if pair is None:
            return f"More seeds alone would not tell {who} apart: {_last(pairs[0].note)}"
        unit = "seed" if pair.more_seeds == 1 else "seeds"
        return f"About {pair.more_seeds} more {unit} would decide between {self.best} and {pair.other}"

    def _trainable(self, name: str) -> int | None:
        parameters = self.arms[name].parameters
        return None if parameters is None else parameters.trainable

    def _size(self, difference: Estimate) -> str:
        value, low, high = difference.value, difference.low, difference.high
        text = self._amount(abs(value))
        if low is None or high is None:
            return text
        sign = -1 if self.primary.is_loss else 1  # ahead is above 0
        ends = sorted((sign * low, sign * high))
        return f"{text}, 95 % interval {self.primary.write(ends[0])} to {self.primary.write(ends[1])}"

    def _amount(self, value: float) -> str:
        return f"{self.primary.write(value)} {self.primary.unit}".rstrip()


def _last(note: str) -> str:
    return note.rpartition("; ")[2]


def _count(trainable: int) -> str:
    return f"{trainable:,} trainable parameters" if trainable else "nothing to train"


def _said(arm: ArmSummary, primary: Measure) -> str:
    estimate = None if arm.test is None else arm.test.of(primary)
    assert estimate is not None  # it is ranked by it
    value = f"{primary.write(estimate.value)} {primary.unit}".rstrip()
    if not arm.is_trained:
        return f"{value}, not trained here"
    return f"{value}, {estimate.n} {'seed' if estimate.n == 1 else 'seeds'}"


def _caveats(arms: Sequence[ArmSummary], ranking: Sequence[str]) -> Iterator[str]:
    unscored = [arm.name for arm in arms if arm.name not in ranking and arm.status != "infeasible"]
    if unscored and ranking:
        yield f"Not in this answer, because not finished: {', '.join(unscored)}."
    fewer = [arm for arm in arms if arm.name in ranking and arm.status == "partly"]
    for arm in fewer:
        yield f"{arm.name} is not finished: {arm.num_tested} of {arm.num_seeds} seeds are tested."
    for arm in arms:
        if arm.status == "infeasible":
            yield f"{arm.name} gave no result: {arm.reason}."
    found = [(label, message, arm.name) for arm in arms for label, message in arm.labels.items()]
    for (_, message), group in groupby(sorted(found, key=lambda item: item[:2]), key=lambda item: item[:2]):
        yield f"{', '.join(name for _, _, name in group)}: {message}."
