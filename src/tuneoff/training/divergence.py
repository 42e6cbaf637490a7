"""When a run whose loss is still a number counts as diverged.

The rule: in more than half of the last `WINDOW_STEPS` optimizer steps the training loss was more than `MARGIN_NATS`
above the larger of two losses: that of the first step (of the untouched weights) and that of guessing, ln(choices).
That is, the median over the window lies there.

- No spike ends a run, however high, nor does a rough start (warm-up, a new head) of up to half a window.
- Weights that know nothing at all give ln(choices), so a run that stays above that by a factor of e in perplexity is
  worse than no model. The first step's loss is among the two because a base can start there: an instruct model on
  plain text has been seen at a perplexity of 7 times its vocabulary, from which training takes it down.
- A run that has merely become bad (it ends at the frequencies of words, say) lies below ln(choices): it is not ended,
  and its row shows how bad it is.

It is a function of the member's own losses, which checkpoints keep, so a run that is resumed, or trained in a cohort,
ends by the same rule at the same losses as one that nothing disturbed and one alone.
"""

import math
from collections.abc import Sequence

WINDOW_STEPS = 50
MARGIN_NATS = 1.0


def limit_nats(first_loss_nats: float, num_choices: int) -> float:
    """Return the loss per target token above which most steps of a window may not lie.

    Args:
        first_loss_nats: training loss of the first step.
        num_choices: tokens of the vocabulary, or classes.
    """
    return max(first_loss_nats, math.log(num_choices)) + MARGIN_NATS


def why_diverged(losses: Sequence[float], num_choices: int) -> str:
    """Return why a run has diverged at its last step; empty where it has not.

    Args:
        losses: training loss of each step from the first on (nats per target token), all finite.
        num_choices: tokens of the vocabulary, or classes, that a target is one of.
    """
    if len(losses) < WINDOW_STEPS:
        return ""
    limit = limit_nats(losses[0], num_choices)
    if losses[-1] <= limit:  # the number above the limit grows only with a loss that is
        return ""
    num_above = sum(loss > limit for loss in losses[-WINDOW_STEPS:])
    if num_above <= WINDOW_STEPS // 2:
        return ""
    return (
        f"the loss was above {limit:.4g} nats in {num_above} of the last {WINDOW_STEPS} steps (guessing gives "
        f"{math.log(num_choices):.4g}, the first step gave {losses[0]:.4g})"
    )
