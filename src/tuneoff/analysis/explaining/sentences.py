"""What an explanation comes to, a sentence each, the most telling first.

A sentence says what the numbers say and no more: where an interval does not tell two things apart it says so, what rests
on one seed is said to, and where the test split judges otherwise than the validation curves, that is said beside.
"""

from collections.abc import Iterator, Sequence

from tuneoff.analysis.explaining import wording as w
from tuneoff.analysis.explaining.capacity import is_too_small
from tuneoff.analysis.explaining.evidence import Evidence
from tuneoff.analysis.explanation import Capacity, Explanation, Forgetting, Leaving, OptimumRatio, Weights
from tuneoff.study.methods import rank_of


def sentences(evidence: Evidence, found: Explanation) -> tuple[str, ...]:
    """Return what it comes to.

    Args:
        evidence: what is known.
        found: the explanation, without its sentences.
    """
    return (
        *_leaving(evidence, found),
        *_rates(found.ratios),
        *_spectrum(evidence, found.weights),
        *_forgetting(found),
        *_capacity(evidence, found),
        *_intruders(found.weights),
        *_frontiers(evidence, found),
    )


def _leaving(evidence: Evidence, found: Explanation) -> Iterator[str]:
    by_reference: dict[str, list[Leaving]] = {}
    for one in found.leaving:
        by_reference.setdefault(one.reference, []).append(one)
    unit = evidence.summary.loss_unit
    for reference, arms in by_reference.items():
        left = [one for one in arms if one.step is not None]
        stayed = [one for one in arms if one.step is None and one.gap_nats.value <= found.loss_margin_nats]
        unclear = [one for one in arms if one not in left and one not in stayed]
        parts = [_left(evidence, one) for one in left]
        if stayed:
            ends = w.listed(
                [f"{one.arm} ({w.side(one.gap_nats.value)} at the end{_doubt(evidence, one)})" for one in stayed]
            )
            parts.append(f"{ends} {'does' if len(stayed) == 1 else 'do'} not leave it by the last step")
        parts += [
            f"{one.arm} is not told apart from it at the last step ({w.side(one.gap_nats.value)}, "
            f"{w.interval(one.gap_nats)})"
            for one in unclear
        ]
        seeds = "; one seed, so another may turn this" if any(one.gap_nats.n == 1 for one in arms) else ""
        margin = f"margin {found.loss_margin_nats:g} {unit}"
        yield f"Against the validation curve of {reference} ({margin}): {'; '.join(parts)}{seeds}."


def _left(evidence: Evidence, one: Leaving) -> str:
    tokens = f", {one.target_tokens:,} target tokens" if one.target_tokens is not None else ""
    return (
        f"{one.arm} has left it by step {one.step}{tokens}, and ends {w.side(one.gap_nats.value)}"
        f"{_doubt(evidence, one)}"
    )


def _doubt(evidence: Evidence, one: Leaving) -> str:
    """Return where the test split judges otherwise than the validation curve."""
    pair = evidence.summary.comparison(one.arm, one.reference)
    if pair is None:
        return ""
    is_worse = pair.outcome == ("worse" if pair.one == one.arm else "better")
    label = evidence.summary.primary.label
    if one.step is None:
        return f", but worse by the test's {label}" if is_worse else ""
    if is_worse:
        return ""
    said = {"undecided": "not told apart", "equivalent": "equivalent"}.get(pair.outcome, "better")
    return f" (by the test's {label} {said})"


def _rates(ratios: Sequence[OptimumRatio]) -> Iterator[str]:
    if not ratios:
        return
    base = ratios[0].base
    known = [(one.arm, one.chosen if one.fitted is None else one.fitted, one) for one in ratios]
    end = "rates were chosen on one seed; published: about 10"
    if len(known) > w.MAX_NAMED:
        values = sorted(value for _, value, _ in known)
        span = f"{w.digits(values[0])} to {w.digits(values[-1])}"
        yield f"The best rates of {len(known)} arms with a rank lie at {span} times that of {base} ({end})."
        return
    parts = [f"{arm} {w.digits(value)} times ({_bracket(one)})" for arm, value, one in known]
    yield f"Best learning rate, over that of {base}: {w.listed(parts)}; {end}."


def _bracket(one: OptimumRatio) -> str:
    if one.low is not None and one.high is not None:
        return f"{w.digits(one.low)} to {w.digits(one.high)} by the grids"
    if one.low is not None:
        return f"at least {w.digits(one.low)} by the grids"
    return "not enclosed by the grids" if one.high is None else f"at most {w.digits(one.high)} by the grids"


def _spectrum(evidence: Evidence, weights: Sequence[Weights]) -> Iterator[str]:
    full = evidence.full
    one = next((one for one in weights if full is not None and one.arm == full.name), None)
    if one is None:
        return
    own = {rank_of(arm.method) for arm in evidence.summary.arms}
    ranks = [rank for rank in one.share_held if rank in own] or list(one.share_held)
    held = [f"rank {rank} {w.share(one.share_held[rank].value)}" for rank in sorted(ranks, reverse=True)[: w.MAX_NAMED]]
    could = f"of its squared norm, {w.listed(held)} could be held" if held else ""
    if one.rank_90 is None:
        if could:
            yield f"Of the weight change of {one.arm}, by squared norm, {w.listed(held)} could be held."
        return
    sizes = sorted({min(layer.shape) for layer in one.layers})
    of = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
    matrices = "1 matrix" if len(one.layers) == 1 else f"{len(one.layers)} matrices"
    head = f"90 % of the weight change of {one.arm} lies in {w.times(one.rank_90.value)} of {of} directions a matrix"
    yield f"{head} (mean over {matrices}){f'; {could}' if could else ''}."


