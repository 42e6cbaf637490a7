"""What is special to PEFT's methods beside the contract (cases.py lists them), and PEFT's own wrapper against ours."""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.methods.cases import LYCORIS, METHODS, PAIRS, adapt, train
from tests.methods.models import CONFIGS, logits, make_ids, make_model
from tests.training.helpers import Recorder, largest_difference, make_loop, make_split
from transformers import AutoModelForSequenceClassification

from tuneoff.errors import MethodError, UnsupportedError
from tuneoff.methods import AdaptedModel
from tuneoff.methods.external import ExternalModel, ExternalPeft, ExternalPrompt
from tuneoff.methods.heads import train_head

MERGE_BOUND = 3e-6
"""Largest difference of a logit, relative to the largest; PEFT rounds the merged weight once or twice."""


each_external = pytest.mark.parametrize(
    ("name", "architecture"), [pair for pair in PAIRS if isinstance(METHODS[pair[0]].method, ExternalPeft)]
)


@pytest.fixture
def no_warnings() -> Iterator[None]:
    """PEFT warns of Conv1D; that is not what is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.reference
@pytest.mark.usefixtures("no_warnings")
@each_external
def test_an_exported_adapter_loaded_by_peft_gives_equal_logits(name: str, architecture: str, tmp_path: Path) -> None:
    from peft import PeftModel

    adapted, ids = adapt(name, architecture), make_ids()
    make_loop(adapted, [3], [3e-2], make_split(), Recorder(), num_steps=6).run()
    adapted.module.eval()
    assert isinstance(adapted, ExternalModel | ExternalPrompt)
    adapted.write_peft(tmp_path, "base")
    theirs = logits(PeftModel.from_pretrained(make_model(architecture), str(tmp_path)).eval(), ids)
    ours = logits(adapted.module, ids)
    theirs = theirs[:, adapted.num_virtual_tokens :]  # PEFT shows those of its virtual tokens
    assert (theirs - ours).abs().max() <= 1e-6 * ours.abs().max()
    assert not torch.equal(ours, logits(make_model(architecture), ids))


# What AdaLoRA does beside its layers


def _adalora(**options: Any) -> ExternalModel:
    config = {"peft_type": "ADALORA", "init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 2, "deltaT": 2, **options}
    adapted = ExternalPeft(config).adapt(make_model("llama-tied"), torch.Generator().manual_seed(1))
    assert isinstance(adapted, ExternalModel)
    return adapted


def test_adalora_ends_with_the_ranks_of_its_budget() -> None:
    adapted = _adalora()
    make_loop(adapted, [3], [3e-2], make_split(), Recorder(), num_steps=12).run()
    values = [tensor for name, tensor in adapted.state_dict().items() if ".lora_E." in name]
    assert sum(int((tensor != 0).sum()) for tensor in values) == 2 * len(values)
    (config,) = adapted.peft_model.peft_config.values()
    assert config.total_step == 12


@pytest.mark.parametrize("stop", [3, 4, 6, 9, 10, 11])
def test_adalora_goes_on_from_any_step_with_the_same_bits(stop: int) -> None:
    whole, recorder = _adalora(), Recorder()
    make_loop(whole, [3], [3e-2], make_split(), recorder, num_steps=12, checkpoint_every=stop).run()
    resumed = _adalora()
    make_loop(resumed, [3], [3e-2], make_split(), Recorder(), num_steps=12).run(recorder.checkpoints[0])
    assert largest_difference(whole.state_dict(), resumed.state_dict()) == 0.0
    assert whole.training_state().keys() == resumed.training_state().keys()


@pytest.mark.reference
@pytest.mark.usefixtures("no_warnings")
def test_adaloras_regulariser_is_pefts() -> None:
    adapted, ids = _adalora(orth_reg_weight=0.3), make_ids()
    train(adapted)
    wrapped = adapted.peft_model.base_model(input_ids=ids, labels=ids).loss
    plain = adapted.module(input_ids=ids, labels=ids).loss
    assert float(adapted.extra_loss()) == pytest.approx(float(wrapped - plain), rel=1e-5)
    assert float(adapted.extra_loss()) > 0.1


@pytest.mark.reference
@pytest.mark.usefixtures("no_warnings")
def test_adalora_trains_as_pefts_in_a_bare_loop() -> None:
    """Loss, regulariser, clipped gradients and ranks, step by step, against PEFT's recipe."""
    from peft import AdaLoraConfig, get_peft_model
    from tests.methods.peft_helpers import bare_loop

    ours, recorder = _adalora(orth_reg_weight=0.2), Recorder()
    options = {"init_r": 4, "target_r": 2, "tinit": 2, "tfinal": 2, "deltaT": 2, "orth_reg_weight": 0.2}
    theirs = get_peft_model(
        make_model("llama-tied"), AdaLoraConfig(**options, total_step=12, task_type="CAUSAL_LM")
    ).train()
    named = dict(theirs.named_parameters())
    for name, parameter in ours.trainable_parameters().items():
        named[f"base_model.model.{name}"].data.copy_(parameter.data)
    from tuneoff.study.spec import OptimizerSpec

    spec = OptimizerSpec(schedule="constant", warmup=0.0, weight_decay=0.0)
    make_loop(ours, [4], [1e-2], make_split(), recorder, num_steps=12, optimizer=spec, evaluate_every=12).run()
    steps = iter(range(1, 13))
    step_before = torch.optim.AdamW.step

    def step_and_allocate(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        found = step_before(self, *args, **kwargs)
        theirs.base_model.update_and_allocate(next(steps))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step_and_allocate)
        bare_loop(theirs, make_split(), 4, 1e-2, 12, has_own_loss=True, clip=1.0)
    for name, tensor in ours.state_dict().items():
        other = named[f"base_model.model.{name}"].detach()
        assert torch.allclose(tensor, other, rtol=1e-3, atol=1e-4), name
        if ".lora_E." in name:
            assert torch.equal(tensor == 0, other == 0), name


