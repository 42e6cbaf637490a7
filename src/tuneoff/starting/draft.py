"""A study under way: what was found and chosen, before it is written."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tuneoff.data.lengths import SplitLengths
from tuneoff.data.survey import Survey
from tuneoff.planning.fit import Change, Fit
from tuneoff.starting.choices import (
    ANSWER_STEP,
    LORA_ALPHA,
    MAX_GENERATED,
    PROMPT_TOKENS,
    Choice,
)
from tuneoff.training.machine import Machine

CUE = "{text}\nLabel:"
"""The template where zero-shot scores the classes' own names."""
SEEDS = (0, 1, 2)
MAX_EXTENDED = 2
"""Further rates of each arm: a decade beyond the grid, where the rules are off by as much."""
BOTTLENECK_SIZE = 64
MAX_ANSWER = 256


@dataclass(frozen=True)
class Draft:
    """What a study file is written from.

    Attributes:
        name: of the study.
        data: for `task.data`, as it is found from the file's folder.
        model: the same of the base.
        survey: what the data hold.
        lengths: tokens of train's examples.
        machine: what runs are trained on.
        context: tokens that the base can see, where it says so.
        labels: for `task.labels`; none where the classes have no words, with the reason.
        template: for `task.template`.
        max_length: chosen.
        splits: chosen, by split.
        budget: steps and the effective batch.
        rates: by method.
        ranks: of LoRA.
        linear_layers: ends of the names of the layers that `all-linear` stands for.
        quantize: how LoRA's frozen base is held.
        fits: whether full fine-tuning and LoRA fit, and with which change; of what is not there nothing is known, or it
            needs less than one that fits.
        problems: why arms cannot be trained, by name.
    """

    name: str
    data: str
    model: str
    survey: Survey
    lengths: SplitLengths
    machine: Machine
    context: int | None
    labels: Choice[tuple[str, ...] | None]
    template: str | None
    max_length: Choice[int]
    splits: Choice[dict[str, float | str]]
    budget: Choice[tuple[int, int]]
    rates: Mapping[str, Choice[tuple[float, ...]]]
    ranks: Choice[tuple[int, ...]]
    linear_layers: tuple[str, ...]
    quantize: str = "none"
    fits: Mapping[str, Fit] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_gpu(self) -> bool:
        """Whether runs are trained on one."""
        return bool(self.machine.gpus)

    def arms(self) -> dict[str, dict[str, Any]]:
        """Return all arms, those that are left out as well, as a study file has them."""
        lora: dict[str, Any] = {"method": "lora", "rank": list(self.ranks.value), "alpha": LORA_ALPHA}
        lora["targets"] = ["all-linear"]
        if self.quantize != "none":
            lora["quantize"] = self.quantize
        return {
            "zero-shot": {"method": "none"},
            "full": {"method": "full", **self._tune("full")},
            "lora": {**lora, **self._tune("lora")},
            "bottleneck": {"method": "bottleneck", "size": BOTTLENECK_SIZE, **self._tune("bottleneck")},
            "prompt": {"method": "prompt", "num_virtual_tokens": PROMPT_TOKENS, **self._tune("prompt")},
        }

    def can_fit(self, arm: str) -> bool:
        """Whether an arm fits as it is or with a change, so far as is known."""
        fit = self.fits.get(arm)
        return fit is None or fit.fits or fit.change is not None

    @property
    def _changes(self) -> list[Change]:
        return [fit.change for fit in self.fits.values() if fit.change is not None]

    @property
    def micro_batch(self) -> int | None:
        """With which every arm fits, the same for all so that their times and memory compare; none is the batch."""
        return min((change.micro_batch for change in self._changes if change.micro_batch), default=None)

    @property
    def is_recomputed(self) -> bool:
        """Whether activations are worked out again in the backward pass, so that every arm fits."""
        return any(change.gradient_checkpointing for change in self._changes)

    def left_out(self, arm: str) -> str:
        """Return why an arm is a comment; empty where it is not."""
        if arm in self.problems:
            return f"this model cannot take it: {self.problems[arm]}"
        if arm == "full" and not self.can_fit(arm):
            return "does not fit here"
        if arm in ("bottleneck", "prompt"):
            return "an option"
        return ""

    def generate(self) -> dict[str, Any]:
        """Return `generate` of questions: room for the answers, and how many are generated."""
        longest = min(MAX_ANSWER, max(ANSWER_STEP, -(-self.lengths.targets.p99 // ANSWER_STEP) * ANSWER_STEP))
        return {"max_new_tokens": longest, "limit": MAX_GENERATED[self.has_gpu]}

    def error_points(self) -> float:
        """Return half the width of a 95 % interval at a score of 50, in points, of as many independent items."""
        return 100 * 1.96 * math.sqrt(0.25 / MAX_GENERATED[self.has_gpu])

    def body(self) -> dict[str, Any]:
        """Return the study as a plain mapping, with every arm that is not left out."""
        task: dict[str, Any] = {"kind": self.survey.kind, "data": self.data, "max_length": self.max_length.value}
        if self.survey.columns:
            task["columns"] = dict(self.survey.columns)
        if self.labels.value is not None:
            task |= {"labels": list(self.labels.value), "template": self.template}
        steps, batch = self.budget.value
        return {
            "name": self.name,
            "model": self.model,
            "task": task | {"splits": dict(self.splits.value)},
            "budget": {"steps": steps, "batch_size": batch},
            "precision": self.machine.precision,
            "seeds": list(SEEDS),
            "tuning": {"extend": MAX_EXTENDED},
            "arms": {name: arm for name, arm in self.arms().items() if not self.left_out(name)},
        }

    def _tune(self, method: str) -> dict[str, Any]:
        return {"tune": {"lr": list(self.rates[method].value), "extend": True}}
