"""What a run leaves behind, as frozen values.

`record.json` (training and validation) and `test.json` (the one reading of the test split).
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, computed_field, model_validator

from tuneoff.study.identity import Run
from tuneoff.study.shortage import Shortage
from tuneoff.study.testing import Decoding, Testing
from tuneoff.study.value import Value

RECORD_VERSION = 2
"""Raised whenever the numbers of a run change, so that no study holds runs of both; 2: dropout by sequence, packing."""
MAX_EXPONENT = 700.0
DIVERGED = "diverged"
"""Start of the reason of a run whose numbers were not finite any more, or whose loss stayed worse than guessing; a
lower learning rate may help.
"""


def exp(value: float) -> float:
    """Return e to `value`, capped below the largest float (JSON has no infinity)."""
    return math.exp(min(value, MAX_EXPONENT))


class Likelihood(Value):
    """How well a model predicts a split, over all its target tokens.

    Of classification the one target of a sequence is its class, and the vocabulary is that of the classes.
    """

    nll_nats: float
    """Sum of the negative log-likelihood over target tokens."""
    num_target_tokens: int
    num_sequences: int
    """Sequences (text: windows) scored."""
    num_target_bytes: int
    """UTF-8 bytes of the text that the target tokens stand for."""
    mean_sequence_loss_nats: float
    """(1/N) sum over sequences of each one's own mean loss L_i."""
    vocabulary_size: int
    stride_tokens: int | None = None
    """New target tokens per window, for text longer than the context; none where nothing is windowed."""

    @model_validator(mode="before")
    @classmethod
    def _drop_derived(cls, value: Any) -> Any:
        """Written for readers of the JSON; worked out again when it is read back, so that the two cannot disagree."""
        if isinstance(value, dict):
            derived = cls.model_computed_fields  # gathered anew each time that it is asked for
            return {key: item for key, item in value.items() if key not in derived}
        return value

    @computed_field
    @property
    def loss_nats(self) -> float:
        """Mean negative log-likelihood per target token."""
        return self.nll_nats / self.num_target_tokens

    @computed_field
    @property
    def perplexity(self) -> float:
        """Exp of the loss."""
        return exp(self.loss_nats)

    @computed_field
    @property
    def mean_sequence_perplexity(self) -> float:
        """exp((1/N) sum L_i).

        Every sequence counts the same, however short. Not a corpus perplexity; given under its own name.
        """
        return exp(self.mean_sequence_loss_nats)

    @computed_field
    @property
    def bits_per_byte(self) -> float | None:
        """Loss in bits per UTF-8 byte of target text (the end-of-sequence tokens' loss included).

        Compares across tokenizers.
        """
        return self.nll_nats / math.log(2) / self.num_target_bytes if self.num_target_bytes else None

    @property
    def is_worse_than_uniform(self) -> bool:
        """Whether guessing every token with equal chance would do better."""
        return self.perplexity > self.vocabulary_size


class Parameters(Value):
    """What an arm trains, with storage that is shared counted once."""

    trainable: int
    total: int
    """All parameters of the adapted model, what the method added included."""
    modules: tuple[str, ...] = ()
    """Names of the adapted modules."""

    @property
    def share_pct(self) -> float:
        """Trainable parameters in per cent of all."""
        return 100.0 * self.trainable / self.total if self.total else 0.0


class Costs(Value):
    """What training took.

    Times leave out start-up, evaluation and saving; the first steps are warm-up and do not count for the medians.
    """

    train_s: float
    """Time in optimizer steps, over all the sittings that a resumed run took."""
    step_s: float
    """Median time of an optimizer step."""
    input_tokens_per_s: float
    target_tokens_per_s: float
    evaluate_s: float
    peak_bytes: dict[str, int]
    """Highest memory use by phase (load, train, evaluate): the allocator's on a GPU, the process's resident memory on
    a CPU.
    """
    num_runs: int = 1
    """Runs that were trained in one pass. Times, tokens per second and peaks are of all of them together; of several
    they are no run's own. Bytes of the optimizer and of the file are always the run's own.
    """
    is_alone: bool = False
    """Whether nothing else of the same command was at work beside it, in any of its sittings."""
    peak_kind: Literal["resident", "allocated"]
    optimizer_bytes: int
    weights_bytes: int
    """Size of the saved file."""


class Training(Value):
    """What happened while training."""

    steps: int
    epochs: float
    num_target_tokens: int
    num_input_tokens: int
    batch_sequence_sha256: str
    """Hash of the example ids in the order in which the steps saw them."""
    best_step: int
    final_loss_nats: float | None
    """Mean training loss over the last tenth of the steps; none where no step was sound."""


