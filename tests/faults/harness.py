"""Runs a small study in a process of its own under faults, then without, and compares with an undisturbed one.

Processes are forked from one that has imported everything, so that an attempt takes as long as its work.
"""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
from tests.faults import injector
from tests.faults.injector import Plan
from tests.running.world import study_of

from tuneoff import api, cli, fork_server
from tuneoff.errors import TuneoffError
from tuneoff.running import explain, session
from tuneoff.running.events import Event
from tuneoff.running.store import CURVE_FILE, EXPLAIN_FILE, RECORD_FILE, TEST_FILE
from tuneoff.study.spec import Study
from tuneoff.training import checkpoint

ARMS: dict[str, Any] = {"lora": {"method": "lora", "rank": 2, "dropout": 0.1, "lr": 1e-2}}
CHANGES: dict[str, Any] = {
    "budget": {"steps": 3, "batch_size": 2},
    "evaluate": {"every": 3},
    "checkpoint": {"every": 1},
    "explain": {"weights": True, "samples": 0},
}
TRACEBACK = 99
"""Exit code of an attempt that ended with an error which is no `TuneoffError`."""
WAIT_S = 1800
"""After which an attempt counts as hung, on however busy a machine."""
CLOCKS = frozenset(
    {"created_at", "num_sittings", "costs", "score_s", "explain_s", "elapsed_s", "checksum", "generate_s"}
)
"""What of a record or a curve is a clock's or counts sittings, or is worked out of that."""
SIDE_FILES = frozenset({".lock", "log.txt", "setup.json", "study.json"})


def small_study(world: Path) -> Study:
    """Return one LoRA arm of three steps, scored once, with a checkpoint at each step, tested and explained."""
    return study_of(world, "faults", ARMS, **CHANGES)


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended.

    Attributes:
        code: 0, or that of the error; negative for a signal.
        said: what it printed: problems, failed runs, the error or a traceback.
        count: operations that could be hit.
        hit: the operation that was, and its file; empty where none was.
    """

    code: int
    said: str
    count: int
    hit: str
    trace: tuple[str, ...] = ()
    """Of an undisturbed one: each operation's kind and file."""


def attempt(study: Study, place: Path, action: str = "", at: int = 0) -> Outcome:
    """Run the study in `place/runs`, its tokens kept in `place/cache`, under one fault; after a power cut, cut.

    Args:
        study: the study.
        place: a folder.
        action: of `injector.KINDS`; empty disturbs nothing.
        at: the operation that is hit.
    """
    shadow = Path(tempfile.mkdtemp(prefix="shadow-", dir=place))
    roots = (place / "runs", place / "cache")
    for root in roots:
        root.mkdir(exist_ok=True)
    plan = Plan(action, at, roots, shadow)
    output = shadow / "output"
    code = wait_for(start(study, roots[0], output, plan))
    count, hit = injector.result_of(plan)
    if hit and action.startswith("power"):
        injector.lose_unsynced(plan)
    said = output.read_text() if output.exists() else ""
    trace = () if action else injector.trace_of(plan)
    shutil.rmtree(shadow)
    return Outcome(code, said, count, hit, trace)


def start(study: Study, out: Path, output: Path, plan: Plan | None = None) -> int:
    """Run the study in a process group of its own, as the command line does, and return its number.

    Args:
        study: the study.
        out: where its results go.
        output: takes what it says.
        plan: what is to go wrong; none disturbs and counts nothing.
    """
    pid = os.fork()
    if pid == 0:
        _run(study, out, output, plan)
    return pid


def wait_for(pid: int) -> int:
    """Wait for a process that was started, end what it left behind, and return its exit code."""
    signal.signal(signal.SIGALRM, lambda *_: os.killpg(pid, signal.SIGKILL))
    signal.alarm(WAIT_S)
    try:
        _, status = os.waitpid(pid, 0)
    finally:
        signal.alarm(0)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(status)


