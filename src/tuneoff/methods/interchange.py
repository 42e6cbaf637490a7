"""Adapters in PEFT's file layout, out and in: `adapter_model.safetensors` beside `adapter_config.json`.

The layout is PEFT's own: `peft.PeftModel.from_pretrained` reads what is written here, and what PEFT wrote is read here.
A classification head that was trained with the adapter goes with it (PEFT's `modules_to_save`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tuneoff.errors import MethodError
from tuneoff.methods.base import AdaptedModel, Method
from tuneoff.methods.bottleneck import BottleneckModel
from tuneoff.methods.heads import HeadedModel, head_parameters, train_head
from tuneoff.methods.lora import A_NAME, B_NAME, MAGNITUDE_NAME, LoRA, LoRAModel
from tuneoff.methods.peft_config import (
    CLASSIFIER,
    CONFIG_FILE,
    PREFIX_STATE,
    PROMPT_STATE,
    WEIGHTS_FILE,
    lora_config,
    prefix_config,
    prompt_config,
    read_config,
)
from tuneoff.methods.soft_prompt import PrefixModel, PrefixTuning, PromptModel, PromptTuning

PREFIX, SHORT_PREFIX = "base_model.model.", "base_model."
"""What PEFT's wrapper puts before the module names of the model that it holds; the short one with soft prompts."""
PROMPT_KEY = "prompt_embeddings"
"""PEFT's name for the vectors of a soft prompt, of prefix tuning, too."""


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / CONFIG_FILE).is_file()


def peft_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a LoRA state under PEFT's names, contiguous and on the CPU."""
    return {PREFIX + name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def from_peft_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state with PEFT's prefix taken off."""
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}


def write_peft(adapted: AdaptedModel, folder: Path, base_name: str, member: int = 0) -> None:
    """Write a member as a PEFT adapter folder.

    Args:
        adapted: the model that holds it.
        folder: made where it is not there.
        base_name: id or path of the base, for `base_model_name_or_path`.
        member: which run of a cohort.

    Raises:
        MethodError: PEFT has no class for the method.
    """
    inner, head = (adapted.inner, adapted.head_name) if isinstance(adapted, HeadedModel) else (adapted, None)
    match inner:
        case LoRAModel():
            config = lora_config(inner, base_name, member, head)
            state = peft_state(adapted.state_dict(member))
        case PromptModel():
            config = prompt_config(inner, base_name, head)
            state = _prompt_state(adapted, inner, inner.state_dict()[PROMPT_STATE])
        case PrefixModel():
            config = prefix_config(inner, base_name, head)
            state = _prompt_state(adapted, inner, inner.prefix())
        case _:
            raise MethodError(
                f"{type(inner).__name__.removesuffix('Model')}: PEFT has no class for this method, so it cannot be "
                f"written as a PEFT adapter. {_way_out(inner)}"
            )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def _way_out(inner: AdaptedModel) -> str:
    if isinstance(inner, BottleneckModel):
        return "Nor does it fold into the base's weights; its weights lie in the run's folder."
    return "Export with --merge, which writes a whole model."


def _prompt_state(adapted: AdaptedModel, inner: AdaptedModel, vectors: Tensor) -> dict[str, Tensor]:
    """Return a soft prompt's vectors and the head that was trained with it, under PEFT's names."""
    own = inner.trainable_parameters()
    state = {SHORT_PREFIX + name: tensor for name, tensor in adapted.state_dict().items() if name not in own}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in ({PROMPT_KEY: vectors} | state).items()}


