"""What the records of a store held when they were last read, in one file, so that thousands need not be parsed again.

A cache and nothing more: it can be deleted at any time, and is ignored where it is torn or of another version. Every
record's file is still looked at. Its body is taken from here only where the file has the size, the inode, and the times
of modification and of change (to the nanosecond; the latter cannot be set by hand) that it had when its checksum was
found right. A file that changed shortly before it was read is left out, as it could change once more within a tick of
the file system's clock and look the same (what Git calls a racy entry). Writers replace the file as a whole, so that of
two the last one wins, and whatever it holds is held against the files again.
"""

import hashlib
import logging
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic_core import from_json, to_json

from tuneoff.files import aside_of

INDEX_FILE = ".index"
EXPLAINED_INDEX_FILE = ".index-explained"
"""Apart, as it is ten times as large, and only a report asks for it."""
INDEX_VERSION = 1
MIN_GAIN = 64
"""Records that have to be parsed before the file is written: a small study goes without."""
SETTLED_NS = 2_000_000_000
"""How long ago a file must have changed: more than a tick of any file system's clock (FAT's is the longest)."""

Signature = list[int]
Entry = tuple[Signature, dict[str, Any]]

log = logging.getLogger(__name__)


def signature_of(status: os.stat_result) -> Signature:
    """Return what changes when a file does: size, inode, and its two times in nanoseconds."""
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


class Index:
    """Bodies of records by their path within the store.

    Args:
        folder: of the store.
        version: of the records; others are not taken.
        name: of the file.
    """

    def __init__(self, folder: Path, version: int, name: str = INDEX_FILE) -> None:
        self.path = folder / name
        self._version = [INDEX_VERSION, version]
        self._entries = self._read()
        self._seen: dict[str, Entry] = {}
        self._num_new = 0

    def body(self, path: Path) -> dict[str, Any] | None:
        """Return what a file holds, or none where it has to be read.

        Raises:
            OSError: there is no such file.
        """
        signature = signature_of(os.stat(path))
        key = self._key(path)
        entry = self._entries.get(key)
        if entry is None or entry[0] != signature:
            return None
        self._seen[key] = entry
        body: dict[str, Any] = entry[1]
        return body

    def add(self, path: Path, status: os.stat_result, body: dict[str, Any]) -> None:
        """Remember what a file held, whose checksum was found right.

        Args:
            path: the file.
            status: of it, taken before it was read.
            body: what it held; it is not to be changed afterwards.
        """
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED_NS:
            self._seen[self._key(path)] = (signature_of(status), body)
            self._num_new += 1

    def save(self) -> None:
        """Write what was seen, if that is worth it. Where nothing can be written, the next reader parses again."""
        if self._num_new < MIN_GAIN:
            return
        content = to_json({"version": self._version, "entries": self._seen})
        aside = aside_of(self.path)
        try:  # not synced: what a power cut leaves is told by its checksum
            aside.write_bytes(_checksum(content) + b"\n" + content)
            aside.replace(self.path)
        except OSError as error:
            log.info("%s cannot be kept (%s)", self.path, error)
            with suppress(OSError):
                aside.unlink(missing_ok=True)

    def _read(self) -> dict[str, Any]:
        try:
            checksum, _, content = self.path.read_bytes().partition(b"\n")
            body = from_json(content) if checksum == _checksum(content) else {}
        except (OSError, ValueError):
            return {}
        is_known = isinstance(body, dict) and body.get("version") == self._version
        entries: dict[str, Any] = body["entries"] if is_known else {}
        return entries

    @staticmethod
    def _key(path: Path) -> str:
        return "/".join(path.parts[-2:])


def _checksum(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()
