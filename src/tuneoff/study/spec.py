"""The study file as frozen values: what is asked, validated, and nothing that is derived from running it.

Scientific, nuisance and fixed hyperparameters are the terms of the Deep Learning Tuning Playbook (Godbole et al.,
2023): an arm fixes the scientific ones, `tune` lists the nuisance ones, and the rest of the file is fixed for every
arm.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

ALL_LINEAR = "all-linear"
"""Target pattern that stands for every linear module but the output head."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
"""Names become folder names, so they may hold no separator and may not start with a dot."""

Fraction = Annotated[float, Field(gt=0, lt=1)]
NonNegativeFloat = Annotated[float, Field(ge=0)]


class Value(BaseModel):
    """A frozen value that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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


class TaskSpec(Value):
    """What is learnt and from which data."""

    kind: Literal["text", "instruction"]
    data: str
    """Hub id, local path, or `demo`."""
    max_length: PositiveInt = 256
    """Tokens that one sequence may hold, prompt included."""
    template: str | None = None
    """How a prompt is written, with `{instruction}` and `{context}`; `chat` uses the tokenizer's own chat template;
    none is the plain one.
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

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_length < 2:
            raise ValueError("max_length must be at least 2: one token of context and one target")
        if self.stride is not None and self.stride >= self.max_length:
            raise ValueError(f"stride {self.stride} must be below max_length {self.max_length}")
        return self


class BudgetSpec(Value):
    """What every arm may spend: exactly one of steps, epochs and target tokens, and the effective batch."""

    steps: PositiveInt | None = None
    epochs: PositiveFloat | None = None
    target_tokens: PositiveInt | None = None
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


class EvaluateSpec(Value):
    """When the validation split is scored while training."""

    every: PositiveInt | None = None
    """Optimizer steps between scorings; none is a tenth of the budget. The last step is always scored."""


class CheckpointSpec(Value):
    """When the state of a run is saved, so that it can go on after a kill."""

    every: PositiveInt | None = None
    """Optimizer steps between checkpoints; none is after every validation."""


class NoneMethod(Value):
    """The base as it is (zero-shot)."""

    method: Literal["none"]


class FullMethod(Value):
    """All weights are trained."""

    method: Literal["full"]


class LoraMethod(Value):
    """Low-rank adaptation (Hu et al., 2021, arXiv:2106.09685)."""

    method: Literal["lora"]
    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    """Numerator of the scaling alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each adapted module's input that is zeroed on the way to A, while training."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] = (ALL_LINEAR,)
    """Module names or ends of names (`attn.c_proj`), with `*` for any part; `all-linear` is every linear module but
    the output head.
    """


class LoadMethod(Value):
    """Something that exists already.

    A PEFT LoRA folder or a Transformers checkpoint. Scored with the others, its training not verified.
    """

    method: Literal["load"]
    path: str


MethodSpec = Annotated[NoneMethod | FullMethod | LoraMethod | LoadMethod, Field(discriminator="method")]
TRAINED_METHODS = ("full", "lora")
DEFAULT_RATES = {"full": (1e-5, 3e-5, 1e-4), "lora": (1e-4, 3e-4, 1e-3)}
"""Rates tried where an arm names none: LoRA's lie ten times above full's (Schulman et al., 2025, "LoRA Without
Regret": 9.8x over 14 models).
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

    @field_validator("lr")
    @classmethod
    def _rising(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(rates)))

    @property
    def is_trained(self) -> bool:
        """Whether the method has anything to train."""
        return self.method.method in TRAINED_METHODS

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
    micro_batch: PositiveInt | None = None
    """Sequences in one forward; none is the effective batch. It moves memory and speed, not the gradient."""
    keep: Literal["best", "last", "none"] = "best"
    """Which weights a finished run leaves behind and is tested with: best by validation, or of the last step.

    `none` tests with the best, and then removes the weights of full fine-tuning; adapters are small and stay.
    """
    root: Annotated[Path, Field(exclude=True)] = Path()
    """Folder that relative paths in the file start from. Not part of the study's identity."""

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds must differ; found {list(seeds)}")
        return seeds

    @model_validator(mode="after")
    def _arm_names(self) -> Self:
        names = [arm.name for arm in self.arms]
        double = sorted({name for name in names if names.count(name) > 1})
        if double:
            raise ValueError(f"two arms have the same name: {', '.join(double)}; rename one")
        return self

    def arm(self, name: str) -> Arm:
        """Return the arm called `name`; raises `KeyError` where there is none."""
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise KeyError(name)


def plain(value: Value) -> dict[str, Any]:
    """Return `value` as JSON types, without what is not part of its identity."""
    return value.model_dump(mode="json")
