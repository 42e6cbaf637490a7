"""Feeds readers with changed files at a high rate; each may take one, or refuse it with a `TuneoffError`, and no more.

    python -m benchmarks.fuzz [--seconds 30] [--targets "study files,data: squad"] [--seed 0] [--keep FOLDER]
    python -m benchmarks.fuzz --replay FOLDER/FILE

Inputs are drawn by changing bytes, words, lines and JSON values of real files (`fuzz_mutate`). One that brings an
answer that was not seen before (an error's kind and words, or success) is changed further, which stands in for the
coverage that a fuzzer like atheris would follow. Readers run in a process of their own under a bound of memory, each
input under one of time. A fault is any other exception, a crash, a hang, or a bound that was passed; faults of one
place in the code count as one. Of each the first input is kept, for `--replay`.
"""

import argparse
import json
import logging
import os
import pickle
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "TUNEOFF_PLAN": "off"}

from benchmarks.fuzz_targets import Target, targets
from tests.running.world import study_of, world

from tuneoff import api
from tuneoff.errors import TuneoffError

CPU_S = 5.0
"""That one input may take: a thousand times what most take."""
MEMORY_BYTES = 2**31
"""That an input may take beside what the libraries hold."""
HANG_S = 120.0
CORPUS = 3000
LAST = "last-input"


class TooLongError(BaseException):
    """An input took longer than it may; no reader may catch it."""


@dataclass
class Found:
    """What came of one target.

    Attributes:
        name: of the target.
        executions: inputs that were read.
        seconds: that they took.
        taken: inputs that were taken.
        answers: that differ.
        faults: what happened, by the place in the code, with the input and how often.
    """

    name: str
    executions: int = 0
    seconds: float = 0.0
    taken: int = 0
    answers: int = 0
    faults: dict[str, tuple[bytes, str, int]] = field(default_factory=dict)

    def add_fault(self, where: str, content: bytes, said: str) -> None:
        """Count a fault."""
        first, text, number = self.faults.get(where, (content, said, 0))
        self.faults[where] = (first, text, number + 1)


