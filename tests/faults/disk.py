"""A model of a disk: what would be there after a power cut.

A file's content counts from its last fsync, a folder's entries (made, renamed, removed) from the last fsync of the
folder. What was not synced is dropped all together (`power`), or the names are kept and the contents dropped
(`power-names`: what a file system may do that writes names before contents). Between the two lies what a real cut
leaves.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REAL_OPEN = open
REAL_LINK = os.link
CUTS = ("power", "power-names")
"""What a cut may leave of what was not synced."""


class Disk:
    """What of some folders is safe. The caller sees to it that one process and one thread at a time call it.

    Args:
        shadow: a folder outside of `roots`, on the same file system, that holds the model.
        roots: the folders.
    """

    def __init__(self, shadow: Path, roots: Sequence[Path]) -> None:
        self.shadow, self.roots = shadow, tuple(roots)

    def begin(self) -> None:
        """Take all that is there for safe."""
        for name in ("content", "inodes"):
            (self.shadow / name).mkdir(parents=True)
        self._write({})
        for root in self.roots:
            for folder, _, names in os.walk(root):
                for name in names:
                    self.created(Path(folder, name))
                    self.synced(Path(folder, name))
                self.synced(Path(folder))

    def created(self, path: Path) -> None:
        """Hold on to a new file's inode, whose number would else name another file once it is gone."""
        keep = self.shadow / "inodes" / str(os.stat(path).st_ino)
        if not os.path.exists(keep):
            REAL_LINK(path, keep)

    def made_folder(self, path: Path) -> None:
        """Note a new folder, with nothing in it."""
        self._write(self._entries() | {str(os.stat(path).st_ino): {}})

    def synced(self, path: Path) -> None:
        """Note that a file's content, or a folder's entries, are safe."""
        inode = str(os.stat(path).st_ino)
        if os.path.isdir(path):
            found = {entry.name: [entry.inode(), int(entry.is_dir())] for entry in os.scandir(path)}
            self._write(self._entries() | {inode: found})
        else:
            _write(self.shadow / "content" / inode, _read(path))

    def leave(self, cut: str, to: Path) -> None:
        """Write what a power cut would leave of each root into a folder of that name below `to`.

        Args:
            cut: of `CUTS`.
            to: a folder outside of the roots, which is made.
        """
        entries = self._entries()
        for root in self.roots:
            (to / root.name).mkdir(parents=True)
            if cut == "power":
                self._restore(entries, entries[str(os.stat(root).st_ino)], to / root.name)
            else:
                self._restore_names(root, to / root.name)

    def lose(self, cut: str) -> None:
        """Leave in the roots themselves what a power cut would leave; call it when all processes are gone."""
        left = self.shadow / "left"
        self.leave(cut, left)
        for root in self.roots:
            shutil.rmtree(root)
            (left / root.name).rename(root)

    def _restore(self, all_entries: Mapping[str, Any], entries: Mapping[str, list[int]], to: Path) -> None:
        for name, (inode, is_dir) in entries.items():
            if is_dir:
                (to / name).mkdir()
                self._restore(all_entries, all_entries.get(str(inode), {}), to / name)
            else:
                content = self.shadow / "content" / str(inode)
                _write(to / name, _read(content) if content.exists() else b"")

    def _restore_names(self, folder: Path, to: Path) -> None:
        for entry in os.scandir(folder):
            if entry.is_dir():
                (to / entry.name).mkdir()
                self._restore_names(Path(entry.path), to / entry.name)
            else:
                content = self.shadow / "content" / str(entry.inode())
                now = _read(Path(entry.path))
                _write(to / entry.name, _read(content) if content.exists() else now[: len(now) // 2])

    def _entries(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(_read(self.shadow / "dirs.json"))
        return found

    def _write(self, entries: Mapping[str, Any]) -> None:
        _write(self.shadow / "dirs.json", json.dumps(entries).encode())


def _read(path: Path) -> bytes:
    with REAL_OPEN(path, "rb") as handle:
        return handle.read()


def _write(path: Path, content: bytes) -> None:
    with REAL_OPEN(path, "wb") as handle:
        handle.write(content)
