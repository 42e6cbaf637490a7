"""Training gives the same losses and weights with each speed-up on and off, and as Transformers and PEFT alone do.

Six optimizer steps of the loop, all dropouts on, at a rate that moves the weights by a good part of their own size.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from benchmarks.switches import SWITCHES, without
from tests.methods.models import make_model
from tests.methods.peft_helpers import lora_pair
from tests.training.helpers import Recorder, make_loop, make_split
from torch import Tensor, nn

from tuneoff.data.batching import BatchSequence
from tuneoff.data.tokens import TokenSplit
from tuneoff.methods import AdaptedModel, Full, LoRA
from tuneoff.study.spec import OptimizerSpec
from tuneoff.study.streams import DROPOUT, INIT, stream_seed
from tuneoff.training import activations, head_loss
from tuneoff.training.recompute import recompute_activations

SEED = 4
STEPS = 6
BATCH = 8
RATE = 1e-2
DROPPED = 0.1
LORA = LoRA(rank=4, dropout=DROPPED)
SPEC = OptimizerSpec(weight_decay=0.01, schedule="constant", warmup=0.0)
TARGETS_AT_A_TIME = 7
"""Of the head's loss, so that a micro-batch has several parts."""
PADDED = ("packing", "targets")
"""What sequences stand a row each without."""
BOUNDS = {"float64": 1e-12, "fp32": 1e-5, "bf16": 1e-2}
"""Of the losses and (not in bf16) of the weights' norm. Rounding is 1e-16, 6e-8 and 2e-3 of a number; ten steps of Adam
made of it 2e-15, 2e-6 and (of the loss, a mean over many targets) 2e-3, measured."""
EXACT = "float64 from weights that are bf16 numbers"
DRAWS_STAY = [name for name, switch in SWITCHES.items() if switch.keeps_draws]
CASES = [("gpt2", "full"), ("gpt2", "lora"), ("llama-tied", "full"), ("llama-tied", "lora")]
ALONE = [name for name in DRAWS_STAY if name != "products"]
"""Products are bf16's."""
OFF = [
    *((*case, "float64", off) for off in (*ALONE, "all") for case in CASES),
    *((*case, "fp32", "all") for case in CASES),
    *((*case, "bf16", off) for off in DRAWS_STAY for case in CASES[1:3]),
    *((*case, "bf16", "all") for case in CASES),
]
"""Each speed-up alone where any difference shows (float64), and on each base and with each method once where the types
of a step differ (bf16); all at once everywhere. The code of fp32 is that of float64."""
PARTS = [(*case, *part) for part in [("float64", 1), ("float64", 3), ("fp32", 3), ("bf16", 1)] for case in CASES]
"""Types, and sizes of a micro-batch."""
TYPES = pytest.mark.parametrize(
    "precision", ["float64", pytest.param("fp32", marks=pytest.mark.slow), pytest.param("bf16", marks=pytest.mark.slow)]
)


def each(cells: list[tuple[Any, ...]], names: str = "architecture, method") -> pytest.MarkDecorator:
    """Parametrise by an architecture, a method, and what more there is; what is not in float64 is slow."""
    slow = pytest.mark.slow
    return pytest.mark.parametrize(
        names, [pytest.param(*cell, marks=slow if {"fp32", "bf16"} & {*cell} else ()) for cell in cells]
    )


@dataclass(frozen=True)
class Trained:
    """What a run came to.

    Attributes:
        losses: of each step, then the last validation's, float64.
        weights: that were trained, as one vector in float64, but for the biases of keys: softmax does not see them, so
            that their gradient is rounding alone, which Adam divides by its own size.
    """

    losses: Tensor
    weights: Tensor


def without_key_biases(parameters: Mapping[str, nn.Parameter]) -> Tensor:
    found = []
    for name, parameter in parameters.items():
        values = parameter.detach().double().clone()
        if name.endswith("c_attn.bias"):
            values.view(3, -1)[1] = 0.0  # queries, keys, values
        found.append(values.flatten())
    return torch.cat(found)


