"""The study file as frozen values: what is asked, validated, and nothing that is derived from running it.

Scientific, nuisance and fixed hyperparameters are the terms of the Deep Learning Tuning Playbook (Godbole et al.,
2023): an arm fixes the scientific ones, `tune` lists the nuisance ones, and the rest of the file is fixed for every
arm.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    PositiveFloat,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from tuneoff.errors import did_you_mean
from tuneoff.study.methods import UNTRAINED_METHODS, MethodSpec
from tuneoff.study.options import ExplainSpec, Invariant, Tracker, TuningSpec
from tuneoff.study.overriding import merged
from tuneoff.study.testing import (
    CLASS_METRICS,
    DEFAULT_METRICS,
    GENERATED_METRICS,
    LOSS,
    MARGINS,
    POINTS_MARGIN,
    Decoding,
    GenerateSpec,
    TaskKind,
    Testing,
)
from tuneoff.study.value import PositiveCount, PositiveInt, Value, plain

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""Names become folder names, so they may hold no separator and may not start with a dot."""

FUNCTION_PATTERN = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"
"""A metric of the user's own: a module that Python can import, and a function in it."""

Fraction = Annotated[float, Field(gt=0, lt=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


class SplitsSpec(Value):
    """Where the three splits come from.

    A fraction is cut from train by the largest unit that repeats; text names a file or a hub split.
    """

    train: str | None = None
    """File or hub split to train on; none takes `task.data` itself, or the hub's `train`."""
    validation: Fraction | str = 0.1
    """Share of train, or a file or hub split."""
    test: Fraction | str = 0.1
    """Share of train, or a file or hub split."""


class ColumnsSpec(Value):
    """Names of the columns that hold each part of a row, for data whose columns are not among the known ones."""

    text: str | None = None
    prompt: str | None = None
    context: str | None = None
    response: str | None = None
    messages: str | None = None
    question: str | None = None
    answers: str | None = None
    """Of question answering: a text, a list of texts, or SQuAD's `{text: [...]}`."""
    label: str | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _named_by_number(cls, name: object) -> object:
        """Columns of files without a header are 0, 1, ...; YAML reads these as integers."""
        return str(name) if isinstance(name, int) and not isinstance(name, bool) else name

    @property
    def positions(self) -> frozenset[str]:
        """The columns that are named by number."""
        return frozenset(name for name in self.model_dump().values() if name is not None and name.isdecimal())


class TaskSpec(Value):
    """What is learnt and from which data."""

    kind: TaskKind
    data: str
    """Hub id (with `:configuration` and `@revision` where they are wanted), local path, or `demo`."""
    max_length: PositiveInt = 256
    """Tokens that one sequence may hold, prompt included."""
    template: str | None = None
    """How a prompt is written: with `{instruction}` and `{context}` (instruction), `{context}` and `{question}` (qa),
    `{text}` (classification). `chat` uses the tokenizer's own chat template; none is the plain one.
    """
    labels: tuple[str, ...] | None = None
    """Words for the classes 0, 1, ...; zero-shot scores them after the template's prompt. None takes the data's own
    names, and zero-shot is then the majority class.
    """
    columns: ColumnsSpec = ColumnsSpec()
    limit: PositiveInt | None = None
    """Rows (documents) read at most, from the start of the data; none reads all."""
    splits: SplitsSpec = SplitsSpec()
    truncation: Literal["middle", "end", "error"] = "middle"
    """What an over-long example loses: the middle of its prompt, its end, or nothing (it is refused)."""
    stride: PositiveInt | None = None
    """New target tokens per window when text longer than `max_length` is scored; none is `max_length - 1`, windows
    that overlap by one token.
    """

    metrics: tuple[str, ...] | None = None
    """What is measured on the test split, the first one decides (qa, classification); none is the kind's own.

    Of classification accuracy, f1, macro_f1; of generated text exact_match, f1, rouge1, rouge2, rougeL, bleu,
    `regex:PATTERN` (share of texts in which it is found) and `module:function` of a text and its references.
    """

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, metrics: tuple[str, ...] | None, info: ValidationInfo) -> tuple[str, ...] | None:
        kind = info.data.get("kind")
        if kind == "text" and metrics:
            raise ValueError(f"kind: text has no reply to generate, so it takes no metrics; found {metrics[0]!r}")
        if kind == "classification":
            return cls._class_metrics(metrics)
        known = set(GENERATED_METRICS)
        for name in metrics or ():
            if name not in known and not name.startswith("regex:") and not re.fullmatch(FUNCTION_PATTERN, name):
                hint = did_you_mean(name, known)
                raise ValueError(
                    f"found {name!r}; allowed: {', '.join(sorted(known))}, regex:PATTERN, module:function.{hint}"
                )
        return metrics

    @staticmethod
    def _class_metrics(metrics: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in metrics or ():
            if name not in CLASS_METRICS:
                hint = did_you_mean(name, CLASS_METRICS)
                raise ValueError(f"metrics of classification are {', '.join(CLASS_METRICS)}; found {name!r}.{hint}")
        return metrics

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Names of the metrics that are measured beside the loss."""
        return DEFAULT_METRICS[self.kind] if self.metrics is None else self.metrics

    @property
    def generates(self) -> bool:
        """Whether testing generates text."""
        return self.kind != "classification" and bool(self.metric_names)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_length < 2:
            raise ValueError("max_length must be at least 2: one token of context and one target")
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels must differ; found {list(self.labels)}")
        if self.stride is not None and self.stride >= self.max_length:
            raise ValueError(f"stride {self.stride} must be below max_length {self.max_length}")
        return self


class BudgetSpec(Value):
    """What every arm may spend: exactly one of steps, epochs and target tokens, and the effective batch."""

    steps: PositiveInt | None = None
    epochs: PositiveFloat | None = None
    target_tokens: PositiveCount | None = None
    batch_size: PositiveInt = 16
    """Sequences in one optimizer step (the effective batch)."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        given = [name for name in ("steps", "epochs", "target_tokens") if getattr(self, name) is not None]
        if len(given) != 1:
            found = " and ".join(given) if given else "none of them"
            raise ValueError(f"give exactly one of steps, epochs and target_tokens; found {found}")
        return self


class OptimizerSpec(Value):
    """AdamW (Loshchilov and Hutter, 2019) and the shape of its learning rate, the same for every arm."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: NonNegativeFloat = 0.06
    """Below 1 a share of all steps, else a number of steps."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled decay of matrices; vectors (biases, normalisation) are not decayed."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    clip: PositiveFloat | None = 1.0
    """Largest gradient norm of a step, over a run's own trainable weights; none does not clip."""


EVALUATIONS_PER_RUN = 10


class EvaluateSpec(Value):
    """When the validation split is scored while training."""

    every: PositiveInt | None = None
    """Optimizer steps between scorings; none is a tenth of the budget. The last step is always scored."""

    def steps_between(self, num_steps: int) -> int:
        """Return the optimizer steps between scorings of a run of so many."""
        return self.every or max(1, round(num_steps / EVALUATIONS_PER_RUN))


class CheckpointSpec(Value):
    """When the state of a run is saved, so that it can go on after a kill."""

    every: PositiveInt | None = None
    """Optimizer steps between checkpoints."""
    minutes: PositiveFloat | None = None
    """Minutes between checkpoints; of both given the one that comes first counts. Of none given it is a minute, or as
    much longer as saving may take 1 % of the time.
    """


class Arm(Value):
    """One method with its scientific hyperparameters fixed, and the learning rates to try."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    family: str
    """Name in the study file that this arm was expanded from."""
    method: MethodSpec
    lr: tuple[PositiveFloat, ...] = ()
    """Candidate learning rates, rising; one is an arm that is not tuned, none an arm that is not trained."""
    assumed: tuple[str, ...] = ()
    """Hyperparameters whose published value is not known."""
    is_extended: bool = False
    """Whether `lr` is where the search starts (`tune: {lr: auto}`, or `extend: true` beside a list), and is extended
    while the best lies at an edge.
    """
    override: Mapping[str, Any] = {}
    """What this arm has otherwise than the study, such as `{budget: {steps: 100}}`; the audit names it."""

    @field_validator("lr")
    @classmethod
    def _rising(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(rates)))

    @property
    def is_trained(self) -> bool:
        """Whether the method has anything to train."""
        return self.method.method not in UNTRAINED_METHODS

    @property
    def is_tuned(self) -> bool:
        """Whether the learning rate is chosen among several."""
        return len(self.lr) > 1


class Study(Value):
    """One question: a base model, a task, a budget, seeds, and arms."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    about: str = ""
    """A sentence or two for the report."""
    model: Annotated[str, Field(min_length=1)]
    """Hub id, local folder, or `demo`."""
    revision: str | None = None
    """Commit, tag or branch of a hub model; none is the hub's main."""
    trust_remote_code: bool = False
    """Run Python code that comes with a hub model. Off unless asked for."""
    task: TaskSpec
    budget: BudgetSpec
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(min_length=1)] = (0, 1, 2)
    arms: Annotated[tuple[Arm, ...], Field(min_length=1)]
    optimizer: OptimizerSpec = OptimizerSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    decoding: Annotated[tuple[Decoding, ...], Field(min_length=1)] = (Decoding(),)
    """How text is generated when a run is tested, the first one decides; crossed with every arm."""
    generate: GenerateSpec = GenerateSpec()
    margin: PositiveFloat | None = None
    """How close counts as equal, in the primary metric's unit; none is 1 point, or 0.01 nats per token of loss."""
    tuning: TuningSpec = TuningSpec()
    retention: str | None = None
    """General text (a file) on which forgetting is measured: its loss after training minus before."""
    explain: ExplainSpec = ExplainSpec()
    declare: tuple[Invariant, ...] = ()
    """Differences between arms that are meant: the audit says them and does not count them against the comparison."""
    trackers: tuple[Tracker, ...] = ()
    """Where learning curves and scores are sent beside the store. Not part of a run's identity."""
    gradient_checkpointing: bool = False
    """Work activations out again in the backward pass: less memory, more time, the same gradient."""
    micro_batch: PositiveInt | None = None
    """Sequences in one forward; none is the effective batch. It moves memory and speed, not the gradient."""
    keep: Literal["best", "last", "none"] = "best"
    """Which weights a finished run leaves behind and is tested with: best by validation, or of the last step.

    `none` tests with the best, and then removes the weights of full fine-tuning; adapters are small and stay.
    """
    solo_costs: bool = True
    """Measure time and memory of each arm alone in a process of its own, where its runs were not. Not part of a run's
    identity.
    """
    root: Annotated[Path, Field(exclude=True)] = Path()
    """Folder that relative paths in the file start from. Not part of the study's identity."""

    @field_validator("seeds", "trackers")
    @classmethod
    def _distinct(cls, values: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        if len(set(values)) != len(values):
            raise ValueError(f"{info.field_name} must differ; found {list(values)}")
        return values

    @model_validator(mode="after")
    def _arm_names(self) -> Self:
        double = sorted(name for name, number in Counter(arm.name for arm in self.arms).items() if number > 1)
        if double:
            raise ValueError(f"two arms have the same name: {', '.join(double)}; rename one")
        return self

    @model_validator(mode="after")
    def _has_a_text_head(self) -> Self:
        if self.retention is not None and self.task.kind == "classification":
            raise ValueError(
                f"retention: found {self.retention!r}; a model that is trained for kind: classification has no "
                "language-model head, so it predicts no text. Leave retention out."
            )
        return self

    @field_validator("decoding", "trackers", mode="before")
    @classmethod
    def _listed(cls, given: object) -> object:
        return [given] if isinstance(given, str | dict) else given

    @field_validator("decoding")
    @classmethod
    def _named_apart(cls, decoding: tuple[Decoding, ...]) -> tuple[Decoding, ...]:
        names = [one.name for one in decoding]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise ValueError(f"two strategies are the same but for their samples: {', '.join(double)}; leave one out")
        return decoding

    @model_validator(mode="after")
    def _overrides(self) -> Self:
        for arm in self.arms:
            try:
                self.for_arm(arm)
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(["arms", arm.name, "override", *map(str, first["loc"])])
                message = first["msg"].removeprefix("Value error, ")
                raise ValueError(f"{where}: {message}; found {first['input']!r}") from None
        return self

    def for_arm(self, arm: Arm) -> "Study":
        """Return the study as one arm has it: itself, or with what the arm overrides."""
        if not arm.override:
            return self
        bare = arm.model_copy(update={"override": {}})
        body = merged(plain(self), arm.override) | {"arms": [plain(bare)], "root": self.root}
        return Study.model_validate(body)

    @property
    def primary_metric(self) -> str:
        """The metric that ranks the arms: the loss where text is predicted, else the first of the task's metrics."""
        names = self.task.metric_names
        return names[0] if self.task.kind in ("qa", "classification") and names else LOSS

    @property
    def equivalence_margin(self) -> float:
        """How close counts as equal, in the primary metric's unit (nats per token, or points of 100)."""
        return MARGINS.get(self.primary_metric, POINTS_MARGIN) if self.margin is None else self.margin

    @property
    def testing(self) -> Testing:
        """What a reading of the test split depends on beside the run."""
        generates = self.task.generates
        return Testing(
            metrics=self.task.metric_names,
            decoding=self.decoding if generates else (),
            generate=self.generate if generates else GenerateSpec(),
        )

    def arm(self, name: str) -> Arm:
        """Return the arm called `name`; raises `KeyError` where there is none."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(name)
