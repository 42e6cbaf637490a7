"""Runs one study in several processes at once, kills one of them every few seconds, and compares with a quiet study.

    python -m benchmarks.sharing [--processes 4] [--kills 10] [--every-s 3]

Each process is what `tuneoff run` is, with its children in a process group of its own; a killed one (SIGKILL to the
group) is started again. Shown are the runs that were recorded, records that were written more than once (a run that was
trained twice would be), and whether every record, curve, prediction and adapter has the bits of a study that one
process ran in peace.
"""

import argparse
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

from tests.faults import harness
from tests.running.world import study_of, world

from tuneoff.files import file_sha256
from tuneoff.running import preload  # noqa: F401  # so that the processes, which are forked, need not import it
from tuneoff.running.store import EXPLAIN_FILE, RECORD_FILE, TEST_FILE
from tuneoff.study.spec import Study

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


class Crowd:
    """Processes at one study.

    Args:
        study: the study.
        place: a folder; results go to `runs` below it.
        size: how many processes.
    """

    def __init__(self, study: Study, place: Path, size: int) -> None:
        self.study, self.place = study, place
        self.alive: set[int] = set()
        self.codes: list[int] = []
        self.seen: dict[Path, str] = {}
        """Sha256 of each record when it was first seen."""
        self.rewritten: set[Path] = set()
        self.num_started = 0
        place.mkdir()
        for _ in range(size):
            self.start()

    def start(self) -> None:
        """Add a process."""
        self.num_started += 1
        self.alive.add(harness.start(self.study, self.place / "runs", self.place / f"output-{self.num_started}"))

    def look(self) -> None:
        """Take note of who ended and of records that changed."""
        for pid in list(self.alive):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.alive.remove(pid)
                self.codes.append(os.waitstatus_to_exitcode(status))
        for path in self._records():
            try:
                sha256 = file_sha256(path)
            except OSError:
                continue
            if self.seen.setdefault(path, sha256) != sha256:
                self.rewritten.add(path)

    def _records(self) -> Iterator[Path]:
        for name in (RECORD_FILE, TEST_FILE, EXPLAIN_FILE):
            yield from (self.place / "runs").glob(f"*/*/{name}")

    def kill(self, pid: int) -> None:
        """Kill one process with its children, and start another."""
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        self.alive.remove(pid)
        self.start()

    def said(self) -> str:
        """Return what the processes said."""
        return "\n".join(path.read_text() for path in sorted(self.place.glob("output-*")))


def main() -> None:
    """Run the study in peace and in a crowd, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--every-s", type=float, default=3.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TUNEOFF_CACHE"] = str(Path(folder) / "cache")
        base = world(Path(folder))
        study = study_of(base, "sharing", ARMS, **CHANGES)
        (Path(folder) / "quiet").mkdir()
        code = harness.wait_for(harness.start(study, Path(folder) / "quiet" / "runs", Path(folder) / "output"))
        assert code == 0, (Path(folder) / "output").read_text()
        wanted = harness.snapshot(Path(folder) / "quiet")
        raise SystemExit(0 if is_well(study, Path(folder), wanted, options) else 1)


def is_well(study: Study, folder: Path, wanted: dict[str, Any], options: argparse.Namespace) -> bool:
    """Run it in a crowd; print, and return whether all is well."""
    chance, start = random.Random(0), time.monotonic()
    crowd, num_killed, next_kill = Crowd(study, folder / "crowd", options.processes), 0, start + options.every_s
    while crowd.alive:
        time.sleep(POLL_S)
        crowd.look()
        if num_killed < options.kills and crowd.alive and time.monotonic() > next_kill:
            crowd.kill(chance.choice(sorted(crowd.alive)))
            num_killed += 1
            next_kill = time.monotonic() + options.every_s
    found = harness.snapshot(folder / "crowd")
    differ = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    num_records = sum(name.endswith(RECORD_FILE) for name in found)
    print(
        f"{crowd.num_started} processes, {num_killed} killed; {num_records} runs recorded, "
        f"{sum(name.endswith(RECORD_FILE) for name in wanted)} wanted; {len(crowd.rewritten)} records written twice; "
        f"{len(differ)} of {len(wanted)} files differ; exit codes {sorted(set(crowd.codes))}; "
        f"{time.monotonic() - start:.0f} s"
    )
    is_sound = not differ and not crowd.rewritten and set(crowd.codes) == {0}
    if not is_sound:
        print(*differ, *map(str, crowd.rewritten), crowd.said(), sep="\n")
    return is_sound


if __name__ == "__main__":
    main()
