"""The rounds of `benchmarks.soak`: what is run, how it is disturbed, and what is read of its processes."""

import contextlib
import gc
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

STUDY = """
name: soak
model: {world}/base
task: {{kind: instruction, data: {world}/rows.jsonl, max_length: 48, template: "{{instruction}}:"}}
budget: {{steps: 6, batch_size: 4}}
seeds: [0]
evaluate: {{every: 2}}
checkpoint: {{every: 2}}
explain: {{weights: {weights}, samples: {samples}}}
solo_costs: false
arms:
  lora: {{method: lora, rank: 4, dropout: 0.1, lr: {lr}}}
"""
MAIN = "import sys; sys.argv[0] = 'tuneoff'; from tuneoff.cli import main; main()"
SECOND_ARM = "  full: {method: full, lr: 1e-3}\n"
HOW = ("plain", "killed", "plain", "interrupted", "plain", "full disk", "plain", "short files")
"""What is done to a round of commands, in turn."""
SHORT_FILE_BYTES = 6000
ROOM_BYTES = 24 * 1024
"""Left on the disk that is all but full."""
LOOK_S = 0.1
GRACE_S = 60.0
"""In which the processes that a command started have to end after it."""
TIMEOUT_S = 900.0
INTERRUPTED = 130


@dataclass(frozen=True)
class Limits:
    """What each process may take at most."""

    memory_bytes: int
    file_bytes: int

    def apply(self) -> None:
        """Limit this process and all that it starts."""
        resource.setrlimit(resource.RLIMIT_DATA, (self.memory_bytes,) * 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_bytes,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def environment(self, place: Path) -> dict[str, str]:
        """Return the environment of a process whose temporary files and caches are below a folder."""
        (place / "tmp").mkdir(exist_ok=True)
        source = str(Path(__file__).resolve().parent.parent / "src")
        path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        return os.environ | {"TMPDIR": str(place / "tmp"), "TUNEOFF_CACHE": str(place / "cache"), "PYTHONPATH": path}


@dataclass
class Peaks:
    """The most that a command and its processes took: bytes of resident memory, and open files."""

    own_bytes: int = 0
    other_bytes: int = 0
    """Of the largest process that it started."""
    all_bytes: int = 0
    """Of all together, pages that they share counted by each."""
    own_files: int = 0
    all_files: int = 0
    seen: set[int] = field(default_factory=set)

    def look(self, pid: int) -> None:
        """Look at a process and at those below it."""
        with contextlib.suppress(psutil.Error):
            own = psutil.Process(pid)
            others = own.children(recursive=True)
            self.seen |= {one.pid for one in others}
            bytes_of = [_resident(one) for one in (own, *others)]
            files = [_num_files(one) for one in (own, *others)]
            self.own_bytes, self.own_files = max(self.own_bytes, bytes_of[0]), max(self.own_files, files[0])
            self.other_bytes = max(self.other_bytes, *bytes_of[1:], 0)
            self.all_bytes, self.all_files = max(self.all_bytes, sum(bytes_of)), max(self.all_files, sum(files))

    def num_left(self) -> int:
        """Return how many of the processes are still there after a while."""
        end = time.monotonic() + GRACE_S
        while True:
            left = sum(_is_alive(pid) for pid in self.seen)
            if not left or time.monotonic() > end:
                return left
            time.sleep(LOOK_S)


def _resident(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return int(process.memory_info().rss)
    return 0


def _num_files(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error, OSError):
        return int(process.num_fds())
    return 0


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def bytes_below(folder: Path) -> int:
    """Return the size of all files below a folder."""
    found = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            found += path.lstat().st_size if path.is_file() else 0
    return found


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    said: str
    seconds: float


def command(
    arguments: list[str], place: Path, limits: Limits, peaks: Peaks, after_s: float | None = None, number: int = 0
) -> Ended:
    """Run `tuneoff` under limits and look at its processes until it ends; signal it after a time, if one is given."""
    start = time.monotonic()
    output = place / "tmp" / "said"
    environment = limits.environment(place)
    with output.open("w+") as said:
        process = subprocess.Popen(
            [sys.executable, "-c", MAIN, *arguments], stdout=said, stderr=said, env=environment,
            preexec_fn=limits.apply, start_new_session=True, cwd=place,
        )  # fmt: skip
        while process.poll() is None:
            peaks.look(process.pid)
            taken = time.monotonic() - start
            if after_s is not None and taken > after_s:
                after_s = None
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number) if number == signal.SIGKILL else process.send_signal(number)
            if taken > TIMEOUT_S:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(LOOK_S)
        said.seek(0)
        text = said.read()
    output.unlink()
    return Ended(process.returncode, text, time.monotonic() - start)


def command_rounds(
    place: Path, base: Path, limits: Limits, seconds: float, *, has_own_disk: bool
) -> Iterator[dict[str, Any]]:
    """Do rounds of commands until time is up, and yield what each took and what was wrong of it.

    Args:
        place: a folder; each round's study lies below it, alone.
        base: of `tests.running.world`.
        limits: of each process.
        seconds: how long.
        has_own_disk: whether the folder is a small file system, which can be filled up.
    """
    chance, end, number, usual_s = random.Random(0), time.monotonic() + seconds, 0, 10.0
    (place / "study.yaml").write_text(STUDY.format(world=base, weights="true", samples=2, lr="1e-2") + SECOND_ARM)
    while time.monotonic() < end:
        how = HOW[number % len(HOW)]
        how = "plain" if how == "full disk" and not has_own_disk else how
        out = place / f"round-{number}"
        peaks, wrong = Peaks(), []
        run = ["run", "study.yaml", "--out", out.name]
        if how != "plain":
            wrong += _disturbed(how, run, place, limits, peaks, chance.uniform(0.1, 1.0) * usual_s)
        done = command(run, place, limits, peaks)
        wrong += _not_well("run", done)
        usual_s = done.seconds if how == "plain" else usual_s
        for verb in ("status", "report"):
            wrong += _not_well(verb, command([verb, "study.yaml", "--out", out.name], place, limits, peaks))
        yield {
            "round": number,
            "how": how,
            "seconds": done.seconds,
            "own_bytes": peaks.own_bytes,
            "other_bytes": peaks.other_bytes,
            "all_bytes": peaks.all_bytes,
            "own_files": peaks.own_files,
            "all_files": peaks.all_files,
            "store_bytes": bytes_below(out),
            "cache_bytes": bytes_below(place / "cache"),
            "temporary_files": sum(1 for _ in (place / "tmp").rglob("*")),
            "left_processes": peaks.num_left(),
            "wrong": "; ".join(wrong),
        }
        shutil.rmtree(out)
        number += 1


def _disturbed(how: str, run: list[str], place: Path, limits: Limits, peaks: Peaks, after_s: float) -> list[str]:
    """Do a command that comes to a bad end, and return what is wrong of how it does."""
    if how in ("killed", "interrupted"):
        number = signal.SIGKILL if how == "killed" else signal.SIGINT
        ended = command(run, place, limits, peaks, after_s, number)
        allowed = (0, -signal.SIGKILL) if how == "killed" else (0, INTERRUPTED, -signal.SIGINT)
    elif how == "full disk":
        filler = place / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(place).free - ROOM_BYTES))
        ended = command(run, place, limits, peaks)
        filler.unlink()
        allowed = (1, 2)
    else:
        ended = command(run, place, Limits(limits.memory_bytes, SHORT_FILE_BYTES), peaks)
        allowed = (1, 2)
    wrong = [] if ended.code in allowed else [f"{how}: exit code {ended.code}: {ended.said[-800:]}"]
    # Ctrl-C while Python itself starts is Python's to tell
    is_early = how == "interrupted" and ended.code in (1, INTERRUPTED, -signal.SIGINT) and "error" not in ended.said
    return wrong + ([f"{how}: {ended.said[-800:]}"] if "Traceback" in ended.said and not is_early else [])


