"""The file of a run's learning curve: a line of JSON for each step and each validation.

A curve ends at its first line that is no such row: torn, or altered.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from tuneoff.files import on_disk, read_if_there, sync, write_synced

MAX_COUNT = 2**53
"""Steps and tokens lie below; a float holds them exactly."""


def rows(path: Path, kind: str = "") -> list[dict[str, Any]]:
    """Return the rows; none where there is no file.

    Args:
        path: of the file.
        kind: of the rows that are wanted; where there is no such row, or none is named, all are given.

    Raises:
        StoreError: the disk does not give it.
    """
    content = read_if_there(path) or b""
    if kind:
        named = f'"{kind}"'.encode()
        found = _parsed(b"\n".join(line for line in content.split(b"\n") if named in line))
        wanted = [row for row in found if row.get("kind") == kind]
        if wanted:
            return wanted
    return _parsed(content)


def _parsed(content: bytes) -> list[dict[str, Any]]:
    lines = content.decode(errors="replace").splitlines()
    try:  # all at once: one by one takes three times as long
        whole: list[dict[str, Any]] = from_json(f"[{','.join(lines)}]")
        if len(whole) == len(lines) and all(map(is_row, whole)):
            return whole
    except ValueError:
        pass
    found = []
    for line in lines:
        try:
            row = from_json(line)
        except ValueError:
            break
        if not is_row(row):
            break
        found.append(row)
    return found


def is_row(value: Any) -> bool:
    """Whether a JSON value is a row, with what whoever reads it takes for granted: kind, step, loss and tokens seen."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("kind"), str)
        and _is_count(value.get("step"))
        and is_finite(value.get("loss_nats"))
        and _is_count(value.get("target_tokens"))
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_COUNT


def is_finite(value: Any) -> bool:
    """Whether a JSON value is a number that a float can hold, true and false apart."""
    return math.isfinite(value) if isinstance(value, float) else type(value) is int and abs(value) < MAX_COUNT


def add(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row, which is safe once `make_safe` was called.

    Raises:
        StoreError: it cannot be written.
    """
    with on_disk(path, "written"), path.open("a", encoding="utf-8") as handle:
        handle.write(json.dumps(row) + "\n")


def make_safe(paths: Iterable[Path]) -> None:
    """Wait until the disk has what was added.

    Raises:
        StoreError: the disk cannot.
    """
    for path in paths:
        with on_disk(path, "written"):
            sync(path)


def cut(path: Path, step: int) -> None:
    """Drop the rows after a step.

    Raises:
        StoreError: it cannot be read or written.
    """
    kept = [row for row in rows(path) if row["step"] <= step]
    write_synced(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
