"""How a trained run is tested: decoding strategies, metrics of generated text, and which metric decides."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from tuneoff.study.value import PositiveInt, Value

TaskKind = Literal["text", "instruction", "qa", "classification"]

GENERATED_METRICS = ("exact_match", "f1", "rouge1", "rouge2", "rougeL", "bleu")
"""Metrics of generated text that are known by name; `regex:PATTERN` and `module:function` are the user's own."""
CLASS_METRICS = ("accuracy", "f1", "macro_f1")
DEFAULT_METRICS: dict[str, tuple[str, ...]] = {
    "text": (),
    "instruction": (),
    "qa": ("f1", "exact_match"),
    "classification": ("accuracy", "f1"),
}
LOSS = "loss"
"""The primary metric where text is predicted: nats per token, lower is better."""
MARGINS = {LOSS: 0.01}
POINTS_MARGIN = 1.0
"""How close counts as equal: nats per token for the loss, points (of 100) for every other metric."""


class Decoding(Value):
    """One way to turn a model's predictions into text.

    In the file `greedy`, or a mapping of what departs from it: `{temperature: 0.7}`, `{top_k: 50}`, `{top_p: 0.9}`,
    `{beams: 4}`; `samples` is how many texts are drawn for each item.
    """

    temperature: PositiveFloat = 1.0
    top_k: PositiveInt | None = None
    """Draw among the k likeliest tokens (Fan et al., 2018, arXiv:1805.04833, section 5.1)."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Draw among the likeliest tokens that hold this much of the probability (Holtzman et al., 2020,
    arXiv:1904.09751, section 3.1).
    """
    beams: PositiveInt | None = None
    """Beam search of this width; nothing is drawn."""
    samples: PositiveInt = 1
    is_sampled: bool = False
    """Whether tokens are drawn; follows from the rest."""

    @model_validator(mode="before")
    @classmethod
    def _from_file(cls, value: Any) -> Any:
        if value == "greedy":
            return {}
        if isinstance(value, str):
            raise ValueError(
                f"found {value!r}; write greedy, or a mapping such as {{temperature: 0.7}}, {{top_k: 50}}, "
                "{top_p: 0.9} or {beams: 4}"
            )
        if isinstance(value, dict):
            given = {key for key in ("temperature", "top_k", "top_p") if value.get(key) is not None}
            is_written_out = value.get("is_sampled") is False and given == {"temperature"}  # greedy, from a record
            return value | {"is_sampled": bool(given) and not is_written_out}
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.beams is not None and self.is_sampled:
            raise ValueError("beams draws nothing, so it does not go with temperature, top_k or top_p")
        if self.samples > 1 and not self.is_sampled:
            raise ValueError(f"samples: {self.samples} texts of {self.name} would all be the same; allowed: 1")
        return self

    @property
    def name(self) -> str:
        """Short name for tables and files: `greedy`, `beam-4`, `t-0.7-top-p-0.9`."""
        if self.beams is not None:
            return f"beam-{self.beams}"
        if not self.is_sampled:
            return "greedy"
        parts = [f"t-{self.temperature:g}"] if self.temperature != 1.0 else []
        parts += [f"top-k-{self.top_k}"] if self.top_k is not None else []
        parts += [f"top-p-{self.top_p:g}"] if self.top_p is not None else []
        return "-".join(parts or ["sample"])


class GenerateSpec(Value):
    """What is generated when a run is tested."""

    max_new_tokens: PositiveInt = 32
    """A text that reaches this without ending is counted as truncated."""
    batch_size: PositiveInt = 16
    """Rows at a time; greedy text does not depend on it."""
    limit: PositiveInt | None = None
    """Items of the test split that are generated for at most, from its start; none takes all."""


class Testing(Value):
    """All that a reading of the test split depends on beside the run itself."""

    __test__ = False

    metrics: tuple[str, ...] = ()
    decoding: tuple[Decoding, ...] = ()
    """None where nothing is generated."""
    generate: GenerateSpec = GenerateSpec()
