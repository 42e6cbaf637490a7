"""Prints how fast a split is scored, and in which memory, beside padded batches in plain Transformers.

Run from the repository's root: `.venv/bin/python -m benchmarks.scoring [--case sst2] [--sequences 2000]`. Weights are
random and GPT-2 small's shape. Case `oasst1` is the perplexity of replies after their prompts, `sst2` the classes of
sentences. Sequences are random tokens of these data sets' lengths, or real ones with `--data` and `--tokenizer`.

The peer is the usual way: batches of 8 or 16 in the file's order, padded to the longest of the batch, logits at all
positions, cross-entropy in fp32 with the prompt and the padding ignored. Every measurement is a process of its own; the
contenders take turns, round by round. Time is that of scoring alone, making the batches included; loading and
tokenising are left out. Ratios are of medians over the rounds; above 1 they are in favour of this package, of memory
below 1. Processor time is what all threads took together: on a machine that does other things it is the better measure.

It ends with 1 where the contenders' losses lie further apart than rounding allows.
"""

import argparse
import contextlib
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from benchmarks.speed.cases import OTHER_SHAPES, VOCABULARY, first_sequences
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from tuneoff.data.tokens import TokenSplit
from tuneoff.evaluation.likelihood import score_split
from tuneoff.study.shapes import known_shape
from tuneoff.training.activations import fuse_activations
from tuneoff.training.meter import resident_peak_bytes
from tuneoff.training.runtime import open_runtime
from tuneoff.training.steps import Forward

OURS = "ours"
PEERS = {"padded-8": 8, "padded-16": 16}
"""Sequences in a batch."""
PAD = VOCABULARY - 1
"""GPT-2's end of sequence; random tokens lie below it, so that Transformers finds the last token of a sentence."""
IGNORED = -100
CONTEXT = 1024
SHARES = (0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 100)
OASST1_PROMPTS = (13, 18, 20, 22, 24, 26, 29, 34, 41, 54, 67, 104, 869)
"""Percentiles (`SHARES`) of the lengths of 2,020 English prompts with one reply of OASST1, in GPT-2's tokens."""
OASST1_REPLIES = (4, 70, 108, 152, 197, 237, 283, 335, 389, 483, 601, 939, 1007)
"""The same of the replies with their end."""
SST2_SENTENCES = (2, 10, 14, 17, 19, 22, 25, 28, 32, 37, 42, 48, 60)
"""The same of the sentences of SST-2's development set."""
LARGEST_DIFFERENCE = {"fp32": 1e-5, "bf16": 2**-8}
"""Of the loss, relative. bf16 rounds every logit by up to 2^-9 of itself, and hidden states before it; of fp32's
rounding errors of 6e-8 a mean over a thousand tokens leaves less than this."""
KINDS = {"oasst1": "instruction", "sst2": "classification"}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GIGABYTE = 1e9
WIDTH = 160

Took = dict[str, float]


def drawn_split(case: str, num_sequences: int) -> TokenSplit:
    """Return sequences of random tokens with the data set's lengths."""
    draw = np.random.default_rng(0)

    def lengths(percentiles: tuple[int, ...]) -> Any:
        return np.interp(draw.uniform(0, 100, num_sequences), SHARES, percentiles).astype(np.int64)

    if case == "sst2":
        replies, labels = np.ones(num_sequences, np.int64), draw.integers(0, 2, num_sequences).astype(np.int32)
        totals = lengths(SST2_SENTENCES)
    else:
        labels, replies = np.zeros(0, np.int32), lengths(OASST1_REPLIES)
        totals = np.minimum(CONTEXT, lengths(OASST1_PROMPTS) + replies)
    replies = np.minimum(replies, totals - (case != "sst2"))
    return TokenSplit(
        input_ids=draw.integers(0, PAD, totals.sum(), dtype=np.int32),
        targets=np.concatenate(
            [np.arange(total) >= total - reply for total, reply in zip(totals, replies, strict=True)]
        ),
        offsets=np.concatenate([[0], np.cumsum(totals)]).astype(np.int64),
        target_bytes=replies,
        items=np.arange(num_sequences, dtype=np.int32),
        labels=labels,
        item_names=tuple(map(str, range(num_sequences))),
    )


