"""What a study may ask for beside arms and data: what is explained, declared and tracked."""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from tuneoff.study.value import Value

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


class ExplainSpec(Value):
    """What is worked out of trained weights to say when, why and how methods differ."""

    weights: bool = True
    """Spectrum, norms and intruder dimensions of what training changed in every weight matrix."""
    samples: NonNegativeInt = 4
    """Test items of which the report shows, side by side, what every arm writes or chooses."""
    max_new_tokens: PositiveInt = 48
    """Length of such a text where the study itself generates none."""
