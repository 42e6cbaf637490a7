"""A loop on random tokens and a small random model, for tests that look at its numbers."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tests.methods.models import VOCABULARY, make_model
from torch import nn

from tuneoff.data.batching import BatchSequence
from tuneoff.data.prepare import TokenSplit
from tuneoff.evaluation.likelihood import score_split
from tuneoff.methods import AdaptedModel, LoRA, LoRACohort
from tuneoff.study.records import Likelihood
from tuneoff.study.spec import OptimizerSpec
from tuneoff.study.streams import INIT, stream_seed
from tuneoff.training.checkpoint import Checkpoint
from tuneoff.training.loop import Loop, LoopPlan, Member
from tuneoff.training.meter import Meter
from tuneoff.training.optim import MemberOptimizer
from tuneoff.training.runtime import Runtime, open_runtime
from tuneoff.training.steps import Forward

PAD = 0


def make_split(num_sequences: int = 24, seed: int = 3, longest: int = 20) -> TokenSplit:
    """Return sequences of random tokens and lengths, each with a prompt of random length that carries no loss."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(4, longest + 1, num_sequences)
    ids, targets = [], []
    for length in lengths:
        ids.append(draw.integers(3, VOCABULARY, length).astype(np.int32))
        prompt = int(draw.integers(1, length - 1))
        targets.append(np.arange(length) >= prompt)
    return TokenSplit(
        input_ids=np.concatenate(ids),
        targets=np.concatenate(targets),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        target_bytes=np.array([int(target.sum()) * 3 for target in targets]),
        items=np.arange(num_sequences, dtype=np.int32),
        labels=np.zeros(0, np.int32),
        item_names=tuple(f"item {index}" for index in range(num_sequences)),
    )


def make_labelled(num_sequences: int = 24, num_classes: int = 3, seed: int = 3, longest: int = 20) -> TokenSplit:
    """Return sequences of random tokens and lengths with a random class each."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, longest + 1, num_sequences)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    targets = np.zeros(offsets[-1], dtype=np.bool_)
    targets[offsets[1:] - 1] = True
    return TokenSplit(
        input_ids=draw.integers(3, VOCABULARY, offsets[-1]).astype(np.int32),
        targets=targets,
        offsets=offsets,
        target_bytes=np.zeros(num_sequences, np.int64),
        items=np.arange(num_sequences, dtype=np.int32),
        labels=draw.integers(0, num_classes, num_sequences).astype(np.int32),
        item_names=tuple(f"item {index}" for index in range(num_sequences)),
    )


@dataclass
class Recorder:
    """Keeps what the loop tells."""

    rows: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    best_steps: list[int] = field(default_factory=list)
    score: Callable[[nn.Module], Likelihood] | None = None
    stops: dict[int, int] = field(default_factory=dict)
    """From which step on a member is told to stop."""
    leave_at: int | None = None
    """The step after which the loop is told to leave off."""

    def evaluate(self, module: nn.Module) -> Likelihood:
        assert self.score is not None
        return self.score(module)

    def curve(self, member: int, row: dict[str, Any]) -> None:
        self.rows.append((member, row))

    def best(self, member: int) -> None:
        self.best_steps.append(member)

    def stop(self, member: int) -> str:
        step = self.rows[-1][1]["step"]
        return f"stopped at step {step}" if step >= self.stops.get(member, step + 1) else ""

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        copied = {name: tensor.clone() for name, tensor in checkpoint.tensors.items()}
        self.checkpoints.append(Checkpoint(checkpoint.step, copy.deepcopy(checkpoint.state), copied))

    def progress(self, step: int, loss_nats: float, tokens_per_s: float) -> None:
        pass

    def must_leave(self) -> bool:
        return self.rows[-1][1]["step"] == self.leave_at

    def losses(self, member: int = 0, kind: str = "train") -> list[float]:
        return [row["loss_nats"] for index, row in self.rows if index == member and row["kind"] == kind]


def runtime(precision: str = "fp32") -> Runtime:
    """Return this process's runtime, one thread."""
    return open_runtime(precision, num_threads=1)


def adapt(
    loras: Sequence[LoRA], seeds: Sequence[int], architecture: str = "gpt2", dtype: torch.dtype = torch.float32
) -> AdaptedModel:
    """Put LoRA runs, one or a cohort, on a fresh base."""
    generators = [torch.Generator().manual_seed(stream_seed(seed, INIT)) for seed in seeds]
    adapted = LoRACohort(tuple(loras)).adapt(make_model(architecture), generators)
    adapted.module.to(dtype)
    return adapted


def checked_forward(adapted: AdaptedModel, split: TokenSplit, own: Runtime, *, may_pack: bool = True) -> Forward:
    """Return the way through a model, as a session finds it out."""
    forward = Forward(adapted.module)
    adapted.module.eval()
    probes = [torch.from_numpy(split.sequence(place)[0].astype("int64")).to(own.device) for place in range(3)]
    with own.autocast(), adapted.member(0):
        forward.check(probes[0][None])
        if adapted.can_pack and may_pack:
            forward.check_packing(probes)
    return forward


def make_loop(
    adapted: AdaptedModel,
    seeds: Sequence[int],
    rates: Sequence[float],
    split: TokenSplit,
    recorder: Recorder,
    *,
    num_steps: int = 10,
    micro_batch: int = 8,
    batch_size: int = 8,
    optimizer: OptimizerSpec | None = None,
    evaluate_every: int = 5,
    checkpoint_every: int = 5,
    precision: str = "fp32",
    may_pack: bool = True,
) -> Loop:
    """Return a loop over the members of an adapted model; the split is its own validation split."""
    spec = optimizer or OptimizerSpec(weight_decay=0.01)
    meter = Meter(runtime(precision))
    adapted.module.to(meter.runtime.device)
    members = [
        Member(
            seed=seed,
            order=BatchSequence(len(split), batch_size, seed),
            optimizer=MemberOptimizer(
                adapted.trainable_parameters(index),
                rate,
                spec,
                num_steps,
                is_fp16=False,
                factors=adapted.rate_factors(index),
            ),
        )
        for index, (seed, rate) in enumerate(zip(seeds, rates, strict=True))
    ]
    forward = checked_forward(adapted, split, meter.runtime, may_pack=may_pack)
    recorder.score = lambda module: score_split(module, forward, split, meter.runtime, PAD).likelihood
    plan = LoopPlan(num_steps, evaluate_every, checkpoint_every, micro_batch, PAD)
    return Loop(adapted, forward, members, split, plan, recorder, meter)


def run_alone(
    lora: LoRA, seed: int, rate: float, split: TokenSplit, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[AdaptedModel, Recorder]:
    """Train one run; return its model and what the loop told."""
    recorder = Recorder()
    adapted = adapt([lora], [seed], dtype=dtype)
    make_loop(adapted, [seed], [rate], split, recorder, **options).run()
    return adapted, recorder


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    """Return the largest absolute difference over tensors of the same names."""
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)