def run_command(words: Sequence[str], output: Path) -> NoReturn:
    """Be the command line in this process, which was forked, and end it.

    Args:
        words: what follows `tuneoff`.
        output: takes what it says.
    """
    code: Any = TRACEBACK
    try:
        _apart(output)
        sys.argv = ["tuneoff", *words]
        cli.main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # what the user would see as a traceback
        _print(traceback.format_exc())
    finally:
        os._exit(code if isinstance(code, int) else 1)


def _apart(output: Path) -> None:
    """Go into a process group of one's own, say everything into a file, and fork children from this very process."""
    os.setsid()
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    fork_server.context = lambda: multiprocessing.get_context("fork")


def _run(study: Study, out: Path, output: Path, plan: Plan | None) -> None:
    """Do what the command line does, in this process, and end it."""
    code = TRACEBACK
    try:
        _apart(output)
        if plan is not None:
            os.environ["TUNEOFF_CACHE"] = str(plan.roots[1])
            injector.watch_rust(checkpoint, session, explain, safetensors.torch)
            injector.install(plan)
        try:
            result = api.run(study, out, listener=_say)
            for reason in result.failed.values():
                _print(f"failed: {reason}")
            code = 1 if result.failed else 0
        except TuneoffError as error:
            _print(f"error: {error}")
            code = error.exit_code
    except BaseException:  # what the user would see as a traceback
        _print(traceback.format_exc())
    finally:
        os._exit(code)


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _say(event: Event) -> None:
    if "what" in event.body:
        _print(f"{event.kind}: {event.body['what']}")


def snapshot(place: Path) -> dict[str, Any]:
    """Return every file of a study but for clocks: bytes, or of records and curves what they hold."""
    found = {}
    for path in sorted((place / "runs").rglob("*")):
        if path.is_file() and path.name not in SIDE_FILES and not path.name.startswith("."):
            found[str(path.relative_to(place))] = _content(path)
    return found


def _content(path: Path) -> Any:
    if path.name in (RECORD_FILE, TEST_FILE, EXPLAIN_FILE):
        body = _without_clocks(json.loads(path.read_text()))
        body.get("files", {}).pop(CURVE_FILE, None)
        return body
    if path.name == CURVE_FILE:
        return [_without_clocks(json.loads(line)) for line in path.read_text().splitlines()]
    return path.read_bytes()


def _without_clocks(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_clocks(item) for key, item in value.items() if key not in CLOCKS}
    return [_without_clocks(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Verdict:
    """What came of one fault.

    Attributes:
        action: the fault.
        at: the operation.
        hit: what was hit; empty where there were fewer operations.
        ended: in the first sitting: `went on`, `error`, `failed run`, `killed` or `traceback`.
        said: what it said.
        wrong: what is wrong of it; empty where all is well.
    """

    action: str
    at: int
    hit: str
    ended: str
    said: str
    wrong: str


def judge(study: Study, place: Path, wanted: Mapping[str, Any], action: str, at: int) -> Verdict:
    """Hit one operation, run the same again undisturbed, and compare."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    first = attempt(study, place, action, at)
    ended = {0: "went on", 1: "failed run", 2: "error", TRACEBACK: "traceback"}.get(first.code, "killed")
    if not first.hit:
        return Verdict(action, at, "", ended, first.said, "" if first.code == 0 else "an error without a fault")
    wrong = list(_wrong_at_once(action, first))
    again = attempt(study, place)
    if again.code != 0:
        wrong.append(f"the same command did not recover (exit code {again.code}): {again.said}")
    else:
        found = snapshot(place)
        wrong += [f"{name} differs" for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name)]
    hit = first.hit.replace(str(place), "")
    return Verdict(action, at, hit, ended, first.said.replace(str(place), ""), "; ".join(wrong))


def _wrong_at_once(action: str, first: Outcome) -> Iterator[str]:
    if first.code == TRACEBACK or "Traceback" in first.said:
        yield f"a traceback: {first.said.strip().splitlines()[-1] if first.said.strip() else first.code}"
    elif first.code < 0 and action not in ("die", "power", "power-names"):
        yield f"ended by signal {-first.code}"
    elif first.code and action not in ("die", "power", "power-names") and not first.said.strip():
        yield "ended without a word"