def real_split(case: str, data: Path, tokenizer: Path, num_sequences: int) -> TokenSplit:
    """Return the first sequences of a file, in its order."""
    from transformers import GPT2TokenizerFast

    from tuneoff.data.prepare import prepare
    from tuneoff.study.spec import TaskSpec

    task = TaskSpec(kind=KINDS[case], data=str(data), max_length=CONTEXT)  # type: ignore[arg-type]
    train = prepare(task, GPT2TokenizerFast.from_pretrained(tokenizer), Path(), CONTEXT).train
    return first_sequences(train, num_sequences)


def base(case: str, model: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Return a model of the shape, with the same weights for every contender."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, GPT2Config

    torch.manual_seed(0)
    kind: Any = AutoModelForSequenceClassification if case == "sst2" else AutoModelForCausalLM
    shape = OTHER_SHAPES.get(model) or known_shape(model) or {}
    made = kind.from_config(GPT2Config(**shape, pad_token_id=PAD, num_labels=2))
    return made.to(device=device, dtype=dtype).eval()


def padded_batches(split: TokenSplit, batch_size: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield ids, attention mask and labels as Transformers' collators make them, in the file's order."""
    for start in range(0, len(split), batch_size):
        rows = [split.sequence(index) for index in range(start, min(start + batch_size, len(split)))]
        ids = np.full((len(rows), max(len(tokens) for tokens, _ in rows)), PAD, dtype=np.int64)
        mask, labels = np.zeros_like(ids), np.full_like(ids, IGNORED)
        for row, (tokens, targets) in enumerate(rows):
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
            labels[row, : len(tokens)] = np.where(targets, tokens, IGNORED)
        if split.has_labels:
            labels = split.labels[start : start + len(rows)].astype(np.int64)
        yield tuple(torch.from_numpy(array).to(device) for array in (ids, mask, labels))  # type: ignore[misc]


@torch.no_grad()
def score_padded(model: nn.Module, split: TokenSplit, batch_size: int, device: torch.device) -> float:
    """Return the loss (nats a target token) the usual way."""
    total, count = 0.0, 0
    for ids, mask, labels in padded_batches(split, batch_size, device):
        given = {} if split.has_labels else {"use_cache": False}
        logits = model(input_ids=ids, attention_mask=mask, **given).logits.float()
        if not split.has_labels:
            logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        total += float(F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"))
        count += int((labels != IGNORED).sum())
    return total / count


def padded_positions(split: TokenSplit, batch_size: int) -> int:
    """Return how many positions a model sees in padded batches in the file's order, padding included."""
    parts = (split.lengths[start : start + batch_size] for start in range(0, len(split), batch_size))
    return sum(int(part.max()) * len(part) for part in parts)


def prepared_forward(model: nn.Module, split: TokenSplit, runtime: Any) -> Forward:
    """Return the way through the model that a study's session takes."""
    fuse_activations(model)
    forward = Forward(model)
    places = dict.fromkeys((0, int(split.lengths.argmax()), int(split.lengths.argmin())))
    probes = [torch.from_numpy(split.sequence(place)[0].astype("int64")).to(runtime.device) for place in places]
    with runtime.autocast():
        forward.check(probes[0][None])
        forward.check_packing(probes)
    return forward


def work(options: argparse.Namespace) -> Took:
    """Score with one contender in this process, and return what it took."""
    runtime = open_runtime(options.precision, options.threads)
    device = torch.device(options.device)
    if runtime.device.type != device.type:
        raise SystemExit(f"--device {options.device} was asked for; this machine computes on {runtime.device.type}")
    if options.data is None:
        split = drawn_split(options.case, options.sequences)
    else:
        split = real_split(options.case, options.data, options.tokenizer, options.sequences)
    model = base(options.case, options.model, TYPES[options.precision], device)
    forward = prepared_forward(model, split, runtime) if options.contender == OURS else None
    if forward is None:  # as `check` does for ours: libraries set themselves up at the first forward
        with torch.no_grad():
            model(input_ids=torch.from_numpy(split.sequence(0)[0].astype("int64"))[None].to(device))
    _clear_peak(device)
    runtime.synchronize()
    start, start_cpu = time.perf_counter(), time.process_time()
    if forward is not None:
        loss = score_split(model, forward, split, runtime, PAD).likelihood.loss_nats
    else:
        loss = score_padded(model, split, PEERS[options.contender], device)
    runtime.synchronize()
    taken, taken_cpu = time.perf_counter() - start, time.process_time() - start_cpu
    num_positions = split.num_input_tokens if forward is not None else padded_positions(split, PEERS[options.contender])
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident_peak_bytes()
    return {
        "score_s": taken, "cpu_s": taken_cpu, "peak_bytes": peak, "loss_nats": loss,
        "num_positions": num_positions, "num_tokens": split.num_input_tokens, "num_sequences": len(split),
        "num_targets": split.num_target_tokens,
    }  # fmt: skip


def _clear_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):  # not Linux: the peak is then that since the process began, loading included
        Path("/proc/self/clear_refs").write_text("5")


def measure(contender: str, options: argparse.Namespace) -> Took:
    """Run one contender in a process of its own.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    given = {
        name: value for name, value in vars(options).items() if name not in ("rounds", "contender", "against", "json")
    }
    command = [sys.executable, "-m", "benchmarks.scoring", "--contender", contender]
    command += [part for name, value in given.items() if value is not None for part in (f"--{name}", str(value))]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{contender} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: Took = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def show(took: dict[str, list[Took]], options: argparse.Namespace) -> bool:
    """Print the table; return whether the losses agree."""
    ours = took[OURS][0]
    table = Table(
        "contender", "positions a token", "tokens/s", "spread", "ours is", "CPU time, s", "ours takes", "peak, GB",
        "ours takes", "loss",
    )  # fmt: skip
    table.title = (
        f"{options.case}: {ours['num_sequences']:,.0f} sequences, {ours['num_tokens']:,.0f} tokens, "
        f"{ours['num_targets']:,.0f} targets; {options.precision}, {options.threads} threads, {options.device}, "
        f"{options.rounds} rounds"
    )
    middle = {
        name: {key: statistics.median(one[key] for one in rounds) for key in ("score_s", "cpu_s", "peak_bytes")}
        for name, rounds in took.items()
    }
    for name, rounds in took.items():
        own, speeds = middle[name], [one["num_tokens"] / one["score_s"] for one in rounds]
        ratio = {key: middle[OURS][key] / own[key] for key in own}
        table.add_row(
            name,
            f"{rounds[0]['num_positions'] / rounds[0]['num_tokens']:.2f}",
            f"{statistics.median(speeds):,.0f}",
            f"{min(speeds):,.0f} to {max(speeds):,.0f}",
            "" if name == OURS else f"{1 / ratio['score_s']:.2f} x as fast",
            f"{own['cpu_s']:.1f}",
            "" if name == OURS else f"1 / {1 / ratio['cpu_s']:.2f}",
            f"{own['peak_bytes'] / GIGABYTE:.2f}",
            "" if name == OURS else f"{ratio['peak_bytes']:.2f} x",
            f"{rounds[0]['loss_nats']:.6f}",
        )
    console = Console(width=WIDTH)
    console.print(f"{platform.machine()}, {os.cpu_count()} cores")
    console.print(table)
    bound, right = LARGEST_DIFFERENCE[options.precision], ours["loss_nats"]
    apart = [
        f"{name} by {abs(one['loss_nats'] / right - 1):.1e}"
        for name, rounds in took.items()
        for one in rounds[:1]
        if not math.isclose(one["loss_nats"], right, rel_tol=bound)
    ]
    if apart:
        console.print(f"[bold]losses differ by more than {bound:.1e} of themselves: {', '.join(apart)}[/bold]")
    return not apart


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--case", choices=KINDS, default="oasst1")
    parser.add_argument("--model", default="gpt2", help="gpt2, small-gpt2 or tiny-gpt2")
    parser.add_argument("--sequences", type=int, default=64, help="how many, from the start of the data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--precision", choices=TYPES, default="bf16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--against", choices=PEERS, action="append", help="can be repeated; all of them by default")
    parser.add_argument("--data", type=Path, help="a file of prompts with replies, or of sentences with classes")
    parser.add_argument("--tokenizer", type=Path, help="folder of GPT-2's tokenizer; with --data")
    parser.add_argument("--json", type=Path, help="write what was measured here, too")
    parser.add_argument("--contender", choices=(OURS, *PEERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if (options.data is None) != (options.tokenizer is None):
        parser.error("--data and --tokenizer go together")
    if options.contender is not None:
        print(json.dumps(work(options)))
        return
    took: dict[str, list[Took]] = {name: [] for name in (OURS, *(options.against or PEERS))}
    for _ in range(options.rounds):
        for name in took:
            took[name].append(measure(name, options))
    if options.json is not None:
        options.json.write_text(json.dumps(took), encoding="utf-8")
    sys.exit(0 if show(took, options) else 1)


if __name__ == "__main__":
    main()
