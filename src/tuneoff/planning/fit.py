"""The nearest change with which an arm fits: what moves no number first, then what does.

In this order, each rung on top of the one before:

1. fewer sequences in one forward (`micro_batch`), halved until it fits: the effective batch and its gradient stay;
2. activations worked out again in the backward pass (`gradient_checkpointing`): the same gradient, a third more time;
3. bf16: half the activations and the frozen base, other rounding;
4. a base quantised to 4 bits (QLoRA), of LoRA alone: other numbers;
5. shorter sequences, halved: other data.

The first two keep the gradient but for rounding, and `run --fit` takes them of itself. The others change what is learnt
or measured, so they must be named.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from tuneoff.errors import StudyError, did_you_mean
from tuneoff.study.methods import LoraMethod
from tuneoff.study.spec import Arm, Study
from tuneoff.study.value import Value, plain

Halved = Literal["evaluation_tokens", "generation_rows"]
"""What a run halves by itself when memory runs out, beside the micro-batch: tokens of one forward that is scored, and
texts in the making. Nothing but rounding depends on them.
"""
Kind = Literal["micro_batch", "gradient_checkpointing", "bf16", "qlora", "length"]
SAME_NUMBERS: tuple[Kind, ...] = ("micro_batch", "gradient_checkpointing")
ALL_KINDS: tuple[Kind, ...] = (*SAME_NUMBERS, "bf16", "qlora", "length")
SHORTEST = 32
"""Tokens below which no sequence is cut to make it fit."""
ALL = "all"


@dataclass(frozen=True)
class Need:
    """Tensor bytes that an arm needs.

    Attributes:
        peak_bytes: at its highest point, of a run that has halved what it halves by itself.
        fixed_bytes: of them what neither fewer or shorter sequences nor recomputing lessens: weights, gradients and
            optimizer state.
        halved: what the run halves by itself, and to how much.
    """

    peak_bytes: int
    fixed_bytes: int = 0
    halved: Mapping[Halved, int] = field(default_factory=dict)


Needed = Callable[[Study, Arm], Need]
"""Tells what an arm of a study needs."""


class Change(Value):
    """What an arm has otherwise than its study so that it fits; what is none stays."""

    micro_batch: int | None = None
    gradient_checkpointing: bool | None = None
    precision: Literal["bf16"] | None = None
    quantize: Literal["nf4"] | None = None
    max_length: int | None = None

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What is changed, in the order of the rungs."""
        values = (self.micro_batch, self.gradient_checkpointing, self.precision, self.quantize, self.max_length)
        return tuple(kind for kind, value in zip(ALL_KINDS, values, strict=True) if value is not None)

    @property
    def moves_numbers(self) -> bool:
        """Whether the arm then learns or measures something else, beyond rounding."""
        return bool(set(self.kinds) - set(SAME_NUMBERS))

    def override(self) -> dict[str, Any]:
        """Return it as an arm's `override` in a study file; `quantize` is the method's own key and not in it."""
        found: dict[str, Any] = {}
        for key in ("micro_batch", "gradient_checkpointing", "precision"):
            if getattr(self, key) is not None:
                found[key] = getattr(self, key)
        return found | ({"task": {"max_length": self.max_length}} if self.max_length is not None else {})

    def text(self) -> str:
        """Return it in words."""
        words = {
            "micro_batch": f"micro_batch {self.micro_batch}",
            "gradient_checkpointing": "gradient checkpointing",
            "bf16": "bf16",
            "qlora": "QLoRA (nf4)",
            "length": f"max_length {self.max_length}",
        }
        return ", ".join(words[kind] for kind in self.kinds)


class Fit(Value):
    """Whether an arm fits, and what makes it."""

    needed_bytes: int
    """Of tensors, as the study has the arm, but for what a run halves by itself."""
    room_bytes: int
    """For tensors."""
    change: Change | None = None
    """The nearest change with which it fits; none where it fits as it is, or nothing helps."""
    changed_bytes: int | None = None
    """That it needs then."""
    halved: Mapping[Halved, int] = Field(default_factory=dict)
    """What the run will halve by itself where it fits, as it is or with the change, and to how much."""

    @property
    def fits(self) -> bool:
        """Whether it fits as it is."""
        return self.needed_bytes <= self.room_bytes

    @property
    def missing_bytes(self) -> int:
        """By how much it does not fit."""
        return max(0, self.needed_bytes - self.room_bytes)


def parse_kinds(text: str) -> tuple[Kind, ...]:
    """Return which changes may be made: those that move no number, and what is named beside (`all`, `bf16,qlora`).

    Raises:
        StudyError: a name that is no change.
    """
    named = [name.strip() for name in text.split(",") if name.strip()]
    known: dict[str, tuple[Kind, ...]] = {ALL: ALL_KINDS, "same": SAME_NUMBERS} | {kind: (kind,) for kind in ALL_KINDS}
    chosen = set(SAME_NUMBERS)
    for name in named:
        if name not in known:
            raise StudyError(
                f"--fit: found {name!r}; allowed: {', '.join(known)}, or several of them with commas."
                f"{did_you_mean(name, known)} {', '.join(SAME_NUMBERS)} move no number and are always tried."
            )
        chosen |= set(known[name])
    return tuple(kind for kind in ALL_KINDS if kind in chosen)


