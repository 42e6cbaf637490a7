"""Prints how exact the training is, on the embedded base and data: against PEFT, against float64, and against itself.

Run from the repository's root: `.venv/bin/python -m benchmarks.exactness`. Every figure is a largest difference.
"""

import math
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from tests.training.helpers import Recorder, make_loop
from torch import Tensor, nn

from tuneoff.data.batching import BatchSequence
from tuneoff.data.prepare import TokenSplit, pad_token_id, prepare
from tuneoff.evaluation.likelihood import score_split
from tuneoff.methods import AdaptedModel, Full, LoRA, LoRACohort
from tuneoff.methods.interchange import write_peft
from tuneoff.methods.lora import LoRAModel
from tuneoff.study.spec import OptimizerSpec, TaskSpec
from tuneoff.study.streams import INIT, stream_seed
from tuneoff.training.models import load_base, load_tokenizer
from tuneoff.training.runtime import open_runtime
from tuneoff.training.steps import Forward

BASE = "demo"
NUM_STEPS = 50
BATCH = 16
RATE = 3e-3
LORA = LoRA(rank=8, alpha=16.0, targets=("c_attn", "c_proj", "c_fc"))
COHORT = tuple(replace(LORA, rank=rank, dropout=0.1) for rank in (2, 4, 8, 8))
COHORT_RATES = (1e-3, 3e-3, 1e-2, 3e-4)
CONSTANT = OptimizerSpec(schedule="constant", warmup=0.0)


def base(*, dropout: bool = True) -> nn.Module:
    """Return the embedded base, with or without its own dropouts."""
    model: nn.Module = load_base(BASE, Path())
    if not dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return model


def adapt(loras: Sequence[LoRA], seeds: Sequence[int], *, dropout: bool = True) -> LoRAModel:
    """Put LoRA runs on the base, each with its seed's starting values."""
    generators = [torch.Generator().manual_seed(stream_seed(seed, INIT)) for seed in seeds]
    return LoRACohort(tuple(loras)).adapt(base(dropout=dropout), generators)


def train(adapted: AdaptedModel, seeds: Sequence[int], rates: Sequence[float], split: TokenSplit) -> Recorder:
    """Take the steps; return what the loop told."""
    recorder = Recorder()
    options = {"num_steps": NUM_STEPS, "batch_size": BATCH, "micro_batch": BATCH, "evaluate_every": NUM_STEPS}
    make_loop(adapted, seeds, rates, split, recorder, optimizer=CONSTANT, **options).run()
    adapted.module.eval()
    return recorder


def relative(first: Tensor, second: Tensor) -> float:
    """Return the largest difference over the largest value."""
    return float((first - second).abs().max() / second.abs().max())