def with_dropout(model: nn.Module) -> nn.Module:
    """Drop attention weights in Llama, too, which has no other dropout of its own."""
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = DROPPED
    return model


def adapted_model(architecture: str, method: str, precision: str, *, recompute: bool = False) -> AdaptedModel:
    """Return the base with the method on it, as a session makes it."""
    model = with_dropout(make_model(architecture))
    if precision == "bf16" and method == "lora":
        model.to(torch.bfloat16)
    if precision == EXACT and method == "lora":
        model.to(torch.bfloat16).float()
    activations.fuse_activations(model)
    if recompute:
        recompute_activations(model)
    generator = torch.Generator().manual_seed(stream_seed(0, INIT))
    adapted: AdaptedModel = (LORA if method == "lora" else Full()).adapt(model, generator)
    if precision in ("float64", EXACT):
        adapted.module.double()
    return adapted


@functools.cache
def trained(
    architecture: str,
    method: str,
    precision: str,
    *off: str,
    micro_batch: int = BATCH,
    recompute: bool = False,
) -> Trained:
    """Train for some steps with some of the speed-ups off."""
    with without(*off), pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_loss, "CHUNK_BYTES", TARGETS_AT_A_TIME * 4 * 61)
        adapted = adapted_model(architecture, method, precision, recompute=recompute)
        recorder = Recorder()
        loop = make_loop(
            adapted, [SEED], [RATE], make_split(), recorder, num_steps=STEPS, micro_batch=micro_batch, optimizer=SPEC,
            evaluate_every=STEPS, batch_size=BATCH, precision="bf16" if precision == "bf16" else "fp32",
        )  # fmt: skip
        assert loop.forward.is_packed is not any(name in off for name in PADDED)
        assert loop.forward.is_short is ("targets" not in off)
        loop.run()
    losses = torch.tensor(recorder.losses() + recorder.losses(kind="validation"), dtype=torch.float64)
    assert len(losses) == STEPS + 1
    return Trained(losses, without_key_biases(adapted.trainable_parameters()))


def assert_same(on: Trained, off: Trained, exact: Trained | None, bound: float) -> None:
    """Hold two runs against each other; of bf16's weights, both against the exact ones.

    Both are a draw of rounding there. Attention of a random base is nearly even, so the roundings of its weights are
    alike, and either draw can be the luckier one: up to 2.2 times here, where with random queries and keys ours is.
    """
    assert float(((on.losses - off.losses) / off.losses).abs().max()) <= bound
    if exact is None:
        assert float((on.weights - off.weights).norm()) <= bound * float(off.weights.norm())
    else:
        assert float((on.weights - exact.weights).norm()) <= 3 * float((off.weights - exact.weights).norm())


@each(OFF, "architecture, method, precision, off")
def test_without_a_speed_up_it_is_the_same_run(architecture: str, method: str, precision: str, off: str) -> None:
    names = DRAWS_STAY if off == "all" else [off]
    on, without_it = trained(architecture, method, precision), trained(architecture, method, precision, *names)
    exact = trained(architecture, method, EXACT) if precision == "bf16" else None
    assert_same(on, without_it, exact, BOUNDS[precision])


@each(PARTS, "architecture, method, precision, micro_batch")
def test_the_micro_batch_gives_the_same_run(architecture: str, method: str, precision: str, micro_batch: int) -> None:
    whole = trained(architecture, method, precision)
    parts = trained(architecture, method, precision, micro_batch=micro_batch)
    exact = trained(architecture, method, EXACT) if precision == "bf16" else None
    assert_same(whole, parts, exact, BOUNDS[precision])


@each(CASES)
@TYPES
def test_gradient_checkpointing_gives_the_same_bits(architecture: str, method: str, precision: str) -> None:
    kept, again = trained(architecture, method, precision), trained(architecture, method, precision, recompute=True)
    assert torch.equal(kept.losses, again.losses)
    assert torch.equal(kept.weights, again.weights)


