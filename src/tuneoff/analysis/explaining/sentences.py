"""What an explanation comes to, a sentence each, the most telling first.

A sentence says what the numbers say and no more: where an interval does not tell two things apart it says so, and what
rests on one seed is said to.
"""

from collections.abc import Iterator, Sequence

from tuneoff.analysis.explaining import wording as w
from tuneoff.analysis.explaining.capacity import BITS_PER_PARAMETER, BITS_PER_TOKEN, is_too_small
from tuneoff.analysis.explaining.evidence import Evidence
from tuneoff.analysis.explaining.frontiers import beaten
from tuneoff.analysis.explaining.leaving import is_with_it
from tuneoff.analysis.explaining.ranks import compared_ranks
from tuneoff.analysis.explanation import Capacity, Explanation, Forgetting, Leaving, OptimumRatio, Weights
from tuneoff.analysis.weights.layers import THRESHOLD
from tuneoff.study.methods import rank_of


def sentences(evidence: Evidence, found: Explanation) -> tuple[str, ...]:
    """Return what it comes to.

    Args:
        evidence: what is known.
        found: the explanation, without its sentences.
    """
    return (
        *compared_ranks(evidence),
        *_leaving(evidence, found),
        *_rates(found.ratios),
        *_spectrum(evidence, found.weights),
        *_forgetting(found),
        *_capacity(evidence, found),
        *_intruders(found.weights),
        *_frontiers(evidence, found),
        *_caution(evidence),
    )


def _leaving(evidence: Evidence, found: Explanation) -> Iterator[str]:
    by_reference: dict[str, list[Leaving]] = {}
    for one in found.leaving:
        by_reference.setdefault(one.reference, []).append(one)
    for reference, arms in by_reference.items():
        left = [one for one in arms if one.step is not None]
        stayed = [one for one in arms if is_with_it(one, found.loss_margin_nats)]
        undecided = [one for one in arms if one not in left and one not in stayed]
        is_short = len(arms) <= w.MAX_NAMED
        parts = _each(evidence, left, stayed, undecided) if is_short else _counted(left, stayed, undecided)
        is_one = any(one.gap_nats.n == 1 for one in arms)
        how = "one seed, so another may turn this" if is_one else "95 % intervals over seeds alone"
        margin = f"margin {found.loss_margin_nats:g} {evidence.summary.loss_unit}"
        yield f"Held against the validation curve of {reference} ({margin}; {how}): {'; '.join(parts)}."


def _each(
    evidence: Evidence, left: Sequence[Leaving], stayed: Sequence[Leaving], undecided: Sequence[Leaving]
) -> list[str]:
    what = "training examples" if evidence.summary.kind == "classification" else "target tokens"
    return [
        *(f"{_left(one)} ({one.target_tokens or 0:,} {what}), and ends at {_gap(one)}" for one in left),
        *(f"{one.arm} stays with it to the last step ({_gap(one)})" for one in stayed),
        *(f"for {one.arm} it is undecided ({_gap(one)} at the last step)" for one in undecided),
    ]


def _left(one: Leaving) -> str:
    how = "lies above it from the first validated step on," if one.is_from_start else "has left it by step"
    return f"{one.arm} {how} {one.step or 0:,}"


def _counted(left: Sequence[Leaving], stayed: Sequence[Leaving], undecided: Sequence[Leaving]) -> list[str]:
    above = [one for one in left if one.is_from_start]
    steps = [one.step for one in left if one.step is not None and not one.is_from_start]
    first, last = min(steps, default=0), max(steps, default=0)
    found = (
        (len(above), "{} lie above it from the first validated step on"),
        (len(steps), f"{{}} left it, {w.span(f'{first:,}', f'{last:,}', 'by step ')}"),
        (len(stayed), "{} stayed with it to the last step"),
        (len(undecided), "for {} it is undecided"),
    )
    return [text.format(w.arms(number)) for number, text in found if number]


def _gap(one: Leaving) -> str:
    return f"{one.gap_nats.value:+.3f} nats{w.interval(one.gap_nats)}"


def _rates(ratios: Sequence[OptimumRatio]) -> Iterator[str]:
    if not ratios:
        return
    base, about = ratios[0].base, "rates are chosen on the first seed; published for LoRA: about 10"
    if len(ratios) <= w.MAX_NAMED:
        parts = [f"{one.arm} {_times(one)}" for one in ratios]
        yield f"Best learning rate over that of {base}, and what the grids enclose: {w.listed(parts)} ({about})."
        return
    enclosed = [one for one in ratios if one.low is not None and one.high is not None]
    values = sorted(one.chosen if one.fitted is None else one.fitted for one in enclosed)
    parts = [f"of {w.arms(len(values))} {w.span(w.digits(values[0]), w.digits(values[-1]))}"] if values else []
    parts += [f"of {w.arms(len(ratios) - len(values))} not enclosed"] if len(values) < len(ratios) else []
    yield f"Best learning rate over that of {base}: {', '.join(parts)} ({about})."


