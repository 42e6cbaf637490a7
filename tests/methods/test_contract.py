"""The contract that every method passes, on every architecture. A later one joins by a line in METHODS of cases.py."""

import copy
import math
from pathlib import Path

import pytest
import torch
from tests.methods.cases import METHODS, PAIRS, adapt, train
from tests.methods.models import CONFIGS, logits, make_ids, make_model
from tests.training.helpers import Recorder, largest_difference, make_loop, make_split
from torch import nn
from transformers import AutoModelForCausalLM

from tuneoff.errors import MethodError, UnsupportedError
from tuneoff.methods import (
    AdaptedModel,
    LoRA,
)
from tuneoff.methods.base import num_parameters
from tuneoff.methods.surgery import features
from tuneoff.training.checkpoint import Checkpoint
from tuneoff.training.runtime import COMPUTE_TYPES

MERGE_BOUND = 2e-6
"""Largest difference of a logit, relative to the largest: W + s B A is rounded once, where the unmerged layer adds
two products.
"""


TRAINED = [pair for pair in PAIRS if pair[0] != "none"]
FIRST = {name: (name, architecture) for name, architecture in reversed(TRAINED)}
"""Of each method the first architecture that takes it."""
RESUMED = [(*pair, "fp32") for pair in TRAINED if pair[0] in ("full", "lora") or pair in FIRST.values()]
RESUMED += [(*pair, "bf16") for pair in FIRST.values()]
"""What a checkpoint holds differs by the method, and of the simplest by the architecture, too."""
each_method = pytest.mark.parametrize(("name", "architecture"), PAIRS)
each_trained = pytest.mark.parametrize(("name", "architecture"), TRAINED)
each_architecture = pytest.mark.parametrize("architecture", CONFIGS)


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
    assert set(adapted.trainable_parameters()) <= set(state)
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
    adapted, ids, case = adapt(name, architecture), make_ids(), METHODS[name]
    if adapted.trainable_parameters():
        train(adapted)
    if not case.merges:
        with pytest.raises(MethodError, match="nothing to merge"):
            adapted.merge()
        return
    unmerged = logits(adapted.module, ids)
    merged = adapted.merge()
    once = logits(merged, ids)
    assert (once - unmerged).abs().max() <= MERGE_BOUND * unmerged.abs().max()
    assert [type(layer) for layer in merged.modules()] == [type(layer) for layer in make_model(architecture).modules()]
    assert torch.equal(logits(adapted.merge(), ids), once)
    if case.keeps_base:
        with pytest.raises(MethodError, match="unmerge"), adapted.base_model():
            pass
    adapted.unmerge()
    assert torch.equal(logits(adapted.module, ids), unmerged)
    if case.keeps_base:
        with adapted.base_model() as module:
            assert torch.equal(logits(module, ids), logits(make_model(architecture), ids))


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
    trained, own = logits(adapted.module, ids), set(adapted.trainable_parameters())
    with adapted.base_model() as module:
        assert torch.equal(logits(module, ids), logits(base, ids))
    assert torch.equal(logits(adapted.module, ids), trained)
    assert not torch.equal(trained, logits(base, ids))
    assert {key for key, p in adapted.trainable_parameters().items() if p.requires_grad} == own
    removed = adapted.remove()
    assert torch.equal(logits(removed, ids), logits(base, ids))
    assert {key for key, _ in removed.named_parameters()} == {key for key, _ in base.named_parameters()}


@each_trained
def test_the_same_seed_gives_the_same_bits_whatever_was_drawn_before(name: str, architecture: str) -> None:
    first = adapt(name, architecture)
    torch.rand(5)
    before = torch.get_rng_state()
    model = make_model(architecture)
    torch.set_rng_state(before)
    second = METHODS[name].method.adapt(model, torch.Generator().manual_seed(7))
    assert torch.equal(torch.get_rng_state(), before)
    train(first)
    train(second)
    for key, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[key]), key


@pytest.mark.parametrize(("name", "architecture", "precision"), RESUMED)
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
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case.needs_autocast):
        start = logits(base, ids)
        adapted = case.method.adapt(base, torch.Generator().manual_seed(7))
        if case.keeps_base:  # full training holds all in fp32
            assert torch.equal(start, logits(adapted.module, ids)) == case.is_identity_at_start
    for autocast in (True,) if case.needs_autocast else (False, True):
        adapted.module.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            adapted.module(input_ids=ids, labels=ids).loss.backward()
        for key, parameter in adapted.trainable_parameters().items():
            assert parameter.dtype == torch.float32, key
            assert parameter.grad is not None, key
    if case.keeps_base:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case.needs_autocast):
            train(adapted)
        with adapted.base_model() as module:
            assert torch.equal(logits(module, ids), before)
        removed = adapted.remove()
        assert torch.equal(logits(removed, ids), before)
        assert {parameter.dtype for parameter in removed.parameters()} == {torch.bfloat16}


UNSUPPORTED = [
    (name, architecture, named) for name, case in METHODS.items() for architecture, named in case.unsupported.items()
]


@pytest.mark.parametrize(("name", "architecture", "named"), UNSUPPORTED)
def test_a_method_that_an_architecture_cannot_take_is_refused_and_nothing_is_changed(
    name: str, architecture: str, named: str
) -> None:
    model = make_model(architecture)
    with pytest.raises(UnsupportedError, match=type(model).__name__) as caught:
        METHODS[name].method.adapt(model, torch.Generator())
    assert named in str(caught.value)
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
