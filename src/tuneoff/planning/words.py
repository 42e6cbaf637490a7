"""Words and forms that the plan's tables share."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.table import Table

from tuneoff.study.sizes import shown_bytes

NOTHING = "-"
V = TypeVar("V")
MIN_WIDTH = 12
"""Columns of a name, however narrow the terminal is."""


def empty_table(*texts: str, numbers: Sequence[str]) -> Table:
    """Return an empty table whose numbers stay whole where the terminal is narrow; the texts are folded instead."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in texts:
        table.add_column(name, overflow="fold", min_width=MIN_WIDTH)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def shared(pairs: Iterable[tuple[str, V]]) -> list[tuple[V, list[str]]]:
    """Return each value once, with the names that have it."""
    found: dict[V, list[str]] = {}
    for key, value in pairs:
        found.setdefault(value, []).append(key)
    return list(found.items())


def bytes_text(num_bytes: int) -> str:
    """Return a size as `shown_bytes` does, and a dash for none."""
    return shown_bytes(num_bytes) if num_bytes else NOTHING