def _times(one: OptimumRatio) -> str:
    """Return the ratio with the ends between which the grids enclose it.

    Where they do not, the rates that were tried are no estimate: grids that lie ten times apart would always say ten.
    """
    low, high = ("" if end is None else w.digits(end) for end in (one.low, one.high))
    if low and high:
        return f"{w.digits(one.chosen if one.fitted is None else one.fitted)} [{low}, {high}]"
    if low:
        return f"at least {low}"
    return f"at most {high}" if high else "not enclosed"


def _spectrum(evidence: Evidence, weights: Sequence[Weights]) -> Iterator[str]:
    full = evidence.full
    one = next((one for one in weights if full is not None and one.arm == full.name), None)
    if one is None:
        return
    own = {rank_of(arm.method) for arm in evidence.summary.arms}
    ranks = sorted([rank for rank in one.share_held if rank in own] or one.share_held, reverse=True)[: w.MAX_NAMED]
    held = w.listed([f"{w.share(one.share_held[rank].value)} at rank {rank}" for rank in ranks]) if ranks else ""
    keeps = f"the best approximation of each matrix keeps {held}" if held else ""
    matrices = "1 matrix" if len(one.layers) == 1 else f"{len(one.layers)} matrices"
    if one.rank_90 is not None:
        sizes = sorted({min(layer.shape) for layer in one.layers})
        of = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
        head = f"90 % of the weight change of {one.arm} (squared norm) lies in {w.times(one.rank_90.value)} of {of}"
        yield f"{head} directions a matrix, mean over {matrices}{f'; {keeps}' if keeps else ''}."
    elif keeps:
        yield f"Of the weight change of {one.arm} (squared norm, {matrices}), {keeps}."


def _forgetting(found: Explanation) -> Iterator[str]:
    arms = found.forgetting
    if not arms:
        return
    ordered = sorted(arms, key=lambda one: -one.difference.value)
    shown = ordered if len(arms) <= w.MAX_NAMED else [ordered[0], ordered[-1]]
    parts = [f"{one.arm} {one.difference.value:+.3f}" for one in shown]
    which = w.listed(parts) if shown is ordered else f"from {parts[1]} to {parts[0]} over {len(arms)} arms"
    before = "" if found.base_retention_nats is None else f" (before: {w.nats(found.base_retention_nats)})"
    yield (
        f"Loss on the retention text, nats per token, after training minus before{before}: {which}"
        f"{_against_zero(arms)}{_against_reference(arms)}."
    )


def _against_zero(arms: Sequence[Forgetting]) -> str:
    ends = [(one.arm, one.difference.low, one.difference.high) for one in arms]
    names = [name for name, low, high in ends if low is not None and high is not None and low <= 0 <= high]
    return f"; not told apart from none: {w.named(names)}" if names else ""


def _against_reference(arms: Sequence[Forgetting]) -> str:
    held = [(one.arm, one.beyond_reference) for one in arms if one.beyond_reference is not None]
    reference = next((one.reference for one in arms if one.reference), "")
    if any(estimate.n == 1 for _, estimate in held):
        return "; one seed, so another may turn the order"
    less = [name for name, found in held if found.high is not None and found.high < 0]
    more = [name for name, found in held if found.low is not None and found.low > 0]
    parts = [
        (f"less than {reference}", less),
        (f"more than {reference}", more),
        (f"not told apart from {reference}", [name for name, _ in held if name not in {*less, *more}]),
    ]
    return "".join(f"; {what}: {w.named(names)}" for what, names in parts if names)


def _capacity(evidence: Evidence, found: Explanation) -> Iterator[str]:
    ranked = [one for one in found.capacity if rank_of(evidence.summary.arm(one.arm).method) is not None]
    tokens = {one.num_unique_target_tokens or one.num_target_tokens for one in ranked}
    # A class is not a token; and where arms saw different data, one number of tokens would be wrong for some of them.
    if evidence.summary.kind == "classification" or len(tokens) != 1:
        return
    is_short = len(ranked) <= w.MAX_NAMED
    small, large = ([one for one in ranked if is_too_small(one) is wanted] for wanted in (True, False))
    parts = [
        _sized(some, is_small=is_small, is_short=is_short) for some, is_small in ((small, True), (large, False)) if some
    ]
    rule = f"2 bits a parameter against 1 bit for each of {tokens.pop():,} target tokens, repeats not counted"
    need = f"at least {BITS_PER_TOKEN / BITS_PER_PARAMETER:g} parameters a token"
    yield f"By a rule of thumb ({rule}: {need}) {', and '.join(parts)}{_agreement(ranked, found)}."


