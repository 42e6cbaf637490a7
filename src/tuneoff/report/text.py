"""Text that comes from data, models and study files is not trusted: what each place that shows it must take out."""

import re
from functools import lru_cache

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours, cursor movements
    r"|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"  # titles, links, clipboard
    r"|\x1b[PX^_][^\x1b\x9c]*(?:\x1b\\|\x9c)?"  # device control strings
    r"|\x9b[0-?]*[ -/]*[@-~]"
    r"|\x1b[ -/]*[0-~]"
)
# Other control characters, and those that turn the direction of writing or hide (Trojan Source, arXiv:2111.00169).
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
# Underscores inside a word, as in c_attn, mean nothing to Markdown.
_MARKDOWN = re.compile(r"([\\`*\[\]!|~$]|(?<!\w)_|_(?!\w))")
_FORMULA = ("=", "+", "-", "@")


def clean(text: str) -> str:
    """Return `text` without terminal escape codes and control characters, on one line."""
    if not (text.isascii() and text.isprintable()):  # most texts are, and hold nothing to take out
        text = _CONTROLS.sub("", _ESCAPES.sub("", text))
    return " ".join(text.split())


def clean_lines(text: str) -> str:
    """Return `text` cleaned line by line, its lines and their indents kept; empty lines at both ends are left out."""
    lines = [_CONTROLS.sub("", line).expandtabs(4).rstrip() for line in _ESCAPES.sub("", text).splitlines()]
    return "\n".join(lines).strip("\n")


def without_controls(text: str) -> str:
    """Return `text` without control characters but for tabs and line ends; what else an escape code has stays."""
    return _CONTROLS.sub("", text)


@lru_cache(maxsize=4096)
def markdown(text: str) -> str:
    """Return `text` as Markdown that shows it as it is, in a table cell too."""
    escaped = _MARKDOWN.sub(r"\\\1", clean(text))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def spreadsheet(text: str) -> str:
    """Return `text` for a CSV cell, so that a spreadsheet shows a formula and does not run it (OWASP, "CSV injection").

    Tabs and carriage returns, which may also start one, are gone before the first character is looked at.
    """
    shown = clean(text)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown
