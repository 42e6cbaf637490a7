"""The contract that every method passes, on every architecture. A later method joins by one line in METHODS."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from tests.methods.models import CONFIGS, logits, make_ids, make_model
from torch import nn

from tuneoff.errors import MethodError
from tuneoff.methods import AdaptedModel, Full, LoRA, Method, NoTraining
from tuneoff.methods.base import num_parameters
from tuneoff.methods.surgery import adaptable_layers, features

MERGE_BOUND = 2e-6
"""Largest difference of a logit, relative to the largest: W + s B A is rounded once, where the unmerged layer adds
two products.
"""


@dataclass(frozen=True)
class Case:
    """A method and what it promises."""

    method: Method
    count: Callable[[nn.Module], int]
    """Closed formula for the number of trainable parameters, from the base."""
    is_identity_at_start: bool = True
    keeps_base: bool = True
    merges: bool = False


def _linear_sizes(model: nn.Module) -> list[tuple[int, int]]:
    head = model.get_output_embeddings()
    return [features(layer) for layer in adaptable_layers(model).values() if layer is not head]


def _lora_count(rank: int) -> Callable[[nn.Module], int]:
    return lambda model: sum(rank * (num_in + num_out) for num_in, num_out in _linear_sizes(model))


def _dora_count(rank: int) -> Callable[[nn.Module], int]:
    return lambda model: _lora_count(rank)(model) + sum(num_out for _, num_out in _linear_sizes(model))


METHODS = {
    "none": Case(NoTraining(), lambda model: 0),
    "full": Case(Full(), num_parameters, keeps_base=False),
    "lora": Case(LoRA(rank=3, alpha=5.0), _lora_count(3), merges=True),
    "lora-dropout": Case(LoRA(rank=1, alpha=16.0, dropout=0.2), _lora_count(1), merges=True),
    "rslora": Case(LoRA(rank=4, alpha=5.0, rslora=True, lr_ratio=4.0), _lora_count(4), merges=True),
    "dora": Case(LoRA(rank=3, alpha=5.0, dora=True), _dora_count(3), merges=True),
}

pytestmark = pytest.mark.parametrize("architecture", CONFIGS)
each_method = pytest.mark.parametrize("name", METHODS)
each_trained = pytest.mark.parametrize("name", [name for name in METHODS if name != "none"])


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


@each_method
def test_equals_the_base_at_step_0(name: str, architecture: str) -> None:
    ids = make_ids()
    before = logits(make_model(architecture), ids)
    assert torch.equal(before, logits(adapt(name, architecture).module, ids)) == METHODS[name].is_identity_at_start


@each_trained
def test_training_moves_what_is_trainable_and_nothing_else(name: str, architecture: str) -> None:
    adapted = adapt(name, architecture)
    own = {id(parameter) for parameter in adapted.trainable_parameters().values()}
    everything = dict(adapted.module.named_parameters())
    before = {key: parameter.detach().clone() for key, parameter in everything.items()}
    train(adapted)
    moved = {key for key, parameter in everything.items() if not torch.equal(parameter, before[key])}
    assert moved == {key for key, parameter in everything.items() if id(parameter) in own}


@each_method
def test_the_number_of_trainable_parameters_is_the_closed_formula(name: str, architecture: str) -> None:
    adapted = adapt(name, architecture)
    found = sum(parameter.numel() for parameter in adapted.trainable_parameters().values())
    assert found == METHODS[name].count(make_model(architecture))
    assert found == sum(p.numel() for p in adapted.module.parameters() if p.requires_grad)


@each_trained
def test_every_trainable_tensor_gets_a_gradient(name: str, architecture: str) -> None:
    adapted = adapt(name, architecture)
    train(adapted, steps=1)  # at step 0 the gradient of LoRA's A is zero, as B is
    ids = make_ids()
    adapted.module.zero_grad()
    adapted.module(input_ids=ids, labels=ids).loss.backward()
    for key, parameter in adapted.trainable_parameters().items():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@each_trained
def test_saved_and_loaded_gives_the_same_bits(name: str, architecture: str) -> None:
    adapted, ids = adapt(name, architecture), make_ids()
    train(adapted)
    state = {key: tensor.clone() for key, tensor in adapted.state_dict().items()}
    other = adapt(name, architecture, seed=8)
    other.load_state_dict(state)
    assert torch.equal(logits(other.module, ids), logits(adapted.module, ids))


@each_trained
def test_a_state_of_another_model_is_refused(name: str, architecture: str) -> None:
    adapted = adapt(name, architecture)
    state = dict(adapted.state_dict())
    first = next(iter(state))
    with pytest.raises(MethodError, match="shape"):
        adapted.load_state_dict(state | {first: torch.zeros(99, 99)})
    with pytest.raises(MethodError, match="unknown 1 tensors"):
        adapted.load_state_dict(state | {"another": torch.zeros(1)})
    del state[first]
    with pytest.raises(MethodError, match="missing 1 tensors"):
        adapted.load_state_dict(state)


@each_method
def test_merged_equals_unmerged_and_unmerging_restores_every_bit(name: str, architecture: str) -> None:
    adapted, ids = adapt(name, architecture), make_ids()
    if not METHODS[name].merges:
        if name == "full":  # its weights are the plain model's own already
            assert adapted.merge() is adapted.module
            return
        with pytest.raises(MethodError, match="nothing to merge"):
            adapted.merge()
        return
    train(adapted)
    unmerged = logits(adapted.module, ids)
    merged = adapted.merge()
    once = logits(merged, ids)
    assert (once - unmerged).abs().max() <= MERGE_BOUND * unmerged.abs().max()
    assert [type(layer) for layer in merged.modules()] == [type(layer) for layer in make_model(architecture).modules()]
    assert torch.equal(logits(adapted.merge(), ids), once)
    adapted.unmerge()
    assert torch.equal(logits(adapted.module, ids), unmerged)


@each_trained
def test_stepping_aside_and_removal_give_the_base_back(name: str, architecture: str) -> None:
    adapted, ids = adapt(name, architecture), make_ids()
    base = make_model(architecture)
    train(adapted)
    if not METHODS[name].keeps_base:
        with pytest.raises(MethodError, match="load the base anew"), adapted.base_model():
            pass
        return
    trained = logits(adapted.module, ids)
    with adapted.base_model() as module:
        assert torch.equal(logits(module, ids), logits(base, ids))
    assert torch.equal(logits(adapted.module, ids), trained)
    assert not torch.equal(trained, logits(base, ids))
    removed = adapted.remove()
    assert torch.equal(logits(removed, ids), logits(base, ids))
    assert {key for key, _ in removed.named_parameters()} == {key for key, _ in base.named_parameters()}


@each_trained
def test_the_same_seed_gives_the_same_bits(name: str, architecture: str) -> None:
    first, second = adapt(name, architecture), adapt(name, architecture)
    train(first)
    train(second)
    for key, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[key]), key


@each_method
def test_tied_weights_stay_tied_and_count_once(name: str, architecture: str) -> None:
    adapted, base = adapt(name, architecture), make_model(architecture)
    module = adapted.module
    tied = module.get_input_embeddings().weight is module.get_output_embeddings().weight
    assert tied == (architecture != "llama-untied")
    added = 0 if name in ("none", "full") else METHODS[name].count(base)
    assert num_parameters(module) == num_parameters(base) + added


def test_targets_that_match_nothing_name_the_nearest(architecture: str) -> None:
    wrong, right = ("c_atn", "c_attn") if architecture == "gpt2" else ("q_prj", "q_proj")
    with pytest.raises(MethodError, match=f"target '{wrong}' matches no module. Did you mean .*{right}"):
        LoRA(targets=(wrong,)).adapt(make_model(architecture), torch.Generator())


def test_a_rank_above_the_layers_size_is_refused_before_anything_is_changed(architecture: str) -> None:
    model = make_model(architecture)
    before = copy.deepcopy(model)
    with pytest.raises(MethodError, match=r"rank 17 is above the size of .*allowed: 1 to 8|allowed: 1 to 16"):
        LoRA(rank=17).adapt(model, torch.Generator())
    assert [type(layer) for layer in model.modules()] == [type(layer) for layer in before.modules()]


def test_a_tied_output_head_is_refused_as_a_target(architecture: str) -> None:
    if architecture == "llama-untied":
        adapted = LoRA(rank=2, targets=("lm_head",)).adapt(make_model(architecture), torch.Generator())
        assert adapted.matched == ("lm_head",)
        return
    with pytest.raises(MethodError, match="shares its weight"):
        LoRA(rank=2, targets=("lm_head",)).adapt(make_model(architecture), torch.Generator())


def test_a_starts_kaiming_uniform_and_b_zero(architecture: str) -> None:
    adapted = LoRA(rank=8).adapt(make_model(architecture), torch.Generator().manual_seed(0))
    for layer in adapted.layers.values():
        bound = 1 / math.sqrt(features(layer.base)[0])
        a = layer.lora_A[0].detach()
        assert a.abs().max() <= bound
        assert a.std() == pytest.approx(bound / math.sqrt(3), rel=0.2)  # of a uniform on (-bound, bound)
        assert not layer.lora_B[0].any()
