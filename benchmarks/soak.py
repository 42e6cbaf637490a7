"""Runs small studies over and over under limits of memory and disk, and fits a line to what they take.

    python -m benchmarks.soak [--minutes 60] [--kinds commands,process] [--out soak.json] [--chart soak.svg]
    python -m benchmarks.soak --show soak.json [--chart soak.svg]

Two kinds, side by side. *commands*: `tuneoff run`, `status` and `report`, each a process, on a study in a fresh folder;
of eight rounds four are undisturbed, one is killed (SIGKILL to all its processes) and one interrupted (Ctrl-C) at a
random time, one begins on a disk that is all but full, and one may write no file of more than a few kB; then the same
command has to end well. *process*: one process that calls `tuneoff.api` for an hour (load, run, table, report, time to
go; of eight rounds one a study of two arms with two jobs, and one that is refused), where a leak would show.

Limits: RLIMIT_DATA (what a process may write to; RLIMIT_AS would count the address space that the library which draws
charts reserves and does not use) and RLIMIT_FSIZE for every process, and where this is root a tmpfs of a given size for
each kind's studies, caches and temporary files.
A quantity is flat where the line through the second half of its rounds rises by less than 1 % of its level over that
half, by the upper end of the slope's 95 % interval (least squares; Newey-West errors, as neighbouring rounds are
alike).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

from benchmarks.soak_fit import COMMANDS, PROCESS, draw, show
from benchmarks.soak_rounds import Limits, command_rounds, process_rounds
from tests.running.world import world

KINDS = (COMMANDS, PROCESS)
GIBIBYTE, MEBIBYTE = 2**30, 2**20


def main() -> None:
    """Soak, and print what came of it; exit 1 where something grew or went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="of both kinds, side by side")
    parser.add_argument("--kinds", default=",".join(KINDS), help="by comma")
    parser.add_argument("--memory-gb", type=float, default=1.5, help="RLIMIT_DATA of each process")
    parser.add_argument("--file-mb", type=float, default=8.0, help="RLIMIT_FSIZE of each process")
    parser.add_argument("--disk-mb", type=float, default=32.0, help="size of each kind's tmpfs, where this is root")
    parser.add_argument("--out", type=Path, default=Path("soak.json"), help="takes every round")
    parser.add_argument("--chart", type=Path, help="an SVG")
    parser.add_argument("--show", type=Path, help="print of an earlier soak instead")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        process_rounds(options.worker, options.minutes * 60)
        return
    if options.show:
        found = json.loads(options.show.read_text())
    else:
        found = soak(options)
        options.out.write_text(json.dumps(found) + "\n")
    is_flat = show(found)
    if options.chart:
        options.chart.write_bytes(draw(found))
    raise SystemExit(0 if is_flat else 1)


def soak(options: argparse.Namespace) -> dict[str, Any]:
    """Do the rounds of both kinds at the same time and return all of them."""
    limits = Limits(int(options.memory_gb * GIBIBYTE), int(options.file_mb * MEBIBYTE))
    kinds = [kind for kind in KINDS if kind in options.kinds.split(",")]
    found: dict[str, Any] = {"minutes": options.minutes, "memory_bytes": limits.memory_bytes}
    found |= {"file_bytes": limits.file_bytes, "disk_bytes": 0, "rounds": {kind: [] for kind in kinds}}
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        base = world(Path(folder))
        places = {kind: Path(folder) / kind for kind in kinds}
        mounted = [place for place in places.values() if _has_own_disk(place, options.disk_mb)]
        found["disk_bytes"] = int(options.disk_mb * MEBIBYTE) if len(mounted) == len(places) else 0
        try:
            workers = {}
            if PROCESS in kinds:
                workers[PROCESS] = threading.Thread(
                    target=_watch_process, args=(places[PROCESS], base, limits, options.minutes, found["rounds"])
                )
            if COMMANDS in kinds:
                workers[COMMANDS] = threading.Thread(
                    target=_watch_commands, args=(places[COMMANDS], base, limits, options.minutes, found)
                )
            for worker in workers.values():
                worker.start()
            while any(worker.is_alive() for worker in workers.values()):
                time.sleep(5.0)
                aside = options.out.with_suffix(".part")
                aside.write_text(json.dumps(found) + "\n")
                aside.replace(options.out)
        finally:
            for place in mounted:
                subprocess.run(["umount", "--lazy", str(place)], check=False)
    return found


def _has_own_disk(place: Path, size_mb: float) -> bool:
    """Make a folder with a file system of its own, of a limited size; say whether that could be had."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={int(size_mb * 1024)}k", "tmpfs", str(place)]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True, check=False).returncode == 0


def _watch_commands(place: Path, base: Path, limits: Limits, minutes: float, found: dict[str, Any]) -> None:
    for row in command_rounds(place, base, limits, minutes * 60, has_own_disk=bool(found["disk_bytes"])):
        found["rounds"][COMMANDS].append(row)
        _say(COMMANDS, row)


def _watch_process(place: Path, base: Path, limits: Limits, minutes: float, rounds: dict[str, Any]) -> None:
    """Start the process that lives long and take its rounds as it tells them."""
    (place / "world").symlink_to(base)
    command = [sys.executable, "-m", "benchmarks.soak", "--worker", str(place), "--minutes", str(minutes)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=limits.environment(place),
        preexec_fn=limits.apply,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    for line in process.stdout:
        row = json.loads(line)
        rounds[PROCESS].append(row)
        _say(PROCESS, row)
    said = process.stderr.read()
    if process.wait():
        rounds[PROCESS].append({"round": len(rounds[PROCESS]), "how": "ended", "wrong": said[-2000:]})
        print(said, flush=True)


def _say(kind: str, row: dict[str, Any]) -> None:
    if row["wrong"] or row["round"] % 50 == 0:
        print(kind, json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
