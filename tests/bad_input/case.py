"""What a case of bad input is, and the folder that each one spoils: a small base, rows, and a study of one LoRA."""

import contextlib
import hashlib
import json
import os
import pickle
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from tests.cli.shell import Outcome, tuneoff
from tests.running.world import body

from tuneoff.errors import TuneoffError

LORA = {"lora": {"method": "lora", "rank": 2, "lr": 1e-3}}
STUDY = "study.yaml"
RUN = ("run", STUDY)
TIME_LIMIT_S = 60
"""After which a command counts as hanging: none of these needs a second on an idle machine."""


@dataclass(frozen=True)
class Place:
    """A folder with a base (`base`), rows (`rows.jsonl`) and a text (`book.txt`); it is the working folder."""

    folder: Path

    def file(self, name: str, content: bytes | str) -> Path:
        """Write a file, and the folders above it."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def study(self, arms: Mapping[str, Any] | None = None, **changes: Any) -> tuple[str, ...]:
        """Write the study file with changes, and return the command that runs it."""
        self.file(STUDY, json.dumps(body("bad", LORA if arms is None else arms) | changes))
        return RUN

    def task(self, **changes: Any) -> tuple[str, ...]:
        """Write the study file with changes to its task, and return the command that runs it."""
        return self.study(task=body("bad", LORA)["task"] | changes)

    def data(self, name: str, content: bytes | str, **changes: Any) -> tuple[str, ...]:
        """Write a file of data and the study that reads it, and return the command that runs it."""
        self.file(name, content)
        return self.task(data=name, **changes)

    def rows(self, *values: Any, number: int = 20, **changes: Any) -> tuple[str, ...]:
        """Write good rows with these after them, and return the command that trains on them."""
        good = [{"instruction": f"Say {index}", "response": f"{index} it is"} for index in range(number)]
        return self.data("data.jsonl", lines([*good, *values]), **changes)

    def edit_json(self, name: str, **changes: Any) -> None:
        """Change keys of a JSON file; `...` removes one."""
        path = self.folder / name
        found = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))


@dataclass(frozen=True)
class Case:
    """One kind of bad input.

    Attributes:
        given: what is given, in words.
        build: spoils the place and returns the command's arguments.
        says: pattern of what the error has to say: the file and the place in it, what was expected, what to do.
        code: what the command returns to the shell.
        writes: patterns of files that the command may write all the same.
    """

    given: str
    build: Callable[[Place], Sequence[str]]
    says: str
    code: int = 2
    writes: tuple[str, ...] = field(default=())


def lines(values: Sequence[Any]) -> str:
    """Return one JSON value a line."""
    return "".join(json.dumps(value) + "\n" for value in values)


def run_case(case: Case, place: Place) -> Outcome:
    """Run a case in its place as a user would, in this process; what a child would be asked is asked here.

    What crosses to a child and back is pickled all the same.
    """

    def in_this_process(function: Callable[[Any], Any], argument: Any) -> Any:
        try:
            return pickle.loads(pickle.dumps(function(pickle.loads(pickle.dumps(argument)))))
        except TuneoffError as error:
            raise pickle.loads(pickle.dumps(error)) from None

    arguments = case.build(place)
    before = tree(place.folder)
    with (
        contextlib.chdir(place.folder),
        mock.patch("tuneoff.running.executors.in_child", in_this_process),
        mock.patch("tuneoff.fork_server.start_early"),
        mock.patch("tuneoff.running.run.StudyRunner.run", side_effect=AssertionError("it was taken, and trained on")),
        _time_limit(),
    ):
        found = tuneoff(*arguments)
    after = tree(place.folder)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    left = sorted(name for name in changed if not any(re.search(one, name) for one in case.writes))
    assert not left, f"written or changed: {left}"
    return found


def check(case: Case, found: Outcome) -> None:
    """Hold what a command left in the shell against what its case promises."""
    shown = (found.code, found.text, found.errors)
    assert found.code == case.code, shown
    assert "Traceback" not in found.text + found.errors, shown
    assert "Warning" not in found.errors, shown
    assert len(found.errors) < 4000, f"{len(found.errors)} characters"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", found.text + found.errors), shown
    assert re.search(case.says, found.errors, re.DOTALL), shown
    assert found.errors.count("error: ") == 1 or "Usage:" in found.errors, shown


def said(found: Outcome, folder: Path) -> str:
    """Return what a command said, on one line, without what differs between machines."""
    text = re.sub(r"[╭╮╰╯│─]+", " ", found.errors).replace(str(folder), "FOLDER")
    return " ".join(text.split()).removeprefix("error: ")


def tree(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder, and the names of its folders."""
    found = {}
    for top, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(top) / name
            is_file = path.is_file() and not path.is_symlink()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if is_file else "no file"
            found[path.relative_to(folder).as_posix()] = content
    return found


def fresh(world: Path, folder: Path) -> Place:
    """Return a place that nothing has spoilt yet."""
    shutil.copytree(world / "base", folder / "base")
    for name in ("rows.jsonl", "book.txt"):
        shutil.copy(world / name, folder)
    return Place(folder)


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise AssertionError(f"no end after {TIME_LIMIT_S} s")

    kept = signal.signal(signal.SIGALRM, stop)
    signal.alarm(TIME_LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, kept)
