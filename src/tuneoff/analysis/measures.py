"""What is measured on the test split: names for people, units, and which way is better."""

from collections.abc import Mapping
from functools import cache

from tuneoff.analysis.estimates import Estimate
from tuneoff.study.testing import CLASS_METRICS, GENERATED_METRICS, LOSS, TaskKind
from tuneoff.study.value import Value

_LABELS = {
    LOSS: "loss",
    "accuracy": "accuracy",
    "f1": "F1",
    "macro_f1": "macro F1",
    "exact_match": "exact match",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU",
}


def loss_unit(kind: TaskKind) -> str:
    """Return what a loss is counted in: a classified example has one target, so a token would be no word for it."""
    return "nats per example" if kind == "classification" else "nats per token"


class Measure(Value):
    """One thing that arms are compared by."""

    name: str
    """As a study file has it: `loss`, `f1`, `regex:PATTERN`, `module:function`."""
    unit: str
    """Nats per token or example; points (of 100); nothing where a function of the user's own gives the number."""

    @property
    def label(self) -> str:
        """The name for people."""
        return _LABELS.get(self.name, self.name)

    @property
    def is_loss(self) -> bool:
        """Whether it is the loss, of which less is better; of every other measure more is."""
        return self.name == LOSS

    @property
    def decimals(self) -> int:
        """Digits behind the point that are worth reading."""
        return {"points": 1}.get(self.unit, 3)

    def write(self, value: float) -> str:
        """Return a value with as many digits as are worth reading."""
        return f"{value:.{self.decimals}f}"

    def of(self, loss: Estimate, metrics: Mapping[str, Estimate]) -> Estimate | None:
        """Return this measure's estimate among an arm's; none where it was not measured."""
        return loss if self.is_loss else metrics.get(self.name)

    def badness(self, value: float) -> float:
        """Return a number that sorts the best value first."""
        return value if self.is_loss else -value


@cache
def measure(name: str, kind: TaskKind) -> Measure:
    """Return the measure of a metric's name.

    Args:
        name: from a study's metrics, or `loss`.
        kind: of the task; it decides what a loss is counted in.
    """
    if name == LOSS:
        return Measure(name=name, unit=loss_unit(kind))
    known = name in GENERATED_METRICS or name in CLASS_METRICS or name.startswith("regex:")
    return Measure(name=name, unit="points" if known else "")
