"""Every method, this package's own and PEFT's, and what it promises: what the contract is held against."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from tests.methods.models import CONFIGS, make_ids, make_model
from torch import nn

from tuneoff.methods import (
    AdaptedModel,
    BitFit,
    Bottleneck,
    Full,
    HeadOnly,
    LoRA,
    Method,
    NoTraining,
    PrefixTuning,
    PromptTuning,
)
from tuneoff.methods.base import num_parameters
from tuneoff.methods.external import ExternalPeft
from tuneoff.methods.surgery import adaptable_layers, features, matches


@dataclass(frozen=True)
class Case:
    """A method and what it promises."""

    method: Method
    count: Callable[[nn.Module], int]
    """Closed formula for the number of trainable parameters, from the base."""
    num_added: Callable[[nn.Module], int] | None = None
    """Closed formula for the parameters that the model grows by; none: all that is trained is added."""
    is_identity_at_start: bool = True
    keeps_base: bool = True
    merges: bool = False
    needs_autocast: bool = False
    """Whether a base in bf16 runs under autocast alone: PEFT's norms, in fp32, hand fp32 on to layers in bf16."""
    unties: bool = False
    """Whether a tied output head becomes a weight of its own."""
    unsupported: Mapping[str, str] = field(default_factory=dict)
    """Architectures that cannot take the method, whatever its settings, and what the refusal names."""
    left_out: tuple[str, ...] = ()
    """Architectures on which the method would need other settings."""


NO_BIASES = {"llama-tied": "no bias", "llama-untied": "no bias"}
NO_CONV1D = {"gpt2": "Conv1D"}
QUERIES = ("q_proj", "query_key_value")
LYCORIS = {"target_modules": [*QUERIES, "down_proj", "c_attn"]}


def _linear_sizes(model: nn.Module) -> list[tuple[int, int]]:
    head = model.get_output_embeddings()
    return [features(layer) for layer in adaptable_layers(model).values() if layer is not head]


def _lora_count(rank: int) -> Callable[[nn.Module], int]:
    return lambda model: sum(rank * (num_in + num_out) for num_in, num_out in _linear_sizes(model))


def _dora_count(rank: int) -> Callable[[nn.Module], int]:
    return lambda model: _lora_count(rank)(model) + sum(num_out for _, num_out in _linear_sizes(model))


def _bottleneck_count(size: int, num_places: int) -> Callable[[nn.Module], int]:
    """W_down, b_down, W_up and b_up at each place of each block: 2 D m + m + D."""

    def count(model: nn.Module) -> int:
        width, layers = model.config.hidden_size, model.config.num_hidden_layers
        return layers * num_places * (2 * width * size + size + width)

    return count


def _key_value_width(model: nn.Module) -> int:
    """Numbers in the keys of one token in one layer: key-value heads times the width of a head."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    return heads * config.hidden_size // config.num_attention_heads


def _prefix_count(num_virtual: int) -> Callable[[nn.Module], int]:
    return lambda model: num_virtual * 2 * model.config.num_hidden_layers * _key_value_width(model)


def _projected_count(num_virtual: int, middle: int) -> Callable[[nn.Module], int]:
    """E, and the two layers of the MLP with their biases."""

    def count(model: nn.Module) -> int:
        width = _key_value_width(model)
        out = 2 * model.config.num_hidden_layers * width
        return num_virtual * width + (width + 1) * middle + (middle + 1) * out

    return count


def _bias_count(model: nn.Module) -> int:
    """GPT-2: 11 D a block (two norms, 3 D + D in attention, 4 D + D in the MLP) and D in the last norm.

    GPT-NeoX: 7 D + I a block (the same with an MLP of width I), and D.
    """
    width, layers = model.config.hidden_size, model.config.num_hidden_layers
    inner = 4 * width if model.config.model_type == "gpt2" else model.config.intermediate_size
    return layers * (7 * width + inner) + width


def _head_count(model: nn.Module) -> int:
    return int(model.config.vocab_size * model.config.hidden_size)


def _nothing(model: nn.Module) -> int:
    return 0


def _sizes(model: nn.Module, *targets: str) -> list[tuple[int, int]]:
    layers = adaptable_layers(model).items()
    return [features(layer) for name, layer in layers if any(matches(target, name) for target in targets)]


def _ia3_count(model: nn.Module) -> int:
    """One factor for each output of keys and values, and one for each input of the MLP's last layer."""
    keys, feed = ("c_attn", "k_proj", "v_proj", "query_key_value"), ("mlp.c_proj", "down_proj", "dense_4h_to_h")
    return sum(o for _, o in _sizes(model, *keys)) + sum(i for i, _ in _sizes(model, *feed))


def _attention_sizes(model: nn.Module) -> list[tuple[int, int]]:
    return _sizes(model, "c_attn", "q_proj", "v_proj", "query_key_value")


