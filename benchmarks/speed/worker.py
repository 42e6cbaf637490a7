"""One contender on one case in a process of its own: trains for some steps and prints what it took as JSON.

Each contender takes the same model, the same sequences in the same order, the same rate, AdamW, type and threads. A
step is a whole optimizer step. Peaks are the process's resident memory since the model was loaded, weights included.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.speed.cases import CASES, Case, base, block_weights, drawn_split, needed_flop, real_split
from torch import nn

from tuneoff.data.batching import BatchSequence
from tuneoff.data.tokens import TokenSplit
from tuneoff.running.session import MIN_PACKED_TOKENS
from tuneoff.training.meter import NUM_WARMUP_STEPS, resident_peak_bytes

RATE = 1e-4
ALPHA = 16.0
IGNORED = -100
CLEAR_PEAK = "5"

Took = dict[str, Any]


def batches(case: Case, split: TokenSplit, num_steps: int, *, is_fixed: bool) -> Iterator[dict[str, torch.Tensor]]:
    """Yield padded batches as Transformers' own collators make them."""
    order = BatchSequence(len(split), case.batch_size, 0)
    for step in range(num_steps):
        rows = [split.sequence(int(index)) for index in order.indices(step)]
        length = case.max_length if is_fixed else max(len(ids) for ids, _ in rows)
        ids = np.zeros((len(rows), length), dtype=np.int64)
        mask, labels = np.zeros_like(ids), np.full_like(ids, IGNORED)
        for place, (tokens, targets) in enumerate(rows):
            ids[place, : len(tokens)] = tokens
            mask[place, : len(tokens)] = 1
            labels[place, : len(tokens)] = np.where(targets, tokens, IGNORED)
        yield {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy(mask),
            "labels": torch.from_numpy(labels),
        }


def device() -> torch.device:
    """Return where everything is trained: on the GPU where one is to be seen, as `open_runtime` has it."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def now() -> float:
    """Return the clock, once the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def clear_peak() -> None:
    """Start the peak anew: of memory allocated on the GPU, else resident."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text(CLEAR_PEAK)


def peak_bytes() -> int:
    """Return the peak since then."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident_peak_bytes()


