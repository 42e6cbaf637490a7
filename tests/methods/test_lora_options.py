"""LoRA's options where PEFT is no witness: what cannot go together, the rates of a group, quantised bases."""

import pytest
import torch
from tests.methods.models import logits, make_ids, make_model
from torch import nn

from tuneoff.errors import MethodError, UnsupportedError
from tuneoff.methods import LoRA, LoRACohort, cohort_from_specs, method_from_spec
from tuneoff.methods.lora import LoRAModel
from tuneoff.methods.surgery import dense_weight, is_quantised, swap
from tuneoff.study.methods import LoraMethod
from tuneoff.training.quantise import INT8, NF4, quantise

OPTIONS = {"rslora": True, "dora": True, "lr_ratio": 8.0, "bias": "lora_only"}
KINDS = [NF4, INT8]


def test_a_spec_gives_every_option_to_the_method() -> None:
    spec = LoraMethod(method="lora", rank=4, alpha=2.0, dropout=0.1, targets=("c_attn",), **OPTIONS)
    assert method_from_spec(spec) == LoRA(rank=4, alpha=2.0, dropout=0.1, targets=("c_attn",), **OPTIONS)


def test_what_members_of_a_cohort_share_may_not_differ() -> None:
    with pytest.raises(MethodError, match="must have one dora"):
        LoRACohort((LoRA(), LoRA(dora=True)))
    with pytest.raises(MethodError, match="must have one bias"):
        LoRACohort((LoRA(), LoRA(bias="all")))
    with pytest.raises(MethodError, match="2 runs with bias: all cannot train together"):
        cohort_from_specs([LoraMethod(method="lora", rank=rank, bias="all") for rank in (2, 4)])
    with pytest.raises(MethodError, match=r"one quantize; found \['nf4', 'none'\]"):
        cohort_from_specs([LoraMethod(method="lora"), LoraMethod(method="lora", quantize="nf4")])
    LoRACohort((LoRA(rank=2, rslora=True), LoRA(rank=4, alpha=3.0, lr_ratio=4.0)))


def test_the_ratio_of_rates_is_that_of_b_and_of_vectors() -> None:
    adapted = LoRA(rank=2, targets=("c_attn",), dora=True, lr_ratio=16.0, bias="lora_only").adapt(
        make_model("gpt2"), torch.Generator()
    )
    factors = adapted.rate_factors()
    assert factors.keys() == adapted.trainable_parameters().keys()
    assert {(name.split("c_attn.")[1], factor) for name, factor in factors.items()} == {
        ("lora_A.weight", 1.0),
        ("lora_B.weight", 16.0),
        ("lora_magnitude_vector", 16.0),
        ("base_layer.bias", 16.0),
    }


def test_biases_of_adapted_layers_alone_want_such_a_layer_to_have_one() -> None:
    with pytest.raises(UnsupportedError, match=r"LlamaForCausalLM has no bias in the matched layers"):
        LoRA(rank=2, bias="lora_only").adapt(make_model("llama-tied"), torch.Generator())


def _quantised(kind: str, architecture: str = "llama-untied") -> nn.Module:
    """Return a small model whose linear layers, but for the head, are held in few bits."""
    model = make_model(architecture)
    quantise(model, kind)
    return model


def _adapted(lora: LoRA, kind: str) -> LoRAModel:
    return lora.adapt(_quantised(kind), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["gpt2", "llama-untied"])
@pytest.mark.parametrize("is_bf16", [False, True])
def test_dora_trains_on_a_quantised_base_and_leaves_its_bits(kind: str, architecture: str, is_bf16: bool) -> None:
    def autocast() -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_bf16)

    ids = make_ids()
    with autocast():
        before = logits(_quantised(kind, architecture), ids)
    adapted = LoRA(rank=2, dora=True).adapt(_quantised(kind, architecture), torch.Generator().manual_seed(0))
    assert all(is_quantised(layer.base) for layer in adapted.layers.values())
    with autocast():
        assert torch.equal(logits(adapted.module, ids), before)
    optimizer = torch.optim.AdamW(adapted.trainable_parameters().values(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        with autocast():
            loss = adapted.module(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
    for name, parameter in adapted.trainable_parameters().items():
        assert parameter.dtype == torch.float32
        assert parameter.grad.abs().sum() > 0, name
    with autocast():
        assert not torch.equal(logits(adapted.module, ids), before)
        with adapted.base_model() as module:
            assert torch.equal(logits(module, ids), before)
        assert torch.equal(logits(adapted.remove(), ids), before)


@pytest.mark.parametrize("kind", KINDS)
def test_dora_takes_its_norm_from_the_unpacked_weight(kind: str) -> None:
    adapted = _adapted(LoRA(rank=2, dora=True), kind)
    for layer in adapted.layers.values():
        weight = layer.base.dequantised(torch.float32)
        assert torch.equal(dense_weight(layer.base), weight)
        assert torch.equal(layer.magnitude[0], torch.linalg.vector_norm(weight, dim=1))


def test_a_layer_of_another_library_has_no_norm_for_dora() -> None:
    layer = nn.Linear(16, 16, bias=False)
    layer.weight = nn.Parameter(torch.zeros(128, 1, dtype=torch.uint8), requires_grad=False)
    model = make_model("llama-untied")
    swap(model, {"model.layers.0.self_attn.q_proj": layer})
    LoRA(rank=2, targets=("layers.0.self_attn.q_proj",)).adapt(
        model, torch.Generator()
    )  # LoRA itself does not look at the weight
    swap(model, {"model.layers.0.self_attn.q_proj": layer})
    with pytest.raises(UnsupportedError, match="the weight of a Linear cannot be read back, and DoRA needs its norm"):
        LoRA(rank=2, targets=("layers.0.self_attn.q_proj",), dora=True).adapt(model, torch.Generator())


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_weight_is_not_merged_into_and_nothing_is_changed(kind: str) -> None:
    adapted, ids = _adapted(LoRA(rank=2, targets=("q_proj",)), kind), make_ids()
    adapted.layers["model.layers.0.self_attn.q_proj"].lora_B[0].data.fill_(0.1)
    before = logits(adapted.module, ids)
    with pytest.raises(UnsupportedError, match="cannot be merged into a quantised weight"):
        adapted.merge()
    assert torch.equal(logits(adapted.module, ids), before)


def test_a_merge_that_one_layer_refuses_leaves_the_others_unmerged() -> None:
    model = _quantised(NF4)
    plain = make_model("llama-untied").get_submodule("model.layers.0.self_attn.q_proj")
    swap(model, {"model.layers.0.self_attn.q_proj": plain})
    adapted, ids = LoRA(rank=2).adapt(model, torch.Generator().manual_seed(0)), make_ids()
    adapted.layers["model.layers.0.self_attn.q_proj"].lora_B[0].data.fill_(0.1)
    before = logits(adapted.module, ids)
    with pytest.raises(UnsupportedError, match="quantised weight"):
        adapted.merge()
    assert torch.equal(logits(adapted.module, ids), before)


def test_biases_of_a_quantised_base_are_not_trained() -> None:
    with pytest.raises(MethodError, match="bias: all cannot be trained on a quantised base"):
        _adapted(LoRA(rank=2, bias="all"), NF4)
