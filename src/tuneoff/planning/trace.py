"""What an arm's training step, scoring and generation take, with no weights loaded: the very code that `run` executes.

The model's tensors have shapes, types and a device and no numbers (PyTorch's `FakeTensorMode`, which `torch.compile`
is traced with), and a mode follows every storage (`planning.tally`). What is known by this: bytes of tensors at the
highest point, floating-point operations of matrix products, bytes moved, number of operations. What is not: memory
that is no tensor's (the interpreter, the allocator's own rounding on a CPU), and time.

A few layers are traced and the rest reckoned. Within one stretch of a pass (a layer's forward, a layer's backward, the
head, the optimizer) what is alive grows with the number of layers by one amount whatever the moment, so that the
stretch's highest point is linear in it, and exact; the highest of all stretches is taken after that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pydantic import PrivateAttr

from tuneoff.planning.operations import NO_WORK, Work, total
from tuneoff.planning.phases import evaluate_phase, train_phase
from tuneoff.planning.setting import Lengths as Lengths
from tuneoff.planning.setting import Setting, TracedPhase
from tuneoff.planning.tally import Product
from tuneoff.planning.traced import TracedModel, is_uniform, layers_of, traced_model
from tuneoff.planning.writing import generate_phase
from tuneoff.study.spec import Arm, Study
from tuneoff.study.value import Value

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRACED_LAYERS = (3, 4)
"""Traced in place of more: a first layer, a last one, and what lies between, once and twice."""

Phase = Literal["train", "evaluate", "generate"]
PHASES: tuple[Phase, ...] = ("train", "evaluate", "generate")


class PhaseTrace(Value):
    """What one phase of an arm takes."""

    phase: Phase
    peak_bytes: int
    """Tensors that are alive at the highest point."""
    parts: dict[str, int]
    """Bytes of weights, gradients, optimizer, activations, logits and key_values at that point; their sum is the peak.
    """
    flop: float
    """Of matrix products: of one optimizer step over the effective batch, of one forward that is scored, or of one
    batch of texts from prompt to end.
    """
    moved_bytes: float
    """Read and written by all operations."""
    num_operations: int
    num_tokens: int
    """Input tokens that the above are of; of generation the prompts' and the new ones."""
    num_targets: int = 0
    """Target tokens among them; of generation the new tokens."""
    products: tuple[Product, ...] = ()
    """The matrix products and calls of attention that `flop` is the sum of; calls may be fractions (see `flop`)."""
    _passes: Work = PrivateAttr(default=NO_WORK)
    _once: Work = PrivateAttr(default=NO_WORK)

    def work(self, share: float = 1.0) -> Work:
        """Return all operations with their shapes, by which the time is foretold; no part of the JSON.

        Args:
            share: of the tokens, for a step that is like this one with fewer; the optimizer's work stays.
        """
        return total([self._passes.times(share, 1.0), self._once])


def trace_arm(
    study: Study,
    arm: Arm,
    base: "PreTrainedModel",
    lengths: Lengths,
    *,
    device: str = "cpu",
    phases: Sequence[Phase] = PHASES,
    num_layers: Sequence[int] | None = None,
) -> tuple[PhaseTrace, ...]:
    """Trace an arm: its training step where it is trained, scoring, and generation where there are prompts.

    Args:
        study: the study.
        arm: one of its arms.
        base: its base on the meta device (`planning.plan.study_shape`); it is not changed.
        lengths: what a step sees.
        device: `cpu`, or `cuda`; of a GPU all is as it runs there where PyTorch was built for one, else as on a CPU
            that multiplies bf16 numbers itself.
        phases: those that are asked for.
        num_layers: how many layers are traced: two numbers that the rest is reckoned from; empty traces them all, none
            chooses.

    Raises:
        UnsupportedError: this model cannot take the method.
    """
    own = study.for_arm(arm)
    if lengths.generation_rows is not None:
        less = own.generate.model_copy(update={"batch_size": lengths.generation_rows})
        own = own.model_copy(update={"generate": less})
    found = layers_of(base)
    depth = len(found[1]) if found else 0
    if num_layers is None:
        num_layers = TRACED_LAYERS if depth > max(TRACED_LAYERS) and is_uniform(own, arm, base) else ()
    setting = Setting(own, arm, lengths, device == "cuda")
    if not num_layers:
        return tuple(_whole(phase).of_phase() for phase in _phases(setting, base, phases, None))
    traced = [_phases(setting, base, phases, number) for number in num_layers]
    few, more = num_layers
    share = (depth - few) / (more - few)
    return tuple(
        _reckoned(_cut(one, few, few - 1), _cut(other, more, few - 1), share).of_phase()
        for one, other in zip(*traced, strict=True)
    )


