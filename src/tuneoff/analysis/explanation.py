"""When, why and how methods differ, as frozen values (worked out in `tuneoff.analysis.explain`)."""

from collections.abc import Mapping
from typing import Literal

from tuneoff.analysis.estimates import Estimate
from tuneoff.study.value import Value

Cost = Literal["parameters", "memory", "time", "disk"]


class Leaving(Value):
    """When an arm leaves the common curve: from which step on its validation loss stays above the best one's."""

    arm: str
    rank: int | None
    """None for full fine-tuning."""
    reference: str
    """The arm of the largest capacity, whose curve it is held against."""
    step: int | None
    """First validated step from which on it stays more than the margin above; none where it never leaves."""
    target_tokens: int | None
    """Target tokens seen by then."""
    is_from_start: bool = False
    """Whether that is the first validated step, so that the arm was never seen on the curve."""
    gap_nats: Estimate
    """At the last step, mean over seeds of its validation loss minus the reference's."""


class Optimum(Value):
    """Where the best learning rate of an arm lies."""

    arm: str
    chosen_lr: float
    fitted_lr: float | None
    """Lowest point of the parabola in log rate through the best rate and its two neighbours; none at an edge."""
    low_lr: float | None
    """The best rate's neighbours, between which the optimum lies; none where there is no neighbour."""
    high_lr: float | None


class OptimumRatio(Value):
    """How far apart the best rates of two arms are."""

    arm: str
    base: str
    """The arm that it is divided by: full fine-tuning where there is one."""
    chosen: float
    """Ratio of the rates that were chosen."""
    fitted: float | None
    low: float | None
    """Between these two the ratio lies for certain, as far as the grids tell."""
    high: float | None


class LayerEstimates(Value):
    """How training changed one weight matrix, over seeds."""

    module: str
    shape: tuple[int, int]
    relative_norm: Estimate | None
    """Frobenius norm of the change over that of the base's matrix; none where that is zero."""
    effective_rank: Estimate | None
    rank_90: Estimate | None
    """Directions that carry 90 % of the change's squared norm."""
    num_intruders: Estimate
    num_top: int
    share_held: Mapping[int, Estimate]
    """By rank: share of the change's squared norm that the best approximation of that rank holds."""


class Weights(Value):
    """How an arm's training changed the weights, layer by layer, in the model's order."""

    arm: str
    layers: tuple[LayerEstimates, ...]
    spectrum: tuple[float, ...]
    """Singular values of the change over the largest one, mean over layers and seeds."""
    relative_norm: Estimate | None
    """Of all changed matrices together."""
    num_intruders: Estimate
    """Sum over layers."""
    num_top: int
    """Singular vectors looked at, over all layers."""
    share_held: Mapping[int, Estimate]
    """By rank: of the squared norm of all layers' change."""
    rank_90: Estimate | None
    """Directions a layer that carry 90 % of its change, mean over layers."""


class Forgetting(Value):
    """What training cost on general text."""

    arm: str
    difference: Estimate
    """Loss on the retention text after training minus before, nats per token."""
    reference: str = ""
    """Full fine-tuning's arm, where there is another one."""
    beyond_reference: Estimate | None = None
    """What this arm forgets minus what the reference does, on the same seeds and units of the text."""


class Capacity(Value):
    """What can be stored against what there is to store."""

    arm: str
    trainable: int
    num_target_tokens: int
    """That the run was trained on, repeats counted."""
    num_unique_target_tokens: int | None
    """Those of them that are no repeats: of the training split, or of the part of it that the budget reaches."""


class Frontier(Value):
    """The arms that no other beats in both quality and a cost."""

    cost: Cost
    arms: tuple[str, ...]
    """From the cheapest to the best."""
    contested: tuple[str, ...]
    """Arms beaten by one that costs no more, but not for certain: the test does not tell the two apart."""


class Explanation(Value):
    """All that is known of when, why and how."""

    sentences: tuple[str, ...] = ()
    """What it comes to, a sentence each, the most telling first."""
    loss_margin_nats: float = 0.01
    """How far above the reference's validation loss counts as having left its curve."""
    leaving: tuple[Leaving, ...] = ()
    optima: tuple[Optimum, ...] = ()
    ratios: tuple[OptimumRatio, ...] = ()
    weights: tuple[Weights, ...] = ()
    base_retention_nats: float | None = None
    """Loss of the base on the retention text."""
    forgetting: tuple[Forgetting, ...] = ()
    capacity: tuple[Capacity, ...] = ()
    frontiers: tuple[Frontier, ...] = ()
    notes: tuple[str, ...] = ()
    """What could not be worked out, and why."""


NOTHING = Explanation()
"""What is known where nothing was worked out."""
