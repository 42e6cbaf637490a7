"""Where the rows come from: the hub, a local file, a folder, or the demo data; found first, read later.

Of a folder, every `.txt` and `.md` file below it is one document, in sorted order; hidden files and READMEs are not. A
folder without such files may hold one data file. What a folder left out is said in a note.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tuneoff.data.formats import TABLE_SUFFIXES, TEXT_SUFFIXES, Row, check_is_file, read_rows
from tuneoff.data.hub import HUB_ID, read_class_names, read_commit, read_hub
from tuneoff.errors import DataError, did_you_mean
from tuneoff.files import leads_out
from tuneoff.study.spec import TaskSpec
from tuneoff.study.testing import TaskKind

DEMO = "demo"
SPLITS = ("train", "validation", "test")
NUM_NAMED = 3
"""File names that a note lists."""


@dataclass(frozen=True)
class Source:
    """One split's rows, not read yet."""

    kind: Literal["files", "hub", "demo"]
    name: str
    """What errors call it: the path as it was written, or the hub id."""
    split: str = ""
    """Split of the hub or of the demo data."""
    files: tuple[tuple[Path, str], ...] = ()
    """Each file and what errors call it."""
    note: str = ""
    """What of a folder was read."""
    limit: int | None = None
    trust_remote_code: bool = False
    task_kind: TaskKind = "instruction"
    """Which of the demo data."""
    positions: frozenset[str] = frozenset()
    """Columns that the study names by number, as in a file without a header."""

    @property
    def is_text(self) -> bool:
        """Whether each file is one document."""
        return bool(self.files) and self.files[0][0].suffix.lower() in TEXT_SUFFIXES

    @property
    def label(self) -> str:
        """What a note calls it."""
        return f"{self.name}, split {self.split}" if self.split else self.name

    def read(self) -> list[Row]:
        """Read the rows, `limit` of them at most."""
        if self.kind == "hub":
            return read_hub(self.name, self.split, self.limit, self.trust_remote_code)
        if self.kind == "demo":
            return self._read_demo()
        files = self.files[: self.limit] if self.is_text else self.files
        return [row for path, label in files for row in read_rows(path, label, self.limit, self.positions)]

    def commit(self) -> str:
        """Return the commit of the hub that the rows are of; empty where they are not the hub's."""
        return read_commit(self.name, self.split, self.trust_remote_code) if self.kind == "hub" else ""

    def class_names(self, column: str) -> tuple[str, ...]:
        """Return the names of a column's integers 0, 1, ..., where the source has them."""
        if self.kind != "hub":
            return ()
        return read_class_names(self.name, self.split, column, self.trust_remote_code)

    def digest(self) -> str:
        """Return the sha256 (hex) of what is read: of the files' bytes and names, or else of the rows."""
        if self.kind == "files":
            content: object = [(label, _file_digest(path, label)) for path, label in self.files]
        else:
            content = [row.values for row in self.read()]
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()

    def _read_demo(self) -> list[Row]:
        from tuneoff.data.demo_tasks import generate_rows

        rows = generate_rows(self.task_kind, self.split)[: self.limit]
        return [Row(dict(row), self.label, number) for number, row in enumerate(rows, start=1)]


