"""What is known about a study, as frozen values: one per arm, and the whole."""

from collections.abc import Mapping
from typing import Literal

from tuneoff.analysis.comparison import Comparison
from tuneoff.analysis.estimates import Estimate
from tuneoff.analysis.findings import Audit, Finding
from tuneoff.analysis.measures import Measure, loss_unit, measure
from tuneoff.analysis.progress import Status as Status
from tuneoff.analysis.selection import Edge, Trial
from tuneoff.study.methods import MethodSpec
from tuneoff.study.predicted import Predicted
from tuneoff.study.solo import SoloCosts
from tuneoff.study.testing import LOSS, Decoding, TaskKind
from tuneoff.study.value import Value

FlagKind = Literal["worse_than_uniform", "truncated", "untuned", "assumed", "unverified"]


class Flag(Value):
    """Something about an arm that a reader of its numbers must know."""

    kind: FlagKind
    label: str
    """Two or three words, for a table."""
    message: str
    """A sentence."""


class Scores(Value):
    """How well an arm predicts one split, over seeds."""

    loss_nats: Estimate
    perplexity: Estimate
    mean_sequence_perplexity: Estimate
    bits_per_byte: Estimate | None
    num_target_tokens: int
    """Target tokens of the split, of one seed."""
    metrics: Mapping[str, Estimate] = {}
    """By name, in the study's order: points of 100, or as a function of the user's own gives them."""

    def of(self, wanted: Measure) -> Estimate | None:
        """Return the estimate of one measure; none where it was not measured."""
        return wanted.of(self.loss_nats, self.metrics)


class DecodingSummary(Value):
    """What an arm wrote on the test split with one decoding strategy, over seeds."""

    decoding: Decoding
    num_items: int
    """Prompts that were answered, of one seed."""
    num_samples: int
    """Texts for each of them: the n of best of n, over which distinct-1 and distinct-2 are taken."""
    metrics: Mapping[str, Estimate]
    """Mean over items of the mean over their texts."""
    best_of_n: Mapping[str, Estimate]
    """Mean over items of the best of their n texts; it takes an oracle to pick it."""
    distinct_1: Estimate
    """Distinct words over all words of an item's n texts, between 0 and 1, mean over items."""
    distinct_2: Estimate
    """The same of pairs of words."""
    truncated_pct: Estimate
    """Share of texts that reached the limit of new tokens without ending."""
    num_near_ties: int
    """Greedy choices that rounding may turn, over all seeds."""
    mean_new_tokens: Estimate
    generate_s: float
    """Median over seeds."""


class ArmParameters(Value):
    """What the arm trains."""

    trainable: int
    total: int
    share_pct: float
    reduction_pct: float | None
    """How many per cent fewer are trained than by full fine-tuning; none where that count is not known."""
    num_modules: int


class ArmCosts(Value):
    """Medians over the arm's chosen runs; times and memory over those that were trained alone."""

    num_runs: int
    """Chosen runs that were trained alone. A pass of several has one time and one peak for all of them."""
    source: Literal["solo", "own", "beside"] = "beside"
    """Where times and memory are from: measured alone in a process of its own; the runs' own, with nothing else of the
    command beside them; or the runs' own, beside others, which may have slowed them down.
    """
    train_s: float | None
    """None where every run shared its pass, as below."""
    step_s: float | None
    target_tokens_per_s: float | None
    peak_bytes: dict[str, int]
    """By phase; empty where every run shared its pass."""
    peak_kind: str
    optimizer_bytes: int
    weights_bytes: int

    @property
    def train_peak_bytes(self) -> int | None:
        """Highest memory use while training, or of all phases where training was not metered; none where shared."""
        return self.peak_bytes.get("train", max(self.peak_bytes.values(), default=None))


class CohortCosts(Value):
    """What one pass cost that trained several runs: the figures are of all of them together."""

    num_runs: int
    arms: tuple[str, ...]
    """Whose runs they were, as far as they belong to the study as given, in its order."""
    train_s: float
    step_s: float
    peak_bytes: dict[str, int]
    """By phase."""
    peak_kind: str


