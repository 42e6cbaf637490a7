"""What a study will train and keep, worked out before anything is trained: no weights, no data and, if may be, no hub.

Every count comes from the method itself, put on a model of the right shapes on the meta device, so that the plan and
the run cannot disagree.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from tuneoff.errors import MethodError, TuneoffError, UnsupportedError
from tuneoff.methods import AdaptedModel, Full, Method, method_from_spec
from tuneoff.methods.base import num_parameters
from tuneoff.methods.heads import train_head
from tuneoff.methods.interchange import is_adapter_folder, read_peft
from tuneoff.methods.lora import LoRA
from tuneoff.methods.surgery import AdaptableLayer, adaptable_layers, features, match_targets
from tuneoff.planning.groups import ModuleGroup, group_modules
from tuneoff.planning.power import Power, study_power
from tuneoff.study.expand import num_runs
from tuneoff.study.identity import canonical_json
from tuneoff.study.methods import BottleneckMethod, LoadMethod, LoraMethod, MethodSpec
from tuneoff.study.records import Parameters
from tuneoff.study.spec import Arm, Study
from tuneoff.study.value import Value, plain
from tuneoff.training.models import check_context, load_config, shape_only
from tuneoff.training.quantise import check_quantisable, quantised_bytes
from tuneoff.training.recompute import recompute_activations

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FP32_BYTES = 4
COMPUTE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Bytes of one weight in each precision; a frozen base is held in the compute type, what is trained in fp32."""
NUM_MOMENTS = 2
"""Adam keeps two running means for each trainable weight, in fp32."""


class TargetMatch(Value):
    """What one target pattern names in the model."""

    pattern: str
    num_modules: int
    groups: tuple[ModuleGroup, ...]
    """The modules; those that differ in numbers alone are one group. Two groups may be one more than was meant."""


class ArmPlan(Value):
    """What one arm trains, how often, and what it keeps."""

    name: str
    method: MethodSpec
    lr: tuple[float, ...]
    assumed: tuple[str, ...]
    parameters: Parameters
    """Of a loaded arm `trainable` is what it adds to the base or replaces: it was trained elsewhere."""
    reduction_pct: float | None
    """By how much less is trained than all of the base's weights; none where nothing is trained."""
    targets: tuple[TargetMatch, ...]
    num_runs: int
    """Trials and seeds."""
    num_extra: int = 0
    """Trials that the search may add, at most."""
    steps_per_run: int | None
    """None where the data decide (epochs, target tokens), 0 where nothing is trained."""
    saved_bytes: int
    """Tensors in the file that a run leaves behind, what was trained in fp32; the file's header (a few kB) is not
    counted.
    """
    optimizer_bytes: int
    """Adam's two moments of every trainable weight, in fp32."""
    weights_bytes: int
    """The model in memory: what is trained in fp32, the rest in the compute type, what is quantised in its few bits."""
    num_virtual_tokens: int = 0
    """Positions that the method puts before every sequence."""
    problem: str = ""
    """Why this model cannot take the method: the arm becomes an infeasible row. Empty where it can."""

    @property
    def least_bytes(self) -> int:
        """Memory that training takes whatever is processed at a time: weights, gradients and the optimizer's state.

        All of them are there at once in every step; activations, and what the process itself takes, come on top.
        """
        gradients = self.optimizer_bytes // NUM_MOMENTS  # of every trainable weight, in fp32 as each moment is
        return self.weights_bytes + gradients + self.optimizer_bytes

    @property
    def num_steps(self) -> int | None:
        """Optimizer steps of all the arm's runs, without those that the search may add."""
        return None if self.steps_per_run is None else self.num_runs * self.steps_per_run


class Plan(Value):
    """What a study will train and keep."""

    study: str
    model: str
    architecture: str
    num_parameters: int
    """The base's, storage that is shared counted once."""
    precision: str
    arms: tuple[ArmPlan, ...]
    search: str = "grid"
    """How rates are searched; `halving` stops trials, so that the steps are the most that there can be."""
    power: Power | None = None
    """How often an equivalence would be found; none where there is no pair of arms to compare, or none is trained."""

    @property
    def num_runs(self) -> int:
        """Runs of all arms."""
        return sum(arm.num_runs for arm in self.arms)

    @property
    def num_extra(self) -> int:
        """Trials of all arms that the search may add, at most."""
        return sum(arm.num_extra for arm in self.arms)

    @property
    def num_steps(self) -> int | None:
        """Optimizer steps of all runs, without those that the search may add; none where the data decide."""
        steps = [arm.num_steps for arm in self.arms]
        return None if None in steps else sum(step for step in steps if step is not None)


