"""Files that are there whole or not at all: written aside, synced, and renamed into place."""

import errno
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tuneoff.errors import StoreError

ASIDE = ".aside"
"""End of the name of what is not in its place yet, so that what a kill left can be told and removed."""
STALE_S = 3600.0
"""Age from which what lies aside, in a folder that several processes write to, was left by a kill."""
NO_FOLDER_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP})
"""What fsync of a folder gives on file systems that do not have it (some network and FUSE ones)."""
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

_TOKEN = ""
_TOKEN_OF = -1


def write_synced(path: Path, content: bytes) -> None:
    """Write a file so that a reader, and a power cut, find the old content or the new one and nothing between.

    Raises:
        StoreError: it cannot be written; what was there is there still.
    """
    with on_disk(path, "written"), placed(path) as aside, aside.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


@contextmanager
def placed(path: Path) -> Iterator[Path]:
    """Give a name to write a file under, and put it in its place at the end; of an error nothing stays.

    The file itself is to be synced within the context.
    """
    aside = aside_of(path)
    try:
        yield aside
        aside.replace(path)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def on_disk(path: Path, done: str = "read") -> Iterator[None]:
    """Within the context a failing disk is an error that the user can mend.

    Args:
        path: what is read or written.
        done: which of the two, as a participle.

    Raises:
        StoreError: instead of any `OSError` of the system.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not the disk's: a lock's time ran out, or a library's own kind
            raise
        raise StoreError(_told(path, done, error)) from error


def _told(path: Path, done: str, error: OSError) -> str:
    why, goes_on = error.strerror or error, "the same command goes on from what is there"
    if error.errno in FULL:
        return f"{path}: there is no room left to write ({why}). What is finished is whole. Make room, and {goes_on}."
    what = f"{path} cannot be {done} ({why})."
    if error.errno in FORBIDDEN:
        return f"{what} Give yourself the right to, or name another folder with --out; {goes_on}."
    return f"{what} Look after the disk; {goes_on}."


def aside_of(path: Path) -> Path:
    """Return a name next to `path` that no other process uses, on this machine or another, to be renamed to it."""
    return path.with_name(f".{path.name}.{_token()}{ASIDE}")


def _token() -> str:
    """Return this process's own mark; a forked one draws its own."""
    global _TOKEN, _TOKEN_OF
    if os.getpid() != _TOKEN_OF:
        _TOKEN, _TOKEN_OF = secrets.token_hex(4), os.getpid()
    return _TOKEN


def remove_asides(folder: Path, older_than_s: float = 0.0) -> None:
    """Remove what killed processes left aside in a folder.

    Args:
        folder: the folder.
        older_than_s: what changed later than this stays; 0 only where no other process writes there.
    """
    with suppress(OSError):
        for path in folder.glob(f".*{ASIDE}"):
            if not older_than_s or time.time() - path.lstat().st_mtime > older_than_s:
                remove_folder(path) if path.is_dir() else path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, so that a power cut leaves them; it is no error if it is there.

    Raises:
        OSError: it cannot be made.
    """
    missing = [above for above in path.parents if not above.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in (*reversed(missing), path):
        sync(made.parent)


def read_if_there(path: Path) -> bytes | None:
    """Return a file's content, or none where there is no such file, nor a folder that it could be in.

    Raises:
        StoreError: it is there and cannot be read, which is not the same as missing.
    """
    try:
        with on_disk(path):
            return path.read_bytes()
    except StoreError as error:
        if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
            return None
        raise


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file's content.

    Raises:
        StoreError: it cannot be read.
    """
    with on_disk(path), path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, durable.

    Raises:
        OSError: the disk cannot.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC or not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a file lies outside a folder once links are followed, so that who made the folder may be showing another.

    Links from a snapshot of the hub's cache to the blobs beside it belong to it.
    """
    real = Path(os.path.realpath(folder))
    homes = [real, *(one.parent.parent / "blobs" for one in (real, *real.parents) if one.parent.name == "snapshots")]
    target = Path(os.path.realpath(path))
    return not any(target.is_relative_to(home) for home in homes)


def remove_folder(path: Path) -> None:
    """Remove a folder and what is in it; it is no error if it is not there."""
    shutil.rmtree(path, ignore_errors=True)


def user_cache() -> Path:
    """Return the folder of what can be made again: $TUNEOFF_CACHE, else `tuneoff` in the user's cache folder."""
    own = os.environ.get("TUNEOFF_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tuneoff"