def main() -> None:
    """Fuzz, and print what came of it; exit 1 where there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="for each target")
    parser.add_argument("--targets", help="names or their beginnings, by comma; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-faults"), help="takes the inputs of faults")
    parser.add_argument("--replay", type=Path, help="read one kept input and show the traceback")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as top:
        folder = Path(top)
        os.environ["TUNEOFF_CACHE"] = str(folder / "cache")
        if options.replay:
            name = (options.replay.parent / f"{options.replay.stem}.txt").read_text().splitlines()[0]
            prepare(folder, [name])[name].drive(options.replay.read_bytes())
            return
        found = []
        for target in prepare(folder, options.targets.split(",") if options.targets else [""]).values():
            found.append(in_process(target, folder, options.seconds, options.seed))
            show_line(found[-1])
    keep(found, options.keep)
    total = sum(one.executions for one in found)
    num_faults = sum(len(one.faults) for one in found)
    print(f"{total:,} executions, {sum(one.seconds for one in found):.0f} s, {num_faults} distinct faults")
    raise SystemExit(1 if num_faults else 0)


def prepare(folder: Path, asked: list[str]) -> dict[str, Target]:
    """Return the targets that are asked for, on a base and a finished study that are made here."""
    base, work = world(folder), folder / "work"
    work.mkdir()

    def finish() -> Path:
        arms: dict[str, Any] = {"base": {"method": "none"}, "lora": {"method": "lora", "tune": {"lr": [1e-3, 1e-2]}}}
        changes: dict[str, Any] = {"explain": {"weights": True, "samples": 2}, "seeds": [0, 1]}
        return api.run(study_of(base, "fuzz", arms, **changes), folder / "done").store.folder

    return targets(work, base, finish, asked)


def in_process(target: Target, folder: Path, seconds: float, seed: int) -> Found:
    """Fuzz a target in a process of its own; go on after a crash until its time is up."""
    answer, last = folder / "answer", folder / LAST
    whole, end = Found(target.name), time.monotonic() + seconds
    while time.monotonic() < end:
        answer.unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            _child(target, answer, last, end - time.monotonic(), seed + whole.executions)
        code = _wait(pid, end)
        found = pickle.loads(answer.read_bytes()) if answer.exists() else None
        if found is not None:
            whole.executions += found.executions
            whole.seconds += found.seconds
            whole.taken, whole.answers = whole.taken + found.taken, max(whole.answers, found.answers)
            for where, (content, said, number) in found.faults.items():
                first, text, before = whole.faults.get(where, (content, said, 0))
                whole.faults[where] = (first, text, before + number)
        if code or found is None:
            whole.executions += 1
            content = last.read_bytes() if last.exists() else b""
            whole.add_fault(f"the process ended with {code}", content, f"exit code {code}")
    return whole


def _wait(pid: int, end: float) -> int:
    """Wait for a child, kill it where it hangs, and return its exit code."""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end + HANG_S:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _child(target: Target, answer: Path, last: Path, seconds: float, seed: int) -> None:
    """Fuzz, write down what came of it, and end the process."""
    code = 1
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        logging.disable(logging.CRITICAL)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, resource.RLIM_INFINITY))
        signal.signal(signal.SIGPROF, _too_long)
        answer.write_bytes(pickle.dumps(fuzz(target, last, seconds, seed)))
        code = 0
    finally:
        os._exit(code)


def _too_long(*_: object) -> None:
    raise TooLongError(f"more than {CPU_S:g} s of the processor")


def fuzz(target: Target, last: Path, seconds: float, seed: int) -> Found:
    """Feed a target until time is up."""
    chance, found, seen = random.Random(seed), Found(target.name), Counter[str]()
    corpus = list(target.seeds.values())
    start = time.monotonic()
    for content in corpus:  # each of them has to be taken
        found.executions += 1
        answer = read(target, content, found)
        if answer != "taken":
            found.add_fault("a seed is not taken", content, answer)
    while time.monotonic() - start < seconds:
        content = target.mutate(chance.choice(corpus), corpus, chance)
        last.write_bytes(content)
        found.executions += 1
        answer = read(target, content, found)
        found.taken += answer == "taken"
        seen[answer] += 1
        if seen[answer] == 1 and len(corpus) < CORPUS:
            corpus.append(content)
    found.seconds, found.answers = time.monotonic() - start, len(seen)
    return found


def read(target: Target, content: bytes, found: Found) -> str:
    """Feed one input, and return the answer's kind: its words without names and numbers."""
    signal.setitimer(signal.ITIMER_PROF, CPU_S)
    try:
        target.drive(content)
    except TuneoffError as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        plain = re.sub(r"'[^']*'|\"[^\"]*\"|[\d.e+-]+", "", str(error))
        return f"{type(error).__name__}: {plain[:60]}"
    except BaseException as error:  # whatever it is, it is a fault
        signal.setitimer(signal.ITIMER_PROF, 0)
        where = place_of(error)
        found.add_fault(where, content, "".join(traceback.format_exception(error))[-3000:])
        return where
    signal.setitimer(signal.ITIMER_PROF, 0)
    return "taken"


def place_of(error: BaseException) -> str:
    """Return an error's kind and the last line of the package that it passed."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if "/tuneoff/" in frame.filename]
    where = f"{own[-1].filename.partition('/tuneoff/')[2]}:{own[-1].lineno}" if own else "outside"
    return f"{type(error).__name__} at {where}"


def show_line(found: Found) -> None:
    """Print a target's line of the table, and its faults below."""
    rate = found.executions / max(found.seconds, 1e-9)
    print(
        f"| {found.name} | {found.executions:,} | {rate:,.0f} | {100 * found.taken / max(1, found.executions):.0f} % "
        f"| {found.answers} | {len(found.faults)} |",
        flush=True,
    )
    for where, (_, said, number) in found.faults.items():
        print(f"    {number} x {where}: {said.strip().splitlines()[-1][:200]}", flush=True)


def keep(found: list[Found], folder: Path) -> None:
    """Write the first input of each fault, and beside it what it is."""
    for one in found:
        for number, (where, (content, said, _)) in enumerate(one.faults.items()):
            folder.mkdir(parents=True, exist_ok=True)
            stem = re.sub(r"[^\w.]+", "-", f"{one.name}-{number}")
            (folder / f"{stem}.bin").write_bytes(content)
            (folder / f"{stem}.txt").write_text(f"{one.name}\n{where}\n{json.dumps(said)}\n")


if __name__ == "__main__":
    sys.exit(main())
