"""From what a person names (a file, a folder, a hub id) to the data of a study and the files of its other splits."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tuneoff.data.formats import TABLE_SUFFIXES
from tuneoff.data.hub import HUB_ID, split_names
from tuneoff.data.sources import DEMO, SPLITS, Source, find_sources, sort_out
from tuneoff.errors import DataError
from tuneoff.study.spec import ColumnsSpec, SplitsSpec, TaskSpec
from tuneoff.study.testing import TaskKind

TRAIN = re.compile(r"(?<![A-Za-z])(training|train)(?![A-Za-z])", re.IGNORECASE)
OTHERS = ("dev", "validation", "valid", "val", "eval", "test")
"""What the files of the other splits are called where one is called train."""
MIN_DOCUMENTS = 3
"""Text files from which a folder that holds tables too is taken for text."""


@dataclass(frozen=True)
class Located:
    """The data to train on, and what lies beside it.

    Attributes:
        data: for `task.data`, as `find_sources` takes it.
        others: for `task.splits`, by what they are called: dev, validation, valid, val, eval, test.
        notes: what was chosen, one sentence each.
    """

    data: str
    others: dict[str, str]
    notes: tuple[str, ...] = ()


def locate(data: str, root: Path, kind: TaskKind | None = None) -> Located:
    """Find the training data and its official splits.

    A folder of several data files is that of the one called train. Beside a file called train those count that are
    called the same but for that word; on the hub the splits of these names.

    Args:
        data: file, folder, hub id, or `demo`.
        root: folder that a relative path starts from.
        kind: of the task, where it is known.

    Raises:
        DataError: nothing is found, or a folder in which no file is the obvious one.
    """
    path = root / os.path.expanduser(data)
    if data == DEMO or not os.path.exists(path):
        return _elsewhere(data, root)
    if path.is_file():
        return _file(data, path)
    documents, tables, _ = sort_out(path)
    if documents and (kind == "text" or not tables or (kind is None and len(documents) >= MIN_DOCUMENTS > len(tables))):
        return Located(data, {})
    trains = [table for table in tables if TRAIN.search(table.stem)]
    top = [table for table in trains if len(table.parts) == min(len(one.parts) for one in trains)]
    if len(top) == 1:
        name = f"{data.rstrip('/')}/{top[0].relative_to(path).as_posix()}"
        found = _file(name, top[0])
        return Located(name, found.others, (f"Of the {len(tables)} data files in {data}, {top[0].name} is train.",))
    if len(tables) == 1:
        return _file(f"{data.rstrip('/')}/{tables[0].relative_to(path).as_posix()}", tables[0])
    probe = TaskSpec(kind=kind or "instruction", data=data)
    find_sources(probe, root)  # it says what is wrong with the folder
    raise DataError("is a folder in which no file is the obvious one; name the file", file=data)


def _file(data: str, path: Path) -> Located:
    if path.suffix.lower() not in TABLE_SUFFIXES:
        return Located(data, {})
    return Located(data, dict(_siblings(path)))


def _siblings(path: Path) -> Iterator[tuple[str, str]]:
    for word in OTHERS:
        name = TRAIN.sub(word, path.name)
        if name != path.name and (path.parent / name).is_file():
            yield word, name


def _elsewhere(data: str, root: Path) -> Located:
    if data != DEMO and HUB_ID.fullmatch(data):
        find_sources(TaskSpec(kind="instruction", data=data), root)  # a name that was meant as a path is refused
        return Located(data, {name: name for name in split_names(data) if name in OTHERS})
    return Located(data, {})  # what is neither is refused when it is read


def source_of(data: str, root: Path, kind: TaskKind, columns: dict[str, str], split: str | None = None) -> Source:
    """Return the source of the data, or of one of its other splits.

    Args:
        data: for `task.data`.
        root: folder that a relative path starts from.
        kind: of the task; says which of the demo data is meant.
        columns: for `task.columns`.
        split: for `task.splits.train`; none is the data itself.

    Raises:
        DataError: nothing is found.
    """
    task = TaskSpec(kind=kind, data=data, columns=ColumnsSpec.model_validate(columns), splits=SplitsSpec(train=split))
    return find_sources(task, root).train


__all__ = ["OTHERS", "SPLITS", "Located", "locate", "source_of"]
