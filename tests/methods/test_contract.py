"""The contract that every method passes, on every architecture. A later method joins by one line in METHODS."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.methods.models import CONFIGS, logits, make_ids, make_model
from tests.training.helpers import Recorder, largest_difference, make_loop, make_split
from torch import nn
from transformers import AutoModelForCausalLM

from tuneoff.errors import MethodError, UnsupportedError
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
from tuneoff.methods.surgery import adaptable_layers, features
from tuneoff.training.checkpoint import Checkpoint
from tuneoff.training.runtime import COMPUTE_TYPES

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
    num_added: Callable[[nn.Module], int] | None = None
    """Closed formula for the parameters that the model grows by; none: all that is trained is added."""
    is_identity_at_start: bool = True
    keeps_base: bool = True
    merges: bool = False
    unties: bool = False
    """Whether a tied output head becomes a weight of its own."""
    unsupported: tuple[str, ...] = ()
    """Architectures that cannot take the method, whatever its settings."""


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
        unsupported=("llama-tied", "llama-untied"),
    ),
    "houlsby": Case(Bottleneck("houlsby", size=5, activation="gelu"), _bottleneck_count(5, 2)),
    "pfeiffer": Case(Bottleneck("pfeiffer", size=6, dropout=0.2), _bottleneck_count(6, 1)),
    "prompt": Case(PromptTuning(5), lambda model: 5 * model.config.hidden_size, is_identity_at_start=False),
    "prompt-random": Case(
        PromptTuning(3, "random"), lambda model: 3 * model.config.hidden_size, is_identity_at_start=False
    ),
    "prefix": Case(PrefixTuning(4), _prefix_count(4), is_identity_at_start=False),
    "prefix-projection": Case(PrefixTuning(4, projection=7), _projected_count(4, 7), is_identity_at_start=False),
    "bitfit": Case(BitFit(), _bias_count, num_added=_nothing, merges=True, unsupported=("llama-tied", "llama-untied")),
    "head": Case(
        HeadOnly(),
        _head_count,
        num_added=lambda model: _head_count(model) if model.config.tie_word_embeddings else 0,
        merges=True,
        unties=True,
    ),
}

PAIRS = [
    (name, architecture)
    for name, case in METHODS.items()
    for architecture in CONFIGS
    if architecture not in case.unsupported
]
each_method = pytest.mark.parametrize(("name", "architecture"), PAIRS)
each_trained = pytest.mark.parametrize(("name", "architecture"), [pair for pair in PAIRS if pair[0] != "none"])
each_architecture = pytest.mark.parametrize("architecture", CONFIGS)


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


@pytest.mark.parametrize(("name", "architecture"), [pair for pair in PAIRS if METHODS[pair[0]].merges])
def test_a_merged_model_is_read_back_by_transformers(name: str, architecture: str, tmp_path: Path) -> None:
    adapted, ids = adapt(name, architecture), make_ids()
    train(adapted)
    merged = adapted.merge()
    merged.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval(), ids), logits(merged, ids))


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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@each_trained
def test_a_resumed_run_ends_with_the_same_bits(name: str, architecture: str, precision: str) -> None:
    def run(seed: int, resume: Checkpoint | None = None) -> tuple[AdaptedModel, Recorder]:
        base = make_model(architecture).to(COMPUTE_TYPES[precision])
        adapted = METHODS[name].method.adapt(base, torch.Generator().manual_seed(seed))
        recorder = Recorder()
        loop = make_loop(
            adapted,
            [3],
            [1e-2],
            make_split(8),
            recorder,
            num_steps=4,
            batch_size=4,
            micro_batch=3,
            evaluate_every=4,
            checkpoint_every=2,
            precision=precision,
        )
        loop.run(resume)
        return adapted, recorder

    whole, told = run(7)
    again, heard = run(8, told.checkpoints[0])  # another start, which the checkpoint has to replace
    assert heard.losses() == told.losses()[2:]
    assert largest_difference(whole.state_dict(), again.state_dict()) == 0.0


@each_method
def test_tied_weights_stay_tied_and_count_once(name: str, architecture: str) -> None:
    adapted, base = adapt(name, architecture), make_model(architecture)
    case, is_tied = METHODS[name], base.config.tie_word_embeddings
    assert _is_tied(base) == is_tied
    assert _is_tied(adapted.module) == adapted.module.config.tie_word_embeddings == (is_tied and not case.unties)
    added = (case.num_added or case.count)(base)
    assert num_parameters(adapted.module) == num_parameters(base) + added
    if case.keeps_base:
        with adapted.base_model() as module:
            assert _is_tied(module) == module.config.tie_word_embeddings == is_tied


def _is_tied(model: nn.Module) -> bool:
    return model.get_input_embeddings().weight is model.get_output_embeddings().weight


@each_method
def test_the_meta_device_gives_the_same_names_and_shapes(name: str, architecture: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(CONFIGS[architecture]())
    planned = METHODS[name].method.adapt(model, torch.Generator())
    made = adapt(name, architecture)
    found, expected = planned.trainable_parameters(), made.trainable_parameters()
    assert {key: parameter.shape for key, parameter in found.items()} == {
        key: parameter.shape for key, parameter in expected.items()
    }
    assert {parameter.device.type for parameter in planned.module.parameters()} == {"meta"}
    assert (planned.matched, planned.num_virtual_tokens) == (made.matched, made.num_virtual_tokens)


@each_trained
def test_what_is_trained_is_in_fp32_on_a_base_in_bf16(name: str, architecture: str) -> None:
    base = make_model(architecture).to(torch.bfloat16)
    ids, case = make_ids(), METHODS[name]
    before = logits(base, ids)
    adapted = case.method.adapt(base, torch.Generator().manual_seed(7))
    if case.keeps_base:  # full training holds all in fp32
        assert torch.equal(before, logits(adapted.module, ids)) == case.is_identity_at_start
    for autocast in (False, True):
        adapted.module.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            adapted.module(input_ids=ids, labels=ids).loss.backward()
        for key, parameter in adapted.trainable_parameters().items():
            assert parameter.dtype == torch.float32, key
            assert parameter.grad is not None, key
    if case.keeps_base:
        train(adapted)
        with adapted.base_model() as module:
            assert torch.equal(logits(module, ids), before)
        removed = adapted.remove()
        assert torch.equal(logits(removed, ids), before)
        assert {parameter.dtype for parameter in removed.parameters()} == {torch.bfloat16}


UNSUPPORTED = [(name, architecture) for name, case in METHODS.items() for architecture in case.unsupported]


@pytest.mark.parametrize(("name", "architecture"), UNSUPPORTED)
def test_a_method_that_an_architecture_cannot_take_is_refused_and_nothing_is_changed(
    name: str, architecture: str
) -> None:
    model = make_model(architecture)
    with pytest.raises(UnsupportedError, match=type(model).__name__):
        METHODS[name].method.adapt(model, torch.Generator())
    assert all(parameter.requires_grad for parameter in model.parameters())


@each_architecture
def test_targets_that_match_nothing_name_the_nearest(architecture: str) -> None:
    names = {"gpt2": ("c_atn", "c_attn"), "gpt-neox": ("query_key_valu", "query_key_value")}
    wrong, right = names.get(architecture, ("q_prj", "q_proj"))
    with pytest.raises(MethodError, match=f"target '{wrong}' matches no module. Did you mean .*{right}"):
        LoRA(targets=(wrong,)).adapt(make_model(architecture), torch.Generator())


@each_architecture
def test_a_rank_above_the_layers_size_is_refused_before_anything_is_changed(architecture: str) -> None:
    model = make_model(architecture)
    before = copy.deepcopy(model)
    with pytest.raises(MethodError, match=r"rank 17 is above the size of .*allowed: 1 to 8|allowed: 1 to 16"):
        LoRA(rank=17).adapt(model, torch.Generator())
    assert [type(layer) for layer in model.modules()] == [type(layer) for layer in before.modules()]


@each_architecture
def test_a_tied_output_head_is_refused_as_a_target(architecture: str) -> None:
    if not CONFIGS[architecture]().tie_word_embeddings:
        adapted = LoRA(rank=2, targets=("lm_head",)).adapt(make_model(architecture), torch.Generator())
        assert adapted.matched == ("lm_head",)
        return
    with pytest.raises(MethodError, match="shares its weight"):
        LoRA(rank=2, targets=("lm_head",)).adapt(make_model(architecture), torch.Generator())


@each_architecture
def test_a_starts_kaiming_uniform_and_b_zero(architecture: str) -> None:
    adapted = LoRA(rank=8).adapt(make_model(architecture), torch.Generator().manual_seed(0))
    for layer in adapted.layers.values():
        bound = 1 / math.sqrt(features(layer.base)[0])
        a = layer.lora_A[0].detach()
        assert a.abs().max() <= bound
        assert a.std() == pytest.approx(bound / math.sqrt(3), rel=0.2)  # of a uniform on (-bound, bound)
        assert not layer.lora_B[0].any()
