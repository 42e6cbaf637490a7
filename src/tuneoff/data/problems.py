"""Bad rows, gathered over a whole file and told in one error: the first few with their places, and the count of all."""

from typing import Any, Protocol

from tuneoff.errors import DataError

NUM_SHOWN = 5
"""Bad rows that an error lists; the count covers the others."""

MAX_SHOWN_CHARS = 60
"""Length at which a value from the data is cut in a message."""


class Placed(Protocol):
    """What came from the data, and where from."""

    @property
    def file(self) -> str:
        """What errors call the file."""

    @property
    def line(self) -> int:
        """Line or row, from 1."""

    @property
    def place(self) -> str:
        """What is said instead of the line, where rows are nested; else empty."""


class Problems:
    """What is wrong with the rows of one source, in reading order."""

    def __init__(self) -> None:
        self._shown: list[DataError] = []
        self._num_found = 0

    def add(self, message: str, *, file: str, line: int | None = None, column: str | int | None = None) -> None:
        """Note one bad row: what was expected, what was found, and where."""
        self._num_found += 1
        if len(self._shown) < NUM_SHOWN:
            self._shown.append(DataError(message, file=file, line=line, column=column))

    def add_at(self, placed: Placed, message: str, column: str | None = None) -> None:
        """Note that a row, or what was made of it, is bad; where rows are nested, their place stands for the line."""
        if placed.place:
            self.add(f"{placed.place}: {message}", file=placed.file, column=column)
        else:
            self.add(message, file=placed.file, line=placed.line, column=column)

    def __len__(self) -> int:
        return self._num_found

    def check(self) -> None:
        """Raise one `DataError` for all that was noted; do nothing where there is none."""
        if not self._shown:
            return
        first, *others = self._shown
        message = first.message
        if others:
            lines = "".join(f"\n  {error}" for error in others)
            more = self._num_found - len(self._shown)
            rest = f"\n  and {more} more" if more else ""
            message += f"\n{self._num_found} bad rows in all; besides the first:{lines}{rest}"
        raise DataError(message, file=first.file, line=first.line, column=first.column)


def shown(value: Any) -> str:
    """Return a value from the data as it may stand in a message: on one line, and short."""
    if value is None:
        return "null"
    text = ascii(value) if _has_surrogates(value) else repr(value)
    kind = "" if isinstance(value, str) else f" ({type(value).__name__})"
    return (text if len(text) <= MAX_SHOWN_CHARS else text[: MAX_SHOWN_CHARS - 3] + "...") + kind


def _has_surrogates(value: Any) -> bool:
    """A lone surrogate cannot be printed, so a message must not hold one."""
    return not isinstance(value, str) or any("\ud800" <= char <= "\udfff" for char in value)
