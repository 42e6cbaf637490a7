"""What an arm costs when it is measured alone: a few steps in a process of their own, with nothing beside.

The unit that tables compare. Runs that trained beside others, or in one pass with others, have no such figures.
"""

from collections.abc import Mapping
from typing import Literal

from tuneoff.study.identity import digest
from tuneoff.study.records import RECORD_VERSION, Record
from tuneoff.study.testing import Testing
from tuneoff.study.value import Value, plain

KEY_DIGITS = 16


class SoloCosts(Value):
    """Time and memory of one run's method, measured alone.

    The first steps are warm-up and left out, and the device has done its work before a clock is read.
    """

    version: int = RECORD_VERSION
    run_id: str
    """The arm's run at its chosen rate and first seed, whose batches these were."""
    measured_at: str
    device: str
    platform: str
    num_threads: int
    micro_batch: int
    num_steps: int
    """That the median is over, without warm-up; 0 where nothing is trained."""
    step_s: float | None = None
    """Median time of an optimizer step."""
    input_tokens_per_s: float | None = None
    target_tokens_per_s: float | None = None
    evaluate_tokens_per_s: float
    """Input tokens per second of scoring, over the longest sequences of the validation split."""
    generate_tokens_per_s: float | None = None
    """New tokens per second, with as many texts in the making as when the test split is read; none where the task
    generates none.
    """
    peak_bytes: Mapping[str, int]
    """Highest memory use by phase (load, train, evaluate, generate, save)."""
    peak_kind: Literal["resident", "allocated"]
    optimizer_bytes: int
    weights_bytes: int
    """Of the file with what was trained."""
    checkpoint_bytes: int
    measure_s: float
    """That all of this took."""
    files: Mapping[str, str] = {}


def solo_key(record: Record, testing: Testing) -> str:
    """Return the name of a run's solo costs: a hash of all that they depend on, the machine among it."""
    source = record.provenance
    return digest(
        {
            "version": RECORD_VERSION,
            "run": record.run_id,
            "testing": plain(testing),
            "model": source.model_sha256,
            "data": source.data_sha256,
            "micro_batch": source.micro_batch,
            "num_threads": source.num_threads,
            "machine": [source.device, source.platform, source.versions.get("torch", "")],
        }
    )[:KEY_DIGITS]