class ArmSummary(Value):
    """All that is known about one arm."""

    name: str
    family: str
    method: MethodSpec
    status: Status
    reason: str = ""
    """Why it is infeasible."""
    run_ids: tuple[str, ...]
    """Every run that is wanted, so far as is known: the seeds' runs are known once the rate is chosen."""
    chosen_run_ids: tuple[str, ...]
    """The runs at the chosen rate, one for each seed."""
    num_wanted: int
    num_done: int
    num_infeasible: int
    num_pruned: int = 0
    """Trials that were stopped, as their rate fell behind."""
    num_tested: int
    """Seeds whose test score is in."""
    num_seeds: int
    """Seeds wanted; one where nothing is trained."""
    trials: tuple[Trial, ...]
    chosen_lr: float | None
    edge: Edge | None
    is_trained: bool
    is_tuned: bool
    is_verified: bool
    """Whether the training was ours; a loaded arm's was not."""
    assumed: tuple[str, ...]
    parameters: ArmParameters | None
    validation: Scores | None
    test: Scores | None
    generated: tuple[DecodingSummary, ...] = ()
    """One for each decoding strategy, in the study's order, the one that decides first; none where no text is
    generated or nothing is tested yet.
    """
    costs: ArmCosts | None
    solo: SoloCosts | None = None
    """What was measured alone, where it was: memory of every phase, and speeds of scoring and generating, too."""
    predicted: Predicted | None = None
    """What the plan foretold."""
    flags: tuple[Flag, ...]
    findings: tuple[Finding, ...] = ()
    """What the audit found of it, differences that are meant among them."""

    @property
    def labels(self) -> dict[str, str]:
        """Return what must be said beside its numbers: a sentence by its two or three words."""
        found = {one.label: one.reason for one in self.findings}
        return found | {flag.label: flag.message for flag in self.flags if flag.label not in found}

    @property
    def num_left(self) -> int:
        """Runs that are still to do."""
        return self.num_wanted - self.num_done - self.num_infeasible - self.num_pruned


class Origins(Value):
    """Where the results come from: every value that the records hold, so that more than one is seen."""

    facts: dict[str, tuple[str, ...]]
    """Name of a fact (`device`, `python`, `torch`) to its values, the commonest first."""
    notes: tuple[str, ...]


class Summary(Value):
    """A study's state and answer, from its records alone."""

    study: str
    kind: TaskKind = "text"
    primary_metric: str = LOSS
    """What ranks the arms."""
    metric_names: tuple[str, ...] = ()
    """Metrics beside the loss, in the study's order."""
    arms: tuple[ArmSummary, ...]
    """In the order of the study file."""
    ranking: tuple[str, ...]
    """Names of the arms that have a test score, the best by the primary metric first."""
    verdict: str
    """What is known, in a sentence or two."""
    margin: float = 0.0
    """How close counts as equal, in the primary metric's unit."""
    comparisons: tuple[Comparison, ...] = ()
    """Of every two arms that have a test score, in the order of the ranking."""
    audit: Audit = Audit()
    cohorts: tuple[CohortCosts, ...] = ()
    """Passes that trained several runs of the study."""
    caveats: tuple[str, ...]
    """What else must be known before the verdict is used, a sentence each."""
    num_wanted: int
    """Distinct runs; arms may share one."""
    num_done: int
    num_infeasible: int
    num_pruned: int = 0
    origins: Origins

    def arm(self, name: str) -> ArmSummary:
        """Return the arm called `name`; raises `KeyError` where there is none."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(name)

    def comparison(self, one: str, other: str) -> Comparison | None:
        """Return what is known of two arms, the one that ranks higher first in it; none where one has no test score."""
        if one not in self.ranking or other not in self.ranking or one == other:
            return None
        first, second = sorted((self.ranking.index(one), self.ranking.index(other)))
        place = first * (2 * len(self.ranking) - first - 1) // 2 + second - first - 1  # in the order of the ranking
        return self.comparisons[place] if place < len(self.comparisons) else None

    @property
    def primary(self) -> Measure:
        """The measure that ranks the arms."""
        return measure(self.primary_metric, self.kind)

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The metrics beside the loss, in the study's order."""
        return tuple(measure(name, self.kind) for name in self.metric_names)

    @property
    def loss_unit(self) -> str:
        """What a loss is counted in."""
        return loss_unit(self.kind)

    @property
    def num_left(self) -> int:
        """Runs that are still to do."""
        return self.num_wanted - self.num_done - self.num_infeasible - self.num_pruned

    @property
    def ranked(self) -> tuple[ArmSummary, ...]:
        """The arms as a table shows them: the best on the test split first, then the rest in the study's order."""
        by_name = {arm.name: arm for arm in self.arms}
        return (*(by_name.pop(name) for name in self.ranking), *by_name.values())
