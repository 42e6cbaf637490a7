"""What a first study should ask for, from the numbers of its data: length, budget, rates, ranks; each with its reason.

Sources: Schulman et al., 2025, "LoRA Without Regret" (rates, ranks, batch; the rule of the width is their Tinker
Cookbook's); Biderman et al., 2024, arXiv:2405.09673; Lester et al., 2021, arXiv:2104.08691 (prompts). They are where a
search starts, not where it ends.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tuneoff.data.lengths import SplitLengths
from tuneoff.data.survey import Survey
from tuneoff.study.methods import DEFAULT_RATES
from tuneoff.study.testing import TaskKind

T = TypeVar("T")

LENGTH_STEP = 16
MIN_LENGTH = 32
TEXT_LENGTHS = {True: 1024, False: 512}
"""Tokens of a window of running text, with and without a GPU."""
PROMPT_TOKENS = 20
"""Virtual tokens of the prompt arm, for which room is left below the context."""
ANSWER_STEP = 8

EPOCHS = ((500, 10), (2_000, 5), (20_000, 3), (math.inf, 1))
"""Passes over the data for up to so many sequences: rules of thumb, as few data need more of them."""
TEXT_EPOCHS = 3
"""Of running text, which is learnt by heart after a few."""
MAX_STEPS = {True: 3000, False: 600}
MIN_STEPS = 20
BATCH, SMALL_BATCH = 16, 8
SMALL_DATA = 320
"""Sequences below which a batch of 16 leaves fewer than 20 steps in a pass."""
SHORT_RUN = 100
"""Steps below which LoRA's best rate lies about 15 times above full fine-tuning's, and not 10."""
MAX_HELD = {True: 2000, False: 500}
"""Sequences that a split cut from train takes, about, where it has enough units with that."""
FEW_UNITS = 50
"""Of a test split, below which one item is worth more than two points of a share."""
MIN_UNITS = 8
"""Units that a split cut from train has, where there are enough."""
MAX_GENERATED = {True: 1000, False: 100}
"""Test items that text is generated for."""

BASE_RATE, BASE_WIDTH, WIDTH_POWER, QWEN_POWER = 5e-5, 2000, 0.781, 0.0775
LORA_RATIO, SHORT_RATIO = 10, 15
MAX_LORA_RATE = 5e-3
"""The rule was fitted on models 2,000 wide and more; of far narrower ones it asks for rates that spoil LoRA's training
(`docs/performance.md`).
"""
LORA_ALPHA = 32


@dataclass(frozen=True)
class Choice(Generic[T]):
    """A value, and the reason that stands beside it in the file."""

    value: T
    reason: str


def choose_length(
    kind: TaskKind, lengths: SplitLengths, context: int | None, *, has_gpu: bool, num_extra: int = 0
) -> Choice[int]:
    """Return `task.max_length`.

    Args:
        kind: of the task.
        lengths: of train.
        context: tokens that the base can see, where it says so.
        has_gpu: whether runs are trained on one.
        num_extra: tokens that must fit behind or before: the words of the classes, an answer that is generated.
    """
    limit = context - PROMPT_TOKENS if context else None
    if kind == "text":
        return _window(lengths, limit, TEXT_LENGTHS[has_gpu])
    needed = lengths.needed
    wished = max(MIN_LENGTH, _up(needed.p99 + num_extra, LENGTH_STEP))
    known = f"median {needed.median}, 95 % have {needed.p95} or fewer, 99 % {needed.p99}, longest {needed.longest}"
    if limit is None or wished <= limit:
        saved = ""
        if needed.p95 * 1.5 < needed.p99:
            saved = f"; {_up(needed.p95 + num_extra, LENGTH_STEP)} would keep 95 % whole and be faster"
        return Choice(wished, f"keeps 99 % of the examples whole ({known}){saved}")
    value = max(MIN_LENGTH, limit // ANSWER_STEP * ANSWER_STEP)
    return Choice(
        value,
        f"as much as the model sees: {context} tokens less {context - value if context else 0}, room for"
        f" {PROMPT_TOKENS} virtual tokens ({known}); what is longer is cut, see truncation",
    )


def _window(lengths: SplitLengths, limit: int | None, most: int) -> Choice[int]:
    value = min(most, _up(lengths.whole.longest, LENGTH_STEP))
    why = f"text is cut into windows of so many tokens; memory grows with it (documents: median {lengths.whole.median})"
    if limit is not None and value > limit:
        value = limit // ANSWER_STEP * ANSWER_STEP
        why = f"as much as the model sees, less room for {PROMPT_TOKENS} virtual tokens; {why}"
    return Choice(max(2, value), why)


def choose_shares(survey: Survey, num_sequences: int, *, has_gpu: bool) -> Choice[dict[str, float | str]]:
    """Return `task.splits`: official splits by name, shares of train for the others.

    Args:
        survey: of the data.
        num_sequences: of train, nothing cut off yet.
        has_gpu: whether runs are trained on one.
    """
    units = survey.splits["train"].num_units
    is_one = survey.kind == "text" and units == 1
    fewest = 0.0 if is_one else min(1.0, MIN_UNITS / units)
    share = min(0.1, max(MAX_HELD[has_gpu] / num_sequences, fewest))
    share = max(0.001, math.floor(1000 * share) / 1000)
    splits: dict[str, float | str] = {name: survey.split_sources.get(name, share) for name in ("validation", "test")}
    cut = [name for name, value in splits.items() if not isinstance(value, str)]
    reasons = [f"{name} is {value}, whole" for name, value in splits.items() if isinstance(value, str)]
    if cut:
        unit = f"about {max(1, round(share * units)):,} of {units:,} {unit_name(survey.kind)}"
        what = "a stretch at the end of the one document" if is_one else unit
        reasons.append(f"{' and '.join(cut)} {'is' if len(cut) == 1 else 'are'} cut from train: {what} each")
        if "test" in cut and not is_one and round(share * units) < FEW_UNITS:
            reasons.append("so few tell large differences alone; a larger test file of your own tells more")
    if share < 0.1 and cut:
        reasons.append(f"more than some {MAX_HELD[has_gpu]:,} sequences would cost time at every validation")
    return Choice(splits, "; ".join(reasons))


def unit_name(kind: TaskKind) -> str:
    """Return what the splits of a kind of task are cut by."""
    return {
        "text": "documents",
        "instruction": "prompts or trees",
        "qa": "articles or contexts",
        "classification": "texts",
    }[kind]


def num_sequences(survey: Survey, lengths: SplitLengths, max_length: int) -> int:
    """Return about how many sequences train has before anything is cut off: of text windows, else examples."""
    counts = survey.splits["train"]
    if survey.kind != "text":
        return max(1, counts.num_examples - counts.num_shared)
    return max(1, round(lengths.whole.total / (max_length - 1) + counts.num_examples / 2))


def choose_budget(kind: TaskKind, num_sequences: int, *, has_gpu: bool) -> Choice[tuple[int, int]]:
    """Return the steps and the effective batch."""
    batch = SMALL_BATCH if num_sequences < SMALL_DATA else BATCH
    epochs = next(value for most, value in EPOCHS if num_sequences <= most)
    epochs = min(epochs, TEXT_EPOCHS) if kind == "text" else epochs
    wished = math.ceil(epochs * num_sequences / batch)
    steps = max(MIN_STEPS, min(MAX_STEPS[has_gpu], wished))
    passes = steps * batch / num_sequences
    why = f"{passes:.2g} passes over about {num_sequences:,} training sequences"
    if wished > steps:
        why += f"; {epochs} would take {wished:,} steps, more than a first look {'' if has_gpu else 'on a CPU '}should"
    return Choice((steps, batch), why)


def choose_rates(width: int, model_type: str, steps: int) -> dict[str, Choice[tuple[float, ...]]]:
    """Return the rates to try of full, lora, bottleneck and prompt.

    Args:
        width: of the base's layers.
        model_type: of its configuration.
        steps: of each run.
    """
    power = QWEN_POWER if model_type.startswith("qwen") else WIDTH_POWER
    centre = BASE_RATE * (BASE_WIDTH / width) ** power
    ratio = SHORT_RATIO if steps < SHORT_RUN else LORA_RATIO
    short = f", as runs are shorter than {SHORT_RUN} steps" if ratio == SHORT_RATIO else ""
    full = Choice(_around(centre), f"around {centre:.1e}, a rule for models {width} wide; large steps forget more")
    why = f"{ratio} times those of full{short}; the best one hardly depends on the rank"
    if ratio * centre > MAX_LORA_RATE:
        why = f"the most that a model this narrow takes, though {ratio} times those of full is the rule{short}"
    lora = Choice(_around(min(ratio * centre, MAX_LORA_RATE)), why)
    return {
        "full": full,
        "lora": lora,
        "bottleneck": Choice(lora.value, "as LoRA's; no rule is known"),
        "prompt": Choice(DEFAULT_RATES["prompt"], "prompts need large rates, and many steps"),
    }


def choose_ranks(num_target_tokens: int, widths: Sequence[int]) -> Choice[tuple[int, ...]]:
    """Return two ranks.

    Args:
        num_target_tokens: tokens that carry loss, in one pass over train.
        widths: the smaller side of each layer that is adapted.
    """
    wished = (8, 32) if num_target_tokens < 2_000_000 else (16, 64)
    most = min(widths, default=wished[-1])
    ranks = tuple(sorted({min(rank, most) for rank in wished}))
    return Choice(
        ranks,
        f"a small one, and four times that, to see whether capacity limits: train has about {num_target_tokens:,}"
        " target tokens; a rule takes as many trainable parameters, and `tuneoff plan` says what each rank has",
    )


def _around(centre: float) -> tuple[float, ...]:
    """Return a rate with two digits, and half a decade below and above it."""
    middle = float(f"{centre:.0e}") if centre < 1 else 1.0
    return tuple(float(f"{rate:.0e}") for rate in (middle / 3, middle, middle * 3))


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
