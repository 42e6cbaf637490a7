"""Runs one study in several processes at once, kills one of them every few seconds, and compares with a quiet study.

    python -m benchmarks.sharing [--processes 4] [--kills 10] [--every-s 3] [--cohort N]
    python -m benchmarks.sharing --command-line --kills 20 --every-s 8 --steps 300

Each process is `tuneoff run`, with its children in a process group of its own; a killed one (SIGKILL to the group) is
started again. They are forked from a process that has imported everything, or with `--command-line` started as from a
shell; no plan is kept (TUNEOFF_PLAN=off), as it takes long. Three kills of four take a process that has a run at work,
the others any. Shown are the runs that were recorded, records that were written more than once (a run that was trained
twice would be), whether every record, curve, prediction and adapter has the bits of a study that one process ran in
peace, and whether `tuneoff report` writes the same table, times and memory aside.
"""

import argparse
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "TUNEOFF_PLAN": "off"}

from benchmarks.disturbed import (
    Command,
    Forked,
    Records,
    Sitting,
    differences,
    ended,
    holders,
    kill,
    leftovers,
    paths_apart,
    snapshot,
    study_file,
    table,
)
from tests.running.world import world

from tuneoff.report import write as write
from tuneoff.running import preload as preload  # with the line before: so that processes that are forked need not
from tuneoff.running.store import RECORD_FILE

NAME = "sharing"
ARMS: dict[str, Any] = {
    "lora": {"method": "lora", "rank": [2, 4], "dropout": 0.1, "lr": 1e-2},
    "full": {"method": "full", "lr": 1e-3},
}
CHANGES: dict[str, Any] = {
    "budget": {"steps": 24, "batch_size": 4},
    "seeds": [0, 1],
    "evaluate": {"every": 8},
    "checkpoint": {"every": 4},
}
POLL_S = 0.02
WORKER_SHARE = 3 / 4
"""Share of kills that take a process with a run at work, where there is one."""


class Crowd:
    """Processes at one study.

    Args:
        path: of the study file.
        place: a folder; results go to `runs` below it.
        options: how many processes, how they are started, and runs of a pass at most.
    """

    def __init__(self, path: Path, place: Path, options: argparse.Namespace) -> None:
        self.place = place
        self.words = words_of(path, place, options)
        self.way: type[Command] | type[Forked] = Command if options.command_line else Forked
        self.alive: list[Sitting] = []
        self.codes: list[int] = []
        self.records = Records(place)
        self.num_started = self.num_kills = self.num_kills_at_work = 0
        place.mkdir()
        for _ in range(options.processes):
            self.start()

    def start(self) -> None:
        """Add a process."""
        self.num_started += 1
        self.alive.append(self.way(self.words, self.place / f"output-{self.num_started}"))

    def look(self) -> None:
        """Take note of who ended and of records that changed."""
        for sitting in list(self.alive):
            code = sitting.code()
            if code is not None:
                self.alive.remove(sitting)
                self.codes.append(code)
        self.records.look()

    def kill(self, chance: random.Random) -> None:
        """Kill one process with its children, and start another."""
        groups = holders(self.place)
        at_work = [sitting for sitting in self.alive if sitting.pid in groups]
        among = at_work if at_work and chance.random() < WORKER_SHARE else self.alive
        sitting = chance.choice(among)
        self.num_kills += 1
        self.num_kills_at_work += sitting in at_work
        kill(sitting)
        self.alive.remove(sitting)
        self.start()

    def said(self) -> str:
        """Return what the processes said."""
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.place.glob("output-*")))


def words_of(path: Path, place: Path, options: argparse.Namespace) -> list[str]:
    """Return what follows `tuneoff` on the command line."""
    return ["run", str(path), "--out", str(place / "runs"), "--cohort", str(options.cohort)]


def main() -> None:
    """Run the study in peace and in a crowd, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--every-s", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=CHANGES["budget"]["steps"], help="of each run")
    parser.add_argument("--cohort", default="off", help="LoRA runs of one pass at most")
    parser.add_argument("--command-line", action="store_true", help="start each process as from a shell")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TUNEOFF_CACHE"] = str(folder / "cache")
        changes = CHANGES | {"budget": CHANGES["budget"] | {"steps": options.steps}}
        path = study_file(world(folder) / f"{NAME}.yaml", NAME, ARMS, changes)
        quiet = folder / "quiet"
        quiet.mkdir()
        code = ended(Forked(words_of(path, quiet, options), folder / "output"))
        assert code == 0, (folder / "output").read_text()
        raise SystemExit(0 if is_well(path, folder, options) else 1)


def is_well(path: Path, folder: Path, options: argparse.Namespace) -> bool:
    """Run it in a crowd; print, and return whether all is well."""
    chance, start, wanted = random.Random(0), time.monotonic(), snapshot(folder / "quiet")
    crowd, next_kill = Crowd(path, folder / "crowd", options), start + options.every_s
    while crowd.alive:
        time.sleep(POLL_S)
        crowd.look()
        if crowd.num_kills < options.kills and crowd.alive and time.monotonic() > next_kill:
            crowd.kill(chance)
            next_kill = time.monotonic() + options.every_s
    taken_s, found = time.monotonic() - start, snapshot(folder / "crowd")
    differ, records = differences(found, wanted), crowd.records
    apart = paths_apart(
        *(table(path, folder / name / "runs", folder / f"report-{name}") for name in ("quiet", "crowd"))
    )
    print(
        f"{crowd.num_started} processes, {crowd.num_kills} killed, {crowd.num_kills_at_work} of them with a run at "
        f"work; {sum(name.endswith(RECORD_FILE) for name in found)} runs recorded, "
        f"{sum(name.endswith(RECORD_FILE) for name in wanted)} wanted; {len(records.rewritten)} records written "
        f"twice, {len(records.lost)} lost; {len(differ)} of {len(wanted)} files differ; the table "
        f"{'DIFFERS' if apart else 'is the same'}; exit codes {sorted(set(crowd.codes))}; "
        f"{taken_s:.0f} s"
    )
    left = leftovers(folder / "crowd")
    is_sound = not (differ or records.rewritten or records.lost or left) and set(crowd.codes) == {0}
    print(*apart, sep="\n", end="\n" if apart else "")
    if not is_sound or "Traceback" in crowd.said():
        print(*differ, *map(str, {*records.rewritten, *records.lost, *left}), crowd.said(), sep="\n")
    return is_sound and not apart and "Traceback" not in crowd.said()


if __name__ == "__main__":
    main()