class Provenance(Value):
    """Where a result comes from."""

    created_at: str
    tuneoff_version: str
    versions: dict[str, str]
    python: str
    platform: str
    device: str
    num_threads: int
    micro_batch: int
    """Sequences in one forward: as the study asks, or fewer where memory ran out."""
    evaluation_tokens: int | None = None
    """Tokens in one forward of scoring, where memory ran out; none is as many as always."""
    num_sittings: int = 1
    """How many times the run was started until it was done."""
    cohort: tuple[str, ...] = ()
    """Runs that were trained in one pass with it, itself among them; none where it was trained alone."""
    model_sha256: str
    """Hash of the base's configuration and weights."""
    data_sha256: str
    """Hash of the tokenised splits."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers should know, such as tokens that were cut."""
    cautions: tuple[str, ...] = ()
    """Those of the notes that can change what the test's numbers mean."""


class Halving(Value):
    """What a trial is held against, that is stopped when it falls behind (successive halving)."""

    reduction: int
    """The best one in this many goes on."""
    before: tuple[str, ...]
    """Runs of the same arm that came before it, whose learning curves it is held against."""


class Record(Value):
    """A finished run: its identity, what happened, and what it scored on the validation split."""

    version: int = RECORD_VERSION
    run_id: str
    run: Run
    status: Literal["done", "infeasible", "pruned"]
    """Pruned: stopped before its end, as its rate fell behind."""
    reason: str = ""
    """Why an infeasible run is infeasible, or a pruned one was stopped."""
    shortage: Shortage | None = None
    """What memory it lacked where it is infeasible for want of it, or is done and its test could not be read; where
    there is more, it is tried again.
    """
    halving: Halving | None = None
    """What a pruned run was held against; where another is asked for, it is trained anew."""
    classes: tuple[str, ...] = ()
    """Names of the classes 0, 1, ...; none where text is predicted."""
    parameters: Parameters | None = None
    training: Training | None = None
    validation: Likelihood | None = None
    costs: Costs | None = None
    provenance: Provenance
    files: Mapping[str, str] = Field(default_factory=dict)
    """Sha256 of each file that belongs to the record."""

    def is_beyond(self, testing: Testing) -> bool:
        """Whether the run is done and memory ran out as the test split was read in this way."""
        return self.status == "done" and self.shortage is not None and self.shortage.testing == testing


class Generated(Value):
    """What a run wrote on the test split with one decoding strategy."""

    decoding: Decoding
    num_items: int
    """Prompts (questions) that were answered."""
    num_samples: int
    """Texts for each of them."""
    metrics: Mapping[str, float]
    """Mean over items of the mean over samples, x 100 (points); of functions of the user's own as they give it."""
    best_of_n: Mapping[str, float]
    """Mean over items of the best sample, likewise; the same as `metrics` for one sample."""
    distinct_1: float
    """Distinct words over all words of an item's samples, mean over items (Li et al., 2016, arXiv:1510.03055)."""
    distinct_2: float
    """The same of pairs of words."""
    truncated_pct: float
    """Share of texts that reached the limit of new tokens without ending."""
    num_near_ties: int = 0
    """Choices between scores (logits, and the noise of a draw) within 1e-4 of each other, where the batch may tell."""
    mean_new_tokens: float
    generate_s: float
    """This strategy's share of the time; the shares add up to the time that all took. Strategies without beams share
    one pass: what prompts took to be read, and texts to be put in their places, is shared equally; a forward that
    writes one more token of some texts by whose texts they are; choosing tokens is each strategy's own. One strategy
    alone would have to read all prompts itself, and so take longer than its share. Beams, and strategies of a model
    whose texts cannot be refilled, are timed by themselves.
    """


class TestRecord(Value):
    """The one reading of the test split, of a run whose learning rate was chosen."""

    __test__ = False

    version: int = RECORD_VERSION
    run_id: str
    test: Likelihood
    testing: Testing = Testing()
    """How it was tested; a study that asks for another testing reads the split again."""
    test_sha256: str = ""
    """Hash of what was to be predicted: the items, and the target tokens or classes; not of the prompts."""
    metrics: Mapping[str, float] = Field(default_factory=dict)
    """Scores in points of 100: of classification, or of the text that the first decoding strategy wrote."""
    generated: tuple[Generated, ...] = ()
    """One for each decoding strategy, in the study's order."""
    score_s: float
    evaluation_tokens: int | None = None
    """Tokens in one forward of scoring, where memory ran out; none is as many as always."""
    generation_rows: int | None = None
    """Texts in the making at a time, where memory ran out with `testing.generate.batch_size` of them."""
    files: Mapping[str, str] = Field(default_factory=dict)


def to_json(record: Record | TestRecord) -> dict[str, Any]:
    """Return the record as JSON types."""
    return record.model_dump(mode="json")
