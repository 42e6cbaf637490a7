"""Measures how the cost of training grows: with length, batch, rank, arms and data; charts it, and writes the figures.

Run from the repository's root: `.venv/bin/python -m benchmarks.growth [--small] [--axis length] [--out FOLDER]`. Every
measurement is a process of its own; they take turns, round by round, so that what else the machine does falls on all of
them alike. Figures are medians over the rounds with the lowest and the highest. On the charts both scales are
logarithmic, so that a power law is a straight line; the slope of the least-squares line is its exponent: 1 is in
proportion, 2 is quadratic.

length, batch and rank train random text under LoRA on a shape of GPT-2 with random weights, ours beside Trainer +
PEFT. arms is `tuneoff run` from its start to its end on the embedded base, a few steps an arm. data prepares rows,
scores an eighth as many and takes a first step, on the embedded base. `--small` takes a smaller shape and fewer points:
about ten minutes on 2 cores.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measuring import (
    NAMES,
    OURS,
    ROOT,
    TRAINER,
    Found,
    Request,
    command_json,
    environment_of,
    in_turn,
    with_case,
)
from benchmarks.speed.cases import Case

TEXT = Case("growth", 128, 4, 8, True, 0.1)
FULL = {
    "length": (64, 128, 256, 512, 1024),
    "batch": (1, 2, 4, 8, 16),
    "rank": (1, 4, 16, 64, 256),
    "arms": (1, 2, 4, 8),
    "data": (100, 1_000, 10_000),
}
SMALL = {
    "length": (64, 256, 1024),
    "batch": (1, 4, 16),
    "rank": (1, 16, 256),
    "arms": (1, 2, 4, 8),
    "data": (100, 1_000, 4_000),
}
TITLES = {
    "length": "tokens of a sequence",
    "batch": "sequences of a step",
    "rank": "rank of LoRA",
    "arms": "arms of the study",
    "data": "rows of training data",
}
ARM_STEPS = 4
ARM_RANKS = (1, 2, 3, 4, 6, 8, 12, 16)


@dataclass(frozen=True)
class Figure:
    """One point of a curve.

    Attributes:
        axis, value: what grows, and how large it is.
        contender: who did the work.
        measure: what was measured, with its unit.
        median, low, high: over the rounds.
        rounds: how often it was measured.
    """

    axis: str
    value: int
    contender: str
    measure: str
    median: float
    low: float
    high: float
    rounds: int


def figure(axis: str, value: int, contender: str, measure: str, values: Sequence[float]) -> Figure:
    """Return the figure of several rounds."""
    return Figure(axis, value, contender, measure, statistics.median(values), min(values), max(values), len(values))


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the least-squares line through the logarithms of (x, y)."""
    across, up = ([math.log(pair[place]) for pair in points] for place in (0, 1))
    return statistics.linear_regression(across, up).slope


def training_requests(axis: str, values: Sequence[int], options: argparse.Namespace) -> dict[tuple[int, str], Request]:
    """Return what is trained along an axis, by value and contender."""
    field = {"length": "max_length", "batch": "batch_size", "rank": "rank"}[axis]
    case = replace(TEXT, batch_size=2) if options.small else TEXT
    plain = Request(
        case, model=options.model, steps=options.steps, warmup=1, threads=options.threads, precision=options.precision
    )
    return {
        (value, contender): with_case(replace(plain, contender=contender), **{field: value})
        for value in values
        for contender in (OURS, TRAINER)
    }


def train_along(axis: str, values: Sequence[int], options: argparse.Namespace) -> list[Figure]:
    """Train along an axis and return the figures."""
    requests = training_requests(axis, values, options)
    named = {f"{axis} {value}, {NAMES[who]}": request for (value, who), request in requests.items()}
    found = in_turn(named, options.rounds, lambda name, one: said(name, one.step_s))
    measures: dict[str, Callable[[Found], float]] = {
        "seconds a step": lambda one: one.step_s,
        "peak memory, MB": lambda one: one.peak_bytes / 1e6,
        "microseconds a token": lambda one: 1e6 / one.tokens_per_s,
    }
    return [
        figure(axis, value, NAMES[who], measure, [of(one) for one in rounds])
        for (value, who), rounds in zip(requests, found.values(), strict=True)
        for measure, of in measures.items()
        if rounds
    ]


def said(name: str, seconds: float) -> None:
    """Say how far it is."""
    print(f"{name}: {seconds:.3f} s", flush=True)