def plan(study: Study, num_classes: int | None = None) -> Plan:
    """Work out the plan of a study.

    Args:
        study: the study.
        num_classes: of a classification, where the data have been read; none takes `task.labels`, else two.

    Raises:
        ModelError: the base's configuration cannot be had or is not a causal language model.
        MethodError: an arm whose targets match nothing, or whose rank is above a layer's size.
        StudyError: sequences longer than the model's context.
    """
    base = study_shape(study, num_classes)
    seen: dict[str, _Measured] = {}
    arms = []
    for arm in study.arms:
        own = study.for_arm(arm)
        # A published arm and its tuned twin have one shape.
        key = canonical_json([plain(arm.method), own.task.max_length, own.gradient_checkpointing])
        if key not in seen:
            seen[key] = _measure(own, arm, base)
        arms.append(_arm_plan(own, arm, num_parameters(base), seen[key]))
    return Plan(
        study=study.name,
        model=study.model,
        architecture=type(base).__name__,
        num_parameters=num_parameters(base),
        precision=study.precision,
        arms=tuple(arms),
        search=study.tuning.search,
        power=study_power(study),
    )


def study_shape(study: Study, num_classes: int | None = None) -> "PreTrainedModel":
    """Return a study's base on the meta device.

    Args:
        study: the study.
        num_classes: as in `plan`.

    Raises:
        ModelError: its configuration cannot be had or is not a causal language model.
        StudyError: sequences longer than the model's context.
    """
    config = load_config(study.model, study.root, study.revision, study.trust_remote_code, allow_shape=True)
    check_context(config, study.task.max_length)
    if study.task.kind != "classification":
        num_classes = 0
    elif num_classes is None:
        num_classes = len(study.task.labels or ()) or 2
    return shape_only(config, study.trust_remote_code, num_classes=num_classes)


def adapt_shape(study: Study, arm: Arm, model: "PreTrainedModel") -> tuple[AdaptedModel, tuple[str, ...]]:
    """Put an arm's method on its base's shape, in place, as a run puts it on the base.

    Args:
        study: the study.
        arm: one of its arms.
        model: a copy of its shape.

    Returns:
        The adapted model, and the target patterns as the user wrote them.

    Raises:
        UnsupportedError: this model cannot take the method.
        MethodError: targets that match nothing, or a rank above a layer's size.
    """
    try:
        method, patterns = _method(study, arm)
        if study.gradient_checkpointing and arm.is_trained:
            recompute_activations(model)
        adapted = train_head(method.adapt(model, torch.Generator()))
        check_context(model.config, study.task.max_length, adapted.num_virtual_tokens)
    except UnsupportedError:
        raise
    except TuneoffError as error:
        raise type(error)(f"arms.{arm.name}: {error}") from None
    return adapted, patterns


@dataclass(frozen=True)
class _Measured:
    """What putting a method on the base's shape showed."""

    parameters: Parameters
    targets: tuple[TargetMatch, ...] = ()
    num_virtual_tokens: int = 0
    problem: str = ""
    kept_bytes: int = 0
    """Of what is saved and not trained (random projections)."""
    num_quantised: int = 0
    """Weights of the base that are held in few bits."""
    quantised_bytes: int = 0


def _measure(study: Study, arm: Arm, base: "PreTrainedModel") -> _Measured:
    """Put the arm's method on a copy of the base's shape and count."""
    try:
        adapted, patterns = adapt_shape(study, arm, copy.deepcopy(base))
        sizes, num_bytes = _quantised(base, arm.method)
    except UnsupportedError as error:
        return _Measured(Parameters(trainable=0, total=num_parameters(base)), problem=str(error))
    targets = tuple(_target_matches(base, patterns, adapted))
    targets = targets or tuple(_place_matches(base, arm.method, adapted))
    trained = adapted.trainable_parameters()
    trainable = sum(parameter.numel() for parameter in trained.values())
    total = num_parameters(adapted.module)
    kept = [tensor for name, tensor in adapted.state_dict().items() if name not in trained]
    return _Measured(
        parameters=Parameters(trainable=trainable, total=total, modules=adapted.matched),
        targets=targets,
        num_virtual_tokens=adapted.num_virtual_tokens,
        kept_bytes=sum(tensor.numel() * tensor.element_size() for tensor in kept),
        num_quantised=sum(sizes),
        quantised_bytes=num_bytes,
    )


