"""An arm's model with tensors that have shapes, types and a device, and no numbers, as deep as is asked for.

A decoder is the same layer many times over, so that what a step takes grows by one amount with each layer. A few layers
are traced and the rest reckoned (see `tuneoff.planning.trace`), where all layers of the arm are alike.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from tuneoff.methods import AdaptedModel
from tuneoff.methods.registry import method_from_spec
from tuneoff.methods.structure import find_stack
from tuneoff.planning.plan import adapt_shape
from tuneoff.planning.shapes_mode import ShapesMode
from tuneoff.planning.tally import Tally
from tuneoff.study.methods import LoadMethod, LoraMethod, NoneMethod
from tuneoff.study.spec import Arm, Study
from tuneoff.training.activations import fuse_activations
from tuneoff.training.models import shape_only
from tuneoff.training.quantise import quantise
from tuneoff.training.runtime import COMPUTE_TYPES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SCALED_LOGITS = ("logit_scale", "logits_scaling", "logits_scale", "final_logit_softcapping", "lm_head_multiplier")
"""Options of a model's configuration that change what its head gives, so that its own forward has to be used."""


def layers_of(model: nn.Module) -> tuple[str, nn.ModuleList] | None:
    """Return the decoder layers and their name; none where they cannot be told."""
    config = getattr(model, "config", None)
    num_layers = getattr(config.get_text_config(), "num_hidden_layers", 0) if config is not None else 0
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers > 0:
            return name, module
    return None


def is_uniform(study: Study, arm: Arm, base: "PreTrainedModel") -> bool:
    """Whether all decoder layers of an arm are alike, in what they are and in what is trained of them."""
    found = layers_of(base)
    kinds = set(getattr(base.config.get_text_config(), "layer_types", None) or ("full_attention",))
    kinds |= set(getattr(base.config.get_text_config(), "attention_layers", None) or ())
    if found is None or len(kinds) != 1:
        return False
    model = copy.deepcopy(base)
    adapt_shape(study, arm, model)
    adapted = layers_of(model)
    if adapted is None:
        return False
    described = [
        [(name, tuple(one.shape), one.requires_grad) for name, one in layer.named_parameters()] for layer in adapted[1]
    ]
    return all(one == described[0] for one in described)


def shortened(base: "PreTrainedModel", num_layers: int) -> "PreTrainedModel":
    """Return a copy of a base's shape with the first of its layers alone."""
    found = layers_of(base)
    if found is None or num_layers >= len(found[1]):
        return copy.deepcopy(base)
    _, layers = found
    memo: dict[int, Any] = {}
    kept = [copy.deepcopy(layer, memo) for layer in layers[:num_layers]]
    memo[id(layers)] = nn.ModuleList(kept)
    model = copy.deepcopy(base, memo)
    config = model.config.get_text_config()
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:num_layers]
    return model


@dataclass(frozen=True)
class TracedModel:
    """An arm's model on a device, without numbers.

    Attributes:
        adapted: what a run trains and scores.
        mode: within which its tensors are used.
        num_layers: as deep as it was made.
    """

    adapted: AdaptedModel
    mode: ShapesMode
    num_layers: int

    def tensors(self) -> Iterator[Tensor]:
        """Yield the weights and buffers, shared ones once."""
        module = self.adapted.module
        yield from module.parameters()
        yield from module.buffers()