def test_other_masks_give_another_run() -> None:
    """The bounds tell runs apart: dropout that drew other masks would be seen."""
    own, other = trained("gpt2", "lora", "float64"), trained("gpt2", "lora", "float64", "draws")
    assert float(((own.losses - other.losses) / other.losses).abs().max()) > 100 * BOUNDS["fp32"]
    assert float((own.weights - other.weights).norm()) > 0.01 * float(own.weights.norm())


class PlainDropout:
    """Dropout of one sequence alone, from the definition: SFC64 seeded by stream, step, slot and place."""

    def __init__(self) -> None:
        self.stream, self.step, self.slot, self.place = stream_seed(SEED, DROPOUT), 0, 0, 0

    def begin(self, step: int, slot: int) -> None:
        self.step, self.slot, self.place = step, slot, 0

    def __call__(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0.0:
            return x
        words = np.random.SFC64([self.stream, self.step, self.slot, self.place]).random_raw(-(-x.numel() // 4))
        self.place += 1
        dropped = round(p * 65536)
        keep = torch.from_numpy(words.view(np.int16)[: x.numel()].astype(np.int64) + 32768 >= dropped)
        return x * keep.view(x.shape) * (65536 / (65536 - dropped))


def plain_losses(model: nn.Module, split: TokenSplit, draw: PlainDropout) -> list[float]:
    """Train one sequence at a time through the model's own forward, with whole logits and PyTorch's plain AdamW."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in parameters if (p.dim() >= 2) is is_matrix],
            "weight_decay": SPEC.weight_decay * is_matrix,
        }
        for is_matrix in (True, False)
    ]
    adamw = torch.optim.AdamW(groups, lr=RATE, betas=SPEC.betas, eps=SPEC.eps, fused=False, foreach=False)
    order, losses = BatchSequence(len(split), BATCH, SEED), []
    model.train()
    for step in range(STEPS):
        total, count = torch.zeros((), dtype=torch.float64), 0
        for slot, index in enumerate(order.indices(step)):
            tokens, targets = (torch.from_numpy(array.copy()) for array in split.sequence(int(index)))
            draw.begin(step, slot)
            logits = model(input_ids=tokens.long()[None], use_cache=False).logits[0]
            nll = F.cross_entropy(logits[:-1], tokens[1:].long(), reduction="none")
            total, count = total + nll[targets[1:]].sum(), count + int(targets.sum())
        adamw.zero_grad()
        (total / count).backward()
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in gradients]))
        assert SPEC.clip is not None
        for gradient in gradients:
            gradient.mul_(min(1.0, SPEC.clip / float(norm)))
        adamw.step()
        losses.append(float(total.detach()) / count)
    return losses


@pytest.mark.slow
@pytest.mark.reference
@each(CASES)
def test_it_is_the_run_of_transformers_and_peft(
    architecture: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All speed-ups and gradient checkpointing on, against eager attention in a loop that shares no code; float64."""
    if method == "lora":
        adapted, theirs, _ = lora_pair(LORA, architecture)
        reference, model = theirs, adapted.module
    else:
        reference, model = make_model(architecture), make_model(architecture)
        adapted = Full().adapt(model, torch.Generator())
    for one in (model, reference):
        with_dropout(one).double()
    activations.fuse_activations(model)
    recompute_activations(model)
    recorder = Recorder()
    loop = make_loop(
        adapted, [SEED], [RATE], make_split(), recorder, num_steps=STEPS, optimizer=SPEC, evaluate_every=STEPS,
        batch_size=BATCH, micro_batch=3,
    )  # fmt: skip
    assert loop.forward.is_packed
    loop.run()
    for module in reference.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "eager"
    draw = PlainDropout()
    monkeypatch.setattr(F, "dropout", draw)
    # Llama's own takes its softmax in fp32, whatever the type.
    monkeypatch.setattr(F, "softmax", lambda scores, dim, dtype=None: torch.softmax(scores, dim))
    assert recorder.losses() == pytest.approx(plain_losses(reference, make_split(), draw), rel=BOUNDS["float64"])
    assert draw.place > 0
