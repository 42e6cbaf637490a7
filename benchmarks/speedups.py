"""Prints what each speed-up of training gives on its own: time and memory without it, and how far the losses differ.

Run from the repository's root: `.venv/bin/python -m benchmarks.speedups [--case squad-lora]`. GPT-2 small's shape
with random weights; one speed-up at a time is left out (`benchmarks.switches`), each measurement is a process of its
own, and they take turns, round by round. The difference is the largest one of a step's loss, relative, from the run
that has all of them; in bf16 it is rounding, and where other masks are drawn it is another run's.
"""

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path

from benchmarks.measuring import Found, Request, in_turn, median
from benchmarks.speed.cases import CASES
from benchmarks.switches import SWITCHES
from rich.console import Console
from rich.table import Table

ALL = "with all of them"
MEGABYTE = 1e6
WIDTH = 150


def requests(options: argparse.Namespace) -> dict[str, Request]:
    """Return what is measured, by name."""
    whole = Request(
        CASES[options.case], model=options.model, steps=options.steps, warmup=1, threads=options.threads,
        precision=options.precision, device=options.device,
    )  # fmt: skip
    chosen = options.only or SWITCHES
    return {
        ALL: whole,
        **{name: replace(whole, off=(name,)) for name in SWITCHES if name in chosen},
        "recompute": replace(whole, recompute=True),
        "micro-batch of 1": replace(whole, micro_batch=1),
    }


def titles(name: str) -> tuple[str, str]:
    """Return what a row is called, and what is done in it instead."""
    if name in SWITCHES:
        return f"no {SWITCHES[name].title}", SWITCHES[name].instead
    more = {"recompute": "gradient checkpointing", "micro-batch of 1": "one sequence a forward"}
    return name, more.get(name, "")


def largest_difference(found: Found, whole: Found) -> float:
    """Return the largest relative difference of a step's loss."""
    return max(abs(one - other) / other for one, other in zip(found.losses, whole.losses, strict=True))


def show(found: dict[str, list[Found]], console: Console, title: str) -> None:
    """Print the table."""
    table = Table(
        "speed-up", "instead", "s a step", "spread", "time", "peak, MB", "memory", "loss differs", title=title
    )
    whole = found[ALL]
    step_s, peak = median([one.step_s for one in whole]), median([float(one.peak_bytes) for one in whole])
    for name, rounds in found.items():
        if not rounds:
            table.add_row(*titles(name), "no memory or no time left")
            continue
        taken = [one.step_s for one in rounds]
        own_peak = median([float(one.peak_bytes) for one in rounds])
        table.add_row(
            *titles(name),
            f"{median(taken):.3f}",
            f"{min(taken):.3f} to {max(taken):.3f}",
            f"{median(taken) / step_s:.2f} x",
            f"{own_peak / MEGABYTE:,.0f}",
            f"{own_peak / peak:.2f} x",
            "" if name == ALL else f"{largest_difference(rounds[0], whole[0]):.1e}",
        )
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default="squad-lora")
    parser.add_argument("--only", choices=SWITCHES, action="append", help="can be repeated; all of them by default")
    parser.add_argument("--model", default="gpt2", help="a shape of benchmarks/speed/cases.py or of the package")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--out", type=Path, help="write the figures here, as JSON")
    options = parser.parse_args()
    console = Console(width=WIDTH)
    found = in_turn(
        requests(options), options.rounds, lambda name, one: print(f"{name}: {one.step_s:.3f} s a step", flush=True)
    )
    show(found, console, f"{options.case}, {options.model}, {options.precision}, {options.device}")
    if options.out is not None:
        figures = {name: [vars(one) for one in rounds] for name, rounds in found.items()}
        options.out.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
