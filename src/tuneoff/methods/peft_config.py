"""PEFT's `adapter_config.json`, out and in.

An option that changes what an adapter computes and that is not known here is refused by name, never dropped: every
option is refused unless it is listed here or empty.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.pytorch_utils import Conv1D

from tuneoff.errors import MethodError
from tuneoff.files import leads_out
from tuneoff.methods.lora import LoRAModel
from tuneoff.methods.soft_prompt import PREFIX_NAME, PROMPT_NAME, PrefixModel, PromptModel
from tuneoff.study.methods import ALL_LINEAR

# PEFT imports bitsandbytes where it is installed, which warns of a kernel that nothing here calls.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

if TYPE_CHECKING:
    from peft import PeftConfig

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PROMPT_STATE, PREFIX_STATE = f"{PROMPT_NAME}.weight", f"{PREFIX_NAME}.weight"
"""Names under which the vectors of a soft prompt are saved here."""
CAUSAL_LM, CLASSIFIER = "CAUSAL_LM", "SEQ_CLS"

NUMBERS: Mapping[str, Sequence[str]] = {
    "LORA": ("r", "lora_alpha"),
    "PROMPT_TUNING": ("num_virtual_tokens",),
    "PREFIX_TUNING": ("num_virtual_tokens",),
}
"""Adapters that can be loaded, with the options that must be numbers."""

COMMON = {
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "modules_to_save",
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
}
PROMPT = COMMON | {"num_attention_heads", "num_layers", "num_virtual_tokens", "token_dim"}
KNOWN: Mapping[str, set[str]] = {
    "LORA": COMMON
    | {"bias", "lora_alpha", "lora_dropout", "r", "use_dora", "use_rslora"}
    # where the tensors are is in their own names
    | {"exclude_modules", "fan_in_fan_out", "layers_pattern", "layers_to_transform", "target_modules"}
    # how A and B were drawn, which `init_lora_weights` has to agree with, and sizes of options that are off
    | {"corda_config", "ensure_weight_tying", "eva_config", "loftq_config", "lora_ga_config"}
    | {"init_lora_weights", "megatron_config", "megatron_core", "qalora_group_size"},
    # how the vectors were drawn; the file holds them as they were at the end, with a projection applied
    "PROMPT_TUNING": PROMPT
    | {"prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_kwargs", "tokenizer_name_or_path"},
    "PREFIX_TUNING": PROMPT | {"encoder_hidden_size", "init_weights", "prefix_projection"},
}
"""Options that are read here or do not change what a trained adapter computes."""

ALLOWED: Mapping[str, Sequence[Any]] = {
    "bias": ("none", "all", "lora_only"),
    "num_transformer_submodules": (1,),  # 2 is an encoder and a decoder
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),  # the others change the base's weights, too
}
"""Options that are read here at these values alone."""


def lora_config(adapted: LoRAModel, base_name: str, member: int, head: str | None) -> "PeftConfig":
    """Return PEFT's configuration of a LoRA.

    Args:
        adapted: the model that holds it.
        base_name: id or path of the base.
        member: which run of a cohort.
        head: name of the classification head that is saved with it.
    """
    from peft import LoraConfig  # here, because importing PEFT takes a second that nothing else needs

    lora = adapted.methods[member]
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT annotates int and computes with any number
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        target_modules=_peft_targets(lora.targets, adapted.matched),
        fan_in_fan_out=all(isinstance(layer.base, Conv1D) for layer in adapted.layers.values()),
        bias=lora.bias,
        **_common(base_name, head),
    )


def prompt_config(adapted: PromptModel, base_name: str, head: str | None) -> "PeftConfig":
    """Return PEFT's configuration of prompt tuning (see `lora_config`)."""
    from peft import PromptTuningConfig

    width = adapted.trainable_parameters()[PROMPT_STATE].shape[1]
    return PromptTuningConfig(
        num_virtual_tokens=adapted.num_virtual_tokens,
        token_dim=width,
        num_transformer_submodules=1,
        **_common(base_name, head),
    )


def prefix_config(adapted: PrefixModel, base_name: str, head: str | None) -> "PeftConfig":
    """Return PEFT's configuration of prefix tuning (see `lora_config`), its projection applied already.

    PEFT's `token_dim` is the width of one token's keys, and its heads are the key-value heads.
    """
    from peft import PrefixTuningConfig

    shape = adapted.added.shape
    return PrefixTuningConfig(
        num_virtual_tokens=adapted.num_virtual_tokens,
        token_dim=shape.width,
        num_transformer_submodules=1,
        num_attention_heads=shape.num_heads,
        num_layers=shape.num_layers,
        **_common(base_name, head),
    )


def _common(base_name: str, head: str | None) -> dict[str, Any]:
    return {
        "task_type": CLASSIFIER if head else CAUSAL_LM,
        "modules_to_save": [head] if head else None,
        "base_model_name_or_path": base_name,
        "inference_mode": True,
    }


def _peft_targets(targets: Sequence[str], matched: Sequence[str]) -> list[str]:
    """Patterns that mean the same to PEFT as they are; anything else as the full list of names."""
    plain = all(target != ALL_LINEAR and "*" not in target for target in targets)
    return list(targets) if plain else list(matched)


def read_config(folder: Path) -> dict[str, Any]:
    """Read the configuration of a PEFT adapter that can be loaded here.

    Raises:
        MethodError: missing, torn, of another kind of adapter, or with an option that is not known here.
    """
    path = folder / CONFIG_FILE
    for linked in (path, folder / WEIGHTS_FILE):
        if leads_out(linked, folder):
            raise MethodError(
                f"{linked}: is a link that leads out of its folder (to {os.path.realpath(linked)}), and is not "
                "followed; copy the file there"
            )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MethodError(f"{path}: expected the JSON configuration of a PEFT adapter ({error})") from None
    kind = str(config.get("peft_type") if isinstance(config, dict) else type(config).__name__)
    if not isinstance(config, dict) or kind not in KNOWN:
        raise MethodError(f"{path}: found a PEFT adapter of type {kind!r}; {', '.join(KNOWN)} can be loaded")
    for key in NUMBERS[kind]:
        if not isinstance(config.get(key), int | float):
            raise MethodError(f"{path}: {key} must be a number; found {config.get(key)!r}")
    for key, value in config.items():
        allowed = ALLOWED.get(key)
        is_known = key in KNOWN[kind] if allowed is None else value in allowed
        if not is_known and value not in (None, False, {}, []):
            raise MethodError(f"{path}: the option {key}={value!r} cannot be loaded here")
    return config
