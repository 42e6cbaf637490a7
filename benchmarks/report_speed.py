"""Prints what `tuneoff --help`, a plan of Llama 3 8B, and `status` and `report` of a large study take: time, memory.

Run from the repository's root: `.venv/bin/python -m benchmarks.report_speed`. The runs are made up, and written by the
store itself as real ones are: records and tests with checksums, learning curves of 200 steps, scores of 500 test items,
and of some seeds' runs at the chosen rate what was worked out of them: the change of 64 weight matrices in 16 layers,
the loss on a retention text, and three samples. By default 253 LoRA arms beside full and zero-shot, each tried at 21
rates and run on 20 seeds, of which two are explained: 10,161 runs. `--arms 66 --rates 6 --seeds 10 --explained 10` is a
study of 1,006 runs with everything explained. Each command is a process of its own, from its start to its end: `status`
and `report` first where no index of the store is there, then where one is. The time is that of the clock, and beside it
that of the processor, which other work on the machine does not stretch as much.
"""

import argparse
import json
import math
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table
from tests.report.fakes import (
    Fakes,
    make_base_explained,
    make_curve,
    make_explained,
    make_items,
    make_record,
    make_test,
    study_file,
)

from tuneoff.analysis.selection import choose_rate
from tuneoff.files import file_sha256
from tuneoff.running.index import EXPLAINED_INDEX_FILE, INDEX_FILE
from tuneoff.running.store import CURVE_FILE, ITEMS_FILE, Store
from tuneoff.study.expand import chosen_runs, trials
from tuneoff.study.identity import Run
from tuneoff.study.loading import study_from
from tuneoff.study.spec import Arm, Study

RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
LOWEST_RATE, HIGHEST_RATE = 3e-5, 1e-3
NUM_STEPS = 200
NUM_ITEMS = 500
MODULES = tuple(
    f"h.{layer}.{kind}" for layer in range(16) for kind in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
)
MEBIBYTE = 1 << 20
NUM_HELPS = 5
"""It is so short that one alone tells little; of these the median is taken."""
LAUNCHER = """
import json, os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
wall_s = time.perf_counter() - start
cpu_s = usage.ru_utime + usage.ru_stime
print(json.dumps([os.waitstatus_to_exitcode(status), wall_s, cpu_s, usage.ru_maxrss * 1024]))
"""
"""Starts a command and measures it from a process that is small itself: Linux counts to a command's peak what the
process that starts it had resident."""


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds of the clock and of the processor, and bytes of its peak of resident memory."""

    wall_s: float
    cpu_s: float
    peak_bytes: int

    def cells(self) -> tuple[str, str, str]:
        """Return what a row of the table shows."""
        return f"{self.wall_s:.2f}", f"{self.cpu_s:.2f}", f"{self.peak_bytes / MEBIBYTE:.0f}"


def large_file(num_arms: int, num_rates: int, num_seeds: int) -> dict[str, Any]:
    """Return the file of a study of zero-shot, full and `num_arms` (rounded up to whole sets of ranks) LoRA arms."""
    rates = [float(f"{rate:.3g}") for rate in np.geomspace(LOWEST_RATE, HIGHEST_RATE, num_rates)]
    dropouts = [round(0.001 * place, 3) for place in range(math.ceil(num_arms / len(RANKS)))]
    lora = {"method": "lora", "alpha": 16, "targets": ["c_attn"], "rank": list(RANKS), "dropout": dropouts}
    arms = {
        "zero-shot": {"method": "none"},
        "full": {"method": "full", "tune": {"lr": [rate / 10 for rate in rates]}},
        "lora": {**lora, "tune": {"lr": rates}},
    }
    return study_file(name="large", seeds=list(range(num_seeds)), arms=arms)


def write_runs(study: Study, store: Store, num_explained: int) -> int:
    """Write every run of a study as finished, with its test where its rate was chosen, and return how many.

    Of the first `num_explained` seeds' runs at the chosen rates it writes what was worked out of them, too.
    """
    store.create(study)
    fakes = Fakes(study, share=0.0)
    for arm in study.arms:
        own = {run.run_id: make_record(arm, run) for run in trials(study, arm)}
        tested = chosen_runs(study, arm, choose_rate(study, arm, own))
        own |= {run.run_id: make_record(arm, run) for run in tested}
        fakes.tests |= {run.run_id: make_test(study, arm, run) for run in tested}
        fakes.records |= own
        for record in own.values():
            files = _write_curve(store, arm, record.run)
            store.write_record(record.model_copy(update={"files": files}))
    for run_id, items in make_items(fakes, NUM_ITEMS).items():
        path = store.run_folder(run_id) / ITEMS_FILE
        scores = {name: values.tolist() for name, values in items.scores.items()}
        path.write_text(json.dumps({"items": items.names, "scores": scores}), encoding="utf-8")
        store.write_test(fakes.tests[run_id].model_copy(update={"files": {ITEMS_FILE: file_sha256(path)}}))
    for arm in study.arms:
        for run in chosen_runs(study, arm, choose_rate(study, arm, fakes.records))[:num_explained]:
            store.write_explained(make_explained(study, arm, run, MODULES))
    store.write_explained(make_base_explained(study))
    return len(fakes.records)


def _write_curve(store: Store, arm: Arm, run: Run) -> dict[str, str]:
    """Write the learning curve of a run that trains, and return its checksum under its name."""
    path = store.run_folder(run.run_id) / CURVE_FILE
    path.parent.mkdir(parents=True)
    if run.lr is None:
        return {}
    path.write_text("".join(json.dumps(row) + "\n" for row in make_curve(arm, run, NUM_STEPS)), encoding="utf-8")
    return {CURVE_FILE: file_sha256(path)}


def measure(*arguments: str) -> Cost:
    """Run the command line in a process of its own.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, "-m", "tuneoff.cli", *arguments]
    launched = subprocess.run([sys.executable, "-S", "-c", LAUNCHER, *command], stdout=subprocess.PIPE, check=True)
    returncode, *took = json.loads(launched.stdout)
    if returncode:
        raise RuntimeError(f"tuneoff {' '.join(arguments)} ended with {returncode}")
    return Cost(*took)


