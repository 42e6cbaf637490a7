"""The parts of a Transformers model that methods build on, found by structure: trunk, blocks, sub-layers, output head.

Nothing here reads or changes weights, so all of it works on the meta device. What cannot be made out is refused with
what was looked for and what was found, never guessed.
"""

import inspect
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tuneoff.errors import UnsupportedError
from tuneoff.methods.surgery import features, output_head_names

ATTENTION, FEED_FORWARD = "attention", "feed-forward"
"""The two sub-layers of a Transformer block."""

_CLASS_PARTS = {ATTENTION: ("attention",), FEED_FORWARD: ("mlp", "feedforward", "ffn", "moe")}
"""What the class names of sub-layers have in common, in lower case."""


def text_config(model: nn.Module) -> Any:
    """Return the configuration of the model's language part.

    Raises:
        UnsupportedError: not a model of Transformers.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise UnsupportedError(f"{type(model).__name__} has no configuration; expected a model of Transformers")
    return config.get_text_config()


def find_trunk(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the part of the model below its head, which maps token ids to hidden states, and its name.

    Raises:
        UnsupportedError: the model is not a trunk with a head on it.
    """
    name = str(getattr(model, "base_model_prefix", ""))
    trunk = getattr(model, name, None) if name else None
    if not isinstance(trunk, nn.Module) or trunk is model:
        raise UnsupportedError(
            f"{type(model).__name__} has no trunk below its head (looked for the module that base_model_prefix, "
            f"{name!r}, names). Use a causal language model or a sequence classifier of Transformers."
        )
    return name, trunk


def find_stack(model: nn.Module) -> nn.Module:
    """Return the module that every forward goes through from embeddings to hidden states.

    It is the trunk; or, where the trunk only wraps one other model (OPT, whose head passes the wrapper by), that one.

    Raises:
        UnsupportedError: as `find_trunk`.
    """
    _, stack = find_trunk(model)
    inner = list(stack.children())
    while len(inner) == 1 and isinstance(inner[0], PreTrainedModel):
        stack = inner[0]
        inner = list(stack.children())
    return stack


def find_head(model: nn.Module) -> tuple[str, nn.Module]:
    """Return the output head and its name: the layer that gives logits of tokens, or of classes.

    Raises:
        UnsupportedError: no head, or more than one part that could be it.
    """
    names = output_head_names(model)
    if len(names) != 1:
        raise UnsupportedError(f"{type(model).__name__}: expected one output head, found {', '.join(names) or 'none'}")
    return names[0], model.get_submodule(names[0])


def find_sublayers(model: nn.Module) -> list[dict[str, str]]:
    """Return, for each block of the model, the names of its attention and its feed-forward sub-layer.

    A sub-layer is a module of the block by its class (`GPT2Attention`, `LlamaMLP`). A block without a feed-forward
    module (OPT) has it as linear layers of its own: the last of them, back to the model's width, stands for it.

    Raises:
        UnsupportedError: no list of like blocks, or a block whose sub-layers cannot be told.
    """
    config = text_config(model)
    count = getattr(config, "num_hidden_layers", None)
    lists = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == count
        and all(len(_by_class(block, ATTENTION)) == 1 for block in module)
    ]
    if len(lists) != 1:
        raise UnsupportedError(
            f"{type(model).__name__}: looked for one list of {count} blocks, each with one module whose class name "
            f"holds 'Attention'; found {', '.join(name for name, _ in lists) or 'none'}"
        )
    ((outer, blocks),) = lists
    found = []
    for index, block in enumerate(blocks):
        place = f"{outer}.{index}"
        parts = {ATTENTION: _by_class(block, ATTENTION)[0], FEED_FORWARD: _feed_forward(block, place, config)}
        for part in parts.values():
            _refuse_residual(block.get_submodule(part), f"{place}.{part}")
        found.append({kind: f"{place}.{part}" for kind, part in parts.items()})
    return found


def _by_class(block: nn.Module, kind: str) -> list[str]:
    return [
        name
        for name, child in block.named_children()
        if any(part in type(child).__name__.lower() for part in _CLASS_PARTS[kind]) and "cross" not in name.lower()
    ]


def _feed_forward(block: nn.Module, place: str, config: Any) -> str:
    modules = _by_class(block, FEED_FORWARD)
    linear = [name for name, child in block.named_children() if isinstance(child, (nn.Linear, Conv1D))]
    if len(modules) == 1:
        return modules[0]
    if not modules and linear and features(block.get_submodule(linear[-1]))[1] == config.hidden_size:  # type: ignore[arg-type]
        return linear[-1]
    children = ", ".join(f"{name} ({type(child).__name__})" for name, child in block.named_children())
    raise UnsupportedError(
        f"{place} ({type(block).__name__}): looked for one feed-forward module, whose class name holds MLP, "
        f"FeedForward, FFN or Moe, or for linear layers back to the width {config.hidden_size}; found {children}"
    )


def _refuse_residual(module: nn.Module, name: str) -> None:
    """Refuse a sub-layer that adds the residual itself: its output is not what the paper adapts."""
    if "residual" in inspect.signature(module.forward).parameters:
        raise UnsupportedError(
            f"{name} ({type(module).__name__}) adds the residual itself; expected a sub-layer whose output can be "
            "adapted before it is added"
        )