def _not_well(verb: str, ended: Ended) -> list[str]:
    is_well = ended.code == 0 and "Traceback" not in ended.said
    return [] if is_well else [f"{verb}: exit code {ended.code}: {ended.said[-800:]}"]


def process_rounds(place: Path, seconds: float) -> None:
    """Call the Python interface until time is up, in this process, and print what it holds after each round."""
    from tuneoff import api
    from tuneoff.errors import TuneoffError

    base = (place / "world").resolve()
    (place / "bad.jsonl").write_text('{"instruction": "a", "response": "b"}\n{"instruction": 3}\n')
    out, end, number = place / "runs", time.monotonic() + seconds, 0
    quiet = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for the life of the process
    while time.monotonic() < end:
        how = {3: "two arms", 7: "refused"}.get(number % 8, "plain")
        text = STUDY.format(world=base, weights="false", samples=0, lr=f"{1e-2 * (1 + number % 5)}")
        text = text + SECOND_ARM if how == "two arms" else text
        text = text.replace(f"{base}/rows.jsonl", f"{place}/bad.jsonl") if how == "refused" else text
        (place / "study.yaml").write_text(text)
        wrong, start = "", time.monotonic()
        try:
            with contextlib.redirect_stdout(quiet):
                result = api.run(api.load(place / "study.yaml"), out, num_jobs=2 if how == "two arms" else 1)
                result.table()
                result.report()
                result.time_to_go()
            wrong = "" if how != "refused" and not result.failed else f"{how}: {result.failed}"
        except TuneoffError as error:
            wrong = "" if how == "refused" else f"{how}: {error}"
        print(json.dumps({"round": number, "how": how, "seconds": time.monotonic() - start, **_held(out, place)}
                         | {"wrong": wrong}), flush=True)  # fmt: skip
        shutil.rmtree(out, ignore_errors=True)
        number += 1


def _held(out: Path, place: Path) -> dict[str, int]:
    """Return what this process, and what it started, hold between two rounds."""
    gc.collect()
    own = psutil.Process()
    others = own.children(recursive=True)
    return {
        "own_bytes": _resident(own),
        "other_bytes": max(map(_resident, others), default=0),
        "own_files": _num_files(own),
        "all_files": sum(map(_num_files, (own, *others))),
        "threads": own.num_threads(),
        "objects": len(gc.get_objects()),
        "left_processes": len(others),
        "store_bytes": bytes_below(out),
        "cache_bytes": bytes_below(place / "cache"),
        "temporary_files": sum(1 for _ in (place / "tmp").rglob("*")),
    }
