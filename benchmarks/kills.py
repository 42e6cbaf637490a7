"""Kills one study after the other at random instants until it is done, and holds each against an undisturbed one.

    python -m benchmarks.kills [--kills 200] [--commands 30] [--seed 0] [--limit-s S] [--out kills.json]

The study has 10 runs: full fine-tuning and LoRA at two ranks, each tuned, then at two seeds; and the base as it is.
The LoRA runs are trained in passes of four and of two. Each sitting is `tuneoff run`, in a process group of its own
that is killed (SIGKILL) as a whole, and the same command goes on until the study is done; then its records, curves,
predictions and adapters are compared, bit by bit but for clocks, and the next study begins in a new folder, with one
and with two runs at work at a time by turns. Most sittings are forked from a process that has imported everything, so
that a kill falls into work and not into imports; the first ones, until `--commands` kills are done, are started as from
a shell. No plan is kept (TUNEOFF_PLAN=off), as it takes longer than the study.

One kill in eight comes at any time from the sitting's start on, the others once a run is at work, after a time that is
drawn from an exponential distribution. Before the kill the processes are stopped (SIGSTOP), so that what they were at
can be told from their files. With `--out` what was done is kept, and the same command goes on from there.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
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
    kill,
    leftovers,
    num_measured,
    runs_of,
    send,
    snapshot,
    study_file,
)
from tests.running.world import world

from tuneoff.files import ASIDE, write_synced
from tuneoff.planning import costs as costs  # this and the next two: so that sittings, which are forked, need not
from tuneoff.report import write as write
from tuneoff.running import preload as preload
from tuneoff.running.curve_file import rows
from tuneoff.running.lease import LEASE_FILE
from tuneoff.running.store import (
    CHECKPOINT_FOLDER,
    COSTS_FOLDER,
    CURVE_FILE,
    EXPLAIN_FILE,
    RECORD_FILE,
    SETUP_FILE,
    TEST_FILE,
)

NAME = "kills"
ARMS: dict[str, Any] = {
    "zero-shot": {"method": "none"},
    "full": {"method": "full", "tune": {"lr": [1e-3, 1e-2]}},
    "lora": {"method": "lora", "rank": [2, 4], "dropout": 0.1, "tune": {"lr": [1e-3, 1e-2]}},
}
NUM_STEPS, VALIDATE_EVERY = 48, 4
CHANGES: dict[str, Any] = {
    "budget": {"steps": NUM_STEPS, "batch_size": 4},
    "seeds": [0, 1],
    "evaluate": {"every": VALIDATE_EVERY},
    "checkpoint": {"every": 3},
    "retention": "book.txt",
    "explain": {"weights": True, "samples": 2, "max_new_tokens": 8},
    "solo_costs": True,
}
NUM_RUNS = 10
NUM_EXPLAINED = 7
"""Runs at the chosen rates, and the base."""
COHORT = 4
EARLY_SHARE = 1 / 8
"""Share of kills that may come before anything is at work."""
POLL_S = 0.01
STOP_S = 0.005
"""That a group of processes is given to stop."""
HUNG_S = 1800.0
"""After which a sitting with nothing at work counts as hung, on however busy a machine."""

SAVING, WRITING, VALIDATING = "saving a checkpoint", "writing weights or a record", "validation"
TESTING, EXPLAINING, MEASURING = "reading the test split", "explaining", "measuring costs alone"
TRAINING, LOADING, REPORT, BETWEEN, START = "training", "loading", "report", "between two runs", "start"
PHASES = (SAVING, WRITING, VALIDATING, TESTING, EXPLAINING, MEASURING, TRAINING, LOADING, REPORT, BETWEEN, START)
"""What a kill can fall into; where two runs were at work, the first of these counts."""
BEFORE_STEPS = tuple(f".{name}." for name in (SETUP_FILE, CURVE_FILE, LEASE_FILE))
"""How the names begin of what is written aside in a run's folder before its first step."""
WAYS: dict[str, type[Forked] | type[Command]] = {"forked": Forked, "command": Command}
HUNG = 124
"""Stands for the exit code of a sitting that hung."""


@dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        phase: what was done, of `PHASES`.
        is_cohort: whether several runs were at work in one pass.
        after_s: since the sitting's start.
    """

    phase: str
    is_cohort: bool
    after_s: float


@dataclass
class Ordeal:
    """One study, and what came of it.

    Attributes:
        way: `forked` or `command`: how its sittings were started.
        num_jobs: processes at work at a time.
        kills: in their order.
        differ: files that have not the bits of the undisturbed study's.
        rewritten: records that were written twice.
        lost: records that were there and are not any more.
        left: checkpoints and unfinished files in the runs' folders at the end.
        wrong: how a sitting ended that was not killed, where it ended otherwise than well.
        taken_s: from its first start to its end.
    """

    way: str
    num_jobs: int
    kills: list[Kill] = field(default_factory=list)
    differ: list[str] = field(default_factory=list)
    rewritten: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    wrong: str = ""
    taken_s: float = 0.0

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong of it."""
        return not (self.differ or self.rewritten or self.lost or self.left or self.wrong)


@dataclass(frozen=True)
class Quiet:
    """The undisturbed study: its files but for clocks, how many arms were measured alone, and what it took."""

    files: dict[str, Any]
    num_measured: int
    begin_s: float
    """Until its first run was at work."""
    whole_s: float


def phase_of(run: Path, study: Path) -> str:
    """Tell from files what was done with a run that somebody holds.

    Args:
        run: its folder.
        study: the folder that it lies in.
    """
    first = study / _cohort(run)[0]
    if any((first / CHECKPOINT_FOLDER).glob(f".*{ASIDE}")):
        return SAVING
    asides = [path.name for path in run.glob(f".*{ASIDE}")]
    if asides:
        return LOADING if all(name.startswith(BEFORE_STEPS) for name in asides) else WRITING
    if not (run / RECORD_FILE).exists():
        return _phase_of_training(run)
    if not (run / TEST_FILE).exists():
        return TESTING
    if not (run / EXPLAIN_FILE).exists():
        return EXPLAINING
    return MEASURING if any((study / COSTS_FOLDER).glob(".*")) else BETWEEN


def _phase_of_training(run: Path) -> str:
    """Tell where a run stands whose record is missing: its curve is cut, so written, once it is loaded."""
    curve, setup = run / CURVE_FILE, run / SETUP_FILE
    if not curve.exists() or not setup.exists() or curve.stat().st_mtime_ns < setup.stat().st_mtime_ns:
        return LOADING
    points = rows(curve)
    last = points[-1] if points else {"kind": "train", "step": 0}
    is_due = last["kind"] == "train" and last["step"] > 0 and last["step"] % VALIDATE_EVERY == 0
    return VALIDATING if is_due else TRAINING


def _cohort(run: Path) -> list[str]:
    """Return the runs that a run shares its pass with, itself among them."""
    try:
        return json.loads((run / SETUP_FILE).read_bytes())["cohort"] or [run.name]
    except FileNotFoundError:
        return [run.name]


def look(place: Path, has_begun: bool) -> tuple[str, bool]:
    """Tell from a study's files what its stopped processes were at, and whether at a cohort.

    Args:
        place: the folder that `runs` is in.
        has_begun: whether anything of this sitting was at work before.
    """
    study = place / "runs" / NAME
    held = runs_of(place)
    # Of a pass those that are finished are trained along, or wait for the others.
    open_runs = [run for run in held if not (run / RECORD_FILE).exists()] or held
    if open_runs:
        found = {phase_of(run, study) for run in open_runs}
        return min(found, key=PHASES.index), any(len(_cohort(run)) > 1 for run in open_runs) and len(open_runs) > 1
    if any(study.glob(f".report*{ASIDE}")):
        return REPORT, False
    is_all_there = len(list(study.glob(f"*/{EXPLAIN_FILE}"))) == NUM_EXPLAINED
    return (REPORT if has_begun and is_all_there else BETWEEN if has_begun else START), False


