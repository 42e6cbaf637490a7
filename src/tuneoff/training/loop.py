"""The one loop that trains every method; the only code that calls backward().

A run alone and a cohort go through the same lines: a cohort has several members, each with its own data order,
normaliser, clip, schedule and loss scale, whose rows share the forward and backward of one frozen base.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tuneoff.data.batching import Batch, BatchSequence, micro_batches
from tuneoff.data.prepare import TokenSplit
from tuneoff.errors import NotFiniteError
from tuneoff.methods.base import AdaptedModel
from tuneoff.methods.soft_prompt import is_checkpointing
from tuneoff.study.records import DIVERGED, Likelihood
from tuneoff.study.streams import DROPOUT, stream_seed
from tuneoff.training.checkpoint import Checkpoint, CheckpointTimer
from tuneoff.training.divergence import why_diverged
from tuneoff.training.meter import Meter
from tuneoff.training.optim import MemberOptimizer
from tuneoff.training.runtime import Runtime
from tuneoff.training.steps import DeviceBatch, Forward, to_device


@dataclass(frozen=True)
class LoopPlan:
    """How long and how often, the same for every member."""

    num_steps: int
    evaluate_every: int
    checkpoint_every: int | None
    """Steps between checkpoints; none where time decides."""
    micro_batch: int
    """Rows of one member in one forward."""
    pad_id: int
    checkpoint_minutes: float | None = None
    num_choices: int | None = None
    """Tokens of the vocabulary, or classes, that a target is one of; of none given, a run is ended by losses that are
    no numbers alone (see `tuneoff.training.divergence`)."""


@dataclass
class Member:
    """One run of a cohort, and where it stands."""

    seed: int
    order: BatchSequence
    optimizer: MemberOptimizer
    best_loss_nats: float = math.inf
    best_step: int = 0
    validation: Likelihood | None = None
    """At the best step."""
    last_validation: Likelihood | None = None
    steps: int = 0
    """Optimizer steps that it took part in: of one that is over, up to the step that ended it."""
    target_tokens: int = 0
    """Seen in those steps."""
    input_tokens: int = 0
    losses: list[float] = field(default_factory=list)
    failure: str = ""
    """Why the run ended early; empty while it is sound."""
    stopped: str = ""
    """Why the host ended it, sound as it was; empty while it goes on."""

    @property
    def is_over(self) -> bool:
        """Whether it is trained no further."""
        return bool(self.failure or self.stopped)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as JSON types."""
        return {
            "best_loss_nats": self.best_loss_nats if math.isfinite(self.best_loss_nats) else None,
            "best_step": self.best_step,
            "validation": self.validation.model_dump() if self.validation else None,
            "last_validation": self.last_validation.model_dump() if self.last_validation else None,
            "steps": self.steps,
            "target_tokens": self.target_tokens,
            "input_tokens": self.input_tokens,
            "losses": self.losses,
            "failure": self.failure,
            "stopped": self.stopped,
            "optimizer": self.optimizer.scalars(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        best = state["best_loss_nats"]
        self.best_loss_nats = math.inf if best is None else best
        self.best_step = state["best_step"]
        self.validation = Likelihood.model_validate(state["validation"]) if state["validation"] else None
        last = state["last_validation"]
        self.last_validation = Likelihood.model_validate(last) if last else None
        self.steps = state.get("steps", len(state["losses"]))
        self.target_tokens, self.input_tokens = state["target_tokens"], state["input_tokens"]
        self.losses, self.failure = list(state["losses"]), state["failure"]
        self.stopped = state.get("stopped", "")


class Host(Protocol):
    """What the loop asks for and tells; running/ scores, writes it down and shows it."""

    def evaluate(self, module: nn.Module) -> Likelihood:
        """Score the validation split with the model as it stands.

        Raises:
            NotFiniteError: its loss is not a finite number.
        """

    def curve(self, member: int, row: dict[str, Any]) -> None:
        """Take one point of a member's learning curve."""

    def best(self, member: int) -> None:
        """Save a member's weights: they are the best by validation so far."""

    def stop(self, member: int) -> str:
        """Say after a validation why a member is to end before its budget does; empty where it goes on."""

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Save the state of all members."""

    def progress(self, step: int, loss_nats: float, tokens_per_s: float) -> None:
        """Show how far the loop is."""

    def must_leave(self) -> bool:
        """Say after a step, and the validation that follows it, whether to leave off: a later sitting goes on."""


class Loop:
    """Trains the members of one adapted model.

    Args:
        adapted: the model with what the method added.
        forward: the way through it, checked.
        members: one for each member of `adapted`, in its order.
        split: training sequences.
        plan: how long and how often.
        host: scores the validation split and is told what happens.
        meter: measures, and knows the device and the compute type.
    """

    def __init__(
        self,
        adapted: AdaptedModel,
        forward: Forward,
        members: Sequence[Member],
        split: TokenSplit,
        plan: LoopPlan,
        host: Host,
        meter: Meter,
    ) -> None:
        self.adapted = adapted
        self.forward = forward
        self.members = list(members)
        self.split = split
        self.plan = plan
        self.host = host
        self.meter = meter
        self.runtime: Runtime = meter.runtime
        self.is_recomputed = is_checkpointing(adapted.module)
        self.step = 0
        self.timer = CheckpointTimer(plan.checkpoint_every, plan.checkpoint_minutes)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to train: the budget is used up, or every member is over."""
        return self.step == self.plan.num_steps or all(member.is_over for member in self.members)

    def run(self, resume: Checkpoint | None = None) -> None:
        """Train from the start, or from a checkpoint, until it is over or the host wants to leave off.

        Where it leaves off it has saved its state, from which another loop goes on to the same bits.
        """
        self.adapted.before_training(self.plan.num_steps)
        if resume is not None:
            self._restore(resume)
        must_leave = False
        while not (self.is_over or must_leave):
            self.train_step()
            self.step += 1
            is_last = self.step == self.plan.num_steps
            if is_last or self.step % self.plan.evaluate_every == 0:
                self._validate()
            must_leave = self.host.must_leave()
            if not is_last and (must_leave or self.timer.is_due(self.step)):
                with self.timer.saving():
                    self.host.checkpoint(self._checkpoint())

    def _micro_batches(self, step: int) -> list[list[Batch]]:
        """Return the step's micro-batches, each as one batch for every member."""
        layouts = [
            micro_batches(self.split, member.order.indices(step), self.plan.micro_batch, self.plan.pad_id)
            for member in self.members
        ]
        return [list(batches) for batches in zip(*layouts, strict=True)]

    def _placed(self, batches: Sequence[Batch]) -> DeviceBatch:
        return to_device(
            batches,
            self.runtime.device,
            self.plan.pad_id,
            [stream_seed(member.seed, DROPOUT) for member in self.members],
            is_packed=self.forward.is_packed,
            num_virtual_tokens=self.adapted.num_virtual_tokens,
        )

    def train_step(self) -> None:
        """Make one optimizer step, of the effective batch that belongs to `step`."""
        layout = self._micro_batches(self.step)
        num_targets = [sum(int(batch.targets.sum()) for batch in column) for column in zip(*layout, strict=True)]
        num_inputs = [sum(int(batch.lengths.sum()) for batch in column) for column in zip(*layout, strict=True)]
        was_over = [member.is_over for member in self.members]
        self.adapted.module.train()
        with self.meter.step(sum(num_inputs), sum(num_targets)):
            sums = [torch.zeros((), device=self.runtime.device) for _ in self.members]
            for batches in layout:
                batch = self._placed(batches)
                for index, nll in enumerate(self._backward(batch, num_targets)):
                    sums[index] = sums[index] + nll
            self._backward_extra()
            losses = [float(total) / count for total, count in zip(sums, num_targets, strict=True)]
            norms = [
                self._update(member, index, loss)
                for index, (member, loss) in enumerate(zip(self.members, losses, strict=True))
            ]
        for index, member in enumerate(self.members):
            if not was_over[index]:
                member.steps += 1
                member.target_tokens += num_targets[index]
                member.input_tokens += num_inputs[index]
            if not member.is_over:
                member.losses.append(losses[index])
                self.host.curve(index, self._train_row(member, losses[index], norms[index]))
                self._end_diverged(member)
        shown = next((loss for loss, member in zip(losses, self.members, strict=True) if not member.is_over), losses[0])
        self.host.progress(self.step + 1, shown, sum(num_inputs) / self.meter.step_s[-1])

    def _backward(self, batch: DeviceBatch, num_targets: Sequence[int]) -> list[Tensor]:
        """Add one micro-batch's gradients; return each member's sum of NLL.

        A member's loss is its NLL divided by its own target tokens in the effective batch, so the layout in micro-
        batches does not weigh. The sum over members keeps their gradients apart, as no trained weight is shared.
        """
        weights = [m.optimizer.loss_scale.scale / count for m, count in zip(self.members, num_targets, strict=True)]
        of_targets = torch.tensor(weights, device=self.runtime.device, dtype=torch.float64)[batch.members]
        # what is worked out again is cast again, a layer at a time
        with batch.masked(self.step), self.runtime.autocast(keeps_casts=not self.is_recomputed):
            loss, nll = self.forward.summed_nll(batch, of_targets)
        self.runtime.accelerator.backward(loss)
        return [own.sum() for own in torch.split(nll, list(batch.counts))]  # a mask would wait for the device

    def _backward_extra(self) -> None:
        """Add the gradients of what the method itself adds to the loss: once, as the step's NLL is a mean over all."""
        for index, member in enumerate(self.members):
            extra = self.adapted.extra_loss(index)
            if extra is not None:
                self.runtime.accelerator.backward(extra * member.optimizer.loss_scale.scale)

    def _update(self, member: Member, index: int, loss: float) -> float:
        """Apply a member's gradients; a member whose numbers are not finite is ended, the others go on."""
        if member.is_over:
            member.optimizer.zero_grad()
            return math.nan
        norm, is_finite = member.optimizer.step(self.step)
        if is_finite:
            self.adapted.after_optimizer_step(self.step + 1, self.plan.num_steps)
        member.optimizer.zero_grad()
        if not math.isfinite(loss):
            member.failure = f"{DIVERGED}: the loss was {loss} at step {self.step + 1}"
        elif not is_finite and not member.optimizer.loss_scale.can_retry:
            member.failure = f"{DIVERGED}: the gradient norm was {norm} at step {self.step + 1}"
        return norm

    def _end_diverged(self, member: Member) -> None:
        """End a member whose loss is a number and has stayed too high for long; its curve holds this step, too."""
        if self.plan.num_choices is not None:
            why = why_diverged(member.losses, self.plan.num_choices)
            member.failure = f"{DIVERGED}: {why} at step {self.step + 1}" if why else ""

    def _train_row(self, member: Member, loss: float, norm: float) -> dict[str, Any]:
        return {
            "kind": "train",
            "step": self.step + 1,
            "epoch": member.order.epochs(self.step + 1),
            "loss_nats": loss,
            "lr": member.optimizer.rate(self.step),
            "gradient_norm": norm if math.isfinite(norm) else None,
            "target_tokens": member.target_tokens,
            "input_tokens": member.input_tokens,
            "elapsed_s": self.meter.train_s,
        }

    def _validate(self) -> None:
        self.meter.optimizer_bytes = self.members[0].optimizer.num_bytes
        for index, member in enumerate(self.members):
            if member.is_over:
                continue
            try:
                with self.meter.evaluating(), self.adapted.member(index) as module:
                    module.eval()
                    found = self.host.evaluate(module)
            except NotFiniteError as error:
                member.failure = f"{DIVERGED}: {error} at step {self.step}"
                continue
            member.last_validation = found
            row = {"kind": "validation", "step": self.step, "epoch": member.order.epochs(self.step)}
            row |= {"loss_nats": found.loss_nats, "perplexity": found.perplexity, "target_tokens": member.target_tokens}
            self.host.curve(index, row)
            if found.loss_nats < member.best_loss_nats:
                member.best_loss_nats, member.best_step, member.validation = found.loss_nats, self.step, found
                self.host.best(index)
            if self.step < self.plan.num_steps:
                member.stopped = self.host.stop(index)

    def _checkpoint(self) -> Checkpoint:
        tensors: dict[str, Tensor] = {}
        for index, member in enumerate(self.members):
            parts = {
                "weights": self.adapted.state_dict(index),
                "method": self.adapted.training_state(index),
                "optimizer": member.optimizer.tensors(),
            }
            tensors |= {f"{index}/{part}/{name}": value for part, own in parts.items() for name, value in own.items()}
        state = {"members": [member.state() for member in self.members], "meter": self.meter.state()}
        return Checkpoint(self.step, state, tensors)

    def _restore(self, checkpoint: Checkpoint) -> None:
        for index, member in enumerate(self.members):
            weights = _below(checkpoint.tensors, f"{index}/weights/")
            self.adapted.load_state_dict(weights, index)
            self.adapted.load_training_state(_below(checkpoint.tensors, f"{index}/method/"), index)
            state = checkpoint.state["members"][index]
            member.restore(state)
            member.optimizer.restore(_below(checkpoint.tensors, f"{index}/optimizer/"), state["optimizer"])
        self.meter.restore(checkpoint.state["meter"])
        self.step = checkpoint.step


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