def test_the_regulariser_does_not_depend_on_the_layout_in_micro_batches() -> None:
    found = []
    for micro_batch in (8, 2):
        adapted = _adalora(orth_reg_weight=5.0, tinit=0, tfinal=0)
        make_loop(adapted, [3], [1e-2], make_split(), Recorder(), num_steps=2, micro_batch=micro_batch).run()
        found.append({name: tensor.clone() for name, tensor in adapted.state_dict().items()})
    assert largest_difference(*found) <= 1e-5


def test_adalora_refuses_a_schedule_that_the_budget_cannot_hold() -> None:
    with pytest.raises(MethodError, match=r"tinit 2 and tfinal 2 leave none of 4 steps"):
        _adalora().before_training(4)
    with pytest.raises(MethodError, match=r"target_r: 4 must be below init_r \(4\)"):
        _adalora(target_r=4)
    with pytest.raises(MethodError, match="leave none of 1 steps"):
        _adalora(tinit=0, tfinal=0).before_training(1)
    adapted = _adalora(total_step=20)
    adapted.before_training(100)
    (config,) = adapted.peft_model.peft_config.values()
    assert config.total_step == 20


# Base parameters that PEFT trains, dropout that is drawn elsewhere, and classifiers


def test_biases_of_the_base_that_are_trained_are_put_back() -> None:
    config = {"peft_type": "LORA", "r": 2, "bias": "all", "target_modules": ["c_attn"]}
    adapted, ids = ExternalPeft(config).adapt(make_model("gpt2"), torch.Generator()), make_ids()
    base = make_model("gpt2")
    train(adapted)
    assert "transformer.h.0.ln_1.bias" in adapted.trainable_parameters()
    trained = logits(adapted.module, ids)
    with adapted.base_model() as module:
        assert torch.equal(logits(module, ids), logits(base, ids))
    assert torch.equal(logits(adapted.module, ids), trained)
    assert torch.equal(logits(adapted.remove(), ids), logits(base, ids))


def test_a_module_that_is_trained_whole_is_merged_and_put_back() -> None:
    config = {"peft_type": "IA3", "modules_to_save": ["ln_f"]}
    adapted, ids = ExternalPeft(config).adapt(make_model("gpt2"), torch.Generator()), make_ids()
    train(adapted)
    trained = logits(adapted.module, ids)
    merged = logits(adapted.merge(), ids)
    assert (merged - trained).abs().max() <= MERGE_BOUND * trained.abs().max()
    adapted.unmerge()
    assert torch.equal(logits(adapted.module, ids), trained)
    assert torch.equal(logits(adapted.remove(), ids), logits(make_model("gpt2"), ids))


