"""Files that are there whole or not at all: written aside, synced, and renamed into place."""

import hashlib
import os
import shutil
from pathlib import Path


def write_synced(path: Path, content: bytes) -> None:
    """Write a file so that a reader, and a power cut, find the old content or the new one and nothing between."""
    aside = aside_of(path)
    try:
        with aside.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    sync(path.parent)


def aside_of(path: Path) -> Path:
    """Return a name next to `path` that no other process uses, to be renamed to it."""
    return path.with_name(f".{path.name}.{os.getpid()}")


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make a file's content, or the renames in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
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