class Killer:
    """Kills sittings of one study after another.

    Args:
        folder: that everything lies in.
        path: of the study file.
        quiet: the study that nothing disturbed.
        per_study: kills in the time that it took; what a kill costs makes it more.
    """

    def __init__(self, folder: Path, path: Path, quiet: Quiet, per_study: float) -> None:
        self.folder, self.path, self.quiet, self.per_study = folder, path, quiet, per_study

    def go(self, number: int, way: str, chance: random.Random, num_kills: int) -> Ordeal:
        """Take a new study through kills to its end.

        Args:
            number: of the study.
            way: `forked` or `command`.
            chance: when to kill.
            num_kills: at most.
        """
        place, began = self.folder / f"study-{number}", time.monotonic()
        place.mkdir()
        found, records = Ordeal(way, 1 + number % 2), Records(place)
        words = command_words(self.path, place, found.num_jobs)
        code = None
        while code is None:
            may_kill = len(found.kills) < num_kills
            sitting = WAYS[way](words, place / "output")
            code = self._sit(place, sitting, found, chance if may_kill else None)
            records.look()
        said = (place / "output").read_text(errors="replace")
        if code != 0 or "Traceback" in said:
            found.wrong = f"exit code {code}: {said[-2000:]}"
        found.differ = differences(snapshot(place), self.quiet.files)
        found.rewritten, found.lost = (sorted(map(str, paths)) for paths in (records.rewritten, records.lost))
        found.left = [str(path.relative_to(place)) for path in leftovers(place)]
        # With two at work none was alone, and so more are measured.
        if num_measured(place) < self.quiet.num_measured:
            found.wrong += f"{num_measured(place)} arms measured alone, {self.quiet.num_measured} wanted"
        found.taken_s = time.monotonic() - began
        return found

    def _sit(self, place: Path, sitting: Sitting, found: Ordeal, chance: random.Random | None) -> int | None:
        """Let a sitting go on until it is killed or ends, and return its exit code; none where it was killed."""
        start, begun, kill_at, wait_s = time.monotonic(), False, math.inf, math.inf
        if chance is not None and chance.random() < EARLY_SHARE:
            kill_at = start + chance.uniform(0.0, 2 * self.quiet.begin_s)
        elif chance is not None:
            wait_s = chance.expovariate(self.per_study / (self.quiet.whole_s - self.quiet.begin_s))
        while (code := sitting.code()) is None:
            now = time.monotonic()
            if not begun and runs_of(place):
                begun, kill_at = True, min(kill_at, now + wait_s)
            if not begun and now - start > HUNG_S:
                kill(sitting)
                return HUNG
            if now >= kill_at:
                send(sitting, signal.SIGSTOP)
                time.sleep(STOP_S)
                found.kills.append(Kill(*look(place, begun), now - start))
                kill(sitting)
                while runs_of(place):  # on a busy machine children take a while to die
                    time.sleep(POLL_S)
                print(f"  kill {len(found.kills)} after {now - start:.1f} s: {found.kills[-1].phase}", flush=True)
                return None
            time.sleep(max(0.0, min(POLL_S, kill_at - now)))
        return code


def command_words(path: Path, place: Path, num_jobs: int) -> list[str]:
    """Return what follows `tuneoff` on the command line."""
    return ["run", str(path), "--out", str(place / "runs"), "--cohort", str(COHORT), "--jobs", str(num_jobs)]


def run_quiet(path: Path, place: Path) -> Quiet:
    """Run the study in peace."""
    place.mkdir()
    start, begin_s = time.monotonic(), 0.0
    sitting = Forked(command_words(path, place, 1), place / "output")
    while not begin_s and sitting.code() is None:
        begin_s = time.monotonic() - start if runs_of(place) else 0.0
        time.sleep(POLL_S)
    code = ended(sitting)
    if code != 0:
        raise RuntimeError(f"the undisturbed study ended with exit code {code}: {(place / 'output').read_text()}")
    files = snapshot(place)
    assert sum(name.endswith(RECORD_FILE) for name in files) == NUM_RUNS, "the study is not what it is said to be"
    return Quiet(files, num_measured(place), begin_s, time.monotonic() - start)


