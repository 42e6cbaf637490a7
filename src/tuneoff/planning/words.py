"""Words and forms that the plan's tables share."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.table import Table

NOTHING = "-"
V = TypeVar("V")
UNITS = ("B", "kB", "MB", "GB", "TB")
UNIT_STEP = 1000
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
    """Return a size in decimal units with three digits: 1769472 gives `1.77 MB`."""
    if num_bytes == 0:
        return NOTHING
    value, unit = float(num_bytes), 0
    while value >= UNIT_STEP - 0.5 and unit < len(UNITS) - 1:
        value, unit = value / UNIT_STEP, unit + 1
    return f"{value:.3g} {UNITS[unit]}"
