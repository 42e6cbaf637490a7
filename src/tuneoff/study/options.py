"""What a study may ask for beside arms and data: how rates are searched, what is explained, declared and tracked."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt

from tuneoff.study.value import PositiveInt, Value

Invariant = Literal[
    "base_model",
    "data_order",
    "budget",
    "batch_size",
    "optimizer",
    "evaluation_set",
    "template",
    "max_length",
    "precision",
    "num_trials",
    "edge",
    "lost_seed",
]
"""What the audit holds to be the same for every arm, and what it holds every arm to."""

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]
"""Experiment trackers that Accelerate writes to."""


class TuningSpec(Value):
    """How learning rates are searched, the same for every arm."""

    extend: Annotated[int, Field(ge=0, le=20)] = 4
    """Extra trials of each arm whose search is extended, at most, while the best rate of one lies at an edge."""
    search: Literal["grid", "halving"] = "grid"
    """Train every trial to the end, or stop those that fall behind: successive halving, by Optuna's own pruner."""
    reduction: Annotated[int, Field(ge=2, le=100)] = 3
    """Of successive halving: at each of its steps the best one in this many goes on, and each is this many times as
    late as the one before. The first is the first scoring of the validation split.
    """


class ExplainSpec(Value):
    """What is worked out of trained weights to say when, why and how methods differ."""

    weights: bool = True
    """Spectrum, norms and intruder dimensions of what training changed in every weight matrix."""
    samples: NonNegativeInt = 4
    """Test items of which the report shows, side by side, what every arm writes or chooses."""
    max_new_tokens: PositiveInt = 48
    """Length of such a text where the study itself generates none."""