def _p_tuning_count(model: nn.Module) -> int:
    width, hidden = model.get_input_embeddings().embedding_dim, 8
    return 3 * width + (width + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * width


def _norm_count(model: nn.Module) -> int:
    norms = [layer for layer in model.modules() if "norm" in type(layer).__name__.lower()]
    return sum(parameter.numel() for layer in norms for parameter in layer.parameters())


METHODS = {
    "none": Case(NoTraining(), _nothing),
    "full": Case(Full(), num_parameters, num_added=_nothing, keeps_base=False, merges=True),
    "lora": Case(LoRA(rank=3, alpha=5.0), _lora_count(3), merges=True),
    "lora-dropout": Case(LoRA(rank=1, alpha=16.0, dropout=0.2), _lora_count(1), merges=True),
    "rslora": Case(LoRA(rank=4, alpha=5.0, rslora=True, lr_ratio=4.0), _lora_count(4), merges=True),
    "dora": Case(LoRA(rank=3, alpha=5.0, dora=True), _dora_count(3), merges=True),
    "lora-bias": Case(
        LoRA(rank=3, alpha=5.0, bias="all"),
        lambda model: _lora_count(3)(model) + _bias_count(model),
        num_added=_lora_count(3),
        merges=True,
        unsupported=NO_BIASES,
    ),
    "houlsby": Case(Bottleneck("houlsby", size=5, activation="gelu"), _bottleneck_count(5, 2)),
    "pfeiffer": Case(Bottleneck("pfeiffer", size=6, dropout=0.2), _bottleneck_count(6, 1)),
    "prompt": Case(PromptTuning(5), lambda model: 5 * model.config.hidden_size, is_identity_at_start=False),
    "prompt-random": Case(
        PromptTuning(3, "random"), lambda model: 3 * model.config.hidden_size, is_identity_at_start=False
    ),
    "prefix": Case(PrefixTuning(4), _prefix_count(4), is_identity_at_start=False),
    "prefix-projection": Case(PrefixTuning(4, projection=7), _projected_count(4, 7), is_identity_at_start=False),
    "bitfit": Case(BitFit(), _bias_count, num_added=_nothing, merges=True, unsupported=NO_BIASES),
    "head": Case(
        HeadOnly(),
        _head_count,
        num_added=lambda model: _head_count(model) if model.config.tie_word_embeddings else 0,
        merges=True,
        unties=True,
    ),
    "ia3": Case(ExternalPeft({"peft_type": "IA3"}), _ia3_count, merges=True),
    "adalora": Case(
        ExternalPeft({"peft_type": "ADALORA", "init_r": 4, "target_r": 2}),
        lambda model: sum(4 * (num_in + num_out + 1) for num_in, num_out in _attention_sizes(model)),
        # and the rank of each layer, which PEFT holds as a parameter
        num_added=lambda model: sum(4 * (num_in + num_out + 1) + 1 for num_in, num_out in _attention_sizes(model)),
        merges=True,
    ),
    "vera": Case(
        ExternalPeft({"peft_type": "VERA", "r": 5}),
        lambda model: sum(5 + num_out for _, num_out in _attention_sizes(model)),
        merges=True,
    ),
    "loha": Case(
        ExternalPeft({"peft_type": "LOHA", "r": 2, **LYCORIS}),
        lambda model: sum(2 * 2 * (num_in + num_out) for num_in, num_out in _sizes(model, *QUERIES, "down_proj")),
        merges=True,
        unsupported=NO_CONV1D,
    ),
    "lokr": Case(
        ExternalPeft({"peft_type": "LOKR", "r": 2, "decompose_factor": 2, **LYCORIS}),
        # 2 x 2 times (out/2, 2) (2, in/2)
        lambda model: sum(4 + num_out + num_in for num_in, num_out in _sizes(model, *QUERIES, "down_proj")),
        merges=True,
        unsupported=NO_CONV1D,
    ),
    "oft": Case(
        ExternalPeft({"peft_type": "OFT", "oft_block_size": 4, "target_modules": [*QUERIES, "c_attn"]}),
        lambda model: sum(num_in // 4 * 6 for num_in, _ in _sizes(model, *QUERIES)),  # skew: 4 * 3 / 2 a block
        merges=True,
        unsupported=NO_CONV1D,
    ),
    "norms": Case(
        ExternalPeft({"peft_type": "LN_TUNING"}),
        _norm_count,
        merges=True,
        needs_autocast=True,
        left_out=("gpt-neox",),  # PEFT has no targets for it
    ),
    "p-tuning": Case(
        ExternalPeft({"peft_type": "P_TUNING", "num_virtual_tokens": 3, "encoder_hidden_size": 8}),
        _p_tuning_count,
        is_identity_at_start=False,
    ),
    "peft-prompt": Case(
        ExternalPeft({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}),
        lambda model: 3 * model.config.hidden_size,
        is_identity_at_start=False,
    ),
}

PAIRS = [
    (name, architecture)
    for name, case in METHODS.items()
    for architecture in CONFIGS
    if architecture not in case.unsupported and architecture not in case.left_out
]


def adapt(name: str, architecture: str, seed: int = 7) -> AdaptedModel:
    """Put a method on a fresh base."""
    return METHODS[name].method.adapt(make_model(architecture), torch.Generator().manual_seed(seed))


def train(adapted: AdaptedModel, steps: int = 2) -> None:
    """Take a few steps on random tokens, in evaluation mode so that no dropout is drawn."""
    optimizer = torch.optim.AdamW(adapted.trainable_parameters().values(), lr=1e-2)
    for step in range(steps):
        ids = make_ids(seed=step)
        loss = adapted.module(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
