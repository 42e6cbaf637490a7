"""What can go wrong, as one tree, and the nearest right name for a wrong one.

    TuneoffError                the user can mend it; exit code 2
    |-- StudyError              the study file: an unknown key, an impossible value, an empty grid
    |-- DataError               the data: a missing file, a bad row, an empty split
    |-- ModelError              the base model or its tokenizer: missing, gated, not causal
    |-- MethodError             the method: targets that match nothing, a rank out of range, an adapter folder
    |   `-- UnsupportedError    this model cannot take this method: a row in the table, and the study goes on
    |-- StoreError              folders and records: not writable, torn, locked
    |-- DeviceError             the machine: a precision or a device that is not to be had
    `-- InfeasibleError         a run that diverged or ran out of memory: a row in the table; exit code 1

A message says four things: what was asked, what was found, what is allowed, what to do. Every error can be pickled,
because a run trains in a child process and its error crosses to the parent.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar

__all__ = [
    "DataError",
    "DeviceError",
    "InfeasibleError",
    "MethodError",
    "ModelError",
    "StoreError",
    "StudyError",
    "TuneoffError",
    "UnsupportedError",
    "did_you_mean",
    "nearest_names",
]


class TuneoffError(Exception):
    """Something that the user can mend.

    Args:
        message: what was asked, what was found, what is allowed, what to do; plain text.
    """

    exit_code: ClassVar[int] = 2
    """What the command line returns to the shell."""

    def __init__(self, message: str) -> None:
        super().__init__(message)

    @property
    def message(self) -> str:
        """The text for the user, without the place of the error."""
        return str(self.args[0])


class StudyError(TuneoffError):
    """The study file cannot be used; the message names the key's path."""


class DataError(TuneoffError):
    """The data cannot be used.

    Args:
        message: what was expected and what was found.
        file: the file, or the hub id, that was read.
        line: line or row in that file, counted from 1.
        column: name of the column, or position in the line counted from 1.
    """

    def __init__(
        self, message: str, *, file: str | None = None, line: int | None = None, column: str | int | None = None
    ) -> None:
        super().__init__(message)
        self.file = file
        self.line = line
        self.column = column

    def __str__(self) -> str:
        place = [] if self.file is None else [self.file]
        place += [] if self.line is None else [f"line {self.line}"]
        place += [] if self.column is None else [f"column {self.column}"]
        return f"{', '.join(place)}: {self.message}" if place else self.message


class ModelError(TuneoffError):
    """The base model or its tokenizer cannot be used."""


class MethodError(TuneoffError):
    """The method cannot be applied to this model, or an adapter cannot be read."""


class UnsupportedError(MethodError):
    """A method that this model, or this machine, cannot take whatever its settings: an infeasible arm.

    A slip of the pen (targets that match nothing) is a plain `MethodError` and stops the study before it starts.
    """


class StoreError(TuneoffError):
    """A folder or a record cannot be read or written."""


class DeviceError(TuneoffError):
    """The device, or a precision on it, is not to be had."""


class NotFiniteError(TuneoffError):
    """A loss that is not a finite number: the weights that gave it have diverged."""


class InfeasibleError(TuneoffError):
    """A run ended without a result. It becomes a row of the table; the study goes on.

    Args:
        message: what happened, at which step.
        reason: one word for the table, such as `diverged` or `out_of_memory`.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type["InfeasibleError"], tuple[str, str], dict[str, object]]:
        """Rebuild from both arguments; `Exception` would pass the message alone."""
        return type(self), (self.message, self.reason), self.__dict__


def nearest_names(asked: str, allowed: Iterable[str], n: int = 3) -> list[str]:
    """The allowed names that are most like the one asked for, best first.

    Case is not looked at. A name that begins or ends with the other one counts as near, so that `proj` finds `c_proj`.

    Args:
        asked: the name that was not found.
        allowed: the names that exist.
        n: how many to return at most.
    """
    by_folded: dict[str, str] = {}
    for name in allowed:
        by_folded.setdefault(name.casefold(), name)
    folded = asked.casefold()
    found = get_close_matches(folded, by_folded, n=n, cutoff=0.6)
    if folded:
        found += [name for name in sorted(by_folded) if name not in found and _is_part(folded, name)]
    return [by_folded[name] for name in found[:n]]


def did_you_mean(asked: str, allowed: Iterable[str]) -> str:
    """A sentence that offers the nearest names, or an empty text when nothing is near.

    Args:
        asked: the name that was not found.
        allowed: the names that exist.

    Returns:
        ` Did you mean q_proj or k_proj?`, with a space before it, so that it can follow a sentence.
    """
    names = nearest_names(asked, allowed)
    if not names:
        return ""
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
    return f" Did you mean {listed}?"


def _is_part(asked: str, name: str) -> bool:
    """Whether one of the two begins or ends with the other; one or two letters say too little."""
    short, long = sorted((asked, name), key=len)
    return len(short) > 2 and (long.startswith(short) or long.endswith(short))
