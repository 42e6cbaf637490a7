"""Prints predicted beside measured time: of a training step, of scoring, of generation, over methods and shapes.

Run from the repository's root: `.venv/bin/python -m benchmarks.plan_time [--small | --only WORDS ...] [--rounds N]
[--threads N] [--clock wall|cpu] [--json FILE]`. Predicted is what `tuneoff.planning` says of a trace without weights
and a calibration of this machine; measured is the same phase on random weights, once warm (`benchmarks.memory` builds
it).

Each case has a process of its own, in which a round measures, calibrates anew and measures again, so that other work on
the machine falls on both alike; the ratio is of the calibrated time to the mean of the two. Several rounds give the
median. `--clock cpu` takes the processor's time of one thread, for a machine that is busy.

It ends with 1 where fewer than 20 of 24 cases lie within 25 %.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.memory import ROOT, build, predict
from benchmarks.plan_cases import CASES, PlanCase, chosen
from rich.console import Console
from rich.table import Table

LARGEST_ERROR = 0.25
NEEDED_SHARE = 20 / 24
LIMIT_S = 3600
BUDGET_S = {"wall": 30.0, "cpu": 60.0}
"""Seconds that timing one case's operations may take: the plan of one arm may take less, of a study about as much."""


@dataclass(frozen=True)
class Times:
    """What came out of one case.

    Attributes:
        ratios: predicted over measured, of each round.
        predicted_s, measured_s: of each round.
        calibration_s: that measuring took in a round.
    """

    ratios: tuple[float, ...]
    predicted_s: tuple[float, ...]
    measured_s: tuple[float, ...]
    calibration_s: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """The median of the rounds."""
        return statistics.median(self.ratios)

    @property
    def is_within(self) -> bool:
        """Whether it is off by at most what is allowed."""
        return abs(self.ratio - 1) <= LARGEST_ERROR


def measure(case: PlanCase, rounds: int, threads: int, clock_name: str) -> Times:
    """Predict and measure one case in turn, in this process."""
    import tempfile

    import torch

    from tuneoff.planning.calibration import Calibration, measure_rates, this_machine

    clock = time.process_time if clock_name == "cpu" else time.perf_counter
    with tempfile.TemporaryDirectory() as name:
        phase = build(case, Path(name))
        trace = predict(case, Path(name))
    torch.set_num_threads(threads)
    times = num_traced(case, trace)

    def taken() -> float:
        start = clock()
        phase()
        return clock() - start

    taken()  # warm
    found: dict[str, list[float]] = {name: [] for name in ("ratios", "predicted_s", "measured_s", "calibration_s")}
    before = taken()
    for _ in range(rounds):
        start = clock()
        budget_s = BUDGET_S[clock_name]
        calibration = Calibration(this_machine(), measure_rates(False, clock), {}, budget_s, None, clock)
        predicted = times * calibration.seconds(trace.work())
        found["calibration_s"].append(clock() - start)
        after = taken()
        measured = (before + after) / 2
        before = after
        found["predicted_s"].append(predicted)
        found["measured_s"].append(measured)
        found["ratios"].append(predicted / measured)
    return Times(**{name: tuple(values) for name, values in found.items()})


def num_traced(case: PlanCase, trace: Any) -> float:
    """Return how many times what was traced the measured phase is: of scoring by tokens, else once."""
    from tuneoff.evaluation.likelihood import EVALUATION_TOKENS

    if case.phase != "evaluate":
        return 1.0
    return math.ceil(EVALUATION_TOKENS / case.length) * case.length / trace.num_tokens


def run_case(case: PlanCase, rounds: int, threads: int, clock: str) -> Times:
    """Predict and measure one case in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    options = ["--rounds", str(rounds), "--threads", str(threads), "--clock", clock]
    command = [sys.executable, "-m", "benchmarks.plan_time", "--measure", json.dumps(asdict(case)), *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=LIMIT_S)
    if done.returncode:
        raise RuntimeError(f"{case.name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    body = json.loads(done.stdout.strip().splitlines()[-1])
    return Times(**{name: tuple(values) for name, values in body.items()})


def table(found: dict[str, Times], clock: str) -> Table:
    """Return what came out, a case a row."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("case")
    for name in (f"predicted, s ({clock})", "measured, s", "ratio", "of rounds", "calibration, s", ""):
        shown.add_column(name, justify="right")
    for name, times in found.items():
        shown.add_row(
            name,
            f"{statistics.median(times.predicted_s):.3g}",
            f"{statistics.median(times.measured_s):.3g}",
            f"{times.ratio:.2f}",
            f"{min(times.ratios):.2f} to {max(times.ratios):.2f}",
            f"{statistics.median(times.calibration_s):.1f}",
            "" if times.is_within else "off",
        )
    return shown


def main() -> int:
    """Measure what is asked for and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the demo base's cases alone: minutes")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="cases that have all these words")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 is all, with --clock cpu one")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = parser.parse_args()
    threads = 1 if given.clock == "cpu" else given.threads or len(os.sched_getaffinity(0))
    if given.measure:
        print(json.dumps(asdict(measure(PlanCase(**json.loads(given.measure)), given.rounds, threads, given.clock))))
        return 0
    console, found = Console(), {}
    for case in chosen(CASES, given.only, is_small=given.small):
        found[case.name] = run_case(case, given.rounds, threads, given.clock)
        print(f"{case.name}: {found[case.name].ratio:.2f}", file=sys.stderr, flush=True)
        if given.json is not None:
            given.json.write_text(json.dumps({name: asdict(times) for name, times in found.items()}, indent=1))
    console.print(table(found, given.clock))
    num_within = sum(times.is_within for times in found.values())
    console.print(f"within {LARGEST_ERROR:.0%}: {num_within} of {len(found)}, {threads} threads")
    return 0 if num_within >= math.floor(NEEDED_SHARE * len(found)) else 1


if __name__ == "__main__":
    sys.exit(main())
