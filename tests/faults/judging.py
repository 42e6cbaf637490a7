"""Disturbs one operation of a command, does the same again undisturbed, and says what is wrong of it.

What is the same in every case is done once: looking at base and data (a process of its own, which ends before anything
else begins) is skipped where the fault lies behind it, all power cuts are taken from one sitting (see `injector`), and
where a folder is left as another case left it, but for clocks, the second sitting is known.
"""

import hashlib
import json
import multiprocessing
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults import disk, harness, injector
from tests.faults.harness import TRACEBACK, Outcome, Work, attempt, snapshot, without_clocks
from tests.faults.injector import KINDS

from tuneoff import api, fork_server
from tuneoff.running.store import CURVE_FILE
from tuneoff.study.loading import study_from
from tuneoff.study.spec import Study

KILLS = ("die", *disk.CUTS)
TOKEN = re.compile(r"(?<=\.)[0-9a-f]{8}(?=\.aside)|(?<=\.lease-)[0-9a-f]{16}")
"""What is drawn anew for the name of each file aside."""
OWNER = re.compile(r"\.lock|\.lease|log\.txt")
"""Files that say who works, or what was said: that they are there counts, and not what they hold."""


@dataclass(frozen=True)
class Ground:
    """What is known of a command before it is disturbed.

    Attributes:
        work: the command.
        wanted: what it leaves, by `snapshot`.
        trace: its operations, kind and file each.
        cuts: the folder of what each power cut leaves, and the operations that these were made at.
        known: a folder of the states from which the command was seen to recover.
        checked: of a study, what follows on the look at base and data; none has no such part.
        num_checked: how many operations that look takes.
        cache: what the look leaves in the cache.
        begun: what every case begins with; none is nothing.
    """

    work: Work
    wanted: Mapping[str, Any]
    trace: tuple[str, ...]
    cuts: tuple[Path, tuple[str, ...]]
    known: Path
    checked: Work | None = None
    num_checked: int = 0
    cache: Path | None = None
    begun: Path | None = None

    def num_operations(self, action: str) -> int:
        """Return how many operations a fault can hit."""
        return sum(line.split()[0] in KINDS[action] for line in self.trace)


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
        is_known: whether the second sitting was known from another case.
    """

    action: str
    at: int
    hit: str
    ended: str
    said: str
    wrong: str
    is_known: bool = False


def ground_of_study(study: Study, folder: Path, cohort: int | str = "auto") -> Ground:
    """Run a study undisturbed, once counted and once with all power cuts.

    Args:
        study: the study.
        folder: an empty one for what is found.
        cohort: see `api.run`.
    """
    looked, whole, cut, known = _folders(folder, "looked", "whole", "cut", "known")
    look = _well(attempt(harness.check_work(study), looked))
    first = _well(attempt(harness.study_work(study, cohort), whole))
    names = [_plain(line, looked) for line in look.trace]
    assert [_plain(line, whole) for line in first.trace[: look.count]] == names, "looking is not what comes first"
    cuts = _well(attempt(harness.study_work(study, cohort), cut, injector.CUTS))
    fork_server.context = lambda: multiprocessing.get_context("fork")
    os.environ["TUNEOFF_CACHE"] = str(looked / "cache")
    checked = api.check(study)
    assert snapshot(whole) == snapshot(cut), "two undisturbed sittings differ"
    return Ground(
        work=harness.study_work(study, cohort),
        wanted=snapshot(whole),
        trace=tuple(_plain(line, whole) for line in first.trace),
        cuts=(cut / "cuts", tuple(_plain(line, cut) for line in cuts.trace)),
        known=known,
        checked=harness.study_work(study, cohort, checked),
        num_checked=look.count,
        cache=looked / "cache",
    )


def ground_of_report(body: Mapping[str, Any], world: Path, folder: Path, cohort: int | str) -> Ground:
    """Run a study and report on it undisturbed, where a report of before stands.

    Args:
        body: the study, as a mapping.
        world: the folder of its base and data, which gets the study's file.
        folder: an empty one for what is found.
        cohort: see `api.run`.
    """
    begun, whole, cut, known = _folders(folder, "begun", "whole", "cut", "known")
    file = world / f"{body['name']}.yaml"
    file.write_text(json.dumps(body))
    _well(attempt(harness.study_work(study_from(body, world), cohort), begun))
    shutil.rmtree(begun / "cache")  # so that what a page keeps there is made, too
    (begun / "cache").mkdir()
    for form in ("html", "md", "csv", "json"):
        (begun / "runs" / str(body["name"]) / f"report.{form}").write_text("A report of before.\n")
    for place in (whole, cut):
        shutil.copytree(begun, place, dirs_exist_ok=True)
    work = harness.report_work(file, known)
    first = _well(attempt(work, whole))
    cuts = _well(attempt(work, cut, injector.CUTS))
    assert snapshot(whole) == snapshot(cut), "two undisturbed reports differ"
    return Ground(
        work=work,
        wanted=snapshot(whole),
        trace=tuple(_plain(line, whole) for line in first.trace),
        cuts=(cut / "cuts", tuple(_plain(line, cut) for line in cuts.trace)),
        known=known,
        begun=begun,
    )


def judge(ground: Ground, place: Path, action: str, at: int, *, is_cut_for_real: bool = False) -> Verdict:
    """Hit one operation, do the same again undisturbed, and compare.

    Args:
        ground: the command.
        place: a folder for it, which is emptied.
        action: of `injector.KINDS`.
        at: the operation.
        is_cut_for_real: whether processes are killed for a power cut, instead of taking what each leaves from one
            sitting.
    """
    shutil.rmtree(place, ignore_errors=True)
    if action in disk.CUTS and not is_cut_for_real:
        first = _cut(ground, place, action, at)
    else:
        first = _disturbed(ground, place, action, at)
    ended = {0: "went on", 1: "failed run", 2: "error", TRACEBACK: "traceback"}.get(first.code, "killed")
    if not first.hit:
        return Verdict(action, at, "", ended, first.said, "" if first.code == 0 else "an error without a fault")
    wrong = [*_wrong_at_once(action, first), *_wrong_reports(ground, place, first)]
    seen = ground.known / _state(place)
    is_known = seen.exists()
    if not is_known:
        faults = list(_wrong_again(ground, place))
        wrong += faults
        if not faults:
            seen.touch()
    said = first.said.replace(str(place), "")
    return Verdict(action, at, _plain(first.hit, place), ended, said, "; ".join(wrong), is_known)


def never_hit(ground: Ground, action: str, hits: Counter[str]) -> list[str]:
    """Return the operations of the undisturbed command that a fault can hit and that were not."""
    trace = ground.cuts[1] if action in disk.CUTS else ground.trace
    return sorted((Counter(line for line in trace if line.split()[0] in KINDS[action]) - hits).elements())


def _cut(ground: Ground, place: Path, action: str, at: int) -> Outcome:
    folder, trace = ground.cuts
    if at > len(trace):
        place.mkdir(parents=True)
        return Outcome(0, "", len(trace), "")
    shutil.copytree(folder / f"{at:06d}" / action, place)
    return Outcome(-9, "", at, trace[at - 1])


def _disturbed(ground: Ground, place: Path, action: str, at: int) -> Outcome:
    if ground.begun is not None:
        shutil.copytree(ground.begun, place)
    place.mkdir(parents=True, exist_ok=True)
    before = sum(line.split()[0] in KINDS[action] for line in ground.trace[: ground.num_checked])
    if ground.checked is None or ground.cache is None or at <= before:
        return attempt(ground.work, place, action, at)
    shutil.copytree(ground.cache, place / "cache")
    return attempt(ground.checked, place, action, at - before)


def _wrong_at_once(action: str, first: Outcome) -> Iterator[str]:
    if first.code == TRACEBACK or "Traceback" in first.said:
        yield f"a traceback: {first.said.strip().splitlines()[-1] if first.said.strip() else first.code}"
    elif first.code < 0 and action not in KILLS:
        yield f"ended by signal {-first.code}"
    elif first.code and action not in KILLS and not first.said.strip():
        yield "ended without a word"


def _wrong_reports(ground: Ground, place: Path, first: Outcome) -> Iterator[str]:
    """Say which files of a report are neither those of before nor the new ones; of one that went on, the new ones."""
    if ground.begun is None:
        return
    before, now = snapshot(ground.begun), snapshot(place)
    for name in sorted({*before, *now, *ground.wanted}):
        whole = [ground.wanted.get(name)] + ([before.get(name)] if first.code else [])
        if now.get(name) not in whole:
            yield f"{name} is gone" if name not in now else f"{name} is not whole, or not what it should be"


def _wrong_again(ground: Ground, place: Path) -> Iterator[str]:
    is_looked_at = ground.cache is None or _bytes(place / "cache") != _bytes(ground.cache)
    again = attempt(ground.work if is_looked_at or ground.checked is None else ground.checked, place)
    if again.code != 0:
        yield f"the same command did not recover (exit code {again.code}): {again.said}"
        return
    found, wanted = snapshot(place), ground.wanted
    yield from (f"{name} differs" for name in sorted({*found, *wanted}) if found.get(name) != wanted.get(name))


def _state(place: Path) -> str:
    """Return a hash of all that is there but for clocks and drawn names. What is torn counts with its clocks."""
    found = hashlib.sha256()
    for root in (place / "runs", place / "cache"):
        for path in sorted(root.rglob("*")):
            name = TOKEN.sub("", str(path.relative_to(place)))
            content = b"" if path.is_dir() or OWNER.fullmatch(path.name) else _without_clocks(path)
            found.update(f"{name} {path.is_dir()} {len(content)}\n".encode() + content)
    return found.hexdigest()


def _without_clocks(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix not in (".json", ".jsonl"):
        return content
    try:
        body = [without_clocks(json.loads(line)) for line in content.splitlines()] if path.suffix == ".jsonl" else None
        if body is None:
            body = without_clocks(json.loads(content))
            body.get("files", {}).pop(CURVE_FILE, None)
        return json.dumps(body).encode()
    except (ValueError, AttributeError):
        return content


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _plain(line: str, place: Path) -> str:
    return TOKEN.sub("", line.replace(str(place), ""))


def _well(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.said
    return outcome


def _folders(folder: Path, *names: str) -> Iterator[Path]:
    for name in names:
        (folder / name).mkdir(parents=True)
        yield folder / name
