"""What a plan foretells of each arm, as frozen values: memory, time and disk. Kept as `plan.json` beside the records.

The report shows these beside what was measured, so they hold numbers alone and need no torch to be read.
"""

from collections.abc import Mapping
from typing import Literal

from tuneoff.study.value import Value

PLAN_FILE = "plan.json"
"""In a study's folder: what was foretold when it was last run."""

Phase = Literal["train", "evaluate", "generate"]
PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "key_values")
"""Of the tensors that are alive at a phase's highest point, in the order in which tables show them."""


class PredictedPhase(Value):
    """The highest point of one phase."""

    peak_bytes: int
    """Of tensors alive at the same time."""
    parts: Mapping[str, int]
    """Bytes by part (see `PARTS`); they add up to the peak."""
    flop: float
    """Of matrix products: of one optimizer step (train), one forward (evaluate), one batch of texts (generate)."""


class Seconds(Value):
    """A time that depends on how a search goes, or on where texts end: the least and the most."""

    fewest: float
    most: float

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(fewest=self.fewest + other.fewest, most=self.most + other.most)


class Predicted(Value):
    """What one arm is foretold to cost.

    Times are none where nothing is known of the machine's speed, or the data decide how long a run is.
    """

    phases: Mapping[Phase, PredictedPhase]
    """By phase; `generate` is there where the study generates, `train` where the arm trains."""
    process_bytes: int
    """Beside tensors: the interpreter and its libraries on a CPU, the driver's context on a GPU."""
    micro_batch: int
    """Sequences in one forward, for which this holds."""
    step_s: float | None = None
    """Of one optimizer step."""
    validate_s: float | None = None
    """Of one scoring of the validation split."""
    test_s: float | None = None
    """Of one scoring of the test split, without what is generated."""
    generate_s: Seconds | None = None
    """Of all texts of one reading of the test split."""
    run_s: float | None = None
    """Of one run: its steps and scorings of the validation split, without start-up and saving."""
    total_s: Seconds | None = None
    """Of all of the arm's runs: trials, seeds and readings of the test split."""
    checkpoint_bytes: int = 0
    """Of a run under way; gone when it is done."""
    run_bytes: int = 0
    """That each finished run leaves."""
    store_bytes: int = 0
    """That all of the arm's finished runs leave."""

    @property
    def peak_bytes(self) -> Mapping[str, int]:
        """Tensor bytes at the highest point of each phase."""
        return {phase: found.peak_bytes for phase, found in self.phases.items()}

    @property
    def needed_bytes(self) -> int:
        """What the device must have: the highest phase's tensors and what the process takes beside."""
        return max(self.peak_bytes.values(), default=0) + self.process_bytes
