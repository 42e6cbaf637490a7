"""Where the best learning rates lie, and how far apart they are.

The lowest point of the parabola in log10 rate through the best rate tried and its two neighbours. With (x, y) taken
from the best one's, of the left neighbour (-p, a) and the right one (q, b), p, q > 0 and a, b >= 0:

    x = (q^2 a - p^2 b) / (2 (p b + q a))

which lies between the neighbours. LoRA's best rates are published to lie about 10 times above full fine-tuning's,
whatever the rank (Schulman et al., 2025, "LoRA Without Regret": 9.8 over 14 models).

Rates are chosen on one seed, so no interval over seeds can be given. What is known for certain, where the loss over log
rate has one valley, is that the best rate lies between the neighbours. A rate at which training diverged is a wall: it
bounds, but no parabola goes through it.
"""

import math
from collections.abc import Sequence

from tuneoff.analysis.explaining.evidence import Evidence
from tuneoff.analysis.explanation import Optimum, OptimumRatio
from tuneoff.analysis.selection import Trial
from tuneoff.analysis.values import ArmSummary
from tuneoff.study.methods import rank_of


def optima(evidence: Evidence) -> tuple[Optimum, ...]:
    """Return where the best rate of every tuned arm lies, in the study's order."""
    found = tuple(
        _optimum(arm, arm.chosen_lr) for arm in evidence.summary.arms if arm.is_tuned and arm.chosen_lr is not None
    )
    at_edge = [one.arm for one in found if one.low_lr is None or one.high_lr is None]
    if at_edge:
        evidence.note(
            f"The best rate tried lies at the edge of the grid, so the optimum is not enclosed: {', '.join(at_edge)}."
        )
    return found


def ratios(evidence: Evidence, found: Sequence[Optimum]) -> tuple[OptimumRatio, ...]:
    """Return how far the best rates of arms with a rank lie above that of full fine-tuning.

    Args:
        evidence: what is known.
        found: where the best rates lie.
    """
    by_arm = {one.arm: one for one in found}
    ranked = [
        by_arm[arm.name] for arm in evidence.summary.arms if rank_of(arm.method) is not None and arm.name in by_arm
    ]
    full = None if evidence.full is None else by_arm.get(evidence.full.name)
    if full is None:
        if ranked:
            evidence.note("How far LoRA's best rate lies above full fine-tuning's is not known: no tuned full arm.")
        return ()
    return tuple(
        OptimumRatio(
            arm=one.arm,
            base=full.arm,
            chosen=one.chosen_lr / full.chosen_lr,
            fitted=_over(one.fitted_lr, full.fitted_lr),
            low=_over(one.low_lr, full.high_lr),
            high=_over(one.high_lr, full.low_lr),
        )
        for one in ranked
        if not evidence.barriers(one.arm, full.arm)
    )


def vertex(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return the rate at the lowest point of a parabola in log10 rate; none where the middle one is not the lowest.

    Args:
        lrs: three rates, rising.
        losses: of them, nats per token. All three equal have no lowest point either.
    """
    left, best, right = (math.log10(lr) for lr in lrs)
    p, q = best - left, right - best
    a, b = losses[0] - losses[1], losses[2] - losses[1]
    bend = 2 * (p * b + q * a)
    if min(a, b) < 0 or bend == 0:
        return None
    return float(10 ** (best + (q * q * a - p * p * b) / bend))


def _optimum(arm: ArmSummary, chosen: float) -> Optimum:
    trials = sorted((trial for trial in arm.trials if trial.lr is not None), key=lambda trial: trial.lr or 0.0)
    place = [trial.lr for trial in trials].index(chosen)
    before, after = trials[place - 1] if place else None, trials[place + 1] if place + 1 < len(trials) else None
    return Optimum(
        arm=arm.name,
        chosen_lr=chosen,
        fitted_lr=_fitted(before, trials[place], after),
        low_lr=None if before is None else before.lr,
        high_lr=None if after is None else after.lr,
    )


def _fitted(before: Trial | None, best: Trial, after: Trial | None) -> float | None:
    points = [
        (one.lr, one.loss_nats)
        for one in (before, best, after)
        if one is not None and one.lr is not None and one.loss_nats is not None
    ]
    return vertex(*zip(*points, strict=True)) if len(points) == 3 else None


def _over(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one / other
