"""The training step and the scoring of an arm, each run once on tensors without numbers."""

from typing import Any

import numpy as np
import torch
from torch import nn

from tuneoff.data.batching import BatchSequence, evaluation_batches
from tuneoff.data.tokens import TokenSplit
from tuneoff.evaluation.likelihood import packs, score_batch
from tuneoff.planning.setting import (
    PAD,
    Setting,
    TracedPhase,
    forward_of,
    phase_of,
    runtime_of,
    split_of,
    synthetic_split,
    tally_of,
)
from tuneoff.planning.tally import GRADIENTS, OPTIMIZER, Tally
from tuneoff.planning.traced import TracedModel, following_layers
from tuneoff.study.records import Likelihood
from tuneoff.training.loop import Loop, LoopPlan, Member
from tuneoff.training.meter import Meter
from tuneoff.training.optim import MemberOptimizer
from tuneoff.training.steps import to_device


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

    def must_leave(self) -> bool:
        """Never."""
        return False


def train_phase(setting: Setting, model: TracedModel) -> TracedPhase:
    """Trace an optimizer step after the first one, the optimizer's state being there.

    One micro-batch is traced, the largest; of several, with the gradients of those before it in place, and the others'
    sums are reckoned by their tokens.
    """
    study, adapted = setting.study, model.adapted
    tally, whole = tally_of(setting, model), split_of(setting)
    size = min(study.micro_batch or study.budget.batch_size, study.budget.batch_size)
    order = np.argsort(-whole.lengths, kind="stable")[:size]
    has_more = len(whole) > size
    split = synthetic_split(
        whole.lengths[order].tolist(), whole.targets_by_sequence[order].tolist(), has_labels=whole.has_labels
    )
    trained = adapted.trainable_parameters()
    with setting.entered(model, tally), following_layers(adapted.module, tally), tally.holding_gradients(trained):
        optimizer = _started_optimizer(setting, model, tally, has_gradients=has_more)
        member = Member(0, BatchSequence(len(split), len(split), 0), optimizer)
        loop = Loop(
            adapted,
            forward_of(adapted, whole),
            [member],
            split,
            LoopPlan(2, 2, 2, size, PAD),
            _Host(),
            _Meter(runtime_of(setting)),
        )
        loop.step = 1
        tally.place = "begin"
        of_passes = _note_the_step(optimizer, tally)
        loop.train_step()
    phase = phase_of("train", tally)
    phase.num_tokens, phase.num_targets = whole.num_input_tokens, whole.num_target_tokens
    if has_more:
        by_tokens = whole.num_input_tokens / split.num_input_tokens
        phase.moved_bytes += of_passes["moved_bytes"] * (by_tokens - 1)
        phase.num_operations += of_passes["num_operations"] * (-(-len(whole) // size) - 1)
        phase.products = {product: number * by_tokens for product, number in phase.products.items()}
        phase.passes = phase.passes.times(by_tokens, -(-len(whole) // size))
    return phase


def _note_the_step(optimizer: MemberOptimizer, tally: Tally) -> dict[str, float]:
    """Make the optimizer's own work a stretch of its own; return what is filled with the sums of all before it."""
    own = optimizer.step
    before: dict[str, float] = {}

    def step(number: int) -> tuple[float, bool]:
        before.update(moved_bytes=tally.moved_bytes, num_operations=tally.num_operations)
        tally.place = "optimizer"
        return own(number)

    optimizer.step = step  # type: ignore[method-assign,assignment]
    return before


def _started_optimizer(setting: Setting, model: TracedModel, tally: Tally, *, has_gradients: bool) -> MemberOptimizer:
    """Return the optimizer after its first step; with gradients of the next step already there, or none."""
    trained = model.adapted.trainable_parameters()
    is_fp16 = setting.study.precision == "fp16"
    optimizer = MemberOptimizer(trained, 1.0, setting.study.optimizer, 2, is_fp16, model.adapted.rate_factors())
    with tally.paused():
        for parameter in trained.values():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step(0)
    for tensor in optimizer.tensors().values():
        tally.hold(tensor, OPTIMIZER)
    if not has_gradients:
        optimizer.zero_grad()
    for parameter in trained.values():
        if parameter.grad is not None:
            tally.hold(parameter.grad, GRADIENTS)
    return optimizer


def evaluate_phase(setting: Setting, model: TracedModel) -> TracedPhase:
    """Trace a batch of a validation: of the longest sequences, with the optimizer's state there."""
    runtime, module, tally = runtime_of(setting), model.adapted.module, tally_of(setting, model)
    whole = split_of(setting)
    forward = forward_of(model.adapted, whole)
    is_packed = packs(forward, runtime)
    tokens = setting.lengths.evaluation_tokens
    batch = next(evaluation_batches(_filling(whole, tokens), None, PAD, tokens, is_packed=is_packed))
    with setting.entered(model, tally), following_layers(module, tally):
        optimizer = None
        if setting.arm.is_trained:
            optimizer = _started_optimizer(setting, model, tally, has_gradients=False)
        module.eval()
        tally.place = "begin"
        placed = to_device([batch], runtime.device, PAD, is_packed=is_packed)
        score_batch(forward, placed, runtime, has_classes=whole.has_labels)
        del optimizer
    phase = phase_of("evaluate", tally)
    phase.num_tokens, phase.num_targets = int(batch.lengths.sum()), batch.num_target_tokens
    return phase


def _filling(split: TokenSplit, num_tokens: int) -> TokenSplit:
    """Return the sequences of a split as many times as gives so many tokens."""
    times = -(-num_tokens // split.num_input_tokens)
    lengths, targets = split.lengths.tolist() * times, split.targets_by_sequence.tolist() * times
    return synthetic_split(lengths, targets, has_labels=split.has_labels)
