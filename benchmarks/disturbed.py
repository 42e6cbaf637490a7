"""What studies that are killed and shared are watched with, and held against an undisturbed one.

Used by `python -m benchmarks.kills` and `python -m benchmarks.sharing`.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from tests.faults import harness
from tests.running.world import body

from tuneoff.errors import StoreError
from tuneoff.files import ASIDE, file_sha256
from tuneoff.running.lease import LEASE_FILE, is_held
from tuneoff.running.store import CHECKPOINT_FOLDER, COSTS_FOLDER, EXPLAIN_FILE, RECORD_FILE, TEST_FILE

RECORDS = (RECORD_FILE, TEST_FILE, EXPLAIN_FILE)
CLOCKS = ("_s", "_per_s", "peak_bytes")
"""Ends of the keys that a report has times and resident memory under."""
MEASURED = frozenset({"costs", "solo", "predicted"})
"""Keys of what is measured or foretold of them."""
FRONTIERS = frozenset({"time", "memory"})
TOLD = re.compile(r"On the frontier|A cohort of \d+ runs .* took ")
"""How sentences begin that conclude from times and memory, or tell them."""


class Records:
    """Takes note of a study's records as they come, so that one that is written again or lost is found.

    Args:
        place: the folder that `runs` is in.
    """

    def __init__(self, place: Path) -> None:
        self.place = place
        self.seen: dict[Path, str] = {}
        """Sha256 of each when it was first seen. A record holds when it was made, so that no two are alike."""
        self.rewritten: set[Path] = set()
        self.lost: set[Path] = set()

    def look(self) -> None:
        """Look at what is there now."""
        found = {path for name in RECORDS for path in (self.place / "runs").glob(f"*/*/{name}")}
        self.lost |= self.seen.keys() - found
        for path in found:
            with suppress(StoreError):  # it has just been set aside, and the next look finds it lost
                sha256 = file_sha256(path)
                if self.seen.setdefault(path, sha256) != sha256:
                    self.rewritten.add(path)


class Sitting(Protocol):
    """A `tuneoff run`, in a process group of its own."""

    pid: int

    def code(self) -> int | None:
        """Return its exit code; none while it runs."""


class Forked:
    """One that is forked from this process, which has imported everything.

    Args:
        words: what follows `tuneoff` on the command line.
        output: a file that what it says is added to.
    """

    def __init__(self, words: list[str], output: Path) -> None:
        self.pid = os.fork()
        self._code: int | None = None
        if self.pid == 0:
            harness.run_command(words, output)

    def code(self) -> int | None:
        """Return its exit code; none while it runs."""
        if self._code is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if ended else None
        return self._code


class Command:
    """One that is started as from a shell, and imports everything itself (arguments as of `Forked`)."""

    def __init__(self, words: list[str], output: Path) -> None:
        with output.open("a") as handle:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tuneoff.cli", *words], stdout=handle, stderr=handle, start_new_session=True
            )
        self.pid = self._process.pid

    def code(self) -> int | None:
        """Return its exit code; none while it runs."""
        return self._process.poll()


def send(sitting: Sitting, number: signal.Signals) -> None:
    """Send a signal to a sitting and all its children; one that has just ended takes none."""
    with suppress(ProcessLookupError):
        os.killpg(sitting.pid, number)


def kill(sitting: Sitting) -> None:
    """Kill a sitting with all its children, and wait for its end, which children may come to a little later."""
    send(sitting, signal.SIGKILL)
    while sitting.code() is None:
        time.sleep(0.001)


def ended(sitting: Sitting) -> int:
    """Wait for a sitting, and return its exit code."""
    while (code := sitting.code()) is None:
        time.sleep(0.02)
    return code


def study_file(path: Path, name: str, arms: Mapping[str, Any], changes: Mapping[str, Any]) -> Path:
    """Write a study of the tiny world that the file lies in."""
    path.write_text(json.dumps(body(name, arms, **changes)), encoding="utf-8")  # JSON is YAML
    return path


def runs_of(place: Path) -> list[Path]:
    """Return the folders of a study's runs that somebody works on."""
    return [lease.parent for lease in (place / "runs").glob(f"*/*/{LEASE_FILE}") if is_held(lease.parent)]


def holders(place: Path) -> set[int]:
    """Return the process groups that have a run of a study at work."""
    found = set()
    for run in runs_of(place):
        with suppress(OSError, ValueError):  # it has just been let go of
            found.add(os.getpgid(json.loads((run / LEASE_FILE).read_bytes())["pid"]))
    return found


def snapshot(place: Path) -> dict[str, Any]:
    """Return what a study's runs left, but for clocks; the report and what costs were foretold or measured are not."""
    found = harness.snapshot(place)
    return {name: content for name, content in found.items() if _is_of_run(Path(name).parts)}


def _is_of_run(parts: tuple[str, ...]) -> bool:
    return len(parts) > 3 and parts[2] != COSTS_FOLDER  # runs, the study, the run, the file


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return the names of what is not the same in both."""
    return sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))


def paths_apart(one: Any, other: Any, path: str = "") -> list[str]:
    """Return where two JSON values are not the same."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        pairs = {key: (one.get(key), other.get(key)) for key in sorted({*one, *other})}
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = {str(place): pair for place, pair in enumerate(zip(one, other, strict=True))}
    else:
        return [] if one == other else [f"{path}: {one} / {other}"]
    return [line for key, pair in pairs.items() for line in paths_apart(*pair, f"{path}.{key}")]


def leftovers(place: Path) -> list[Path]:
    """Return what a kill left in the runs' folders: checkpoints, and files that did not come into their places."""
    wanted = (f"*/*/{CHECKPOINT_FOLDER}", f"*/*/.*{ASIDE}", f"*/{COSTS_FOLDER}/.*")
    return sorted(path for pattern in wanted for path in (place / "runs").glob(pattern))


def num_measured(place: Path) -> int:
    """Return how many arms' costs were measured alone."""
    return len(list((place / "runs").glob(f"*/{COSTS_FOLDER}/*.json")))


def table(path: Path, out: Path, output: Path) -> Any:
    """Return what `tuneoff report` writes as JSON, without times, memory, and what is made of them.

    Args:
        path: the study file.
        out: folder of results.
        output: a file that what it says is added to.
    """
    code = ended(Command(["report", str(path), "--out", str(out)], output))
    if code != 0:
        raise RuntimeError(f"the report ended with exit code {code}: {output.read_text()}")
    (written,) = out.glob("*/report.json")
    return without_clocks(json.loads(written.read_bytes()))


def without_clocks(value: Any) -> Any:
    """Return JSON without what is measured or foretold of time and memory, and what is concluded from that."""
    if isinstance(value, Mapping):
        return {key: without_clocks(item) for key, item in value.items() if not _is_clock(key)}
    if isinstance(value, list):
        return [without_clocks(item) for item in value if not _is_told(item)]
    return value


def _is_clock(key: str) -> bool:
    return key in MEASURED or key.startswith("predicted") or key.endswith(CLOCKS)


def _is_told(item: Any) -> bool:
    if isinstance(item, Mapping):
        return item.get("cost") in FRONTIERS
    return isinstance(item, str) and TOLD.match(item) is not None