def _quantised(base: nn.Module, spec: MethodSpec) -> tuple[list[int], int]:
    """Return the sizes of the layers that the arm holds in few bits, and the bytes of all of them."""
    if not isinstance(spec, LoraMethod) or spec.quantize == "none":
        return [], 0
    shapes = [features(layer) for layer in check_quantisable(base, spec.quantize).values()]
    return [math.prod(shape) for shape in shapes], sum(quantised_bytes(spec.quantize, *shape) for shape in shapes)


def _method(study: Study, arm: Arm) -> tuple[Method, tuple[str, ...]]:
    """Return the arm's method and the target patterns as the user wrote them."""
    spec = arm.method
    if not isinstance(spec, LoadMethod):
        return method_from_spec(spec), spec.targets if isinstance(spec, LoraMethod) else ()
    folder = study.root / Path(spec.path).expanduser()
    if not folder.is_dir():
        raise MethodError(f"path: no such folder ({folder})")
    if is_adapter_folder(folder):
        method, _ = read_peft(folder)
        return method, method.targets if isinstance(method, LoRA) else ()
    return Full(), ()  # a whole checkpoint replaces every weight


def _target_matches(base: nn.Module, patterns: tuple[str, ...], adapted: AdaptedModel) -> Iterator[TargetMatch]:
    sizes = {name: features(layer) for name, layer in adaptable_layers(base).items()}
    kinds = {name: type(layer).__name__ for name, layer in adaptable_layers(base).items()}
    trained = _trained_by_module(adapted)
    for pattern in patterns:
        names = list(match_targets(base, [pattern]))
        groups = group_modules({name: (kinds[name], *sizes[name], trained.get(name, 0)) for name in names})
        yield TargetMatch(pattern=pattern, num_modules=len(names), groups=groups)


def _place_matches(base: "PreTrainedModel", spec: MethodSpec, adapted: AdaptedModel) -> Iterator[TargetMatch]:
    """Yield what a method adapted that finds its places itself, under the option that says which."""
    width = int(base.config.get_text_config().hidden_size)
    trained = _trained_by_module(adapted)
    described = {}
    for name in adapted.matched:
        module = base.get_submodule(name)
        size = features(module) if isinstance(module, AdaptableLayer) else (width, width)
        described[name] = (type(module).__name__, *size, trained[name])
    if described:
        pattern = spec.placement if isinstance(spec, BottleneckMethod) else spec.method
        yield TargetMatch(pattern=pattern, num_modules=len(described), groups=group_modules(described))


def _trained_by_module(adapted: AdaptedModel) -> Mapping[str, int]:
    """Return how many trainable parameters each adapted module has: those whose names start with the module's."""
    found = dict.fromkeys(adapted.matched, 0)
    for name, parameter in adapted.trainable_parameters().items():
        owner = name
        while owner and owner not in found:
            owner = owner.rpartition(".")[0]
        if owner:
            found[owner] += parameter.numel()
    return found


def _arm_plan(study: Study, arm: Arm, base_total: int, measured: _Measured) -> ArmPlan:
    parameters = measured.parameters
    trainable = parameters.trainable
    in_fp32 = trainable if arm.is_trained else 0
    dense = parameters.total - in_fp32 - measured.num_quantised
    return ArmPlan(
        name=arm.name,
        method=arm.method,
        lr=arm.lr,
        assumed=arm.assumed,
        parameters=parameters,
        reduction_pct=100.0 * (1 - trainable / base_total) if trainable else None,
        targets=measured.targets,
        num_runs=num_runs(study, arm),
        num_extra=study.tuning.extend if arm.is_extended and not measured.problem else 0,
        steps_per_run=study.budget.steps if arm.is_trained and not measured.problem else 0,
        saved_bytes=FP32_BYTES * in_fp32 + measured.kept_bytes if study.keep != "none" and arm.is_trained else 0,
        num_virtual_tokens=measured.num_virtual_tokens,
        problem=measured.problem,
        optimizer_bytes=NUM_MOMENTS * FP32_BYTES * in_fp32,
        weights_bytes=FP32_BYTES * in_fp32 + COMPUTE_BYTES[study.precision] * dense + measured.quantised_bytes,
    )
