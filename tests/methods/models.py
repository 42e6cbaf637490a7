"""Small random models: Conv1D and tied, separate and grouped-query projections, tied and untied, parallel residuals."""

import copy
from collections.abc import Callable
from functools import cache

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
)

VOCABULARY = 61
LENGTH = 12


def _gpt2() -> PreTrainedConfig:
    return GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0
    )


def _llama(tied: bool) -> PreTrainedConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        bos_token_id=1,
        eos_token_id=2,
    )


def _gpt_neox() -> PreTrainedConfig:
    return GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        hidden_dropout=0.1,
        attention_dropout=0.1,
        bos_token_id=1,
        eos_token_id=2,
    )


CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt2": _gpt2,
    "llama-tied": lambda: _llama(tied=True),
    "llama-untied": lambda: _llama(tied=False),
    "gpt-neox": _gpt_neox,
}


@cache
def _made(name: str, seed: int, num_classes: int | None) -> tuple[nn.Module, torch.Tensor]:
    """Return a model, and the state that torch's generator was left in."""
    torch.manual_seed(seed)
    config = CONFIGS[name]()
    if num_classes is None:
        model: nn.Module = AutoModelForCausalLM.from_config(config)
    else:
        config.num_labels, config.pad_token_id = num_classes, 0
        model = AutoModelForSequenceClassification.from_config(config)
    return model.eval(), torch.get_rng_state()


def _copy_of(model: nn.Module, state: torch.Tensor) -> nn.Module:
    """Return a copy, as if the model were made now: making it takes several times as long."""
    torch.set_rng_state(state)
    return copy.deepcopy(model)


def make_model(name: str, seed: int = 0) -> nn.Module:
    """Return a model with random weights, in evaluation mode; its dropouts are those of its architecture."""
    return _copy_of(*_made(name, seed, None))


def make_classifier(name: str, num_classes: int = 3, seed: int = 0) -> nn.Module:
    """Return a sequence classifier with random weights, in evaluation mode; padding is token 0."""
    return _copy_of(*_made(name, seed, num_classes))


def make_ids(rows: int = 4, seed: int = 1) -> torch.Tensor:
    """Return random token ids (rows, LENGTH)."""
    return torch.randint(3, VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Return the model's logits without gradients."""
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=ids).logits
    return out