@dataclass(frozen=True)
class Sources:
    """The three splits: a source of their own, or the share of train that is cut off for them."""

    train: Source
    validation: Source | float
    test: Source | float
    notes: tuple[str, ...] = ()

    def official(self) -> Mapping[str, Source]:
        """Return the splits that have a source, by name."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: source for name, source in splits.items() if isinstance(source, Source)}


def find_sources(task: TaskSpec, root: Path, trust_remote_code: bool = False) -> Sources:
    """Find where each split comes from, without reading rows.

    Args:
        task: `data` is `demo`, an existing file or folder, or else a hub id; a relative path starts at `root`. A split
            is named
            by a file (from the data's folder, else from `root`) or, on the hub, by a split.
        root: the study file's folder.
        trust_remote_code: whether the study allows code from the hub.

    Raises:
        DataError: nothing is found; the message names the nearest files.
    """
    finder = _Finder(task, root, trust_remote_code)
    validation, test = (finder.share_or_source(name) for name in SPLITS[1:])
    return Sources(finder.source("train", task.splits.train), validation, test, tuple(finder.notes))


class _Finder:
    """Resolves the names of one task."""

    def __init__(self, task: TaskSpec, root: Path, trust_remote_code: bool) -> None:
        self._task = task
        self._root = root
        self._trust_remote_code = trust_remote_code
        self.notes: list[str] = []

    def share_or_source(self, split: str) -> Source | float:
        asked: float | str = getattr(self._task.splits, split)
        if isinstance(asked, str):
            return self.source(split, asked)
        if self._task.data == DEMO:
            note = "The demo data has validation and test splits of its own, which are used whole."
            self.notes += [note] if note not in self.notes else []
            return self.source(split, split)
        return asked

    def source(self, split: str, name: str | None) -> Source:
        """Return the source called `name`; none is the data itself."""
        data, limit = self._task.data, self._task.limit
        if data == DEMO:
            return self._demo(split, name or split)
        local = _resolve(self._root, data)
        if os.path.exists(local):
            found = self._local(data, local) if name is None else self._beside(split, name, data, local)
            if found.note:
                self.notes.append(found.note)
            return found
        if not HUB_ID.fullmatch(data) or _looks_local(data, local):
            raise DataError(_missing(local), file=data)
        return Source("hub", data, split=name or "train", limit=limit, trust_remote_code=self._trust_remote_code)

    def _demo(self, split: str, name: str) -> Source:
        if name not in SPLITS:
            hint = did_you_mean(name, SPLITS)
            raise DataError(f"task.splits.{split}: the demo data has {', '.join(SPLITS)}; found {name!r}.{hint}")
        return Source("demo", DEMO, split=name, limit=self._task.limit, task_kind=self._task.kind)

    def _beside(self, split: str, name: str, data: str, local: Path) -> Source:
        folder = local if local.is_dir() else local.parent
        for path in (_resolve(folder, name), _resolve(self._root, name)):
            if os.path.exists(path):
                return self._local(name, path)
        raise DataError(f"task.splits.{split}: {_missing(folder / name)} (beside {data})", file=name)

    def _local(self, name: str, path: Path) -> Source:
        limit = self._task.limit
        positions = self._task.columns.positions
        if path.is_file():
            return Source("files", name, files=((path, name),), limit=limit, positions=positions)
        check_is_file(path, name)
        documents, tables, others = sort_out(path)
        for linked in (*documents, *tables):
            if leads_out(linked, path):
                raise DataError(
                    f"is a link that leads out of the folder (to {os.path.realpath(linked)}), and is not followed; "
                    "copy the file there",
                    file=f"{name.rstrip('/')}/{_below(path, linked)}",
                )
        if documents and (self._task.kind == "text" or not tables):
            if self._task.kind != "text":
                raise DataError(
                    f"is a folder of text; kind: {self._task.kind} needs rows (or set kind: text)", file=name
                )
            files = tuple((document, f"{name.rstrip('/')}/{_below(path, document)}") for document in documents)
            left_out = [_below(path, other) for other in sorted([*tables, *others])]
            return Source("files", name, files=files, note=_folder_note(name, len(files), left_out), limit=limit)
        if len(tables) == 1:
            label = f"{name.rstrip('/')}/{_below(path, tables[0])}"
            return Source("files", label, files=((tables[0], label),), limit=limit, positions=positions)
        raise DataError(_no_choice(path, tables), file=name)


def _resolve(folder: Path, name: str) -> Path:
    return folder / os.path.expanduser(name)


def _looks_local(data: str, local: Path) -> bool:
    """Whether a name that leads nowhere was meant as a path: by its suffix, or because its folder is there."""
    return Path(data).suffix.lower() in (*TABLE_SUFFIXES, *TEXT_SUFFIXES) or (
        "/" in data and os.path.isdir(local.parent)
    )


def sort_out(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Return a folder's documents, its data files and its other files, each sorted; hidden ones are passed over."""
    documents: list[Path] = []
    tables: list[Path] = []
    others: list[Path] = []
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).parts):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        suffix = path.suffix.lower()
        if suffix in TEXT_SUFFIXES and path.stem.lower() != "readme":
            documents.append(path)
        else:
            (tables if suffix in TABLE_SUFFIXES else others).append(path)
    return documents, tables, others


def _folder_note(name: str, num_files: int, left_out: Sequence[str]) -> str:
    note = f"{name}: {num_files} text files, one document each"
    if left_out:
        more = f" and {len(left_out) - NUM_NAMED} more" if len(left_out) > NUM_NAMED else ""
        note += f"; left out: {', '.join(left_out[:NUM_NAMED])}{more}"
    return note + "."


def _no_choice(folder: Path, tables: Sequence[Path]) -> str:
    if tables:
        names = ", ".join(_below(folder, path) for path in tables[:8])
        return f"is a folder with {len(tables)} data files ({names}); name one, or name them under task.splits"
    allowed = ", ".join((*TEXT_SUFFIXES, *TABLE_SUFFIXES))
    return f"is a folder without data; expected text files or one data file ({allowed})"


def _missing(path: Path) -> str:
    """Say that a file is missing, and which names in its folder are near."""
    folder = path.parent
    if os.path.islink(path):
        return f"{path} is a link that leads nowhere (to {os.readlink(path)})"
    if not os.path.isdir(folder):
        return f"no such file or folder: {path} (there is no folder {folder})"
    hint = did_you_mean(path.name, _names(folder))
    return f"no such file or folder: {path}.{hint}"


def _names(folder: Path) -> Iterator[str]:
    try:
        yield from (entry.name for entry in folder.iterdir())
    except OSError:
        return


def _below(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _file_digest(path: Path, label: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", file=label) from None