def main() -> None:
    """Make the study up, run both commands twice, and print what each took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", type=int, default=250, help="LoRA arms, rounded up to whole sets of 11 ranks")
    parser.add_argument("--rates", type=int, default=21, help="trials of each arm")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--explained", type=int, default=2, help="seeds whose runs were explained")
    parser.add_argument("--keep", type=Path, help="write the study here and leave it")
    parser.add_argument("--json", type=Path, help="write what was measured here, too")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="tuneoff-report-speed-") as scratch:
        out = options.keep or Path(scratch)
        raw = large_file(options.arms, options.rates, options.seeds)
        study = study_from(raw, Path())
        folder = out / study.name
        num_runs = write_runs(study, Store(folder), options.explained)
        file = out / "large.yaml"
        file.write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
        table = Table(
            "command",
            "seconds",
            "of the processor",
            "peak memory, MiB",
            title=f"{len(study.arms)} arms, {num_runs:,} runs",
        )
        found = {
            "--help": sorted((measure("--help") for _ in range(NUM_HELPS)), key=lambda cost: cost.wall_s)[
                NUM_HELPS // 2
            ],
            "plan dolly-llama3": measure("plan", "dolly-llama3", "--device-memory", "24GB"),
        }
        for verb in ("status", "report"):
            for name in (INDEX_FILE, EXPLAINED_INDEX_FILE):
                (folder / name).unlink(missing_ok=True)
            for reading in ("first", "again"):
                found[f"{verb}, {reading}"] = measure(verb, str(file), "--out", str(out))
        for name, cost in found.items():
            table.add_row(name, *cost.cells())
        Console().print(table)
        if options.json is not None:
            raw = {"num_runs": num_runs, "took": {name: asdict(cost) for name, cost in found.items()}}
            options.json.write_text(json.dumps(raw), encoding="utf-8")
        for path in sorted(folder.glob("report.*")):
            Console().print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
