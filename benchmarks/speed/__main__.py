"""Prints how fast the training loop is, and in which memory, beside the usual tools on the same work.

Run from the repository's root: `make bench`, or `.venv/bin/python -m benchmarks.speed [--case squad-lora]`. Weights are
random and GPT-2 small's shape; sequences are random tokens of SQuAD's lengths, or real ones with `--data` and
`--tokenizer`. Every measurement is a process of its own; the contenders take turns, round by round, so that what else
the machine does falls on all of them alike. Speeds are of the input tokens that are no padding, whoever pads. Ratios
are of medians over the rounds; above 1 they are in favour of this package, of memory below 1.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.cases import CASES, Case
from rich.console import Console
from rich.table import Table

OURS = "ours"
PEERS = {
    "trainer-fixed": "Trainer + PEFT, fixed length",
    "trainer-longest": "Trainer + PEFT, padded to the longest",
    "bare": "PEFT in a bare loop, padded to the longest",
    "loralib": "loralib in a bare loop, padded to the longest",
}
LARGEST_LOSS_DIFFERENCE = 0.05
"""Nats: how far final losses may lie apart. Start values, dropout and rounding differ; the work must not."""
GIGABYTE = 1e9
WIDTH = 150
"""Of the table, in characters: rows that break are hard to read in a log."""


@dataclass(frozen=True)
class Took:
    """What one measurement found.

    Attributes:
        tokens_per_s: of input tokens that are no padding, warm-up left out.
        peak_bytes: resident memory of the process.
        loss_nats: mean of the last steps.
        share: of the machine's own rate of matrix products, as far as the method needs them; none where unknown.
    """

    tokens_per_s: float
    peak_bytes: int
    loss_nats: float
    share: float


def measure(case: Case, contender: str, options: argparse.Namespace) -> Took:
    """Run one contender in a process of its own.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    command = [sys.executable, "-m", "benchmarks.speed.worker", case.name, contender, "--model", options.model]
    command += [
        "--steps",
        str(options.steps),
        "--warmup",
        str(options.warmup),
        "--threads",
        str(options.threads),
        "--precision",
        options.precision,
    ]
    if options.data is not None:
        command += ["--data", str(options.data), "--tokenizer", str(options.tokenizer)]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{contender} on {case.name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    kept = slice(found["warmup"], None)
    tokens, taken = sum(found["input_tokens"][kept]), sum(found["step_s"][kept])
    return Took(
        tokens_per_s=tokens / taken,
        peak_bytes=found["peak_bytes"],
        loss_nats=statistics.fmean(found["losses"][-3:]),
        share=sum(found["flop"][kept]) / taken / found["product_flop_per_s"],
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--case", choices=CASES, action="append", help="can be repeated; all of them by default")
    parser.add_argument("--against", choices=PEERS, action="append", help="can be repeated; all of them by default")
    parser.add_argument("--alone", action="store_true", help="beside no peer: the share of products is what is asked")
    parser.add_argument("--model", default="gpt2", help="a shape that ships with the package")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=3, help="steps that are not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--data", type=Path, help="a SQuAD file")
    parser.add_argument("--tokenizer", type=Path, help="folder of its tokenizer")
    parser.add_argument("--json", type=Path, help="write what was measured here, too")
    options = parser.parse_args()
    console = Console(width=WIDTH)
    console.print(f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads, {options.precision}")
    found = {name: compare(CASES[name], options, console) for name in options.case or CASES}
    if options.json is not None:
        options.json.write_text(json.dumps(found), encoding="utf-8")


def compare(case: Case, options: argparse.Namespace, console: Console) -> dict[str, list[dict[str, Any]]]:
    """Measure a case, all contenders in turn, print it, and return of each contender what it took in each round."""
    peers = [] if options.alone else options.against or PEERS
    peers = [peer for peer in peers if case.has_lora or peer != "loralib"]
    if case.is_supervised:
        peers = [peer for peer in peers if peer != "trainer-fixed"]  # every sequence has the full length anyhow
    took: dict[str, list[Took]] = {name: [] for name in (OURS, *peers)}
    for _ in range(options.rounds):
        for name in took:
            took[name].append(measure(case, name, options))
    table = Table("contender", "tokens/s", "spread", "ours is", "peak, GB", "ours takes", "share of products", "loss")
    table.title = f"{case.name}: batch {case.batch_size}, at most {case.max_length} tokens"
    speeds = {name: statistics.median(one.tokens_per_s for one in rounds) for name, rounds in took.items()}
    peaks = {name: statistics.median(one.peak_bytes for one in rounds) for name, rounds in took.items()}
    for name, rounds in took.items():
        values = [one.tokens_per_s for one in rounds]
        table.add_row(
            PEERS.get(name, name),
            f"{speeds[name]:,.0f}",
            f"{min(values):,.0f} to {max(values):,.0f}",
            "" if name == OURS else f"{speeds[OURS] / speeds[name]:.2f} x as fast",
            f"{peaks[name] / GIGABYTE:.2f}",
            "" if name == OURS else f"{peaks[OURS] / peaks[name]:.2f} x",
            f"{100 * statistics.median(one.share for one in rounds):.0f} %",
            f"{rounds[0].loss_nats:.3f}",
        )
    console.print(table)
    apart = [name for name in peers if abs(took[name][0].loss_nats - took[OURS][0].loss_nats) > LARGEST_LOSS_DIFFERENCE]
    if apart:
        console.print(
            f"[bold]final losses differ by more than {LARGEST_LOSS_DIFFERENCE} nats: {', '.join(apart)}[/bold]"
        )
    return {name: [asdict(one) for one in rounds] for name, rounds in took.items()}


if __name__ == "__main__":
    main()
