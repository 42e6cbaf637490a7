"""What the bits of a run depend on, in a file that is written before its first step."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from tuneoff.files import make_folder, on_disk, read_if_there, write_synced
from tuneoff.study.identity import canonical_json, digest

CHECKSUM = "checksum"
KINDS = {"root": str, "num_threads": int, "micro_batch": int, "num_sittings": int, "cohort": list}
"""Of which kind the values are."""


def read(path: Path) -> dict[str, Any] | None:
    """Return what a run was set up with, or none where the file is not there, is torn, or is not what was written.

    Raises:
        StoreError: the disk does not give it.
    """
    content = read_if_there(path)
    try:
        body = None if content is None else from_json(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict) or body.pop(CHECKSUM, None) not in (None, digest(body)):  # none in older ones
        return None
    return body if all(isinstance(body.get(key, kind()), kind) for key, kind in KINDS.items()) else None


def write(path: Path, setup: Mapping[str, Any]) -> None:
    """Store what the bits of a run depend on.

    Raises:
        StoreError: it cannot be written.
    """
    body = dict(setup)
    with on_disk(path, "written"):
        make_folder(path.parent)
    write_synced(path, canonical_json(body | {CHECKSUM: digest(body)}).encode())
