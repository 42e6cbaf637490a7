"""Hits every file operation of a command with every fault, gives the same command again, and compares the bits.

    python -m benchmarks.faults [--study one|cohort|report] [--actions EIO,power] [--jobs 2] [--json FILE]

For each fault (a full disk, errors of reading and writing, no permission, death at any operation, power cuts) and for
n = 1 until none is left: the n-th operation is hit, then the same command is given undisturbed, and every record,
curve, prediction and adapter is held against those of a study that nothing disturbed, bit by bit but for clocks. `one`
is a study of one run, `cohort` one of two runs in one pass in bf16, `report` is `tuneoff report` on the latter, whose
files must be those of before or the new ones after every fault. How faults are made, and what they cannot reach, stands
in `tests/faults/injector.py`; what is not done again for each case, in `tests/faults/judging.py`.

With `--json` each case is a line of a file, and a sweep that was broken off goes on from there; what was wrong is tried
again.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "TUNEOFF_PLAN": "off",  # it measures the machine for seconds, which no case is to wait for
}

from tests.faults import harness, judging
from tests.faults.judging import Ground, Verdict
from tests.running.world import world

from tuneoff.report import console, tables, write  # noqa: F401  # so that each attempt, which is forked,
from tuneoff.running import preload, reading  # noqa: F401  # need not import them
from tuneoff.study.loading import study_from

COHORT = 2
ENDS = ("error", "failed run", "went on", "killed")
ORDER = ("ENOSPC", "full", "power", "die", "power-names", "EIO", "EACCES")
SAID_CHARACTERS = 300


@dataclass
class Cases:
    """What is to be hit, shared out between processes, and what came of it.

    Args:
        options: of the command line.
        file: takes a line for each case.
    """

    options: argparse.Namespace
    file: Path
    done: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    """By fault and operation, the last that was seen of each."""

    def __post_init__(self) -> None:
        self.actions = self.options.actions.split(",")
        self.end = time.monotonic() + self.options.limit_s
        self.steps = dict.fromkeys(self.actions, self.options.every)
        self.starts = dict.fromkeys(self.actions, self.options.start)
        self._lock = multiprocessing.Lock()
        self._next = multiprocessing.Array("l", [0, 0])  # which fault, and how many of its operations were given out
        self.read()

    def spread(self, ground: Ground) -> None:
        """Hit a few operations of each fault only, spread evenly."""
        for action in self.actions:
            self.steps[action] = max(1, ground.num_operations(action) // self.options.points)
            self.starts[action] = self.steps[action] // 2 + 1

    def read(self) -> None:
        """Read what is done."""
        for line in self.file.read_text().splitlines() if self.file.exists() else ():
            case = json.loads(line)
            if case["study"] == self.options.study:
                self.done[case["action"], case["at"]] = case

    def take(self) -> Iterator[tuple[str, int]]:
        """Yield what this process is to hit next, until none is left or time is up."""
        while time.monotonic() < self.end:
            with self._lock:
                if self._next[0] >= len(self.actions):
                    return
                action = self.actions[self._next[0]]
                at = self.starts[action] + self._next[1] * self.steps[action]
                self._next[1] += 1
                was = self.done.get((action, at))
                if was is not None and not was["hit"]:
                    self._next[:] = [self._next[0] + 1, 0]
            if was is None or was["wrong"]:
                yield action, at

    def note(self, verdict: Verdict, taken_s: float) -> None:
        """Write down what came of a case; the first that hits nothing is the end of its fault."""
        with self._lock:
            if not verdict.hit and self.actions[min(self._next[0], len(self.actions) - 1)] == verdict.action:
                self._next[:] = [self._next[0] + 1, 0]
            case = {"study": self.options.study} | asdict(verdict) | {"said": verdict.said.strip()[-SAID_CHARACTERS:]}
            with self.file.open("a") as handle:
                handle.write(json.dumps(case | {"taken_s": round(taken_s, 2)}) + "\n")


def main() -> None:
    """Go through the faults and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--study", choices=("one", "cohort", "report"), default="one", help="what is disturbed")
    parser.add_argument("--actions", default=",".join(ORDER), help="faults, by comma")
    parser.add_argument("--every", type=int, default=1, help="hit every k-th operation only")
    parser.add_argument("--points", type=int, default=0, help="hit so many operations of each fault, spread evenly")
    parser.add_argument("--start", type=int, default=1, help="the first operation that is hit")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="start no attempt after so long")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the cases out")
    parser.add_argument("--json", type=Path, help="takes a line for each case, and is gone on from")
    parser.add_argument("--kill", action="store_true", help="kill for each power cut, instead of once recording all")
    parser.add_argument("--verbose", action="store_true", help="print every case")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, start = Path(name), time.monotonic()
        cases = Cases(options, options.json or folder / "cases.jsonl")
        ground = _ground(options.study, folder)
        print(
            f"{options.study}: {len(ground.trace)} operations, {len(ground.wanted)} files compared; "
            f"undisturbed sittings took {time.monotonic() - start:.0f} s",
            flush=True,
        )
        if options.points:
            cases.spread(ground)
        workers = [
            multiprocessing.get_context("fork").Process(target=work, args=(ground, folder / f"case-{index}", cases))
            for index in range(options.jobs)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        cases.read()
        is_well = [summary(ground, cases, action) for action in cases.actions]
        raise SystemExit(0 if all(is_well) and not any(worker.exitcode for worker in workers) else 1)


def work(ground: Ground, place: Path, cases: Cases) -> None:
    """Hit one operation after the other until none is left."""
    parent = os.getppid()
    for action, at in cases.take():
        start = time.monotonic()
        verdict = judging.judge(ground, place, action, at, is_cut_for_real=cases.options.kill)
        cases.note(verdict, time.monotonic() - start)
        if verdict.wrong or cases.options.verbose:
            said = verdict.said.strip().replace("\n", " / ")[-SAID_CHARACTERS:]
            print(
                f"  {action} {at} {verdict.hit}: {verdict.ended}; WRONG: {verdict.wrong or 'no'}; said: {said}",
                flush=True,
            )
        if os.getppid() != parent:
            return


def summary(ground: Ground, cases: Cases, action: str) -> bool:
    """Print a row of a table: what came of one fault; return whether nothing was wrong."""
    found = [case for (kind, _), case in sorted(cases.done.items()) if kind == action]
    hit, wrong = [case for case in found if case["hit"]], [case for case in found if case["wrong"]]
    left = judging.never_hit(ground, action, Counter(case["hit"] for case in hit))
    ended = Counter(case["ended"] for case in hit)
    num_known = sum(case["is_known"] for case in hit)
    row = [action, len(hit), *(ended[how] or "-" for how in ENDS), num_known, len(wrong)]
    print(f"{action}: {len(hit)} faults, {len(wrong)} wrong, {len(left)} operations not hit", flush=True)
    print(f"| {' | '.join(map(str, row))} |", flush=True)
    return not wrong


def _ground(study: str, folder: Path) -> Ground:
    base = world(folder)
    if study == "one":
        return judging.ground_of_study(harness.small_study(base), folder / "ground")
    if study == "cohort":
        return judging.ground_of_study(study_from(harness.cohort_body(), base), folder / "ground", COHORT)
    return judging.ground_of_report(harness.cohort_body(), base, folder / "ground", COHORT)


if __name__ == "__main__":
    main()