def test_what_peft_draws_while_training_is_drawn_again_by_a_resumed_run() -> None:
    config = {"peft_type": "LOHA", "r": 2, "rank_dropout": 0.5, "module_dropout": 0.3, **LYCORIS}

    def fresh() -> AdaptedModel:
        return ExternalPeft(config).adapt(make_model("llama-tied"), torch.Generator().manual_seed(1))

    whole, recorder = fresh(), Recorder()
    before = torch.get_rng_state()
    make_loop(whole, [3], [1e-2], make_split(), recorder, num_steps=8, checkpoint_every=4).run()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    resumed = fresh()
    make_loop(resumed, [3], [1e-2], make_split(), Recorder(), num_steps=8).run(recorder.checkpoints[0])
    assert largest_difference(whole.state_dict(), resumed.state_dict()) == 0.0


@pytest.mark.parametrize("name", ["vera", "p-tuning"])
def test_a_classifier_keeps_its_head_with_the_method(name: str) -> None:
    def fresh(seed: int) -> AdaptedModel:
        config = CONFIGS["llama-tied"]()
        config.num_labels = 3
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_config(config).eval()
        return train_head(METHODS[name].method.adapt(model, torch.Generator().manual_seed(seed)))

    adapted, other = fresh(1), fresh(2)
    assert "score.weight" in adapted.trainable_parameters()
    with torch.no_grad():
        for parameter in adapted.trainable_parameters().values():
            parameter.add_(0.1)
    other.load_state_dict({key: tensor.clone() for key, tensor in adapted.state_dict().items()})
    ids = make_ids(rows=1)
    assert torch.equal(logits(other.module, ids), logits(adapted.module, ids))


# Errors


def _refused(config: Mapping[str, Any], architecture: str = "llama-tied") -> MethodError:
    with pytest.raises(MethodError) as caught:
        ExternalPeft(config).adapt(make_model(architecture), torch.Generator())
    return caught.value


@pytest.mark.parametrize("name", ["XLORA", "POLY", "OSF", "PREFIX_TUNING", "FROD"])
def test_a_type_that_is_more_than_layers_is_unsupported(name: str) -> None:
    error = _refused({"peft_type": name})
    assert isinstance(error, UnsupportedError)
    assert f"peft_type {name} is not taken" in str(error)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA4"}, "PEFT has no 'IA4'. Did you mean IA3"),
        (
            {"peft_type": "VERA", "targets": ["q_proj"]},
            "peft.targets: VERA has no such option.* Allowed: r, target_mod",
        ),
        ({"peft_type": "VERA", "dropout": 0.1}, "peft.dropout: VERA has no such option. Did you mean vera_dropout"),
        ({"peft_type": "IA3", "inference_mode": True}, "peft.inference_mode: IA3 has no such option"),
        (
            {"peft_type": "IA3", "task_type": "SEQ_CLS"},
            "peft.task_type: it follows from the study's task and is CAUSAL",
        ),
        ({"peft_type": "LOHA", "target_modules": ["nothing"]}, "peft_type LOHA: .*nothing.* not found"),
        ({"peft_type": "OFT", "r": 3, "target_modules": ["q_proj"]}, "peft_type OFT: "),
        ({"peft_type": "P_TUNING"}, "peft.num_virtual_tokens: P_TUNING needs to know how many"),
        ({"peft_type": "P_TUNING", "num_virtual_tokens": 64}, "64 leave nothing of the model's context"),
    ],
)
def test_a_slip_is_no_unsupported_method_and_is_told_by_name(config: Mapping[str, Any], message: str) -> None:
    error = _refused(config)
    assert not isinstance(error, UnsupportedError)
    assert pytest.raises(MethodError, match=message).matches(error)


def test_pefts_task_type_may_be_given_where_it_is_right() -> None:
    config = {"peft_type": "IA3", "task_type": "CAUSAL_LM", "target_modules": ("k_proj",), "feedforward_modules": ()}
    adapted = ExternalPeft(config).adapt(make_model("llama-tied"), torch.Generator())
    assert len(adapted.matched) == 2
