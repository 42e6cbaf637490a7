"""What each arm of a study costs in memory, time and disk, from a trace of its steps and the speed of a device.

Memory is the highest point of the traced step (`planning.trace`), of the batch that needs most. Time is that of the
traced operations (`planning.calibration`), of a batch that is like the mean, times how often `run` makes it. Left out
are loading and saving, starting processes, reading and tokenising data, and what is worked out of trained weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tuneoff.errors import TuneoffError
from tuneoff.evaluation.likelihood import EVALUATION_TOKENS
from tuneoff.planning.calibration import DeviceSpeed, Speed, calibrate
from tuneoff.planning.devices import Device
from tuneoff.planning.fit import ALL_KINDS, Change, Fit, Halved, Kind, Need, find_fit, fitted
from tuneoff.planning.plan import FP32_BYTES, NUM_MOMENTS, ArmPlan, Plan, plan, study_shape
from tuneoff.planning.room import Room, device_room, machine_room, memory_room
from tuneoff.planning.side_by_side import Errand, can_help, trace_all
from tuneoff.planning.sizes import Sizes, Step, study_sizes
from tuneoff.planning.trace import PHASES, Lengths, Phase, PhaseTrace, trace_arm
from tuneoff.study.identity import canonical_json, task_key
from tuneoff.study.predicted import Predicted, PredictedPhase, Seconds
from tuneoff.study.spec import Arm, Study
from tuneoff.study.value import plain

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FIXED_PARTS = ("weights", "gradients", "optimizer")
"""Of a phase's peak what does not go with its sequences."""
NEVER = 1 << 62
"""Bytes that an arm needs which the model cannot take so changed."""
CURVE_ROW_BYTES, PREDICTION_ROW_BYTES, RECORD_BYTES = 220, 130, 6000
"""On disk: of a step in the learning curve, of a test sequence, of a run's records."""

Tracer = Callable[[Study, Arm, Lengths], tuple[PhaseTrace, ...]]


@dataclass(frozen=True)
class Basis:
    """What a plan is made for.

    Attributes:
        room: memory that there is.
        speed: of the device; none where nothing is known of it.
        device: kind that steps are traced for.
        has_bf16: whether the device has it.
    """

    room: Room
    speed: Speed | None
    device: Literal["cpu", "cuda"]
    has_bf16: bool = True


def basis_of(
    device: Device | None = None, memory_bytes: int | None = None, *, anew: bool = False, budget_s: float = 3.0
) -> Basis:
    """Return what a plan is made for: a named device, so much memory, or this machine.

    Args:
        device: by name; its memory is its own unless `memory_bytes` says otherwise.
        memory_bytes: of a GPU that nothing else is known of, or of `device`.
        anew: measure this machine again.
        budget_s: seconds that measuring may take, beside about two where nothing was measured before.
    """
    if device is not None:
        room = device_room(device) if memory_bytes is None else memory_room(memory_bytes, device.name)
        return Basis(room, DeviceSpeed(device), "cuda", device.bf16 is not None)
    if memory_bytes is not None:
        return Basis(memory_room(memory_bytes), None, "cuda")
    calibration = calibrate(anew=anew, budget_s=budget_s)
    return Basis(machine_room(), calibration, "cuda" if calibration.machine["is_gpu"] else "cpu")