def main() -> None:
    """Kill until it is enough, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--commands", type=int, default=30, help="so many of them of sittings started as from a shell")
    parser.add_argument("--seed", type=int, default=0, help="of when to kill")
    parser.add_argument("--per-study", type=float, default=20, help="so many in the time of an undisturbed study")
    parser.add_argument("--limit-s", type=float, default=math.inf, help="begin no study after so long")
    parser.add_argument("--out", type=Path, help="keep what was done there, and go on from there")
    options = parser.parse_args()
    done = read(options.out, options.seed)
    if num_kills(done) < options.kills:
        kill_on(done, options)
    print("\n".join(table_of(done)))
    raise SystemExit(0 if all(one.is_well for one in done) else 1)


def kill_on(done: list[Ordeal], options: argparse.Namespace) -> None:
    """Take study after study through kills until there were enough, or time is up."""
    end = time.monotonic() + options.limit_s
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TUNEOFF_CACHE"] = str(folder / "cache")
        path = study_file(world(folder) / f"{NAME}.yaml", NAME, ARMS, CHANGES)
        quiet = run_quiet(path, folder / "quiet")
        print(f"in peace {quiet.whole_s:.0f} s, {len(quiet.files)} files of {NUM_RUNS} runs compared", flush=True)
        killer = Killer(folder, path, quiet, options.per_study)
        while (num_left := options.kills - num_kills(done)) > 0 and time.monotonic() < end:
            of_commands = options.commands - num_kills(done, "command")
            number, way = len(done), "command" if of_commands > 0 else "forked"
            chance = random.Random(f"{options.seed}/{number}")
            most = min(num_left, of_commands) if way == "command" else num_left
            done.append(killer.go(number, way, chance, most))
            say(number, done[-1])
            if options.out is not None:
                body = {"seed": options.seed, "ordeals": [asdict(one) for one in done]}
                write_synced(options.out, json.dumps(body, indent=1).encode())
            if done[-1].is_well:
                shutil.rmtree(folder / f"study-{number}")


def read(path: Path | None, seed: int) -> list[Ordeal]:
    """Return what was done before."""
    if path is None or not path.exists():
        return []
    body = json.loads(path.read_bytes())
    assert body["seed"] == seed, f"{path} is of seed {body['seed']}"
    return [Ordeal(**one | {"kills": [Kill(**kill) for kill in one["kills"]]}) for one in body["ordeals"]]


def num_kills(done: Sequence[Ordeal], way: str = "") -> int:
    """Return how many kills there were, in one way of starting or in both."""
    return sum(len(one.kills) for one in done if way in ("", one.way))


def say(number: int, one: Ordeal) -> None:
    """Print what became of a study."""
    found = "well" if one.is_well else json.dumps({k: v for k, v in asdict(one).items() if k != "kills"}, indent=1)
    what = f"{len(one.kills)} kills, {one.taken_s:.0f} s, {found}"
    print(f"study {number}, {one.way}, {one.num_jobs} at a time: {what}", flush=True)


def table_of(done: Sequence[Ordeal]) -> Iterator[str]:
    """Yield the lines of the table of what kills fell into, and of the sum."""
    yield "| at work was | kills | of them started as from a shell | of them in a cohort |"
    yield "|---|---|---|---|"
    counts = [(one.way, own) for one in done for own in one.kills]
    for phase in PHASES:
        own = [(way, kill) for way, kill in counts if kill.phase == phase]
        in_commands, in_cohorts = sum(way == "command" for way, _ in own), sum(kill.is_cohort for _, kill in own)
        yield f"| {phase} | {len(own)} | {in_commands} | {in_cohorts} |"
    sums = {key: sum(len(getattr(one, key)) for one in done) for key in ("lost", "rewritten", "differ", "left")}
    yield (
        f"{len(counts)} kills over {len(done)} studies of {NUM_RUNS} runs; {sums['lost']} records lost, "
        f"{sums['rewritten']} written twice, {sums['differ']} files differ, "
        f"{sums['left']} files left over, {sum(bool(one.wrong) for one in done)} sittings ended otherwise than well"
    )


if __name__ == "__main__":
    main()
