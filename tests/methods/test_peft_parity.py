"""Training against PEFT at its pinned version: the same gradients, the same steps, the same loss curves."""

import numpy as np
import pytest
import torch
from tests.methods.models import CONFIGS, logits, make_ids
from tests.methods.peft_helpers import BOUND, EXACT, bare_loop, difference, lora_pair, move, peft_warnings
from tests.training.helpers import Recorder, make_loop, make_split
from torch import nn

from tuneoff.methods import LoRA
from tuneoff.study.spec import OptimizerSpec
from tuneoff.training.optim import MemberOptimizer

pytestmark = pytest.mark.reference

PLAIN = LoRA(rank=4, alpha=12.0)
LORAS = {
    "lora": PLAIN,
    "dropout": LoRA(rank=4, alpha=12.0, dropout=0.3),
    "rslora": LoRA(rank=4, alpha=12.0, rslora=True),
    "dora": LoRA(rank=4, alpha=12.0, dora=True),
    "dora-rslora-dropout": LoRA(rank=4, alpha=12.0, dropout=0.3, dora=True, rslora=True),
    "bias-all": LoRA(rank=4, alpha=12.0, bias="all"),
    "bias-lora-only": LoRA(rank=4, alpha=12.0, bias="lora_only", dora=True),
}
CASES = [(name, architecture) for name in LORAS for architecture in CONFIGS]
CASES = [
    (name, architecture) for name, architecture in CASES if "bias" not in name or not architecture.startswith("llama")
]
"""Llama has no biases."""
each_case = pytest.mark.parametrize(("name", "architecture"), CASES)


@each_case
def test_logits_and_gradients_are_pefts(name: str, architecture: str) -> None:
    ours, theirs, found = lora_pair(LORAS[name], architecture)
    move(ours, found)
    ids = make_ids()
    ours.module.double()  # so that what differs is not rounding
    theirs.double()
    assert difference(logits(ours.module, ids), logits(theirs, ids)) <= EXACT
    for module in (ours.module, theirs):
        module.train()  # with one seed, dropouts in the same places draw the same masks
        torch.manual_seed(5)
        module(input_ids=ids, labels=ids).loss.backward()
    for key, parameter in ours.trainable_parameters().items():
        assert difference(parameter.grad, found[key].grad) <= EXACT, key


def _without_dropout(*models: nn.Module) -> None:
    """The loop's dropout and torch's draw other masks."""
    for model in models:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0


# Without dropout "dropout" is "lora" again, and "rslora" is "lora" with another scale.
CURVES = [case for case in CASES if case[0] not in ("dropout", "rslora") and case[1] in ("gpt2", "llama-tied")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "architecture"), CURVES)
def test_fifty_steps_give_the_loss_curve_of_peft_in_abare_loop(name: str, architecture: str) -> None:
    ours, theirs, _ = lora_pair(LORAS[name], architecture)
    _without_dropout(ours.module, theirs)
    ours.module.double()
    theirs.double()
    split, recorder = make_split(), Recorder()
    # torch's clipping adds 1e-6 to the norm and ours does not, so neither clips
    spec = OptimizerSpec(schedule="constant", warmup=0.0, weight_decay=0.0, clip=None)
    make_loop(ours, [4], [3e-3], split, recorder, num_steps=50, optimizer=spec, evaluate_every=50).run()
    expected = bare_loop(theirs.train(), split, 4, 3e-3, 50)
    assert expected[-1] < expected[0] - 0.05  # it learns, so the curve says something
    # softmax does not see the keys' biases: their gradient is rounding noise, which Adam's division makes visible
    assert np.allclose(recorder.losses(), expected, rtol=1e-6 if "bias" in name else 1e-10, atol=0.0)


@pytest.mark.parametrize("name", ["lora", "dora", "bias-all"])
def test_steps_of_lora_plus_are_pefts(name: str) -> None:
    from peft.optimizers import create_loraplus_optimizer

    lora = LORAS[name]
    ours, theirs, found = lora_pair(LoRA(lora.rank, lora.alpha, dora=lora.dora, bias=lora.bias, lr_ratio=16.0), "gpt2")
    spec = OptimizerSpec(schedule="constant", warmup=0.0, weight_decay=0.0, clip=None)
    parameters = ours.trainable_parameters()
    mine = MemberOptimizer(parameters, 1e-3, spec, 3, is_fp16=False, factors=ours.rate_factors())
    with peft_warnings():
        other = create_loraplus_optimizer(theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0)
    start = {key: parameter.detach().clone() for key, parameter in parameters.items()}
    for step in range(3):
        draw = torch.Generator().manual_seed(step)
        for key, parameter in parameters.items():
            parameter.grad = torch.randn(parameter.shape, generator=draw)
            found[key].grad = parameter.grad.clone()
        mine.step(step)
        other.step()
    for key, parameter in parameters.items():
        assert difference(parameter, found[key]) <= BOUND, key
    moved = {key: float((parameter.detach() - start[key]).abs().max()) for key, parameter in parameters.items()}
    rates = [moved[key] for key in moved if key.endswith("lora_A.weight")]
    assert max(rates) < 4e-3 < min(value for key, value in moved.items() if not key.endswith("lora_A.weight"))
