"""How many LoRA runs should fit in one pass: an estimate of a pass's memory, not a measurement.

Source: Korthikanti et al., 2022, "Reducing Activation Recomputation in Large Transformer Models", arXiv:2205.05198,
equation 2: a layer keeps s b h (34 + 5 a s / h) bytes of activations in 16 bits, with s positions, b sequences, width h
and a heads.

Departures: the formula is of GPT's layer with all weights trained; gated MLPs keep somewhat more, a frozen base and
attention that keeps no weights less. Logits are made a few at a time and do not count. A cohort that does not fit after
all is halved when memory runs out.
"""

from collections.abc import Iterable
from typing import Any

from tuneoff.planning.plan import COMPUTE_BYTES
from tuneoff.study.methods import LoraMethod
from tuneoff.study.spec import Arm, Study
from tuneoff.study.value import Value

MAX_AUTO = 8
"""Runs of a pass at most, where nobody says otherwise."""
MAX_SHARE = 0.8
"""Of the device's memory; the rest is for what the allocator cannot use and for scoring."""
HIDDEN_BYTES, WEIGHTS_BYTES = 34, 5
"""Bytes in 16 bits for each position and feature, and for each attention weight (equation 2)."""
STATE_BYTES = 16
"""Of a trained weight: itself, its gradient and Adam's two moments, in fp32."""


class CohortMemory(Value):
    """What passes need, and what there is.

    Attributes:
        device_bytes: memory of the accelerator; 0 where there is none.
        base_bytes: the frozen base's weights.
        run_bytes: one run's activations, adapter and optimizer, of the largest LoRA arm; 0 where there is none.
    """

    device_bytes: int
    base_bytes: int
    run_bytes: int

    def size(self, num_jobs: int = 1) -> int:
        """Return how many runs a pass takes where nobody says otherwise; one on a CPU.

        Small batches leave a GPU idle, and a CPU busy (`docs/performance.md`). The device's whole memory counts, not
        what is free of it, so that the same command forms the same cohorts whatever else is at work.

        Args:
            num_jobs: processes that share the device.
        """
        if not (self.device_bytes and self.run_bytes):
            return 1
        room = MAX_SHARE * self.device_bytes / num_jobs - self.base_bytes
        return min(MAX_AUTO, max(1, int(room // self.run_bytes)))


def activation_bytes(config: Any, num_sequences: int, length: int, precision: str, *, is_recomputed: bool) -> int:
    """Return what the layers of a decoder keep for the backward pass.

    Args:
        config: the model's, of Transformers.
        num_sequences: in one forward.
        length: positions of each.
        precision: compute type, fp32, bf16 or fp16.
        is_recomputed: whether each layer keeps its input alone and is worked out again.
    """
    width, heads = int(config.hidden_size), int(getattr(config, "num_attention_heads", 0))  # some have none (Mamba)
    layers, factor = int(config.num_hidden_layers), COMPUTE_BYTES[precision] / 2
    layer = num_sequences * length * (HIDDEN_BYTES * width + WEIGHTS_BYTES * heads * length) * factor
    if is_recomputed:
        return round(layer + layers * num_sequences * length * width * COMPUTE_BYTES[precision])
    return round(layers * layer)


def cohort_memory(study: Study, config: Any, base_bytes: int, trainable: dict[str, int], device: int) -> CohortMemory:
    """Return what a study's passes need.

    Args:
        study: the study.
        config: its base's text configuration.
        base_bytes: of the base's weights as they are held.
        trainable: parameters that each arm trains, by its name.
        device: bytes of the accelerator; 0 where there is none.
    """
    if not device:
        return CohortMemory(device_bytes=0, base_bytes=base_bytes, run_bytes=0)
    needed = (_run_bytes(study.for_arm(arm), config, trainable[arm.name]) for arm in _lora_arms(study))
    return CohortMemory(device_bytes=device, base_bytes=base_bytes, run_bytes=max(needed, default=0))


def _lora_arms(study: Study) -> Iterable[Arm]:
    return (arm for arm in study.arms if isinstance(arm.method, LoraMethod))


def _run_bytes(own: Study, config: Any, trainable: int) -> int:
    batch = min(own.micro_batch or own.budget.batch_size, own.budget.batch_size)
    kept = activation_bytes(config, batch, own.task.max_length, own.precision, is_recomputed=own.gradient_checkpointing)
    return kept + STATE_BYTES * trainable
