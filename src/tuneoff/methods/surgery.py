"""Finds and swaps the layers that can be adapted, by pattern.

A pattern names a module by its whole dotted name or by an end of it that starts at a dot (`c_proj` matches both
`attn.c_proj` and `mlp.c_proj`, as in PEFT; `attn.c_proj` only the first); `*` stands for any part of one name.
`all-linear` is every linear layer but the output head.
"""

import re
from collections.abc import Mapping, Sequence
from fnmatch import translate

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tuneoff.errors import MethodError, UnsupportedError, did_you_mean
from tuneoff.methods.base import is_quantised as is_quantised
from tuneoff.methods.heads import head_names
from tuneoff.study.methods import ALL_LINEAR

AdaptableLayer = nn.Linear | Conv1D
"""Layers with a weight matrix: `nn.Linear` stores out x in, GPT-2's `Conv1D` in x out."""


def features(layer: AdaptableLayer) -> tuple[int, int]:
    """Return (in_features, out_features)."""
    if isinstance(layer, Conv1D):
        rows, columns = layer.weight.shape
        return int(rows), int(columns)
    return layer.in_features, layer.out_features


def dense_weight(layer: AdaptableLayer) -> Tensor:
    """Return the layer's weight as numbers, laid out as the layer stores it; a quantised one is unpacked to fp32.

    Raises:
        UnsupportedError: a quantised layer that does not say what its weight stands for.
    """
    if not is_quantised(layer):
        return layer.weight.detach()
    unpack = getattr(layer, "dequantised", None)
    if not callable(unpack):
        raise UnsupportedError(
            f"the weight of a {type(layer).__name__} cannot be read back, and DoRA needs its norm. Let the arm hold "
            "the base in few bits (quantize: nf4 or int8), or use dora: false."
        )
    weight: Tensor = unpack(torch.float32)
    return weight.detach()


def adaptable_layers(model: nn.Module) -> dict[str, AdaptableLayer]:
    """Return every layer that a weight method can adapt, by name, in the model's order."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, Conv1D))}


def match_targets(model: nn.Module, patterns: Sequence[str]) -> dict[str, AdaptableLayer]:
    """Return the layers that the patterns name, in the model's order.

    Raises:
        MethodError: a pattern that matches nothing, or a layer whose weight another module shares (a tied output head).
    """
    layers = adaptable_layers(model)
    heads = output_head_names(model)
    chosen: set[str] = set()
    for pattern in patterns:
        if pattern == ALL_LINEAR:
            found = layers.keys() - set(heads)
        else:
            found = {name for name in layers if matches(pattern, name)}
        if not found:
            raise MethodError(_no_match(pattern, model, layers))
        chosen |= found
    matched = {name: layer for name, layer in layers.items() if name in chosen}
    _refuse_tied(model, matched)
    return matched


def matches(pattern: str, name: str) -> bool:
    """Whether a target pattern names a module."""
    if "*" not in pattern:
        return name == pattern or name.endswith(f".{pattern}")
    depth = pattern.count(".") + 1
    end = ".".join(name.split(".")[-depth:])
    return any(re.fullmatch(translate(pattern), candidate) is not None for candidate in (name, end))


def swap(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put `layers` in the places that their names say, in place."""
    for name, layer in layers.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent) if parent else model, last, layer)


def output_head_names(model: nn.Module) -> tuple[str, ...]:
    """Return the names of what makes logits, of classes or of tokens, out of hidden states; mostly it is one."""
    getter = getattr(model, "get_output_embeddings", None)
    head = getter() if callable(getter) else None
    return head_names(model) or tuple(name for name, child in model.named_modules() if child is head)


def _no_match(pattern: str, model: nn.Module, layers: Mapping[str, AdaptableLayer]) -> str:
    ends = {name.rpartition(".")[2] for name in layers} | {".".join(name.split(".")[-2:]) for name in layers}
    others = [name for name, _ in model.named_modules() if matches(pattern, name)] if pattern else []
    if others:
        kind = type(model.get_submodule(others[0])).__name__
        return f"target {pattern!r} names {others[0]} ({kind}); only linear layers can be adapted."
    short = sorted({name.rpartition(".")[2] for name in layers})
    listed = ", ".join(short) or "none"
    return f"target {pattern!r} matches no module.{did_you_mean(pattern, ends)} Linear layers here: {listed}."


def _refuse_tied(model: nn.Module, matched: Mapping[str, AdaptableLayer]) -> None:
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for name, layer in matched.items():
        shared = [owner for owner in owners[id(layer.weight)] if owner != f"{name}.weight"]
        if shared:
            raise MethodError(
                f"target {name} shares its weight with {', '.join(shared)} (tied); adapting it would change both. "
                "Leave it out of the targets."
            )