def traced_model(
    study: Study, arm: Arm, base: "PreTrainedModel", device: torch.device, num_layers: int | None = None
) -> TracedModel:
    """Make an arm's model as `run` makes it: loaded in its type, quantised, adapted.

    Args:
        study: the study, as the arm has it.
        arm: the arm.
        base: its base on the meta device.
        device: what the tensors claim to lie on; it need not be there.
        num_layers: first layers of the base; none is all of them.

    Raises:
        UnsupportedError: this model cannot take the method.
    """
    spec = arm.method
    if isinstance(spec, NoneMethod) and study.task.kind == "classification":  # it answers as a language model
        base = shape_only(base.config, study.trust_remote_code)
    model = shortened(base, num_layers) if num_layers else copy.deepcopy(base)
    trains_base = not isinstance(spec, LoadMethod) and method_from_spec(spec).trains_base
    dtype = torch.float32 if trains_base else COMPUTE_TYPES[study.precision]
    mode = ShapesMode(allow_non_fake_inputs=True)
    _put_on(model, mode, device, dtype)
    fuse_activations(model)
    with _answering(mode):
        if isinstance(spec, LoraMethod) and spec.quantize != "none":
            quantise(model, spec.quantize)
        adapted, _ = adapt_shape(study, arm, model)
    found = layers_of(model)
    return TracedModel(adapted, mode, len(found[1]) if found else 0)


@contextmanager
def _answering(mode: ShapesMode) -> Iterator[None]:
    """Within the context numbers that are asked for are made up, and nothing is counted."""
    tally = Tally(0)
    tally.is_logging = False
    tally.answer = False  # of a draw that is repeated until it lies within bounds
    with mode, tally:
        yield


def _put_on(model: nn.Module, mode: ShapesMode, device: torch.device, dtype: torch.dtype) -> None:
    """Put a model from the meta device on one without numbers, in place; what is shared stays shared."""
    known: dict[int, Tensor] = {}

    def placed(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:
            kind = dtype if tensor.is_floating_point() and isinstance(tensor, nn.Parameter) else tensor.dtype
            shape = torch.empty(tensor.shape, dtype=kind, device="meta")
            known[id(tensor)] = FakeTensor(mode, shape, device)
            if isinstance(tensor, nn.Parameter):
                known[id(tensor)] = nn.Parameter(known[id(tensor)], requires_grad=tensor.requires_grad)
        return known[id(tensor)]

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = cast("nn.Parameter", placed(parameter))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = placed(buffer)


def logits_are_plain(config: Any) -> bool:
    """Whether a model's logits are what its head gives, by its configuration; a run tries it out with numbers."""
    own = config.get_text_config()
    return all(getattr(own, name, None) in (None, 1, 1.0) for name in _SCALED_LOGITS)


@contextmanager
def following_layers(model: nn.Module, tally: Tally) -> Iterator[None]:
    """Within the context the stretches of a forward and backward pass are named by the layer that is at work.

    Args:
        model: an adapted model.
        tally: whose `place` is set: `PASS/forward/LAYER`, `PASS/backward/LAYER`, `PASS/start` and `PASS/head`, layers
            counted from 0, passes from 1.
    """
    found = layers_of(model)
    if found is None:
        yield
        return
    follower = _Follower(tally, len(found[1]))
    handles = [find_stack(model).register_forward_pre_hook(follower.begin)]
    for number, layer in enumerate(found[1]):
        handles.append(layer.register_forward_pre_hook(partial(follower.enter, number)))
        handles.append(layer.register_forward_hook(partial(follower.leave, number)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Follower:
    """Names where a pass is, told by hooks."""

    def __init__(self, tally: Tally, num_layers: int) -> None:
        self._tally = tally
        self._num_layers = num_layers
        self._pass = 0
        self._is_backward = False

    def begin(self, *_: Any) -> None:
        self._pass, self._is_backward = self._pass + 1, False
        self._tally.place = f"{self._pass}/start"

    def enter(self, number: int, *_: Any) -> None:
        if not self._is_backward:  # where activations are worked out again it is
            self._tally.place = f"{self._pass}/forward/{number}"

    def leave(self, number: int, _module: Any, _given: Any, out: Any) -> None:
        hidden = out[0] if isinstance(out, tuple) else out
        if isinstance(hidden, Tensor) and hidden.requires_grad:
            hidden.register_hook(partial(self._go_back, number))  # type: ignore[no-untyped-call]
        if number == self._num_layers - 1 and not self._is_backward:
            self._tally.place = f"{self._pass}/head"

    def _go_back(self, number: int, _gradient: Any) -> None:
        self._is_backward = True
        self._tally.place = f"{self._pass}/backward/{number}"