def padded(split: TokenSplit, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, attention mask and labels as the libraries want them."""
    longest = max(int(split.lengths[index]) for index in indices)
    ids = torch.zeros(len(indices), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, index in enumerate(indices):
        tokens, targets = (torch.from_numpy(array.copy()) for array in split.sequence(index))
        ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens.long(), 1
        labels[row, : len(tokens)] = torch.where(targets, tokens.long(), -100)
    return ids, mask, labels


def against_peft(split: TokenSplit) -> list[tuple[str, float]]:
    """Compare with PEFT: starting from the same A and B, gradients, a loss curve, and an exported adapter's logits."""
    from peft import LoraConfig, PeftModel, get_peft_model

    ours = adapt([LORA], [0], dropout=False)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=list(LORA.targets), fan_in_fan_out=True)
    theirs: nn.Module = get_peft_model(base(dropout=False), config)
    found = {n.removeprefix("base_model.model.").replace(".default", ""): p for n, p in theirs.named_parameters()}
    draw = torch.Generator().manual_seed(1)
    for name, parameter in ours.trainable_parameters().items():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.02, generator=draw)
        found[name].data.copy_(parameter.data)
    order = BatchSequence(len(split), BATCH, 0)
    ids, mask, labels = padded(split, list(order.indices(0)))
    for model in (ours.module, theirs):
        model(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
    pairs = [(p.grad, found[n].grad) for n, p in ours.trainable_parameters().items()]
    gradient = max(relative(a, b) for a, b in pairs if a is not None and b is not None)
    ours.module.zero_grad()
    theirs.zero_grad()
    curve = np.array(train(ours, [0], [RATE], split).losses())
    bare = np.array(bare_loop(theirs, split, order))
    with tempfile.TemporaryDirectory() as folder:
        write_peft(ours, Path(folder), BASE)
        loaded = PeftModel.from_pretrained(base(), folder).eval()
        with torch.no_grad():
            logits = relative(loaded(input_ids=ids).logits, ours.module(input_ids=ids).logits)
    return [
        ("PEFT: gradients of A and B, one batch (relative)", gradient),
        (f"PEFT: loss curve of {NUM_STEPS} steps, bare loop (nats)", float(np.abs(curve - bare).max())),
        (f"PEFT: logits of the exported adapter after {NUM_STEPS} steps (relative)", logits),
    ]


def bare_loop(model: nn.Module, split: TokenSplit, order: BatchSequence) -> list[float]:
    """Train PEFT's model in the loop that people write."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=RATE, weight_decay=0.0)
    losses = []
    for step in range(NUM_STEPS):
        ids, mask, labels = padded(split, list(order.indices(step)))
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def cohort(split: TokenSplit) -> list[tuple[str, float]]:
    """Compare a cohort of four, dropout on, with its runs alone; then poison one of its members."""
    seeds = (0, 1, 2, 3)
    together = adapt(COHORT, seeds)
    train(together, seeds, COHORT_RATES, split)
    worst = 0.0
    for index, (lora, seed, rate) in enumerate(zip(COHORT, seeds, COHORT_RATES, strict=True)):
        alone = adapt([lora], [seed])
        train(alone, [seed], [rate], split)
        states = [
            torch.cat([t.flatten() for t in m.state_dict(i).values()]) for m, i in ((together, index), (alone, 0))
        ]
        worst = max(worst, relative(*states))
    poisoned = adapt(COHORT, seeds)
    next(iter(poisoned.layers.values())).lora_A[1].data[0, 0] = math.nan
    train(poisoned, seeds, COHORT_RATES, split)
    moved = [
        float((tensor - poisoned.state_dict(index)[name]).abs().max())
        for index in (0, 2, 3)
        for name, tensor in together.state_dict(index).items()
    ]
    return [
        (f"cohort of 4 against alone, {NUM_STEPS} steps, dropout on: adapters (relative)", worst),
        ("cohort with one run poisoned by NaN: the other three's adapters", max(moved)),
    ]


def gradient(split: TokenSplit, micro_batch: int, dtype: torch.dtype, precision: str) -> Tensor:
    """Return the gradient of full fine-tuning over the first effective batch, dropout off."""
    model = base(dropout=False)
    adapted = Full().adapt(model, torch.Generator())
    model.to(dtype)
    loop = make_loop(
        adapted, [0], [RATE], split, Recorder(), batch_size=BATCH, micro_batch=micro_batch, precision=precision
    )
    layout = loop._micro_batches(0)
    count = sum(int(column[0].targets.sum()) for column in layout)
    for batches in layout:
        loop._backward(loop._placed(batches), [count])
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


def reference_gradient(split: TokenSplit) -> Tensor:
    """Return the same gradient from a float64 loop over single sequences that shares no code."""
    model = base(dropout=False).double()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for index in BatchSequence(len(split), BATCH, 0).indices(0):
        ids, targets = (torch.from_numpy(array.copy()) for array in split.sequence(int(index)))
        logp = model(input_ids=ids.long()[None]).logits[0].log_softmax(dim=-1)
        positions = targets.nonzero().flatten()
        total = total - logp[positions - 1, ids.long()[positions]].sum()
        count += len(positions)
    (total / count).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def accumulation(split: TokenSplit) -> list[tuple[str, float]]:
    """Compare the gradient of 1 x 16, 4 x 4 and 16 x 1 with the float64 loop's."""
    reference = reference_gradient(split)
    rows = []
    for name, dtype, precision in (
        ("float64", torch.float64, "fp32"),
        ("fp32", torch.float32, "fp32"),
        ("bf16", torch.float32, "bf16"),
    ):
        found = {rows_: gradient(split, rows_, dtype, precision) for rows_ in (16, 4, 1)}
        apart = max(float((found[rows_] - found[16]).norm() / found[16].norm()) for rows_ in (4, 1))
        off = max(float((value - reference).norm() / reference.norm()) for value in found.values())
        rows.append((f"gradient in {name}: 4 x 4 and 16 x 1 against 1 x 16 (relative norm)", apart))
        rows.append((f"gradient in {name}: against a float64 loop (relative norm)", off))
    return rows


def perplexity(split: TokenSplit) -> list[tuple[str, float]]:
    """Compare perplexity at batch 1, 7 and 64 with a float64 loop."""
    model, nll, count = base().double(), 0.0, 0
    with torch.no_grad():
        for index in range(len(split)):
            ids, targets = (torch.from_numpy(array.copy()) for array in split.sequence(index))
            logp = model(input_ids=ids.long()[None]).logits[0].log_softmax(dim=-1)
            positions = targets.nonzero().flatten()
            nll -= float(logp[positions - 1, ids.long()[positions]].sum())
            count += len(positions)
    expected = math.exp(nll / count)
    model, runtime = base(), open_runtime("fp32")
    found = [
        score_split(model, Forward(model), split, runtime, 0, batch_size=size).likelihood.perplexity
        for size in (1, 7, 64)
    ]
    return [
        ("perplexity at batch 1, 7, 64 among themselves (relative)", (max(found) - min(found)) / expected),
        ("perplexity against a float64 loop (relative)", max(abs(value - expected) for value in found) / expected),
    ]


def main() -> None:
    """Measure and print."""
    warnings.simplefilter("ignore")
    tokenizer = load_tokenizer(BASE, Path())
    assert pad_token_id(tokenizer) == tokenizer.eos_token_id
    data = prepare(TaskSpec(kind="instruction", data="demo", max_length=64), tokenizer, Path(), 512)
    table = Table("what", "largest difference", title="Exactness on the embedded base")
    for measure in (against_peft, cohort, accumulation):
        for what, value in measure(data.train):
            table.add_row(what, f"{value:.2g}")
    for what, value in perplexity(data.test):
        table.add_row(what, f"{value:.2g}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
