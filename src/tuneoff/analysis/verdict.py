"""The answer in words, and no more than is known: no test of a difference has been made yet, so none is claimed."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from tuneoff.analysis.estimates import Estimate
from tuneoff.analysis.values import ArmSummary, Flag


def verdict(arms: Sequence[ArmSummary], ranking: Sequence[str]) -> str:
    """Return what is known about which arm has the lowest test loss, in a sentence or two.

    Args:
        arms: every arm of the study.
        ranking: names of those with a test score, the lowest loss first.
    """
    by_name = {arm.name: arm for arm in arms}
    first, *others = (by_name[name] for name in ranking) if ranking else (None,)
    if first is None or first.test is None:
        return "No arm has a test score yet, so there is nothing to compare."
    head = f"Lowest test loss: {first.name} ({_loss(first)})"
    second = others[0] if others else None
    if second is None or second.test is None:
        return f"{head}. No other arm has a test score yet, so there is nothing to compare it with."
    return f"{head}; next: {second.name} ({_loss(second)}). {_overlap(first, second)}"


def caveats(arms: Sequence[ArmSummary], ranking: Sequence[str]) -> tuple[str, ...]:
    """Return what else must be known before the verdict is used: arms without a result, and flags."""
    return tuple(_caveats(arms, ranking))


def _loss(arm: ArmSummary) -> str:
    assert arm.test is not None
    loss = arm.test.loss_nats
    if not arm.is_trained:
        return f"{loss.value:.3f} nats per token, not trained here"
    seeds = "1 seed" if loss.n == 1 else f"{loss.n} seeds"
    if loss.low is None or loss.high is None:
        return f"{loss.value:.3f} nats per token, {seeds}"
    return f"{loss.value:.3f} nats per token, 95 % interval {loss.low:.3f} to {loss.high:.3f}, {seeds}"


def _overlap(first: ArmSummary, second: ArmSummary) -> str:
    assert first.test is not None
    assert second.test is not None
    one, two = first.test.loss_nats, second.test.loss_nats
    if one.value == two.value:
        return "The two are equal to the last digit."
    single = [arm for arm, loss in ((first, one), (second, two)) if arm.is_trained and not loss.has_interval]
    if single:
        who = "Both have" if len(single) == 2 else f"{single[0].name} has"
        return f"{who} one seed only, so how far another seed would move this is not known."
    if not (one.has_interval or two.has_interval):
        return "Neither was trained here, so seeds cannot move this; the noise of the test items is not measured yet."
    is_apart = _top(one) < _bottom(two)
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
    found = [(flag.label, flag.message, arm.name) for arm in arms for flag in arm.flags]
    for (_, message), group in groupby(sorted(found, key=lambda item: item[:2]), key=lambda item: item[:2]):
        yield f"{', '.join(name for _, _, name in group)}: {message}."


def labels(flags: Sequence[Flag]) -> str:
    """Return the flags' labels, for a cell of a table."""
    return ", ".join(flag.label for flag in flags)