def with_peft(case: Case, model: nn.Module) -> Any:
    """Put PEFT's LoRA on the model, or train all of it."""
    if not case.has_lora:
        return model
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(
        r=case.rank, lora_alpha=ALPHA, lora_dropout=case.dropout, target_modules=list(case.targets),
        fan_in_fan_out=case.targets == ("c_attn",), task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(model, config)


def with_loralib(case: Case, model: Any) -> Any:
    """Put Microsoft's layer on `c_attn`: one low-rank update of all three parts, as PEFT has it."""
    import loralib

    torch.manual_seed(1)
    for block in model.transformer.h:
        old = block.attn.c_attn
        new = loralib.Linear(
            *old.weight.shape, r=case.rank, lora_alpha=int(ALPHA), lora_dropout=case.dropout, merge_weights=False
        )
        new.weight.data, new.bias.data = old.weight.data.T.contiguous(), old.bias.data
        block.attn.c_attn = new
    loralib.mark_only_lora_as_trainable(model)
    return model


def bare(case: Case, split: TokenSplit, num_steps: int, model: Any, dtype: torch.dtype) -> Took:
    """Train in ten lines of PyTorch, padded to the longest."""
    model.to(device()).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0)
    step_s, losses = [], []
    clear_peak()
    for batch in batches(case, split, num_steps, is_fixed=False):
        start = now()
        with torch.autocast(device().type, dtype=dtype, enabled=dtype != torch.float32):
            loss = model(**{name: tensor.to(device()) for name, tensor in batch.items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        step_s.append(now() - start)
    return {"step_s": step_s, "losses": losses, "peak_bytes": peak_bytes()}


def trainer(case: Case, split: TokenSplit, num_steps: int, model: Any, dtype: torch.dtype, *, is_fixed: bool) -> Took:
    """Train with the Trainer of Transformers."""
    from tempfile import TemporaryDirectory

    from transformers import Trainer, TrainerCallback, TrainingArguments

    rows = list(batches(case, split, num_steps, is_fixed=is_fixed))
    step_s: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        start = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = now()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            step_s.append(now() - self.start)

    class Steps(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return num_steps

        def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
            return rows[step]

    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=1, max_steps=num_steps, learning_rate=RATE, weight_decay=0.0,
            lr_scheduler_type="constant", bf16=dtype == torch.bfloat16, use_cpu=device().type == "cpu",
            report_to=[], logging_steps=1, save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
            max_grad_norm=1.0,
        )  # fmt: skip
        made = Trainer(model, arguments, train_dataset=Steps(), data_collator=lambda some: some[0], callbacks=[Clock()])
        made._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(made.train_dataset)
        clear_peak()
        made.train()
        peak = peak_bytes()
        losses = [line["loss"] for line in made.state.log_history if "loss" in line]
    return {"step_s": step_s, "losses": losses, "peak_bytes": peak}


def ours(
    case: Case, split: TokenSplit, num_steps: int, model: Any, dtype: torch.dtype, micro_batch: int | None = None
) -> Took:
    """Train with the loop that `tuneoff run` runs."""
    from tuneoff.methods import Full, LoRA
    from tuneoff.training.activations import fuse_activations

    fuse_activations(model)
    method: Any = LoRA(rank=case.rank, alpha=ALPHA, dropout=case.dropout, targets=case.targets) if case.rank else Full()
    adapted = method.adapt(model, torch.Generator().manual_seed(1))
    loop = train_ours(adapted, split, case.batch_size, num_steps, dtype, micro_batch)
    return {"step_s": loop.meter.step_s, "losses": loop.members[0].losses, "peak_bytes": peak_bytes()}


def train_ours(
    adapted: Any,
    split: TokenSplit,
    batch_size: int,
    num_steps: int,
    dtype: torch.dtype = torch.float32,
    micro_batch: int | None = None,
) -> Any:
    """Train an adapted model with the loop that `tuneoff run` runs, set up as a session sets it up; return the loop."""
    from tuneoff.study.spec import OptimizerSpec
    from tuneoff.training.loop import Loop, LoopPlan, Member
    from tuneoff.training.meter import Meter
    from tuneoff.training.optim import MemberOptimizer
    from tuneoff.training.runtime import open_runtime
    from tuneoff.training.steps import Forward

    runtime = open_runtime("bf16" if dtype == torch.bfloat16 else "fp32", torch.get_num_threads())
    adapted.module.to(runtime.device)
    forward = Forward(adapted.module)
    adapted.module.eval()
    probes = [torch.from_numpy(split.sequence(one)[0].astype("int64")).to(runtime.device) for one in (0, 1, 2)]
    with runtime.autocast(), adapted.member(0):
        forward.check(probes[0][None])
        if split.lengths.mean() >= MIN_PACKED_TOKENS:
            forward.check_packing(probes)
    spec = OptimizerSpec(schedule="constant", warmup=0.0)
    optimizer = MemberOptimizer(adapted.trainable_parameters(0), RATE, spec, num_steps, False)
    member = Member(seed=0, order=BatchSequence(len(split), batch_size, 0), optimizer=optimizer)
    plan = LoopPlan(num_steps, num_steps + 1, num_steps + 1, micro_batch or batch_size, 0)
    loop = Loop(adapted, forward, [member], split, plan, _Silent(), Meter(runtime))
    clear_peak()
    loop.run()
    return loop


class _Silent:
    """A host that scores nothing and keeps nothing."""

    def evaluate(self, module: nn.Module) -> Any:
        from tuneoff.study.records import Likelihood

        return Likelihood(
            nll_nats=1.0, num_target_tokens=1, num_sequences=1, num_target_bytes=1, mean_sequence_loss_nats=1.0,
            vocabulary_size=2, stride_tokens=None,
        )  # fmt: skip

    def curve(self, member: int, row: dict[str, Any]) -> None: ...

    def best(self, member: int) -> None: ...

    def checkpoint(self, checkpoint: Any) -> None: ...

    def progress(self, step: int, loss_nats: float, tokens_per_s: float) -> None: ...

    def must_leave(self) -> bool:
        return False


def num_targets(split: TokenSplit, indices: np.ndarray[Any, Any]) -> int:
    """Return how many tokens of some sequences carry loss."""
    return sum(int(split.sequence(int(index))[1].sum()) for index in indices)


def product_rate() -> float:
    """Return the device's own rate of matrix products, in FLOP a second: median of some, in the faster type."""
    size, repeats = (8192, 20) if torch.cuda.is_available() else (2048, 10)
    return max(_rate(dtype, size, repeats) for dtype in (torch.float32, torch.bfloat16))


def _rate(dtype: torch.dtype, size: int, repeats: int) -> float:
    one, other = (torch.randn(size, size, device=device()).to(dtype) for _ in range(2))
    taken = []
    for _ in range(repeats + 3):
        start = now()
        one @ other
        taken.append(now() - start)
    return 2 * size**3 / statistics.median(taken[3:])


CONTENDERS: dict[str, Callable[..., Took]] = {
    "ours": ours,
    "trainer-fixed": lambda case, split, steps, model, dtype: trainer(
        case, split, steps, with_peft(case, model), dtype, is_fixed=True
    ),
    "trainer-longest": lambda case, split, steps, model, dtype: trainer(
        case, split, steps, with_peft(case, model), dtype, is_fixed=False
    ),
    "bare": lambda case, split, steps, model, dtype: bare(case, split, steps, with_peft(case, model), dtype),
    "loralib": lambda case, split, steps, model, dtype: bare(case, split, steps, with_loralib(case, model), dtype),
}


def main() -> None:
    """Train and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=CASES)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("--model", default="gpt2")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=NUM_WARMUP_STEPS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    case, dtype = CASES[options.case], torch.bfloat16 if options.precision == "bf16" else torch.float32
    needed = options.steps * case.batch_size
    split = (
        drawn_split(case, needed) if options.data is None else real_split(case, options.data, options.tokenizer, needed)
    )
    rates = [product_rate()]
    model = base(case, options.model, dtype if case.has_lora else torch.float32)
    num_block_weights, num_head_weights = block_weights(model), model.get_output_embeddings().weight.numel()
    took = CONTENDERS[options.contender](case, split, options.steps, model, dtype)
    order = BatchSequence(len(split), case.batch_size, 0)
    took["input_tokens"] = [int(split.lengths[order.indices(step)].sum()) for step in range(options.steps)]
    took["warmup"] = min(options.warmup, options.steps - 1)
    took["flop"] = [
        needed_flop(case, num_block_weights, num_head_weights, tokens, num_targets(split, order.indices(step)))
        for step, tokens in enumerate(took["input_tokens"])
    ]
    rates.append(product_rate())  # again, as other work on the machine comes and goes
    print(json.dumps(took | {"product_flop_per_s": statistics.fmean(rates)}))


if __name__ == "__main__":
    main()
