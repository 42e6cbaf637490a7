"""Against PEFT at its pinned version: the same logits, the same gradients, the same loss curve, both ways."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.methods.models import CONFIGS, logits, make_ids, make_model
from tests.training.helpers import Recorder, adapt, make_loop, make_split
from torch import nn

from tuneoff.data.batching import BatchSequence
from tuneoff.data.prepare import TokenSplit
from tuneoff.errors import MethodError
from tuneoff.methods import LoRA
from tuneoff.methods.interchange import load_peft, write_peft
from tuneoff.methods.lora import LoRAModel
from tuneoff.study.spec import OptimizerSpec

pytestmark = pytest.mark.reference

LORAS = {
    "all-linear": LoRA(rank=3, alpha=7.0),
    "one-kind": LoRA(rank=4, alpha=16.0, dropout=0.1, targets=("c_attn", "q_proj", "down_proj")),
    "glob": LoRA(rank=2, targets=("mlp.*",)),
}
BOUND = 1e-6
"""Of the largest value: the same products, the scaling applied at another place."""


@contextmanager
def peft_warnings() -> Iterator[None]:
    """PEFT warns of Conv1D and of tied weights; neither is about what is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _lora(name: str, architecture: str) -> LoRA:
    lora = LORAS[name]
    if name != "one-kind":
        return lora
    names = {"gpt2": ("c_attn",), "gpt-neox": ("query_key_value", "dense_4h_to_h")}
    targets = names.get(architecture, ("q_proj", "down_proj"))
    return LoRA(lora.rank, lora.alpha, lora.dropout, targets)


def _trained(name: str, architecture: str) -> LoRAModel:
    adapted = adapt([_lora(name, architecture)], [0], architecture)
    assert isinstance(adapted, LoRAModel)
    make_loop(adapted, [0], [3e-2], make_split(), Recorder(), num_steps=5).run()
    adapted.module.eval()
    return adapted


def _difference(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max() / second.abs().max())


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("name", LORAS)
def test_an_exported_adapter_loaded_by_peft_gives_equal_logits(name: str, architecture: str, tmp_path: Path) -> None:
    from peft import PeftModel

    adapted, ids = _trained(name, architecture), make_ids()
    write_peft(adapted, tmp_path, "base")
    with peft_warnings():
        theirs = PeftModel.from_pretrained(make_model(architecture), tmp_path).eval()
        assert _difference(logits(theirs, ids), logits(adapted.module, ids)) <= BOUND
        assert _difference(logits(make_model(architecture), ids), logits(adapted.module, ids)) > 1e-3
        merged = theirs.merge_and_unload()
    assert _difference(logits(merged, ids), logits(adapted.merge(), ids)) <= BOUND


def _peft_model(architecture: str, **options: object) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM", **options)
    with peft_warnings():
        model: nn.Module = get_peft_model(make_model(architecture), config)
    draw = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.1
    return model.eval()


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_of_peft_loads_here_with_equal_logits(architecture: str, rslora: bool, tmp_path: Path) -> None:
    theirs, ids = _peft_model(architecture, use_rslora=rslora), make_ids()
    theirs.save_pretrained(tmp_path)
    ours = load_peft(make_model(architecture), tmp_path)
    assert _difference(logits(ours.module, ids), logits(theirs, ids)) <= BOUND


def test_an_option_that_is_not_known_here_is_refused_by_name(tmp_path: Path) -> None:
    _peft_model("gpt2", use_dora=True).save_pretrained(tmp_path)
    with pytest.raises(MethodError, match="use_dora=True cannot be loaded"):
        load_peft(make_model("gpt2"), tmp_path)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    _peft_model("llama-tied").save_pretrained(tmp_path)
    with pytest.raises(MethodError, match=r"does not fit this base model: .*matches no module"):
        load_peft(make_model("gpt2"), tmp_path)


def _pair(architecture: str) -> tuple[LoRAModel, nn.Module, dict[str, nn.Parameter]]:
    """Return ours, theirs with our starting values, and their parameters under our names."""
    from peft import LoraConfig, get_peft_model

    ours = adapt([LoRA(rank=4, alpha=12.0)], [0], architecture)
    assert isinstance(ours, LoRAModel)
    config = LoraConfig(r=4, lora_alpha=12, target_modules="all-linear", task_type="CAUSAL_LM")
    with peft_warnings():
        theirs: nn.Module = get_peft_model(make_model(architecture), config)
    found = {
        name.removeprefix("base_model.model.").replace(".default", ""): parameter
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad
    }
    for name, parameter in ours.trainable_parameters().items():
        found[name].data.copy_(parameter.data)
    assert found.keys() == ours.trainable_parameters().keys()
    return ours, theirs.eval(), found


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_gradients_of_a_and_b_are_pefts(architecture: str) -> None:
    ours, theirs, found = _pair(architecture)
    for name, parameter in ours.trainable_parameters().items():  # at B = 0 the gradient of A would be zero
        if "lora_B" in name:
            parameter.data.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(3))
            found[name].data.copy_(parameter.data)
    ids = make_ids()
    ours.module(input_ids=ids, labels=ids).loss.backward()
    theirs(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in ours.trainable_parameters().items():
        assert _difference(parameter.grad, found[name].grad) <= 1e-5, name


def _bare_loop(model: nn.Module, split: TokenSplit, seed: int, rate: float, num_steps: int) -> list[float]:
    """PEFT's model in a loop as people write it: padded, labels with -100, the model's own loss."""
    order = BatchSequence(len(split), 8, seed)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    losses = []
    for step in range(num_steps):
        indices = order.indices(step)
        longest = max(int(split.offsets[i + 1] - split.offsets[i]) for i in indices)
        ids, mask = torch.zeros(8, longest, dtype=torch.long), torch.zeros(8, longest, dtype=torch.long)
        labels = torch.full((8, longest), -100)
        for row, index in enumerate(indices):
            tokens, targets = split.sequence(index)
            ids[row, : len(tokens)], mask[row, : len(tokens)] = torch.from_numpy(tokens.astype(np.int64)), 1
            labels[row, : len(tokens)] = torch.from_numpy(np.where(targets, tokens, -100).astype(np.int64))
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("architecture", CONFIGS)
def test_fifty_steps_give_the_loss_curve_of_peft_in_a_bare_loop(architecture: str) -> None:
    ours, theirs, _ = _pair(architecture)
    for module in (*ours.module.modules(), *theirs.modules()):  # their dropout draws other masks
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "attention_dropout"):  # GPT-NeoX and Llama give it to their attention as a number
            module.attention_dropout = 0.0
    split, recorder = make_split(), Recorder()
    spec = OptimizerSpec(schedule="constant", warmup=0.0, weight_decay=0.0)
    make_loop(ours, [4], [1e-2], split, recorder, num_steps=50, optimizer=spec, evaluate_every=50).run()
    expected = _bare_loop(theirs.train(), split, 4, 1e-2, 50)
    assert expected[-1] < expected[0] - 0.1  # it learns, so the curve says something
    assert np.allclose(recorder.losses(), expected, rtol=1e-4)
