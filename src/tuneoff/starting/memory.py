"""Which arms fit into the memory that there is, and with which micro-batch: an estimate, before a study is written."""

from collections.abc import Mapping, Sequence
from typing import Any

from tuneoff.planning.cohort_memory import activation_bytes
from tuneoff.planning.plan import FP32_BYTES, ArmPlan
from tuneoff.study.value import Value
from tuneoff.training.machine import Machine

PROCESS_BYTES = 700_000_000
"""The interpreter with its libraries on a CPU, the driver's context on a GPU: about."""
MAX_SHARE = 0.9
"""Of the room there is; the rest is for scoring and for what the allocator cannot use."""
ORDER = ((False, 1), (False, 2), (False, 4), (True, 1), (True, 4), (False, 8), (True, 8), (False, 16), (True, 16))
"""Ways to save memory, the cheapest in time first: whether activations are recomputed, and by what the micro-batch is
divided.
"""


class Fit(Value):
    """How a study's arms fit."""

    room_bytes: int
    micro_batch: int
    recomputed: bool
    """Whether activations are worked out again in the backward pass."""
    needed_bytes: Mapping[str, int]
    """Of the largest arm of each family, so."""

    def fits(self, arm: str) -> bool:
        """Whether an arm fits."""
        return self.needed_bytes[arm] <= MAX_SHARE * self.room_bytes


def find_fit(
    arms: Mapping[str, Sequence[ArmPlan]], config: Any, length: int, batch: int, precision: str, machine: Machine
) -> Fit:
    """Return the quickest way of all that all arms fit with; else one that most of them fit with.

    Args:
        arms: as planned, by family.
        config: the base's text configuration.
        length: tokens of a sequence.
        batch: the effective batch.
        precision: the compute type.
        machine: what runs are trained on.
    """
    found = []
    for recomputed, divisor in ORDER:
        if divisor > batch:
            continue
        micro = batch // divisor
        needed = {
            family: max(_needed(arm, config, length, micro, precision, recomputed) for arm in members)
            for family, members in arms.items()
        }
        fit = Fit(room_bytes=machine.room_bytes, micro_batch=micro, recomputed=recomputed, needed_bytes=needed)
        found.append((sum(map(fit.fits, needed)), fit))
        if found[-1][0] == len(needed):
            break
    most = max(number for number, _ in found)
    return next(fit for number, fit in found if number == most)


def _needed(arm: ArmPlan, config: Any, length: int, micro: int, precision: str, recomputed: bool) -> int:
    gradients = arm.optimizer_bytes // 2  # fp32, as each of Adam's two moments is
    kept = 0
    if arm.optimizer_bytes:
        length += arm.num_virtual_tokens
        kept = activation_bytes(config, micro, length, precision, is_recomputed=recomputed)
    logits = FP32_BYTES * length * int(config.vocab_size)  # of a sequence at a time, at most
    return PROCESS_BYTES + arm.weights_bytes + arm.optimizer_bytes + gradients + kept + logits