def _sized(some: Sequence[Capacity], *, is_small: bool, is_short: bool) -> str:
    per_token = [one.trainable / (one.num_unique_target_tokens or one.num_target_tokens) for one in some]
    if is_short:
        who = w.listed([f"{one.arm} ({w.digits(value)})" for one, value in zip(some, per_token, strict=True)])
    else:
        who = f"{w.arms(len(some))} ({w.span(w.digits(min(per_token)), w.digits(max(per_token)))})"
    verb = "is" if len(some) == 1 else "are"
    return f"{who} {verb} {'too small to hold' if is_small else 'large enough for'} all there is to learn"


def _agreement(ranked: Sequence[Capacity], found: Explanation) -> str:
    """Return whether the curves agree: an arm that is too small leaves the common curve, another stays with it."""
    small = {one.arm: is_too_small(one) for one in ranked}
    decided = {
        one.arm: one.step is not None
        for one in found.leaving
        # One that was never seen on the curve did not leave it for want of capacity.
        if one.arm in small
        and not one.is_from_start
        and (one.step is not None or is_with_it(one, found.loss_margin_nats))
    }
    agree, disagree = (
        [name for name, left in decided.items() if (left is small[name]) is is_so] for is_so in (True, False)
    )
    parts = [
        f"{text} for {w.named(names) if len(ranked) <= w.MAX_NAMED else w.arms(len(names))}"
        for names, text in ((agree, "agree"), (disagree, "do not agree"))
        if names
    ]
    return f"; the curves {', and '.join(parts)}" if parts else ""


def _intruders(weights: Sequence[Weights]) -> Iterator[str]:
    looked_at = [one for one in weights if one.num_top > 0]
    if not looked_at:
        return
    head = f"Leading directions of the trained weights unlike any of the base's (intruders, cosine below {THRESHOLD:g})"
    if not any(one.num_intruders.value > 0 for one in looked_at):
        yield f"{head}: none, in {w.arms(len(looked_at))}."
        return
    ordered = sorted(looked_at, key=lambda one: -one.num_intruders.value / one.num_top)
    shown = ordered if len(ordered) <= w.MAX_NAMED else [ordered[0], ordered[-1]]
    parts = [f"{one.arm} {w.times(one.num_intruders.value)} of {one.num_top:,}" for one in shown]
    which = w.listed(parts) if shown is ordered else f"from {parts[1]} to {parts[0]} over {len(ordered)} arms"
    yield f"{head}: {which}."


def _frontiers(evidence: Evidence, found: Explanation) -> Iterator[str]:
    if not found.frontiers:
        return
    summary = evidence.summary
    on_all = set.intersection(*(set(one.arms) for one in found.frontiers))
    off_all = set.intersection(*(beaten(summary, one) for one in found.frontiers))
    on, off = ([arm.name for arm in summary.arms if arm.is_trained and arm.name in some] for some in (on_all, off_all))
    costs = w.listed([one.cost for one in found.frontiers]) + (" alike" if len(found.frontiers) > 1 else "")
    label = summary.primary.label
    trained = [name for name in summary.ranking if summary.arm(name).is_trained]
    who = "every trained arm" if len(trained) == len(on) > 1 else w.named(on) if on else ""
    maybe = {name for one in found.frontiers for name in one.contested}
    unsure = [arm.name for arm in summary.arms if arm.is_trained and arm.name in maybe]
    tail = f"; beaten in some cost, but not for certain: {w.named(unsure)}" if unsure else ""
    if who:
        yield f"On the frontier of the test's {label} against {costs}, by the means: {who}{tail}."
    if off:
        yield (
            f"Off the frontier against {costs} for certain, because an arm that costs no more is better by the "
            f"corrected test, or one that costs less is equivalent: {w.named(off)}."
        )


def _caution(evidence: Evidence) -> Iterator[str]:
    """Yield which arms the audit found unlike the others: what is said of them may not be their method's doing."""
    audit = evidence.summary.audit
    names = [arm.name for arm in evidence.summary.arms if audit.of(arm.name)]
    if names:
        kinds = dict.fromkeys(one.label for name in names for one in audit.of(name))
        yield (
            f"Not comparable by the audit ({', '.join(kinds)}), so that what is said of them may not be their method's "
            f"doing: {w.named(names)}."
        )
