"""The answer in words, and no more than is known: no test of a difference has been made yet, so none is claimed."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from tuneoff.analysis.estimates import Estimate
from tuneoff.analysis.measures import Measure
from tuneoff.analysis.values import ArmSummary


def verdict(arms: Sequence[ArmSummary], ranking: Sequence[str], primary: Measure) -> str:
    """Return what is known about which arm is the best on the test split, in a sentence or two.

    Args:
        arms: every arm of the study.
        ranking: names of those with a test score, the best first.
        primary: what ranks them.
    """
    by_name = {arm.name: arm for arm in arms}
    scored = [(by_name[name], _estimate(by_name[name], primary)) for name in ranking]
    if not scored:
        return "No arm has a test score yet, so there is nothing to compare."
    (first, one), *others = scored
    best = "Lowest" if primary.is_loss else "Highest"
    head = f"{best} test {primary.label}: {first.name} ({_said(first, one, primary)})"
    if not others:
        return f"{head}. No other arm has a test score yet, so there is nothing to compare it with."
    second, two = others[0]
    overlap = _overlap((first, one), (second, two), primary)
    return f"{head}; next: {second.name} ({_said(second, two, primary)}). {overlap}"


def caveats(arms: Sequence[ArmSummary], ranking: Sequence[str]) -> tuple[str, ...]:
    """Return what else must be known before the verdict is used: arms without a result, and flags."""
    return tuple(_caveats(arms, ranking))


def _estimate(arm: ArmSummary, primary: Measure) -> Estimate:
    found = None if arm.test is None else arm.test.of(primary)
    assert found is not None
    return found


def _said(arm: ArmSummary, estimate: Estimate, primary: Measure) -> str:
    value = primary.write(estimate.value) + (f" {primary.unit}" if primary.is_loss else "")
    if not arm.is_trained:
        return f"{value}, not trained here"
    seeds = "1 seed" if estimate.n == 1 else f"{estimate.n} seeds"
    if estimate.low is None or estimate.high is None:
        return f"{value}, {seeds}"
    return f"{value}, 95 % interval {primary.write(estimate.low)} to {primary.write(estimate.high)}, {seeds}"


def _overlap(best: tuple[ArmSummary, Estimate], next_one: tuple[ArmSummary, Estimate], primary: Measure) -> str:
    (first, one), (second, two) = best, next_one
    if one.value == two.value:
        return "The two are equal to the last digit."
    single = [arm for arm, estimate in (best, next_one) if arm.is_trained and not estimate.has_interval]
    if single:
        who = "Both have" if len(single) == 2 else f"{single[0].name} has"
        return f"{who} one seed only, so how far another seed would move this is not known."
    if not (one.has_interval or two.has_interval):
        return "Neither was trained here, so seeds cannot move this; the noise of the test items is not measured yet."
    lower, upper = (one, two) if primary.is_loss else (two, one)
    is_apart = _top(lower) < _bottom(upper)
    limits = "seeds alone, not the noise of the test items, and no test of the difference was made."
    if one.has_interval and two.has_interval:
        if is_apart:
            return f"The intervals do not overlap; they cover {limits}"
        return "The intervals overlap, so this does not tell them apart."
    fixed, other = (second, first) if one.has_interval else (first, second)
    where = "outside" if is_apart else "inside"
    end = f"; that covers {limits}" if is_apart else ", so this does not tell them apart."
    return f"{fixed.name} lies {where} the interval of {other.name}{end}"


def _top(estimate: Estimate) -> float:
    return estimate.value if estimate.high is None else estimate.high


def _bottom(estimate: Estimate) -> float:
    return estimate.value if estimate.low is None else estimate.low


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
