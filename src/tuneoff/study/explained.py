"""What is worked out of a trained run beside its scores, as frozen values: `explain.json` in the run's folder."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

from pydantic import Field

from tuneoff.study.options import ExplainSpec
from tuneoff.study.records import RECORD_VERSION, Likelihood
from tuneoff.study.shortage import Shortage
from tuneoff.study.value import Value


class LayerChange(Value):
    """How training changed one weight matrix: from W, (out, in), to W + D."""

    module: str
    shape: tuple[int, int]
    """(out, in)"""
    base_norm: float
    """Frobenius norm of W."""
    change_norm: float
    """Frobenius norm of D."""
    singular_values: tuple[float, ...]
    """Of D, the largest first; as many as were worked out (all of a low-rank D, the first 128 of a full one)."""
    num_singular_values: int
    """How many D has: min(out, in), or the rank of the adapter."""
    effective_rank: float | None
    """exp of the entropy of the singular values' shares (Roy and Vetterli, 2007, section 2); none where D is zero."""
    rank_90: int | None
    """Directions that carry 90 % of the squared norm of D; none where D is zero, or where more than were worked out."""
    num_top: int
    """Leading singular vectors of W + D that were held against those of W."""
    num_intruders: int
    """Those among them that are like none of W's: the largest absolute cosine is below the threshold."""
    max_cosines: tuple[float, ...]
    """The largest absolute cosine of each of them with any left singular vector of W, in their order."""

    def share_held(self, rank: int) -> float | None:
        """Return the share of D's squared norm that its best approximation of this rank holds (Eckart and Young, 1936).

        None where D is zero, or where fewer singular values were worked out.
        """
        return self.shares_held((rank,))[0]

    def shares_held(self, ranks: Sequence[int]) -> tuple[float | None, ...]:
        """Return `share_held` of several ranks."""
        known, square = len(self.singular_values), self.change_norm**2
        sums = [0.0, *accumulate(value * value for value in self.singular_values)]
        return tuple(
            None
            if square == 0 or rank > known < self.num_singular_values
            else min(1.0, sums[min(rank, known)] / square)
            for rank in ranks
        )


class Sample(Value):
    """What a run wrote, or chose, for one item of the test split."""

    item: str
    prompt: str
    reference: str
    text: str


class Retention(Value):
    """How well a run still predicts general text."""

    likelihood: Likelihood
    values: tuple[float, ...]
    """Of each independent unit of the text; their mean is the loss (see `tuneoff.data.items`)."""


class Explaining(Value):
    """All that an explanation depends on beside the run and its reading of the test split."""

    asked: ExplainSpec
    retention: str | None = None
    """File with the general text, or `demo`."""
    retention_sha256: str = ""
    """Hash of its tokens as they are now; empty where none is asked for, or where nobody looked."""
    model_sha256: str = ""
    """Hash of the base as it is now; empty where nobody looked."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is asked for."""
        return not (self.asked.weights or self.asked.samples or self.retention is not None)

    def is_met_by(self, record: "ExplainRecord | None") -> bool:
        """Whether an explanation is there and is what is asked for; another is made anew."""
        if (
            record is None
            or record.asked != self.asked
            or bool(record.retention_sha256) != (self.retention is not None)
        ):
            return False
        return all(
            now in ("", then)
            for now, then in (
                (self.retention_sha256, record.retention_sha256),
                (self.model_sha256, record.model_sha256),
            )
        )


class ExplainRecord(Value):
    """What was worked out of a finished run."""

    version: int = RECORD_VERSION
    run_id: str
    asked: ExplainSpec
    model_sha256: str = ""
    """Hash of the base; of a base that no arm stands for there is no other record."""
    retention_sha256: str = ""
    """Hash of the retention text's tokens; empty where none was asked for."""
    retention: Retention | None = None
    layers: tuple[LayerChange, ...] = ()
    """One for each weight matrix that changed, in the model's order; none where the method changes none."""
    samples: tuple[Sample, ...] = ()
    notes: tuple[str, ...] = ()
    """Why something could not be worked out."""
    shortage: Shortage | None = None
    """What memory was lacking for some of it; where there is more, it is worked out again."""
    explain_s: float
    files: Mapping[str, str] = Field(default_factory=dict)
