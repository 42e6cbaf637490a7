"""Hits every file operation of a small study with every fault, runs the same study again, and compares the bits.

    python -m benchmarks.faults [--actions EIO,power] [--every 5 | --points 2] [--verbose]

For each fault (a full disk, errors of reading and writing, no permission, death at any operation, power cuts) and for
n = 1 until none is left: the n-th operation is hit, then the same study is run undisturbed, and every record, curve,
prediction and adapter is held against those of a study that nothing disturbed, bit by bit but for clocks. How faults
are made, and what they cannot reach, stands in `tests/faults/injector.py`.
"""

import argparse
import os
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

from tests.faults import harness
from tests.faults.injector import KINDS
from tests.running.world import world

from tuneoff.running import preload  # noqa: F401  # so that each attempt, which is forked, need not import it


def main() -> None:
    """Go through the faults and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--actions", default=",".join(KINDS), help="faults, by comma")
    parser.add_argument("--every", type=int, default=1, help="hit every k-th operation only")
    parser.add_argument("--points", type=int, default=0, help="hit so many operations of each fault, spread evenly")
    parser.add_argument("--start", type=int, default=1, help="the first operation that is hit")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="start no attempt after so long")
    parser.add_argument("--verbose", action="store_true", help="print every case")
    options = parser.parse_args()
    end = time.monotonic() + options.limit_s
    with tempfile.TemporaryDirectory() as folder:
        study = harness.small_study(world(Path(folder)))
        whole = Path(folder) / "whole"
        whole.mkdir()
        first = harness.attempt(study, whole)
        assert first.code == 0, first.said
        wanted = harness.snapshot(whole)
        print(f"{first.count} operations, {len(wanted)} files compared", flush=True)
        num_wrong = 0
        for action in options.actions.split(","):
            if options.points:
                num_all = sum(line.split()[0] in KINDS[action] for line in first.trace)
                options.every = num_all // options.points
                options.start = options.every // 2 + 1
            num_wrong += sweep(study, Path(folder), wanted, action, options, end)
    raise SystemExit(1 if num_wrong else 0)


def sweep(study: object, folder: Path, wanted: dict, action: str, options: argparse.Namespace, end: float) -> int:
    """Hit one operation after the other until none is left; return how many went wrong."""
    ended, wrong, at, start = Counter[str](), [], options.start, time.monotonic()
    while time.monotonic() < end:
        verdict = harness.judge(study, folder / "case", wanted, action, at)
        if not verdict.hit:
            break
        ended[verdict.ended] += 1
        if verdict.wrong:
            wrong.append(verdict)
        if verdict.wrong or options.verbose:
            said = verdict.said.strip().replace("\n", " / ")[-300:]
            print(
                f"  {action} {at} {verdict.hit}: {verdict.ended}; WRONG: {verdict.wrong or 'no'}; said: {said}",
                flush=True,
            )
        at += options.every
    is_whole = "all" if time.monotonic() < end else "out of time"
    counts = ", ".join(f"{number} {how}" for how, number in sorted(ended.items()))
    taken = time.monotonic() - start
    print(f"{action}: {ended.total()} faults ({counts}), {len(wrong)} wrong, {is_whole}, {taken:.0f} s", flush=True)
    return len(wrong)


if __name__ == "__main__":
    main()
