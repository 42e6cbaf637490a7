"""What a trace is of, and what stands in for a run's surroundings where nothing runs."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import numpy as np
import torch

from tuneoff.data.tokens import TokenSplit
from tuneoff.evaluation.likelihood import EVALUATION_TOKENS
from tuneoff.methods.base import AdaptedModel
from tuneoff.planning.operations import NO_WORK, Work
from tuneoff.planning.tally import WEIGHTS, Peak, Product, Tally
from tuneoff.planning.traced import TracedModel, logits_are_plain
from tuneoff.study.spec import Arm, Study
from tuneoff.study.value import Value
from tuneoff.training.alike import one_for_all
from tuneoff.training.masks import shapes_alone
from tuneoff.training.products import own_bf16_products
from tuneoff.training.runtime import COMPUTE_TYPES, Runtime
from tuneoff.training.steps import MIN_PACKED_TOKENS, Forward, looks_everywhere

PAD = 0


class Lengths(Value):
    """What a step sees: of the data where they were read, else the longest that there may be."""

    train: tuple[int, ...]
    """Tokens of each sequence of one effective batch."""
    targets: tuple[int, ...]
    """Target tokens of each."""
    prompts: tuple[int, ...] = ()
    """Tokens of each prompt of a generation batch; empty where nothing is generated."""
    evaluation_tokens: int = EVALUATION_TOKENS
    """Of one forward that is scored."""
    generation_rows: int | None = None
    """Texts in the making; none takes `generate.batch_size`."""


@dataclass(frozen=True)
class Setting:
    """What is traced.

    Attributes:
        study: as the arm has it.
        arm: the arm.
        lengths: what a step sees.
        is_cuda: whether a GPU is meant. Where PyTorch was built for none, tensors lie on the CPU, bf16 products are
            taken to be its own, and sizes are rounded as on a GPU.
    """

    study: Study
    arm: Arm
    lengths: Lengths
    is_cuda: bool

    @property
    def device(self) -> torch.device:
        """What the tensors claim to lie on."""
        return torch.device("cuda" if self.is_cuda and torch.version.cuda else "cpu")

    @contextmanager
    def entered(self, model: TracedModel, tally: Tally) -> Iterator[None]:
        """Within the context code runs on tensors without numbers, and is followed."""
        products = own_bf16_products() if self.is_cuda else nullcontext()
        was_enabled = gc.isenabled()
        gc.disable()  # else what a cycle of references keeps would die at another moment each time
        try:
            with products, shapes_alone(), one_for_all(tally.standing_for), model.mode, tally:
                yield
        finally:
            if was_enabled:
                gc.enable()


@dataclass
class TracedPhase:
    """What one phase took on a model of some layers.

    Attributes:
        phase: which.
        peaks: highest point of each stretch.
        moved_bytes, num_operations, products: sums over the phase.
        num_tokens, num_targets: that they are of.
        passes, once: the operations themselves, of forward and backward, and of the optimizer.
    """

    phase: Literal["train", "evaluate", "generate"]
    peaks: dict[str, Peak]
    moved_bytes: float
    num_operations: float
    products: dict[Product, float] = field(default_factory=dict)
    num_tokens: int = 0
    num_targets: int = 0
    passes: Work = NO_WORK
    once: Work = NO_WORK


class _Device:
    """What a runtime needs of Accelerate where nothing is spread over processes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def backward(self, loss: torch.Tensor) -> None:
        """Work out the gradients."""
        loss.backward()  # type: ignore[no-untyped-call]


class _Runtime(Runtime):
    """A runtime on a device that need not be there."""

    def synchronize(self) -> None:
        """Do nothing: nothing runs."""


def synthetic_split(lengths: Sequence[int], targets: Sequence[int], *, has_labels: bool = False) -> TokenSplit:
    """Return sequences of these lengths, whose last tokens are targets.

    Args:
        lengths: tokens of each.
        targets: target tokens of each; never the first token.
        has_labels: whether each sequence has a class, which its last token stands for.
    """
    flags = []
    for length, number in zip(lengths, targets, strict=True):
        kept = 1 if has_labels else min(number, length - 1)
        flags.append(np.arange(length) >= length - kept)
    num = len(lengths)
    return TokenSplit(
        input_ids=np.zeros(sum(lengths), dtype=np.int32),
        targets=np.concatenate(flags),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        target_bytes=np.zeros(num, dtype=np.int64),
        items=np.arange(num, dtype=np.int32),
        labels=np.zeros(num if has_labels else 0, dtype=np.int32),
        item_names=tuple(map(str, range(num))),
    )


def runtime_of(setting: Setting) -> Runtime:
    """Return the runtime of a run on the setting's device."""
    return _Runtime(cast(Any, _Device(setting.device)), COMPUTE_TYPES[setting.study.precision])


def tally_of(setting: Setting, model: TracedModel) -> Tally:
    """Return a tally that knows the model's weights."""
    config = model.adapted.module.config
    text: Any = config.get_text_config()  # type: ignore[operator, union-attr]
    size = text.num_labels if setting.study.task.kind == "classification" else text.vocab_size
    tally = Tally(size, is_cuda=setting.is_cuda)
    for tensor in model.tensors():
        tally.hold(tensor, WEIGHTS)
    return tally


def split_of(setting: Setting) -> TokenSplit:
    """Return an effective batch's sequences."""
    lengths = setting.lengths
    return synthetic_split(lengths.train, lengths.targets, has_labels=setting.study.task.kind == "classification")


def forward_of(adapted: AdaptedModel, split: TokenSplit) -> Forward:
    """Return the way through a model that a run finds out with numbers (`running.session`)."""
    forward = Forward(adapted.module)
    config: Any = adapted.module.config
    forward.is_short = forward.is_short and logits_are_plain(config)
    text = config.get_text_config()
    attends = getattr(config, "_attn_implementation", None) == "sdpa"
    if forward.is_short and adapted.can_pack and attends and looks_everywhere(text):
        forward.can_pack = True
        forward.is_packed = bool(split.lengths.mean() >= MIN_PACKED_TOKENS)
    return forward


def phase_of(name: Literal["train", "evaluate", "generate"], tally: Tally) -> TracedPhase:
    """Return what a tally has seen."""
    return TracedPhase(
        phase=name,
        peaks=tally.peaks(),
        moved_bytes=tally.moved_bytes,
        num_operations=tally.num_operations,
        products=dict(tally.products),
        passes=tally.passes.work(),
        once=tally.once.work(),
    )
