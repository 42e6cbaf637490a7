"""Measures every figure of speed and memory that Tuneoff is to reach, and prints what was reached beside it.

Run from the repository's root: `make bench`, or `.venv/bin/python -m benchmarks.table [--resume]`. Each part is a
benchmark of its own that prints its own table (`benchmarks.report_speed`, `.speed`, `.scoring`, `.decoding`), one after
another; what it measured stays in `build/bench`, so that `--resume` goes on where it was stopped. At the end the table
is printed, and written there as `table.md`, with the machine named. Nothing else should be at work meanwhile: 2 cores
without bf16 instructions take about two hours. `--small` tries the script out on narrow models, whose figures mean
nothing. What a GPU is to show is measured by `benchmarks.gpu`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tuneoff.training.machine import look_at_machine

OURS = "ours"
ADDITIONS = 10_000_000
GIGABYTE = 1e9
WIDTH = 150

Found = Any
"""What a part wrote: JSON."""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        work, peer, asked: what was done, beside what, and what is to be reached.
        reached: says what was reached, from what the part wrote.
    """

    work: str
    peer: str
    asked: str
    reached: Callable[[Found], str]


@dataclass(frozen=True)
class Part:
    """A benchmark, and the lines that it fills.

    Attributes:
        name: of its file.
        module: of the benchmark.
        options: of its command line.
        small: further ones, for trying the script out.
        rows: of the table.
    """

    name: str
    module: str
    options: tuple[str, ...]
    small: tuple[str, ...]
    rows: tuple[Row, ...]

    def command(self, folder: Path, *, is_small: bool) -> list[str]:
        """Return the command that measures it."""
        options = (*self.options, *self.small) if is_small else self.options
        return [
            sys.executable,
            "-m",
            f"benchmarks.{self.module}",
            *options,
            "--json",
            str(folder / f"{self.name}.json"),
        ]


