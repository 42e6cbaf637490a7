"""YAML with comments, written line by line: keys with the reason for their value above or behind them."""

import re
import textwrap
from typing import Any

import yaml

WIDTH = 118
BEHIND = 46
"""Column of a comment that stands behind a value."""
PLAIN = re.compile(r"[A-Za-z_/][\w./-]*", re.ASCII)
WORDS = re.compile(r"(?i)true|false|yes|no|on|off|null|y|n")
"""What YAML may read as something else than text."""


class Lines:
    """A YAML file under way."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def text(self) -> str:
        """Return the file."""
        return "\n".join(self._lines) + "\n"

    def blank(self) -> None:
        """Add an empty line."""
        self._lines.append("")

    def say(self, comment: str, indent: int = 0, bullet: str = "") -> None:
        """Add a comment, folded."""
        space, text = " " * indent, printable(comment)
        self._lines += textwrap.wrap(
            text,
            WIDTH,
            initial_indent=f"{space}# {bullet}",
            subsequent_indent=f"{space}# {' ' * len(bullet)}",
            break_long_words=False,
            break_on_hyphens=False,
        )

    def say_raw(self, line: str) -> None:
        """Add a line as it is."""
        self._lines.append(line)

    def key(self, line: str, reason: str = "", indent: int = 0, *, is_off: bool = False) -> None:
        """Add a line `key: value`, with its reason behind it where there is room, else above.

        Args:
            line: the key and its value, as YAML.
            reason: of the value.
            indent: spaces before it.
            is_off: whether it is a comment itself, to be switched on.
        """
        whole = f"{' ' * indent}{'# ' if is_off else ''}{line}"
        reason = printable(reason)
        behind = f"{whole:<{BEHIND - 1}} # {reason}"
        if not reason:
            self._lines.append(whole)
        elif len(behind) <= WIDTH and len(whole) < BEHIND:
            self._lines.append(behind)
        else:
            self.say(reason, indent)
            self._lines.append(whole)


def flow(value: Any) -> str:
    """Return a value as YAML on one line, as study files are read: 1e-4 is a number, and text like it is quoted."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return number(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{flow(key)}: {flow(one)}" for key, one in value.items()) + "}"
    return "[" + ", ".join(map(flow, value)) + "]"


def number(value: float) -> str:
    """Return a number as people write it: 0.001 as 1e-3, 0.1 as it is; all its digits where it has many."""
    if value == 0 or 0.01 <= abs(value) < 10_000:
        text = f"{value:g}"
    else:
        digits, _, power = f"{value:e}".partition("e")
        text = f"{float(digits):g}e{int(power)}"
    return text if float(text) == value else repr(value)


def printable(text: str) -> str:
    """Return a text on one line, without what neither YAML nor a terminal can show: data may hold anything."""
    return "".join(char if char.isprintable() else "\ufffd" for char in " ".join(text.split()))


def _text(value: str) -> str:
    if PLAIN.fullmatch(value) and not WORDS.fullmatch(value):
        return value
    return str(yaml.safe_dump(value, default_style='"', width=float("inf"), allow_unicode=True)).strip()
