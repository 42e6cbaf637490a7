"""Bottleneck adapters: the formula by hand, where they stand in each architecture, how they start."""

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from tests.methods.models import CONFIGS, VOCABULARY, logits, make_ids, make_model
from torch import nn
from transformers import AutoModelForCausalLM, BloomConfig, MambaConfig, OPTConfig

from tuneoff.errors import UnsupportedError
from tuneoff.methods import Bottleneck
from tuneoff.methods.bottleneck import DOWN_STD, BottleneckLayer
from tuneoff.training.layout import padded
from tuneoff.training.masks import masked

PLACES = {
    "gpt2": ("transformer.h", "attn", "mlp"),
    "llama-tied": ("model.layers", "self_attn", "mlp"),
    "llama-untied": ("model.layers", "self_attn", "mlp"),
    "gpt-neox": ("gpt_neox.layers", "attention", "mlp"),
}
ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "gelu": lambda x: x * ndtr(x),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


def _filled(model: nn.Module, method: Bottleneck, seed: int = 3) -> dict[str, torch.Tensor]:
    """Adapt the model and give every trained tensor random values, so that none of them is idle."""
    adapted = method.adapt(model, torch.Generator().manual_seed(0))
    draw = torch.Generator().manual_seed(seed)
    for parameter in adapted.trainable_parameters().values():
        parameter.data = torch.randn(parameter.shape, generator=draw, dtype=torch.float64) * 0.3
    return adapted.state_dict()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_layer_is_the_formula(activation: str) -> None:
    layer = BottleneckLayer(6, Bottleneck(size=4, activation=activation), torch.Generator(), torch.device("cpu"))
    layer.double()
    draw = np.random.default_rng(0)
    w_down, b_down, w_up, b_up = (draw.normal(size=shape) for shape in ((4, 6), 4, (6, 4), 6))
    for parameter, value in zip(
        (layer.down.weight, layer.down.bias, layer.up.weight, layer.up.bias), (w_down, b_down, w_up, b_up), strict=True
    ):
        parameter.data = torch.from_numpy(value)
    h = draw.normal(size=(2, 3, 6))
    expected = h + ACTIVATIONS[activation](h @ w_down.T + b_down) @ w_up.T + b_up
    assert np.allclose(layer(torch.from_numpy(h)).detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def _by_hand_gpt2(model: nn.Module, state: dict[str, torch.Tensor], ids: torch.Tensor) -> torch.Tensor:
    """GPT-2's own layers put together anew, in float64, with h + W_up relu(W_down h + b) + b before each residual."""

    def adapted(h: torch.Tensor, name: str) -> torch.Tensor:
        down, b_down, up, b_up = (
            state[f"{name}.bottleneck.{key}"] for key in ("down.weight", "down.bias", "up.weight", "up.bias")
        )
        return h + (h @ down.T + b_down).clamp(min=0) @ up.T + b_up

    trunk = model.transformer
    x = trunk.wte(ids) + trunk.wpe(torch.arange(ids.shape[1]))
    causal = torch.full((ids.shape[1],) * 2, float("-inf"), dtype=torch.float64).triu(1)
    for index, block in enumerate(trunk.h):
        q, k, v = (
            part.view(*part.shape[:2], 2, 8).transpose(1, 2) for part in block.attn.c_attn(block.ln_1(x)).split(16, -1)
        )
        weights = (q @ k.transpose(-1, -2) / 8**0.5 + causal).softmax(-1)
        attention = block.attn.c_proj((weights @ v).transpose(1, 2).reshape(x.shape))
        x = x + adapted(attention, f"transformer.h.{index}.attn")
        mlp = block.mlp.c_proj(block.mlp.act(block.mlp.c_fc(block.ln_2(x))))
        x = x + adapted(mlp, f"transformer.h.{index}.mlp")
    return model.lm_head(trunk.ln_f(x))


def test_a_whole_model_is_the_formula_before_each_residual() -> None:
    model, ids = make_model("gpt2").double(), make_ids()
    state = _filled(model, Bottleneck("houlsby", size=5))
    with torch.no_grad():
        expected = _by_hand_gpt2(model, state, ids)
    assert (logits(model, ids) - expected).abs().max() <= 1e-12 * expected.abs().max()


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
def test_where_they_stand(architecture: str, placement: str) -> None:
    adapted = Bottleneck(placement, size=2).adapt(make_model(architecture), torch.Generator())
    blocks, attention, mlp = PLACES[architecture]
    parts = (attention, mlp) if placement == "houlsby" else (mlp,)
    assert adapted.matched == tuple(f"{blocks}.{index}.{part}" for index in range(2) for part in parts)
    assert f"{blocks}.0.{mlp}.bottleneck.down.weight" in adapted.state_dict()


def _other(config: object) -> nn.Module:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def test_a_feed_forward_without_a_module_of_its_own_is_its_last_linear_layer() -> None:
    config = OPTConfig(
        vocab_size=VOCABULARY, hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=4, dropout=0.0
    )
    config.word_embed_proj_dim, config.max_position_embeddings = 16, 32
    model, ids = _other(config), make_ids()
    base = logits(model, ids)
    adapted = Bottleneck("houlsby", size=3).adapt(model, torch.Generator())
    assert adapted.matched[:2] == ("model.decoder.layers.0.self_attn", "model.decoder.layers.0.fc2")
    assert torch.equal(logits(model, ids), base)
    adapted.layers["model.decoder.layers.1.fc2"].up.bias.data += 1.0
    assert not torch.equal(logits(model, ids), base)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2), "adds the residual itself"),
        (MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2), "class name holds 'Attention'"),
    ],
    ids=["bloom", "mamba"],
)
def test_blocks_that_cannot_be_made_out_are_refused(config: object, message: str) -> None:
    model = _other(config)
    with pytest.raises(UnsupportedError, match=message):
        Bottleneck("houlsby").adapt(model, torch.Generator())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_start() -> None:
    adapted = Bottleneck(size=16).adapt(make_model("gpt2"), torch.Generator().manual_seed(0))
    for layer in adapted.layers.values():
        assert not layer.down.bias.any()
        assert not layer.up.weight.any()
        assert not layer.up.bias.any()
        down = layer.down.weight.detach()
        assert down.abs().max() <= 2 * DOWN_STD
        assert down.std() == pytest.approx(0.88 * DOWN_STD, rel=0.15)  # of a normal cut off at two deviations
    first, second = (layer.down.weight for layer in adapted.layers.values())
    assert not torch.equal(first, second)


def test_dropout_is_on_what_is_added_and_draws_the_runs_masks() -> None:
    layer = BottleneckLayer(16, Bottleneck(size=4, dropout=0.5), torch.Generator(), torch.device("cpu"))
    layer.up.bias.data.fill_(1.0)
    h = torch.zeros(2, 6, 16)

    def answer(slots: list[int], length: int) -> torch.Tensor:
        with masked(padded([length] * len(slots), [1] * len(slots), slots), 0, torch.device("cpu")):
            out: torch.Tensor = layer(h[: len(slots), :length])
        return out.detach()

    whole = answer([0, 1], 6)
    assert set(whole.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(answer([1], 4)[0], whole[1, :4])
    layer.eval()
    assert torch.equal(layer(h).detach(), torch.ones(2, 6, 16))