def spread(values: Sequence[float], form: str = "{:,.0f}") -> str:
    """Return a median with the range around it."""
    low, middle, high = (form.format(one) for one in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def faster(case: str, peer: str) -> Callable[[Found], str]:
    """Return what says how a case of training was, beside a peer."""

    def said(found: Found) -> str:
        speeds = {name: [one["tokens_per_s"] for one in found[case][name]] for name in (OURS, peer)}
        peaks = {name: statistics.median(one["peak_bytes"] for one in found[case][name]) for name in (OURS, peer)}
        ratio = statistics.median(speeds[OURS]) / statistics.median(speeds[peer])
        return (
            f"{ratio:.2f} times as fast: {spread(speeds[OURS])} tokens/s against {spread(speeds[peer])}; "
            f"{peaks[OURS] / peaks[peer]:.2f} of the memory ({peaks[OURS] / GIGABYTE:.2f} GB)"
        )

    return said


def share(case: str) -> Callable[[Found], str]:
    """Return what says which share of the machine's own rate of products a case of training came to."""
    return lambda found: spread([100 * one["share"] for one in found[case][OURS]], "{:.0f} %")


def scored(found: Found) -> str:
    """Say how scoring was."""
    speeds = {name: [one["num_tokens"] / one["score_s"] for one in rounds] for name, rounds in found.items()}
    peaks = {name: statistics.median(one["peak_bytes"] for one in rounds) for name, rounds in found.items()}
    (peer,) = found.keys() - {OURS}
    ratio = statistics.median(speeds[OURS]) / statistics.median(speeds[peer])
    return (
        f"{ratio:.2f} times as fast: {spread(speeds[OURS])} tokens/s against {spread(speeds[peer])}; "
        f"{peaks[OURS] / peaks[peer]:.2f} of the memory"
    )


def decoded(found: Found) -> str:
    """Say how decoding was."""
    (peer,) = found["took"].keys() - {OURS}
    own, other = (found["took"][name]["clock_s"] for name in (OURS, peer))
    return (
        f"{sum(other) / sum(own):.1f} times as fast: {sum(own):,.0f} s against {sum(other):,.0f}, by rounds "
        f"{spread([theirs / ours for ours, theirs in zip(own, other, strict=True)], '{:.1f}')}; "
        f"{found['unlike'][peer]} greedy texts unlike the peer's"
    )


def took(*commands: str) -> Callable[[Found], str]:
    """Return what says how long commands took."""

    def said(found: Found) -> str:
        costs = [found["took"][command] for command in commands]
        seconds = " and ".join(f"{cost['wall_s']:.2f}" for cost in costs)
        return f"{seconds} s, {max(cost['peak_bytes'] for cost in costs) / GIGABYTE:.2f} GB"

    return said


FIXED, LONGEST = "Trainer + PEFT, fixed length", "Trainer + PEFT, padded to the longest"
TRAIN = ("--warmup", "1", "--steps", "3", "--rounds", "3")
TRAIN_SMALL = ("--model", "tiny-gpt2", "--rounds", "2")
STUDY = "(10,161 runs; without the index of the store, and with it)"
PARTS = (
    Part(
        "commands", "report_speed", (), ("--arms", "11", "--rates", "2", "--seeds", "2", "--explained", "1"),
        (
            Row("`tuneoff --help`", "", "0.3 s", took("--help")),
            Row("`tuneoff plan dolly-llama3`", "", "10 s, 1.5 GB", took("plan dolly-llama3")),
            Row(f"`tuneoff status` {STUDY}", "", "5 s", took("status, first", "status, again")),
            Row(f"`tuneoff report` {STUDY}", "", "5 s", took("report, first", "report, again")),
        ),
    ),
    Part(
        "squad-lora", "speed", ("--case", "squad-lora", *TRAIN), TRAIN_SMALL,
        (
            Row("LoRA r 8 on SQuAD, at most 384 tokens, bf16", FIXED, "5", faster("squad-lora", "trainer-fixed")),
            Row("the same", LONGEST, "2.5, 0.35 of the memory", faster("squad-lora", "trainer-longest")),
            Row("the same", "PEFT in a bare loop, padded to the longest", "", faster("squad-lora", "bare")),
            Row("the same", "loralib in a bare loop, padded to the longest", "", faster("squad-lora", "loralib")),
            Row("the same, share of the rate of products", "the machine's own", "55 %", share("squad-lora")),
        ),
    ),
    Part(
        "squad-lora-no-dropout", "speed", ("--case", "squad-lora-no-dropout", "--alone", *TRAIN), TRAIN_SMALL,
        (Row("the same without dropout, share", "the machine's own", "70 %", share("squad-lora-no-dropout")),),
    ),
    Part(
        "squad-lora-fp32", "speed",
        ("--case", "squad-lora", "--case", "squad-lora-no-dropout", "--alone", "--precision", "fp32", *TRAIN),
        TRAIN_SMALL,
        (
            Row("the same in fp32, share", "the machine's own", "", share("squad-lora")),
            Row("the same in fp32 without dropout, share", "the machine's own", "", share("squad-lora-no-dropout")),
        ),
    ),
    Part(
        "text-lora", "speed", ("--case", "text-lora", "--against", "trainer-longest", *TRAIN), TRAIN_SMALL,
        (Row("LoRA on supervised text, 512 tokens, bf16", "Trainer + PEFT", "1.4, 0.5 of the memory",
             faster("text-lora", "trainer-longest")),),
    ),
    Part(
        "text-full", "speed", ("--case", "text-full", "--against", "trainer-longest", *TRAIN), TRAIN_SMALL,
        (Row("full fine-tuning, the same text", "Trainer", "1.25, 0.7 of the memory",
             faster("text-full", "trainer-longest")),),
    ),
    Part(
        "scoring", "scoring", ("--sequences", "64", "--precision", "fp32", "--against", "padded-8"),
        ("--model", "tiny-gpt2", "--rounds", "2"),
        (Row("perplexity of 64 replies of OASST1's lengths, fp32", "padded batches of 8 in Transformers",
             "2.5 (2,000 replies)", scored),),
    ),
    Part(
        "decoding", "decoding",
        ("--prompts", "500", "--rounds", "4", "--shared-out", "--against", "as-they-come"),
        ("--model", "tiny-gpt2", "--prompts", "20"),
        (Row("four decoding strategies on 500 questions of SQuAD's lengths, fp32",
             "`model.generate` once for each, left-padded batches of 64", "4", decoded),),
    ),
)  # fmt: skip
"""The dearest last, so that a bench that is stopped has most of the table."""


def additions_s() -> float:
    """Return how long one processor takes for ten million additions of Python, which tells a machine's moods."""
    start, number = time.perf_counter(), 0
    while number < ADDITIONS:
        number += 1
    return time.perf_counter() - start


def machine() -> str:
    """Return the machine in a line."""
    here = look_at_machine()
    able = ", ".join(here.instructions)
    return (
        f"{here.processor}, {here.num_cores} cores, {here.num_threads} threads, {able}; "
        f"{'with' if here.has_bf16_products else 'without'} bf16 products; PyTorch {torch.__version__}; "
        f"ten million additions of Python in {additions_s():.1f} s"
    )


def lines(folder: Path, machines: Sequence[str]) -> list[str]:
    """Return the table, in Markdown, of what was measured so far.

    Args:
        folder: of what the parts wrote.
        machines: the machine in a line, before and after.
    """
    written = [*dict.fromkeys(machines), "", "| work | peer | reached | asked for |", "|---|---|---|---|"]
    for part in PARTS:
        path = folder / f"{part.name}.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        written += [
            f"| {row.work} | {row.peer} | {'not measured' if found is None else row.reached(found)} | {row.asked} |"
            for row in part.rows
        ]
    return written


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="what was measured goes here")
    parser.add_argument("--resume", action="store_true", help="keep what is there, and measure the rest")
    parser.add_argument("--small", action="store_true", help="narrow models and few runs: tries the script out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.resume:
        for part in PARTS:
            (options.out / f"{part.name}.json").unlink(missing_ok=True)
    console, machines, failed = Console(width=WIDTH, soft_wrap=True), [machine()], []
    for part in PARTS:
        if (options.out / f"{part.name}.json").exists():
            continue
        command, start = part.command(options.out, is_small=options.small), time.monotonic()
        console.print(f"$ python {' '.join(command[1:])}", markup=False, highlight=False)
        try:
            if subprocess.run(command, check=False).returncode:
                failed.append(part.name)
        except KeyboardInterrupt:
            failed.append(f"{part.name} (stopped; --resume goes on with it)")
            break
        console.print(f"{part.name}: {(time.monotonic() - start) / 60:.1f} minutes", highlight=False)
    table = "\n".join(lines(options.out, [*machines, machine()])) + "\n"
    (options.out / "table.md").write_text(table, encoding="utf-8")
    console.print(table, markup=False, highlight=False)
    if failed:
        sys.exit(f"these parts failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
