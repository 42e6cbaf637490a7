"""Fills the GPU's rows: training beside Trainer + PEFT, share of the GPU's own rate of matrix products, and the rest.

Run from the repository's root on a machine with one CUDA GPU: `.venv/bin/python -m benchmarks.gpu [--minutes 10]`.
Every measurement is a process of its own, contenders take turns, and everything is held within the time: each part has
a share of it, what is left over goes to the next part, and a row without time says so. Weights are random.
`--device cpu --tiny` tries the script out where there is no GPU; its figures mean nothing.

Parts: `checks` (the tests that need a GPU), `new` (GPT-2 small and Llama 3.2 1B, LoRA and full, in batches that fill a
GPU), `cpu` (the cases of `benchmarks.speed`), `sweep`, `decoding` and `scoring` (benchmarks of those names, where they
are there).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.measuring import OURS, ROOT, TRAINER, Found, Request, environment_of, in_turn, median
from benchmarks.speed.cases import CASES, Case
from rich.console import Console
from rich.table import Table

TARGET = 1.5
"""Times as fast as Trainer + PEFT, the least that is aimed at."""
SHARES = {"checks": 0.1, "new": 0.45, "cpu": 0.2, "sweep": 0.1, "decoding": 0.08, "scoring": 0.07}
"""Of the time."""
QKVO = ("q_proj", "k_proj", "v_proj", "o_proj")
NEW = {
    "gpt2, LoRA": ("gpt2", Case("squad-lora, large batch", 384, 64, 8, False, 0.1)),
    "gpt2, full": ("gpt2", Case("text-full, large batch", 1024, 16, 0, True, 0.1)),
    "Llama 1B, LoRA": ("llama-3.2-1b", Case("text-lora", 1024, 8, 16, True, 0.0, QKVO)),
    "Llama 1B, full": ("llama-3.2-1b", Case("text-full", 1024, 8, 0, True, 0.0)),
}
TINY = {
    "gpt2, LoRA": ("tiny-gpt2", Case("tiny", 128, 2, 4, False, 0.1)),
    "Llama, full": ("tiny-llama", Case("tiny", 64, 2, 0, True, 0.0)),
}
OTHERS = {"sweep": ["--rounds", "1"], "decoding": ["--rounds", "1"], "scoring": ["--rounds", "1"]}
"""Benchmarks of their own, and what they are given beside the device: a round is what there is time for."""
GIGABYTE = 1e9
WIDTH = 150


def training_requests(cases: dict[str, tuple[str, Case]], options: argparse.Namespace) -> dict[str, Request]:
    """Return what is trained, ours and theirs next to each other."""
    return {
        f"{name}: {contender}": Request(
            case, contender, model, steps=options.steps, warmup=min(5, options.steps - 1), threads=options.threads,
            device=options.device, has_rate=contender == OURS,
        )
        for name, (model, case) in cases.items()
        for contender in (OURS, TRAINER)
    }  # fmt: skip


def train(cases: dict[str, tuple[str, Case]], title: str, until: float, options: argparse.Namespace) -> Any:
    """Train, print the table, and return the figures."""
    requests = training_requests(cases, options)
    found = in_turn(
        requests, options.rounds, lambda name, one: _said(f"{name}: {one.tokens_per_s:,.0f} tokens/s"), until
    )
    table = Table("case", "ours, tokens/s", "Trainer + PEFT", "ours is", "ours, GB", "theirs", "share", "loss")
    table.title = f"{title}; share of the rate of matrix products"
    for name, (_, case) in cases.items():
        own, other = found[f"{name}: {OURS}"], found[f"{name}: {TRAINER}"]
        table.add_row(f"{name}: {case.batch_size} x {case.max_length}", *cells(own, other))
    Console(width=WIDTH).print(table)
    return {name: [vars(one) for one in rounds] for name, rounds in found.items()}


def cells(own: list[Found], other: list[Found]) -> list[str]:
    """Return what a row says; a side that found nothing ran out of memory or of time."""
    none = "failed, no memory or no time"
    speeds = [median([one.tokens_per_s for one in side]) if side else None for side in (own, other)]
    peaks = [f"{max(one.peak_bytes for one in side) / GIGABYTE:.2f}" if side else "" for side in (own, other)]
    ratio = ""
    if speeds[0] and speeds[1]:
        ratio = f"{speeds[0] / speeds[1]:.2f} x" + ("" if speeds[0] >= TARGET * speeds[1] else f" (aim: {TARGET})")
    rates = [one.flop_per_s / one.product_flop_per_s for one in own if one.product_flop_per_s]
    losses = " / ".join(f"{side[0].losses[-1]:.3f}" for side in (own, other) if side)
    share = f"{100 * median(rates):.0f} %" if rates else ""
    return [*(f"{speed:,.0f}" if speed else none for speed in speeds), ratio, *peaks, share, losses]


def check(until: float, options: argparse.Namespace) -> int:
    """Run the tests that need a GPU; return what pytest ended with."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/training"]
    return _call(command, until, options)


def other(name: str, until: float, options: argparse.Namespace) -> int | None:
    """Run the benchmark of this name where it is there; return what it ended with, none where it is not."""
    path = ROOT / "benchmarks" / name
    if not (path.with_suffix(".py").exists() or (path / "__main__.py").exists()):
        _said(f"{name}: there is no benchmarks/{name}")
        return None
    return _call(
        [sys.executable, "-m", f"benchmarks.{name}", "--device", options.device, *OTHERS[name]], until, options
    )


def _call(command: list[str], until: float, options: argparse.Namespace) -> int:
    """Run a command, showing what it prints, for as long as there is time."""
    left = max(1.0, until - time.monotonic())
    _said(f"$ {' '.join(command[1:])} ({left:.0f} s at most)")
    process = subprocess.Popen(command, cwd=ROOT, env=environment_of(options.device, options.threads))
    try:
        return process.wait(timeout=left)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        _said("no time left for the rest of it")
        return -9


def _said(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    """Run the parts in turn, each within its share of the time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=SHARES, action="append", help="can be repeated; all of them by default")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models and few steps, to try the script out")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rounds", type=int, default=3, help="at most; as many as there is time for")
    parser.add_argument("--threads", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path, help="write the figures of training here, as JSON")
    options = parser.parse_args()
    options.steps = options.steps or (3 if options.tiny else 20)
    begun = time.monotonic()
    chosen = [part for part in SHARES if part in (options.part or SHARES)]
    whole, passed = sum(SHARES[part] for part in chosen), 0.0
    cpu_cases = {name: ("gpt2", case) for name, case in CASES.items()}
    figures: dict[str, Any] = {}
    parts: dict[str, Callable[[float], Any]] = {
        "checks": lambda until: check(until, options),
        "new": lambda until: train(TINY if options.tiny else NEW, "batches that fill a GPU", until, options),
        "cpu": lambda until: train(TINY if options.tiny else cpu_cases, "the CPU's cases", until, options),
    } | {name: (lambda until, name=name: other(name, until, options)) for name in OTHERS}
    for part in chosen:
        passed += SHARES[part]
        until = begun + 60.0 * options.minutes * passed / whole
        figures[part] = parts[part](until)
        _said(f"{part}: ended after {time.monotonic() - begun:.0f} s")
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