@dataclass
class Forecast:
    """Foretells what the arms of one study cost.

    Attributes:
        study: the study.
        base: its base on the meta device.
        basis: what it is made for.
        tracer: traces an arm; the arms' steps are traced once where they are alike.
    """

    study: Study
    base: "PreTrainedModel"
    basis: Basis
    tracer: Tracer | None = None
    known_sizes: dict[str, Sizes] = field(default_factory=dict)
    """By the task's key and the budget; filled as they are needed."""
    _traces: dict[str, tuple[PhaseTrace, ...]] = field(default_factory=dict)

    def sizes(self, study: Study, arm: Arm) -> Sizes:
        """Return the sizes of an arm's data, cut where the arm was changed to shorter sequences.

        Args:
            study: the study, as it may have been changed.
            arm: one of its arms.
        """
        given = self.study.for_arm(next(one for one in self.study.arms if one.name == arm.name))
        key = canonical_json([task_key(given.task), plain(given.budget)])
        if key not in self.known_sizes:
            self.known_sizes[key] = study_sizes(given)
        found, length = self.known_sizes[key], study.for_arm(arm).task.max_length
        return found if length >= given.task.max_length else _shortened(found, length)

    def traces(self, study: Study, arm: Arm, step: Step, prompts: tuple[int, ...]) -> tuple[PhaseTrace, ...]:
        """Return an arm's phases, for one step's lengths."""
        key = _alike(study, arm, step, prompts)
        if key not in self._traces:
            self._traces[key] = self._trace(study, arm, _lengths(step, prompts))
        return self._traces[key]

    def trace_side_by_side(self, study: Study, arms: Sequence[Arm], num_classes: int | None) -> None:
        """Trace arms in processes of their own, where that is quicker; otherwise, or where it fails, do nothing."""
        errands: dict[str, Errand] = {}
        for arm in arms if self.tracer is None else ():
            try:
                sizes = self.sizes(study, arm)
            except TuneoffError:
                return
            key = _alike(study, arm, sizes.largest, sizes.prompts)
            if key not in self._traces:
                lengths = _lengths(sizes.largest, sizes.prompts)
                errands.setdefault(key, Errand(study, arm, lengths, self.basis.device, num_classes))
        if can_help(len(errands)):
            traced = zip(errands, trace_all(list(errands.values())), strict=True)
            self._traces |= {key: found for key, found in traced if found is not None}

    def _trace(
        self, study: Study, arm: Arm, lengths: Lengths, phases: tuple[Phase, ...] = PHASES
    ) -> tuple[PhaseTrace, ...]:
        if self.tracer is not None:
            return self.tracer(study, arm, lengths)
        return trace_arm(study, arm, self.base, lengths, device=self.basis.device, phases=phases)

    def need(self, study: Study, arm: Arm) -> Need:
        """Return the tensor bytes that an arm needs; more than there can be where the model cannot take it.

        What a run halves by itself, once it trains, is halved until it fits.
        """
        sizes = self.sizes(study, arm)
        try:
            found = self.traces(study, arm, sizes.largest, sizes.prompts)
            peaks = {one.phase: one.peak_bytes for one in found}
            halved: dict[Halved, int] = {}
            if peaks.get("train", 0) > self.basis.room.tensor_bytes:
                peaks = {"train": peaks["train"]}
            for phase in [phase for phase in peaks if phase != "train"]:
                name, peaks[phase], size = self._halved(study, arm, phase, peaks[phase])
                halved |= {} if size is None else {name: size}
        except TuneoffError:
            return Need(NEVER)
        fixed_bytes = max(sum(one.parts.get(part, 0) for part in FIXED_PARTS) for one in found)
        return Need(max(peaks.values()), fixed_bytes, halved)

    def _halved(self, study: Study, arm: Arm, phase: Phase, peak_bytes: int) -> tuple[Halved, int, int | None]:
        """Return what a run halves in a phase, its peak then, and how much is left at a time; none where it fits."""
        own, sizes = study.for_arm(arm), self.sizes(study, arm)
        name: Halved = "evaluation_tokens" if phase == "evaluate" else "generation_rows"
        usual, least = (EVALUATION_TOKENS, own.task.max_length) if phase == "evaluate" else (own.generate.batch_size, 1)
        size = usual
        while peak_bytes > self.basis.room.tensor_bytes and size > least:
            size = max(least, size // 2)
            prompts = sizes.prompts[:size] if phase == "generate" else sizes.prompts
            lengths = _lengths(sizes.largest, prompts).model_copy(update={name: size})
            key = canonical_json([plain(arm.method), own.precision, own.task.max_length, phase, plain(lengths)])
            if key not in self._traces:
                self._traces[key] = self._trace(study, arm, lengths, (phase,))
            peak_bytes = next(one.peak_bytes for one in self._traces[key] if one.phase == phase)
        return name, peak_bytes, size if size < usual else None

    def fit(self, study: Study, arm: Arm, kinds: tuple[Kind, ...] = ALL_KINDS) -> Fit:
        """Return whether an arm fits, and the nearest change with which it does."""
        return find_fit(
            study,
            arm,
            self.basis.room.tensor_bytes,
            self.need,
            kinds,
            has_bf16=self.basis.has_bf16,
            has_checkpointing=bool(getattr(self.base, "supports_gradient_checkpointing", False)),
        )

    def plan(self, study: Study, num_classes: int | None, kinds: tuple[Kind, ...]) -> Plan:
        """Return the plan of the study, as it is or as it was changed, with what each arm costs.

        Args:
            study: the study.
            num_classes: of a classification, where the data have been read.
            kinds: changes that may be proposed.
        """
        planned = plan(study, num_classes)
        sound = [arm for arm, own in zip(study.arms, planned.arms, strict=True) if not own.problem]
        self.trace_side_by_side(study, sound, num_classes)
        arms, notes = [], []
        for arm, own in zip(study.arms, planned.arms, strict=True):
            changes: dict[str, object] = {}
            if not own.problem:
                try:
                    changes = {"predicted": self.predicted(study, arm, own), "fit": self.fit(study, arm, kinds)}
                except Exception as error:  # the code of any architecture runs in a trace, on tensors without numbers
                    notes.append(f"{arm.name}: its step could not be traced ({type(error).__name__}: {error})")
            arms.append(own.model_copy(update=changes))
        speed, lengths = self.basis.speed, {sizes.note: None for sizes in self.known_sizes.values()}
        return planned.model_copy(
            update={
                "arms": tuple(arms),
                "room": self.basis.room,
                "device": speed.name if speed is not None else self.basis.room.where,
                "speed_basis": speed.basis if speed is not None else "",
                "notes": (*lengths, *notes),
            }
        )

    def predicted(self, study: Study, arm: Arm, planned: ArmPlan) -> Predicted:
        """Return what an arm costs.

        Args:
            study: the study.
            arm: one of its arms.
            planned: its counts.
        """
        own, sizes = study.for_arm(arm), self.sizes(study, arm)
        largest = self.traces(study, arm, sizes.largest, sizes.prompts)
        phases = {
            one.phase: PredictedPhase(peak_bytes=one.peak_bytes, parts=one.parts, flop=one.flop) for one in largest
        }
        found = Predicted(
            phases=phases,
            process_bytes=self.basis.room.process_bytes,
            micro_batch=min(own.micro_batch or own.budget.batch_size, own.budget.batch_size),
            **_disk(own, arm, planned, sizes),
        )
        if self.basis.speed is None:
            return found
        return found.model_copy(update=_times(own, arm, planned, sizes, largest, self.basis.speed))


def _alike(study: Study, arm: Arm, step: Step, prompts: tuple[int, ...]) -> str:
    """Return what arms have in common whose traces are the same."""
    own = study.for_arm(arm)
    parts = [plain(arm.method), own.precision, own.micro_batch, own.gradient_checkpointing, own.task.max_length]
    return canonical_json([*parts, own.budget.batch_size, plain(step), prompts])


def _lengths(step: Step, prompts: tuple[int, ...]) -> Lengths:
    return Lengths(train=step.lengths, targets=step.targets, prompts=prompts)


def _shortened(sizes: Sizes, length: int) -> Sizes:
    """Return sizes of sequences that are cut at a length."""

    def cut(step: Step) -> Step:
        lengths = tuple(min(own, length) for own in step.lengths)
        targets = tuple(min(own, most) for own, most in zip(step.targets, lengths, strict=True))
        return Step(lengths=lengths, targets=targets)

    changes = {
        "largest": cut(sizes.largest),
        "typical": cut(sizes.typical),
        "prompts": tuple(min(own, length) for own in sizes.prompts),
        "typical_prompts": tuple(min(own, length) for own in sizes.typical_prompts),
    }
    return sizes.model_copy(update=changes)


def _times(
    own: Study, arm: Arm, planned: ArmPlan, sizes: Sizes, traces: tuple[PhaseTrace, ...], speed: Speed
) -> dict[str, Any]:
    """Return the times of an arm, by field of `Predicted`."""
    by_phase = {one.phase: one for one in traces}
    # tokens go through one after another, so a step with fewer takes their share but for attention's square
    share = sum(sizes.typical.lengths) / sum(sizes.largest.lengths)
    step_s = speed.seconds(by_phase["train"].work(share)) if "train" in by_phase else None
    evaluate = by_phase["evaluate"]
    token_s = speed.seconds(evaluate.work()) / evaluate.num_tokens
    validate_s = token_s * sizes.num_tokens["validation"] if sizes.is_read else None
    test_s = token_s * sizes.num_tokens["test"] if sizes.is_read else None
    generate_s = _generate_s(own, sizes, by_phase.get("generate"), speed)
    found = {"step_s": step_s, "validate_s": validate_s, "test_s": test_s, "generate_s": generate_s}
    num_steps = sizes.num_steps if arm.is_trained else 0
    if num_steps is None or (num_steps == 0 and validate_s is None):
        return found
    run_s = num_steps * (step_s or 0.0) + num_evaluations(own, num_steps) * (validate_s or 0.0)
    reading = Seconds(fewest=test_s or 0.0, most=test_s or 0.0) + (generate_s or Seconds(fewest=0.0, most=0.0))
    shortest_s = run_s if not num_steps else run_s * _first_scoring(own, num_steps) / num_steps
    return found | {"run_s": run_s, "total_s": total_s(own, arm, planned, run_s, shortest_s, reading)}


def num_evaluations(study: Study, num_steps: int) -> int:
    """Return how often a run scores the validation split; what is not trained does so once."""
    if num_steps == 0:
        return 1
    return -(-num_steps // _first_scoring(study, num_steps))


def _first_scoring(study: Study, num_steps: int) -> int:
    return min(num_steps, study.evaluate.steps_between(num_steps))


def total_s(study: Study, arm: Arm, planned: ArmPlan, run_s: float, shortest_s: float, reading: Seconds) -> Seconds:
    """Return what all of an arm's runs take.

    At least: no trial is added, and under successive halving all trials but the first stop at their first scoring. At
    most: every trial goes to its end, and as many are added as may be.

    Args:
        study: as the arm has it.
        arm: the arm.
        planned: its counts.
        run_s: of a run that goes to its end.
        shortest_s: of a trial that is stopped at its first scoring.
        reading: of the test split, once for each seed.
    """
    num_readings = len(study.seeds) if arm.is_trained else 1
    num_stopped = len(arm.lr) - 1 if study.tuning.search == "halving" and arm.is_tuned else 0
    fewest = (planned.num_runs - num_stopped) * run_s + num_stopped * shortest_s + num_readings * reading.fewest
    most = (planned.num_runs + planned.num_extra) * run_s + num_readings * reading.most
    return Seconds(fewest=fewest, most=most)


def _generate_s(own: Study, sizes: Sizes, trace: PhaseTrace | None, speed: Speed) -> Seconds | None:
    """Return what one reading of the test split takes to write: between texts of one token and of all allowed."""
    if trace is None or sizes.num_prompts is None:
        return None
    most = speed.seconds(trace.work()) * sizes.num_prompts / max(1, len(sizes.prompts))
    return Seconds(fewest=most / own.generate.max_new_tokens, most=most)


def _disk(own: Study, arm: Arm, planned: ArmPlan, sizes: Sizes) -> dict[str, Any]:
    """Return the bytes on disk, by field of `Predicted`."""
    trained = planned.parameters.trainable if arm.is_trained and not planned.problem else 0
    kept = planned.saved_bytes - FP32_BYTES * trained if planned.saved_bytes else 0
    steps = sizes.num_steps or 0
    rows = sizes.num_sequences.get("test", 0)
    small = RECORD_BYTES + (CURVE_ROW_BYTES * steps if trained else 0)
    num_readings = len(own.seeds) if arm.is_trained else 1
    num_kept = num_readings if arm.method.method == "full" else planned.num_runs
    return {
        "checkpoint_bytes": (1 + NUM_MOMENTS) * FP32_BYTES * trained + max(0, kept) if trained else 0,
        "run_bytes": planned.saved_bytes + small + PREDICTION_ROW_BYTES * rows,
        "store_bytes": (
            num_kept * planned.saved_bytes + planned.num_runs * small + num_readings * PREDICTION_ROW_BYTES * rows
        ),
    }


def foretell(
    study: Study,
    basis: Basis,
    *,
    num_classes: int | None = None,
    kinds: tuple[Kind, ...] = ALL_KINDS,
    is_fitted: bool = False,
) -> Plan:
    """Work out the plan of a study with what each arm costs, and what makes those fit that do not.

    Args:
        study: the study.
        basis: what it is made for.
        num_classes: of a classification, where the data have been read.
        kinds: changes that may be proposed.
        is_fitted: give the plan after the changes.

    Raises:
        TuneoffError: as `plan` does.
    """
    forecast = Forecast(study, study_shape(study, num_classes), basis)
    found = forecast.plan(study, num_classes, kinds)
    changes = changes_of(found)
    if not is_fitted or not changes:
        return found
    after = forecast.plan(fitted(study, changes), num_classes, kinds)
    arms = tuple(arm.model_copy(update={"changed": changes.get(arm.name)}) for arm in after.arms)
    return after.model_copy(update={"arms": arms})


def changes_of(found: Plan) -> dict[str, Change]:
    """Return the changes with which the arms of a plan fit, by name, of those that do not fit as they are."""
    return {arm.name: arm.fit.change for arm in found.arms if arm.fit is not None and arm.fit.change is not None}
