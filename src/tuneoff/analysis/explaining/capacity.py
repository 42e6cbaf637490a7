"""What can be stored against what there is to store.

A rule of thumb (Schulman et al., 2025, "LoRA Without Regret"): a model stores about 2 bits a parameter (Allen-Zhu and
Li, 2024, arXiv:2404.05405), and supervised training has about 1 bit a target token to teach. It is a heuristic that the
study puts to the test, and not a law: repeats add nothing to store, and data that the base predicts well has less.
"""

from statistics import median

from tuneoff.analysis.explaining.evidence import Evidence
from tuneoff.analysis.explanation import Capacity

BITS_PER_PARAMETER = 2.0
BITS_PER_TOKEN = 1.0


def capacities(evidence: Evidence) -> tuple[Capacity, ...]:
    """Return of every trained arm its trainable parameters and the target tokens it saw, in the study's order."""
    found = []
    for arm in evidence.summary.arms:
        trained = [run.training for run in evidence.runs(arm) if run.training is not None]
        if not trained or arm.parameters is None:
            continue
        found.append(
            Capacity(
                arm=arm.name,
                trainable=arm.parameters.trainable,
                num_target_tokens=round(median(one.num_target_tokens for one in trained)),
                num_unique_target_tokens=round(median(one.num_target_tokens / max(1.0, one.epochs) for one in trained)),
            )
        )
    return tuple(found)


def is_too_small(capacity: Capacity) -> bool:
    """Whether, by the rule of thumb, the parameters hold less than the tokens have to teach."""
    tokens = capacity.num_unique_target_tokens or capacity.num_target_tokens
    return BITS_PER_PARAMETER * capacity.trainable < BITS_PER_TOKEN * tokens