def run_study(num_arms: int, options: argparse.Namespace) -> float:
    """Return how long `tuneoff run` takes for a study of so many LoRA arms, from its start to its end."""
    arms = {f"r{rank}": {"method": "lora", "rank": rank, "lr": 1e-3} for rank in ARM_RANKS[:num_arms]}
    body = {
        "name": "arms", "model": "demo", "seeds": [0], "arms": arms, "evaluate": {"every": ARM_STEPS},
        "task": {"kind": "instruction", "data": "demo", "max_length": 64},
        "budget": {"steps": ARM_STEPS, "batch_size": 8}, "explain": {"weights": False, "samples": 0},
    }  # fmt: skip
    with TemporaryDirectory(prefix="tuneoff-growth-") as folder:
        study = Path(folder) / "arms.yaml"
        study.write_text(json.dumps(body), encoding="utf-8")  # JSON is YAML
        command = [sys.executable, "-m", "tuneoff.cli", "run", str(study), "--out", str(Path(folder) / "runs")]
        environment = environment_of("cpu", options.threads)
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        taken = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return taken


def run_along(axis: str, values: Sequence[int], options: argparse.Namespace) -> list[Figure]:
    """Run studies of more and more arms and return the figures."""
    taken: dict[int, list[float]] = {value: [] for value in values}
    for _ in range(options.rounds):
        for value, seconds in taken.items():
            seconds.append(run_study(value, options))
            said(f"{axis} {value}", seconds[-1])
    return [
        figure(axis, value, NAMES[OURS], measure, [one / share for one in seconds])
        for value, seconds in taken.items()
        for measure, share in (("seconds of the study", 1), ("seconds an arm", value))
    ]


def read_along(axis: str, values: Sequence[int], options: argparse.Namespace) -> list[Figure]:
    """Prepare and score more and more rows and return the figures."""
    found: dict[tuple[int, str], list[dict[str, float]]] = {
        (value, contender): [] for value in values for contender in (OURS, TRAINER)
    }
    for _ in range(options.rounds):
        for (value, contender), rounds in found.items():
            command = [sys.executable, "-m", "benchmarks.growth_data", str(value), contender]
            rounds.append(command_json(command, environment_of("cpu", options.threads)))
            said(f"{axis} {value}, {NAMES[contender]}", sum(rounds[-1].values()))
    return [
        figure(axis, value, NAMES[who], measure, [one[measure] for one in rounds])
        for (value, who), rounds in found.items()
        for measure in rounds[0]
    ]


AXES: dict[str, Callable[[str, Sequence[int], argparse.Namespace], list[Figure]]] = {
    "length": train_along,
    "batch": train_along,
    "rank": train_along,
    "arms": run_along,
    "data": read_along,
}


def exponents(figures: Sequence[Figure]) -> dict[tuple[str, str], float]:
    """Return the fitted exponent of every curve, by measure and contender."""
    curves: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for one in figures:
        curves.setdefault((one.measure, one.contender), []).append((one.value, one.median))
    return {key: exponent(points) for key, points in curves.items() if len(points) > 1}


def main() -> None:
    """Measure, draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axis", choices=AXES, action="append", help="can be repeated; all of them by default")
    parser.add_argument("--small", action="store_true", help="about ten minutes on 2 cores")
    parser.add_argument("--model", help="a shape of benchmarks/speed/cases.py or of the package")
    parser.add_argument("--steps", type=int, help="of a training measurement, the first of which is left out")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--points", type=int, help="of an axis, the first so many; all by default")
    parser.add_argument("--out", type=Path, default=Path("runs/growth"), help="folder for figures and charts")
    parser.add_argument("--draw", action="store_true", help="draw again what the folder holds, and measure nothing")
    options = parser.parse_args()
    options.model = options.model or ("small-gpt2" if options.small else "gpt2")
    options.steps = options.steps or (4 if options.small else 6)
    options.rounds = options.rounds or (2 if options.small else 3)
    from benchmarks.growth_charts import draw  # here, as every measurement's process imports this module

    options.out.mkdir(parents=True, exist_ok=True)
    for axis in options.axis or AXES:
        path = options.out / f"growth-{axis}.json"
        if not options.draw:
            values = (SMALL if options.small else FULL)[axis][: options.points]
            figures = AXES[axis](axis, values, options)
            path.write_text(written(figures, options), encoding="utf-8")
        elif not path.exists():
            parser.error(f"--draw: there is no {path}. Measure it first: leave --draw out.")
        figures = [Figure(**one) for one in json.loads(path.read_text(encoding="utf-8"))["figures"]]
        slopes = exponents(figures)
        for (measure, contender), slope in slopes.items():
            print(f"{axis}: {measure}, {contender}: grows with the power {slope:.2f}")
        for form, content in draw([asdict(one) for one in figures], TITLES[axis], slopes).items():
            (options.out / f"growth-{axis}.{form}").write_bytes(content)


def written(figures: Sequence[Figure], options: argparse.Namespace) -> str:
    """Return the figures as JSON, with what they depend on."""
    made: dict[str, Any] = {
        name: getattr(options, name) for name in ("model", "steps", "rounds", "threads", "precision")
    }
    return json.dumps(made | {"figures": [asdict(one) for one in figures]}, indent=1) + "\n"


if __name__ == "__main__":
    main()