def find_fit(
    study: Study,
    arm: Arm,
    room_bytes: int,
    needed: Needed,
    kinds: tuple[Kind, ...] = ALL_KINDS,
    *,
    has_bf16: bool = True,
    has_checkpointing: bool = True,
    has_nf4: bool = True,
) -> Fit:
    """Return whether an arm fits, and the nearest change that makes it fit.

    Of the rungs in their order the first is taken on which the arm fits with one sequence at a time; of that rung the
    largest micro-batch, by halves.

    Args:
        study: the study.
        arm: one of its arms.
        room_bytes: for tensors.
        needed: tells what an arm needs.
        kinds: changes that may be made.
        has_bf16: whether the device has it.
        has_checkpointing: whether the model knows it.
        has_nf4: whether the base can be held in 4 bits.
    """
    as_it_is = needed(study, arm)
    found = Fit(needed_bytes=as_it_is.peak_bytes, room_bytes=room_bytes)
    if found.fits:
        return found.model_copy(update={"halved": as_it_is.halved})
    own = study.for_arm(arm)
    batches = _micro_batches(own, arm, kinds)
    rungs = _rungs(own, arm, kinds, has_bf16=has_bf16, has_checkpointing=has_checkpointing, has_nf4=has_nf4)

    fixed_bytes: dict[tuple[str | None, str | None], int] = {(None, None): as_it_is.fixed_bytes}

    def with_batch(rung: Change, size: int | None) -> tuple[Change, Need]:
        change = rung.model_copy(update={"micro_batch": size})
        found = _needed(study, arm, change, needed) if change.kinds else as_it_is
        fixed_bytes[rung.precision, rung.quantize] = found.fixed_bytes
        return change, found

    for rung in rungs:
        if fixed_bytes.get((rung.precision, rung.quantize), 0) > room_bytes:
            continue  # each need is a trace of seconds
        change, need = with_batch(rung, batches[-1])
        if need.peak_bytes > room_bytes:
            continue
        first, last = 0, len(batches) - 1  # the largest that fits: needs fall with the size
        while first < last:
            middle = (first + last) // 2
            tried, tried_need = with_batch(rung, batches[middle])
            if tried_need.peak_bytes <= room_bytes:
                last, change, need = middle, tried, tried_need
            else:
                first = middle + 1
        changes = {"change": change, "changed_bytes": need.peak_bytes, "halved": need.halved}
        return found.model_copy(update=changes)
    return found


def _needed(study: Study, arm: Arm, change: Change, needed: Needed) -> Need:
    changed = fitted(study, {arm.name: change})
    return needed(changed, next(own for own in changed.arms if own.name == arm.name))


def _micro_batches(own: Study, arm: Arm, kinds: tuple[Kind, ...]) -> list[int | None]:
    """Return sizes of the micro-batch, the study's own first (none), halved down to 1."""
    found: list[int | None] = [None]
    size = min(own.micro_batch or own.budget.batch_size, own.budget.batch_size)
    while arm.is_trained and "micro_batch" in kinds and size > 1:
        size //= 2
        found.append(size)
    return found


def _rungs(
    own: Study, arm: Arm, kinds: tuple[Kind, ...], *, has_bf16: bool, has_checkpointing: bool, has_nf4: bool
) -> Iterator[Change]:
    """Yield the changes beside the micro-batch, nearest first."""
    is_free = arm.is_trained and not own.gradient_checkpointing
    can_recompute = "gradient_checkpointing" in kinds and has_checkpointing and is_free
    stages: list[dict[str, Any]] = [{}]
    if "bf16" in kinds and has_bf16 and own.precision == "fp32":
        stages.append({"precision": "bf16"})
    spec = arm.method
    if "qlora" in kinds and has_nf4 and isinstance(spec, LoraMethod) and spec.quantize == "none" and not spec.dora:
        stages.append(stages[-1] | {"quantize": "nf4"})
    length = own.task.max_length
    most = stages[-1]
    while "length" in kinds and length // 2 >= SHORTEST:
        length //= 2
        stages.append(most | {"max_length": length})
    for stage in stages:
        yield Change(**stage)
        if can_recompute:
            yield Change(**stage, gradient_checkpointing=True)


def fitted(study: Study, changes: Mapping[str, Change]) -> Study:
    """Return a study with changes made to arms, through what each overrides.

    Args:
        study: the study.
        changes: by the arm's name.
    """
    arms = []
    for arm in study.arms:
        change = changes.get(arm.name)
        if change is None or not change.kinds:
            arms.append(arm)
            continue
        override = dict(arm.override)
        for key, value in change.override().items():
            override[key] = {**override.get(key, {}), **value} if isinstance(value, Mapping) else value
        method = arm.method
        if change.quantize is not None and isinstance(method, LoraMethod):
            method = method.model_copy(update={"quantize": change.quantize})
        arms.append(arm.model_copy(update={"override": override, "method": method}))
    # validated anew, as a change may be one that the study refuses
    return Study.model_validate(plain(study) | {"arms": [plain(arm) for arm in arms], "root": study.root})