def _phases(
    setting: Setting, base: "PreTrainedModel", phases: Sequence[Phase], num_layers: int | None
) -> list[TracedPhase]:
    """Trace the phases of an arm, on a model of some layers."""
    model = traced_model(setting.study, setting.arm, base, setting.device, num_layers)
    steps: dict[Phase, Callable[[Setting, TracedModel], TracedPhase]] = {"evaluate": evaluate_phase}
    if setting.arm.is_trained:
        steps = {"train": train_phase, **steps}
    if setting.lengths.prompts and setting.study.task.generates:
        steps["generate"] = generate_phase
    return [step(setting, model) for phase, step in steps.items() if phase in phases]


@dataclass
class _Stretches:
    """A phase's peaks by stretch, and its sums."""

    phase: TracedPhase
    peaks: dict[str, dict[str, float]]
    moved_bytes: float = 0.0
    num_operations: float = 0.0
    products: dict[Product, float] = field(default_factory=dict)
    passes: Work = NO_WORK
    once: Work = NO_WORK

    def of_phase(self) -> PhaseTrace:
        """Return the phase with the highest of the stretches."""
        peaks = [{name: round(size) for name, size in peak.items()} for peak in self.peaks.values()]
        whole = max(peaks, key=lambda peak: (sum(peak.values()), *peak.values()))
        products = tuple(
            product.model_copy(update={"num_calls": number}) for product, number in self.products.items() if number
        )
        found = PhaseTrace(
            phase=self.phase.phase,
            peak_bytes=sum(whole.values()),
            parts=whole,
            flop=sum(product.flop * product.num_calls for product in products),
            moved_bytes=self.moved_bytes,
            num_operations=round(self.num_operations),
            num_tokens=self.phase.num_tokens,
            num_targets=self.phase.num_targets,
            products=products,
        )
        found._passes, found._once = self.passes, self.once
        return found


def _whole(phase: TracedPhase) -> _Stretches:
    peaks = {place: {name: float(size) for name, size in peak.parts.items()} for place, peak in phase.peaks.items()}
    sums = (phase.moved_bytes, phase.num_operations, dict(phase.products))
    return _Stretches(phase, peaks, *sums, phase.passes, phase.once)


def _cut(phase: TracedPhase, num_layers: int, num_edge: int) -> _Stretches:
    """Name the layers by their place from the start or from the end, so that phases of other depths have the same.

    Args:
        phase: as traced.
        num_layers: how many layers it has.
        num_edge: how many are named from the start, and from the end.
    """
    whole = _whole(phase)
    named: dict[str, dict[str, float]] = {}
    for place, peak in whole.peaks.items():
        stretch, _, layer = place.rpartition("/")
        if not layer.isdigit():
            named[place] = peak
            continue
        if int(layer) < num_edge:
            named[place] = peak
        if int(layer) >= num_layers - num_edge:
            named[f"{stretch}/{int(layer) - num_layers}"] = peak
    whole.peaks = named
    return whole


def _reckoned(few: _Stretches, more: _Stretches, share: float) -> _Stretches:
    """Return what there would be `share` times as far from `few` as `more` is."""

    def beyond(one: float, other: float) -> float:
        return one + share * (other - one)

    peaks = {
        place: {name: beyond(size, more.peaks[place][name]) for name, size in peak.items()}
        for place, peak in few.peaks.items()
        if place in more.peaks
    }
    names = dict.fromkeys((*few.products, *more.products))
    return _Stretches(
        phase=few.phase,
        peaks=peaks,
        moved_bytes=beyond(few.moved_bytes, more.moved_bytes),
        num_operations=beyond(few.num_operations, more.num_operations),
        products={name: beyond(few.products.get(name, 0), more.products.get(name, 0)) for name in names},
        passes=few.passes.beyond(more.passes, share),
        once=few.once.beyond(more.once, share),
    )
