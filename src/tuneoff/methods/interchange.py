"""LoRA in PEFT's file layout, out and in: `adapter_model.safetensors` beside `adapter_config.json`.

The layout is PEFT's own (`peft.PeftModel.from_pretrained` reads what is written here). Its options that change what
an adapter computes and that are not known here are refused by name, never dropped.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tuneoff.errors import MethodError
from tuneoff.methods.base import AdaptedModel
from tuneoff.methods.lora import A_NAME, B_NAME, LoRA, LoRAModel
from tuneoff.study.methods import ALL_LINEAR

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
PREFIX = "base_model.model."
"""What PEFT's wrapper puts before the module names of the model that it holds."""

NEUTRAL: Mapping[str, Sequence[Any]] = {
    "bias": ("none",),
    "use_dora": (False,),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "lora_bias": (False,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "use_bdlora": (None, False),
    "layer_replication": (None,),
    "use_qalora": (False,),
}
"""PEFT options that change what an adapter computes, with the values at which they do nothing."""


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / CONFIG_FILE).is_file()


def peft_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a LoRA state under PEFT's names, contiguous and on the CPU."""
    return {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def from_peft_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state with PEFT's prefix taken off."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}


def write_peft(adapted: LoRAModel, folder: Path, base_name: str, member: int = 0) -> None:
    """Write a member as a PEFT adapter folder.

    Args:
        adapted: the model that holds it.
        folder: made where it is not there.
        base_name: id or path of the base, for `base_model_name_or_path`.
        member: which run of a cohort.
    """
    from peft import LoraConfig  # here, because importing PEFT takes a second that nothing else needs

    lora = adapted.methods[member]
    folder.mkdir(parents=True, exist_ok=True)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT annotates int and computes with any number
        lora_dropout=lora.dropout,
        target_modules=_peft_targets(lora.targets, adapted.matched),
        fan_in_fan_out=all(isinstance(layer.base, Conv1D) for layer in adapted.layers.values()),
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    save_file(peft_state(adapted.state_dict(member)), folder / WEIGHTS_FILE, metadata={"format": "pt"})


def _peft_targets(targets: Sequence[str], matched: Sequence[str]) -> list[str]:
    """Patterns that mean the same to PEFT as they are; anything else as the full list of names."""
    plain = all(target != ALL_LINEAR and "*" not in target for target in targets)
    return list(targets) if plain else list(matched)


def read_peft(folder: Path) -> tuple[LoRA, dict[str, Tensor]]:
    """Read a PEFT LoRA folder.

    Returns:
        The method, with the adapted modules named one by one as its targets, and the state for `load_state_dict`.

    Raises:
        MethodError: files missing, torn or not LoRA, or an option that is not known here.
    """
    config = _read_config(folder)
    state = _read_weights(folder)
    names = [name.removesuffix(f".{A_NAME}") for name in state if name.endswith(f".{A_NAME}")]
    others = [name for name in state if not name.endswith((f".{A_NAME}", f".{B_NAME}"))]
    if others or not names:
        found = ", ".join(others[:3]) or "no LoRA tensors"
        raise MethodError(
            f"{folder / WEIGHTS_FILE}: expected lora_A and lora_B weights of linear layers; found {found}"
        )
    ranks = {int(state[f"{name}.{A_NAME}"].shape[0]) for name in names}
    if ranks != {config["r"]}:
        raise MethodError(f"{folder}: the configuration says rank {config['r']}, the weights have {sorted(ranks)}")
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    if config.get("use_rslora"):
        alpha *= rank**0.5  # rsLoRA scales by alpha / sqrt(r); written as the alpha whose alpha / r is the same
    lora = LoRA(rank=rank, alpha=alpha, dropout=float(config.get("lora_dropout", 0.0)), targets=tuple(names))
    return lora, state


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MethodError(f"{path}: expected the JSON configuration of a PEFT adapter ({error})") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise MethodError(f"{path}: found a PEFT adapter of type {found!r}; LORA can be loaded")
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key), int | float):
            raise MethodError(f"{path}: {key} must be a number; found {config.get(key)!r}")
    for key, neutral in NEUTRAL.items():
        if key in config and config[key] not in neutral:
            raise MethodError(f"{path}: the option {key}={config[key]!r} cannot be loaded here")
    return config


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickled = folder / "adapter_model.bin"
        hint = f"; {pickled.name} is a pickle, which can run code, and is not read" if pickled.exists() else ""
        raise MethodError(f"{folder}: expected {WEIGHTS_FILE}{hint}")
    try:
        return from_peft_state(load_file(path))
    except (SafetensorError, OSError) as error:
        raise MethodError(f"{path}: not a readable safetensors file ({error})") from None


def load_peft(model: nn.Module, folder: Path) -> AdaptedModel:
    """Put the adapter of a PEFT folder on `model`, in place.

    Raises:
        MethodError: the folder cannot be read, or the adapter is of another base.
    """
    lora, state = read_peft(folder)
    try:
        adapted = lora.adapt(model, torch.Generator().manual_seed(0))
        adapted.load_state_dict(state)
    except MethodError as error:
        raise MethodError(f"{folder} does not fit this base model: {error}") from None
    return adapted
