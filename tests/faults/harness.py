"""Runs a small study in a process of its own under faults, then without, and compares with an undisturbed one.

Processes are forked from one that has imported everything, so that an attempt takes as long as its work.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
import vl_convert
from tests.faults import injector
from tests.faults.injector import Plan
from tests.running.world import body, study_of

from tuneoff import api, cli, fork_server
from tuneoff.errors import TuneoffError
from tuneoff.report import write
from tuneoff.report.bundle import vega_bundle
from tuneoff.running import explain, session
from tuneoff.running.events import Event
from tuneoff.running.preflight import Preflight
from tuneoff.running.store import CURVE_FILE, EXPLAIN_FILE, RECORD_FILE, TEST_FILE
from tuneoff.study.predicted import PLAN_FILE
from tuneoff.study.spec import Study
from tuneoff.training import checkpoint

ARMS: dict[str, Any] = {"lora": {"method": "lora", "rank": 2, "dropout": 0.1, "lr": 1e-2}}
COHORT_ARMS: dict[str, Any] = {"lora": {"method": "lora", "rank": [2, 4], "dropout": 0.1, "lr": 1e-2}}
CHANGES: dict[str, Any] = {
    "budget": {"steps": 3, "batch_size": 2},
    "evaluate": {"every": 3},
    "checkpoint": {"every": 1},
    "explain": {"weights": True, "samples": 0},
}
TRACEBACK = 99
"""Exit code of an attempt that ended with an error which is no `TuneoffError`."""
WAIT_S = 600
"""After which an attempt counts as hung, on however busy a machine."""
CLOCKS = frozenset(
    {"created_at", "num_sittings", "costs", "score_s", "explain_s", "elapsed_s", "checksum", "generate_s"}
)
"""What of a record or a curve is a clock's or counts sittings, or is worked out of that."""
SIDE_FILES = frozenset({".lock", "log.txt", "setup.json", "study.json", PLAN_FILE})
"""What no result hangs on: who works, what was said, how often it was begun, and a plan, of a machine's times."""


def small_study(world: Path) -> Study:
    """Return one LoRA arm of three steps, scored once, with a checkpoint at each step, tested and explained."""
    return study_of(world, "faults", ARMS, **CHANGES)


def cohort_body() -> dict[str, Any]:
    """Return the same in bf16 with two ranks, to be trained in one pass with `cohort=2`, as a mapping."""
    return body("faults", COHORT_ARMS, **CHANGES, precision="bf16")


Work = Callable[[Path], int]
"""Does what a command does, with results below a folder, in a process of its own, and returns its exit code."""


def study_work(study: Study, cohort: int | str = "auto", checked: Preflight | None = None) -> Work:
    """Return what `tuneoff run` does.

    Args:
        study: the study.
        cohort: see `api.run`.
        checked: what looking at base and data found, where that is known; none looks.
    """

    def work(out: Path) -> int:
        result = api.run(study, out, cohort=cohort, checked=checked, listener=_say)
        for reason in result.failed.values():
            _print(f"failed: {reason}")
        return 1 if result.failed else 0

    return work


def check_work(study: Study) -> Work:
    """Return what `tuneoff run` does first: to look at base and data."""

    def work(out: Path) -> int:
        api.check(study)
        return 0

    return work


def report_work(file: Path, known: Path) -> Work:
    """Return what `tuneoff report` does with a study file, through the command line itself.

    Drawing takes nearly all of its time and, but for the script that is kept in the cache, touches no file: a page of
    the same values, and that script, are taken from an earlier attempt.

    Args:
        file: the study.
        known: a folder for what was drawn.
    """

    def work(out: Path) -> int:
        draw, bundle = write.render_page, vl_convert.javascript_bundle
        write.render_page = lambda *values: vega_bundle() and _once(known, draw, *values)
        vl_convert.javascript_bundle = lambda snippet: _once(known, bundle, snippet)
        sys.argv = ["tuneoff", "report", str(file), "--out", str(out)]
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return work


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


def attempt(work: Work, place: Path, action: str = "", at: int = 0) -> Outcome:
    """Do something in `place/runs`, its tokens kept in `place/cache`, under one fault; after a power cut, cut.

    Args:
        work: what is done.
        place: a folder.
        action: of `injector.KINDS`; empty disturbs nothing; `injector.CUTS` leaves `place/cuts`.
        at: the operation that is hit.
    """
    shadow = Path(tempfile.mkdtemp(prefix="shadow-", dir=place))
    roots = (place / "runs", place / "cache")
    for root in roots:
        root.mkdir(exist_ok=True)
    plan = Plan(action, at, roots, shadow)
    output = shadow / "output"
    code = wait_for(start_work(work, roots[0], output, plan))
    count, hit = injector.result_of(plan)
    if hit and action.startswith("power"):
        injector.lose_unsynced(plan)
    said = output.read_text() if output.exists() else ""
    trace = injector.trace_of(plan) if action in ("", injector.CUTS) else ()
    if action == injector.CUTS:
        (shadow / "cuts").rename(place / "cuts")
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
    return start_work(study_work(study), out, output, plan)


def start_work(work: Work, out: Path, output: Path, plan: Plan | None = None) -> int:
    """Do something in a process group of its own, and return its number (see `start`)."""
    pid = os.fork()
    if pid == 0:
        _run(work, out, output, plan)
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
    fork_server.context = lambda *_: multiprocessing.get_context("fork")


def _run(work: Work, out: Path, output: Path, plan: Plan | None) -> None:
    """Do what the command line does, in this process, and end it."""
    code = TRACEBACK
    try:
        _apart(output)
        if plan is not None:
            os.environ["TUNEOFF_CACHE"] = str(plan.roots[1])
            injector.watch_rust(checkpoint, session, explain, safetensors.torch)
            injector.install(plan)
        try:
            code = work(out)
        except TuneoffError as error:
            _print(f"error: {error}")
            code = error.exit_code
    except BaseException:  # what the user would see as a traceback
        _print(traceback.format_exc())
    finally:
        os._exit(code)


def _once(known: Path, function: Callable[..., str], *values: Any) -> str:
    """Return what a function gives, which hangs on its values alone; made once for all attempts."""
    kept = known / hashlib.sha256(repr((function.__name__, values)).encode()).hexdigest()
    if not kept.exists():
        text = function(*values)
        kept.with_suffix(".aside").write_text(text, "utf-8")
        kept.with_suffix(".aside").rename(kept)
    return kept.read_text("utf-8")


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
            found[str(path.relative_to(place))] = content(path)
    return found


def content(path: Path) -> Any:
    """Return what a file holds but for clocks: bytes, or of a record and a curve the values."""
    if path.name in (RECORD_FILE, TEST_FILE, EXPLAIN_FILE):
        record = without_clocks(json.loads(path.read_text()))
        record.get("files", {}).pop(CURVE_FILE, None)
        return record
    if path.name == CURVE_FILE:
        return [without_clocks(json.loads(line)) for line in path.read_text().splitlines()]
    return path.read_bytes()


def without_clocks(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: without_clocks(item) for key, item in value.items() if key not in CLOCKS}
    return [without_clocks(item) for item in value] if isinstance(value, list) else value