def read_peft(folder: Path) -> tuple[Method, dict[str, Tensor]]:
    """Read a PEFT folder.

    Returns:
        The method (a LoRA names the adapted modules one by one as its targets), and the state for `load_state_dict`;
        it holds the classification head, too, where one was trained.

    Raises:
        MethodError: files missing or torn, a kind of adapter that is not known here, or such an option.
    """
    config = read_config(folder)
    state = _read_weights(folder)
    method: Method
    if config["peft_type"] == "LORA":
        state = from_peft_state(state)
        method, own = _lora(folder, config, state)
    else:
        state = {name.removeprefix(SHORT_PREFIX): tensor for name, tensor in state.items()}
        method, own = _soft_prompt(folder, config, state)
    others = [name for name in state if name not in own]
    if others and config.get("task_type") != CLASSIFIER:
        listed = ", ".join(others[:3])
        raise MethodError(
            f"{folder / WEIGHTS_FILE}: found {listed} beside the adapter; of a language model the adapter alone can be "
            "loaded (modules_to_save: null)"
        )
    return method, state


def _lora(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[LoRA, set[str]]:
    """Return the LoRA of a folder and the names of its tensors."""
    names = [name.removesuffix(f".{A_NAME}") for name in state if name.endswith(f".{A_NAME}")]
    if not names:
        found = ", ".join(list(state)[:3]) or "no tensors"
        raise MethodError(
            f"{folder / WEIGHTS_FILE}: expected lora_A and lora_B weights of linear layers; found {found}"
        )
    ranks = {int(state[f"{name}.{A_NAME}"].shape[0]) for name in names}
    if ranks != {config["r"]}:
        raise MethodError(f"{folder}: the configuration says rank {config['r']}, the weights have {sorted(ranks)}")
    biases = {name for name in state if config.get("bias", "none") != "none" and name.endswith("bias")}
    lora = LoRA(
        rank=int(config["r"]),
        alpha=float(config["lora_alpha"]),
        dropout=float(config.get("lora_dropout") or 0.0),
        targets=tuple(names),
        rslora=bool(config.get("use_rslora")),
        dora=bool(config.get("use_dora")),
        bias=config["bias"] if biases else "none",  # where a base has none, PEFT saves none
    )
    ends = (A_NAME, B_NAME, MAGNITUDE_NAME) if lora.dora else (A_NAME, B_NAME)
    return lora, biases | {f"{name}.{end}" for name in names for end in ends}


def _soft_prompt(folder: Path, config: Mapping[str, Any], state: dict[str, Tensor]) -> tuple[Method, set[str]]:
    """Return the method of a folder and the name of its tensor, to which PEFT's is changed."""
    num = int(config["num_virtual_tokens"])
    vectors = state.pop(PROMPT_KEY, None)
    if vectors is None or vectors.ndim != 2 or vectors.shape[0] != num:
        found = "none" if vectors is None else f"shape {tuple(vectors.shape)}"
        raise MethodError(f"{folder / WEIGHTS_FILE}: expected {PROMPT_KEY} of {num} virtual tokens; found {found}")
    is_prompt = config["peft_type"] == "PROMPT_TUNING"
    name = PROMPT_STATE if is_prompt else PREFIX_STATE
    state[name] = vectors
    return PromptTuning(num) if is_prompt else PrefixTuning(num), {name}


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        pickled = folder / "adapter_model.bin"
        hint = f"; {pickled.name} is a pickle, which can run code, and is not read" if pickled.exists() else ""
        raise MethodError(f"{folder}: expected {WEIGHTS_FILE}{hint}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise MethodError(f"{path}: not a readable safetensors file ({error})") from None


def load_peft(model: nn.Module, folder: Path) -> AdaptedModel:
    """Put the adapter of a PEFT folder on `model`, in place; a classifier gets the head that was trained with it.

    Raises:
        MethodError: the folder cannot be read, or the adapter is of another base or of another kind of model.
    """
    method, state = read_peft(folder)
    head = head_parameters(model)
    if head and not state.keys() & head.keys():
        raise MethodError(f"{folder}: this model is a classifier, and the adapter was saved without a head for it")
    try:
        adapted = train_head(method.adapt(model, torch.Generator().manual_seed(0)))
        adapted.load_state_dict(state)
    except MethodError as error:
        raise MethodError(f"{folder} does not fit this base model: {error}") from None
    return adapted
