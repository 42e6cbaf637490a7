"""The phases of an arm, each run once on tensors without numbers: a training step, a scored batch, texts written."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import nn

from tuneoff.data.batching import BatchSequence, evaluation_batches
from tuneoff.data.tokens import TokenSplit
from tuneoff.evaluation.likelihood import EVALUATION_TOKENS, packs, score_batch
from tuneoff.methods.base import AdaptedModel
from tuneoff.planning.operations import Work, total
from tuneoff.planning.tally import GRADIENTS, OPTIMIZER, WEIGHTS, Peak, Product, Tally
from tuneoff.planning.traced import TracedModel, follow_layers, logits_are_plain, traced_model
from tuneoff.study.records import Likelihood
from tuneoff.study.spec import Arm, Study
from tuneoff.training.loop import Loop, LoopPlan, Member
from tuneoff.training.masks import shapes_alone
from tuneoff.training.meter import Meter
from tuneoff.training.optim import MemberOptimizer
from tuneoff.training.runtime import COMPUTE_TYPES, Runtime
from tuneoff.training.steps import MIN_PACKED_TOKENS, Forward, looks_everywhere, to_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PAD = 0


@dataclass(frozen=True)
class Setting:
    """What is traced.

    Attributes:
        study: as the arm has it.
        arm: the arm.
        lengths: what a step sees (`planning.trace.Lengths`).
        device: what the tensors claim to lie on.
        num_threads: of the CPU.
    """

    study: Study
    arm: Arm
    lengths: Any
    device: torch.device
    num_threads: int


@dataclass
class TracedPhase:
    """What one phase took on a model of some layers.

    Attributes:
        phase: which.
        peaks: highest point of each stretch.
        moved_bytes, num_operations, products: sums over the phase.
        num_tokens, num_targets: that they are of.
        work: the operations themselves.
    """

    phase: Literal["train", "evaluate", "generate"]
    peaks: dict[str, Peak]
    moved_bytes: float
    num_operations: float
    products: dict[Product, float] = field(default_factory=dict)
    num_tokens: int = 0
    num_targets: int = 0
    work: Work = field(default_factory=lambda: Work({}, 0))


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


class _Meter(Meter):
    """A meter of a phase whose memory is predicted, not measured."""

    def _peak(self) -> int:
        return 0

    def _reset_peak(self) -> None:
        pass


class _Host:
    """Takes what the loop tells, and does nothing."""

    def evaluate(self, module: nn.Module) -> Likelihood:
        """Never asked: a step is traced alone."""
        raise NotImplementedError

    def curve(self, member: int, row: dict[str, Any]) -> None:
        """Nothing."""

    def best(self, member: int) -> None:
        """Nothing."""

    def stop(self, member: int) -> str:
        """Never."""
        return ""

    def checkpoint(self, checkpoint: Any) -> None:
        """Nothing."""

    def progress(self, step: int, loss_nats: float, tokens_per_s: float) -> None:
        """Nothing."""


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


def train_phase(setting: Setting, base: "PreTrainedModel", num_layers: int | None) -> TracedPhase:
    """Trace an optimizer step after the first one: the optimizer's state is there."""
    study = setting.study
    model = traced_model(study, setting.arm, base, setting.device, num_layers)
    runtime, adapted = _runtime(setting), model.adapted
    tally = _tally(setting, model)
    whole = _split(setting)
    size = min(study.micro_batch or study.budget.batch_size, study.budget.batch_size)
    order = np.argsort(-whole.lengths, kind="stable")[:size]
    has_more = len(whole) > size  # then gradients are there already where most is alive
    split = synthetic_split(
        whole.lengths[order].tolist(), whole.targets_by_sequence[order].tolist(), has_labels=whole.has_labels
    )
    trained = adapted.trainable_parameters()
    with model.mode, tally, shapes_alone():
        with tally.paused():
            optimizer = _started_optimizer(study, adapted, has_gradients=has_more)
        for tensor in optimizer.tensors().values():
            tally.hold(tensor, OPTIMIZER)
        tally.hold_gradients(trained)
        for parameter in trained.values():
            if parameter.grad is not None:
                tally.hold(parameter.grad, GRADIENTS)
        member = Member(0, BatchSequence(len(split), len(split), 0), optimizer)
        plan = LoopPlan(2, 2, 2, size, PAD)
        forward = _forward(setting, adapted, whole)
        loop = Loop(adapted, forward, [member], split, plan, _Host(), _Meter(runtime))
        loop.step = 1
        tally.place = "begin"
        follow_layers(adapted.module, tally)
        of_passes = _note_the_step(optimizer, tally)
        loop.train_step()
    phase = _phase("train", tally)
    phase.num_tokens, phase.num_targets = whole.num_input_tokens, whole.num_target_tokens
    if has_more:  # the other passes are reckoned by their tokens
        by_tokens = whole.num_input_tokens / split.num_input_tokens
        phase.moved_bytes += of_passes["moved_bytes"] * (by_tokens - 1)
        phase.num_operations += of_passes["num_operations"] * (-(-len(whole) // size) - 1)
        phase.products = {product: number * by_tokens for product, number in phase.products.items()}
        passes = tally.passes.work().times(by_tokens, -(-len(whole) // size))
        phase.work = total([passes, tally.once.work()])
    return phase


def _note_the_step(optimizer: MemberOptimizer, tally: Tally) -> dict[str, float]:
    """Make the optimizer's own work a stretch of its own; return what is filled with the sums of all before it."""
    own = optimizer.step
    before: dict[str, float] = {}

    def step(number: int) -> tuple[float, bool]:
        before.update(moved_bytes=tally.moved_bytes, num_operations=tally.num_operations)
        tally.place = "optimizer"
        return own(number)

    optimizer.step = step  # type: ignore[method-assign]
    return before


def _started_optimizer(study: Study, adapted: AdaptedModel, *, has_gradients: bool) -> MemberOptimizer:
    """Return the optimizer after its first step; with the gradients of the next step's first micro-batch, or none."""
    trained = adapted.trainable_parameters()
    is_fp16 = study.precision == "fp16"
    optimizer = MemberOptimizer(trained, 1.0, study.optimizer, 2, is_fp16, adapted.rate_factors())
    for parameter in trained.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(0)
    if not has_gradients:
        optimizer.zero_grad()
    return optimizer


def evaluate_phase(setting: Setting, base: "PreTrainedModel", num_layers: int | None) -> TracedPhase:
    """Trace a batch of a validation: of the longest sequences, with the optimizer's state there."""
    study = setting.study
    model = traced_model(study, setting.arm, base, setting.device, num_layers)
    runtime, module, tally = _runtime(setting), model.adapted.module, _tally(setting, model)
    whole = _split(setting)
    forward = _forward(setting, model.adapted, whole)
    is_packed = packs(forward, runtime)
    split = _filling(whole, EVALUATION_TOKENS)
    batch = next(evaluation_batches(split, None, PAD, EVALUATION_TOKENS, is_packed=is_packed))
    follow_layers(module, tally)
    with model.mode, tally, shapes_alone():
        if setting.arm.is_trained:
            with tally.paused():
                optimizer = _started_optimizer(study, model.adapted, has_gradients=False)
            for tensor in optimizer.tensors().values():
                tally.hold(tensor, OPTIMIZER)
        module.eval()
        tally.place = "begin"
        placed = to_device([batch], runtime.device, PAD, is_packed=is_packed)
        score_batch(forward, placed, runtime, has_classes=split.has_labels)
    phase = _phase("evaluate", tally)
    phase.num_tokens, phase.num_targets = int(batch.lengths.sum()), batch.num_target_tokens
    return phase


def _filling(split: TokenSplit, num_tokens: int) -> TokenSplit:
    """Return the sequences of a split as many times as gives so many tokens."""
    times = -(-num_tokens // split.num_input_tokens)
    lengths, targets = split.lengths.tolist() * times, split.targets_by_sequence.tolist() * times
    return synthetic_split(lengths, targets, has_labels=split.has_labels)


def generate_phase(setting: Setting, base: "PreTrainedModel", num_layers: int | None) -> TracedPhase:
    """Trace a batch of texts."""
    raise NotImplementedError


def _runtime(setting: Setting) -> Runtime:
    return _Runtime(cast(Any, _Device(setting.device)), COMPUTE_TYPES[setting.study.precision])


def _tally(setting: Setting, model: TracedModel) -> Tally:
    """Return a tally that knows the model's weights."""
    config = model.adapted.module.config
    text: Any = config.get_text_config()  # type: ignore[operator, union-attr]
    size = text.num_labels if setting.study.task.kind == "classification" else text.vocab_size
    tally = Tally(size, is_cuda=setting.device.type == "cuda", num_threads=setting.num_threads)
    for tensor in model.tensors():
        tally.hold(tensor, WEIGHTS)
    return tally


def _split(setting: Setting) -> TokenSplit:
    lengths = setting.lengths
    return synthetic_split(lengths.train, lengths.targets, has_labels=setting.study.task.kind == "classification")


def _forward(setting: Setting, adapted: AdaptedModel, split: TokenSplit) -> Forward:
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


def _phase(name: Literal["train", "evaluate", "generate"], tally: Tally) -> TracedPhase:
    return TracedPhase(
        phase=name,
        peaks=tally.peaks(),
        moved_bytes=tally.moved_bytes,
        num_operations=tally.num_operations,
        products=dict(tally.products),
        work=total([tally.passes.work(), tally.once.work()]),
    )