def _forgetting(found: Explanation) -> Iterator[str]:
    arms = found.forgetting
    if not arms:
        return
    ordered = sorted(arms, key=lambda one: -one.difference.value)
    shown = ordered if len(arms) <= w.MAX_NAMED else [ordered[0], ordered[-1]]
    parts = [f"{one.arm} {one.difference.value:+.3f}" for one in shown]
    which = w.listed(parts) if shown is ordered else f"from {parts[1]} to {parts[0]} over {len(arms)} arms"
    before = "" if found.base_retention_nats is None else f" ({w.nats(found.base_retention_nats)} before)"
    yield f"Loss on the retention text after training, nats per token{before}: {which}{_against_reference(arms)}."


def _against_reference(arms: Sequence[Forgetting]) -> str:
    held = [(one.arm, one.beyond_reference) for one in arms if one.beyond_reference is not None]
    reference = next((one.reference for one in arms if one.reference), "")
    if not held:
        return ""
    if any(estimate.n < 2 for _, estimate in held):
        return "; one seed, so another may turn the order"
    less = [name for name, found in held if found.high is not None and found.high < 0]
    more = [name for name, found in held if found.low is not None and found.low > 0]
    apart = {*less, *more}
    open_ones = [name for name, _ in held if name not in apart]
    parts = [
        (f"less than {reference}", less),
        (f"more than {reference}", more),
        (f"not told apart from {reference}", open_ones),
    ]
    return "".join(f"; {what}: {_names(names)}" for what, names in parts if names)


def _names(names: Sequence[str]) -> str:
    return w.listed(names) if len(names) <= w.MAX_NAMED else f"{len(names)} arms"


def _capacity(evidence: Evidence, found: Explanation) -> Iterator[str]:
    ranked = [one for one in found.capacity if rank_of(evidence.summary.arm(one.arm).method) is not None]
    if not ranked:
        return
    tokens = {one.num_unique_target_tokens or one.num_target_tokens for one in ranked}
    if len(tokens) > 1:
        return  # they saw different data, so that one number of tokens would be wrong for some of them
    small, large = ([one for one in ranked if is_too_small(one) is wanted] for wanted in (True, False))
    parts = [_sized(some, is_small=is_small) for some, is_small in ((small, True), (large, False)) if some]
    rule = f"By the rule of thumb of 2 bits a parameter and 1 bit a token, of the {tokens.pop():,} target tokens"
    yield f"{rule} {', and '.join(parts)}{_agreement(ranked, found.leaving)}."


def _sized(some: Sequence[Capacity], *, is_small: bool) -> str:
    per_token = [one.trainable / (one.num_unique_target_tokens or one.num_target_tokens) for one in some]
    if len(some) > w.MAX_NAMED:
        who = f"{len(some)} arms ({w.digits(min(per_token))} to {w.digits(max(per_token))} parameters a token)"
    else:
        who = w.listed([f"{one.arm} ({w.digits(value)} a token)" for one, value in zip(some, per_token, strict=True)])
    return f"{who} {'cannot' if is_small else 'can'} hold all there is to learn"


def _agreement(ranked: Sequence[Capacity], leaving: Sequence[Leaving]) -> str:
    """Return whether the curves bear the rule out: an arm that is too small leaves the common curve, another does not."""
    left = {one.arm: one.step is not None for one in leaving}
    known = [one for one in ranked if one.arm in left]
    wrong = [one.arm for one in known if left[one.arm] is not is_too_small(one)]
    if not known:
        return ""
    return f"; the curves do not bear this out for {_names(wrong)}" if wrong else "; the curves bear this out"


def _intruders(weights: Sequence[Weights]) -> Iterator[str]:
    if not any(one.num_intruders.value > 0 for one in weights):
        return
    ordered = sorted(weights, key=lambda one: -one.num_intruders.value / max(1, one.num_top))
    shown = ordered if len(ordered) <= w.MAX_NAMED else [ordered[0], ordered[-1]]
    parts = [f"{one.arm} {w.times(one.num_intruders.value)} of {one.num_top:,}" for one in shown]
    which = w.listed(parts) if shown is ordered else f"from {parts[1]} to {parts[0]} over {len(ordered)} arms"
    yield f"Leading directions of the trained weights that are like none of the base's (intruders): {which}."


def _frontiers(evidence: Evidence, found: Explanation) -> Iterator[str]:
    if not found.frontiers:
        return
    on_all = set.intersection(*(set(one.arms) for one in found.frontiers))
    off_all = set.intersection(*({*_beaten(evidence, one)} for one in found.frontiers))
    costs = w.listed([one.cost for one in found.frontiers])
    label = evidence.summary.primary.label
    if off_all:
        names = [arm.name for arm in evidence.summary.arms if arm.name in off_all]
        yield f"Beaten in the test's {label} by an arm that costs no more, by {costs} alike: {_names(names)}."
    elif on_all and len(on_all) < len(evidence.summary.ranking):
        names = [arm.name for arm in evidence.summary.arms if arm.name in on_all]
        yield f"No arm costs less and scores better in the test's {label}, by {costs} alike, than {_names(names)}."


def _beaten(evidence: Evidence, one: object) -> list[str]:
    raise NotImplementedError
