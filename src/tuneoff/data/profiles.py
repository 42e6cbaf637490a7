"""What a column holds, seen from some of its values: text, classes, numbers, chats; and what its name says."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneoff.data.formats import Row
from tuneoff.data.problems import shown

MAX_ROWS = 2000
"""Rows that are looked at, evenly spread over the data."""
MAX_CLASSES = 200
MAX_CLASS_CHARS = 60
MIN_REPEATS = 4
"""Rows for each class on average, from which a column of short values may be one of classes."""
NAME_CHARS = 40
"""A name of a column that is longer is a value: the file has no header."""


def _all(words: str) -> frozenset[str]:
    return frozenset(words.split())


NAMES: Mapping[str, frozenset[str]] = {
    "label": _all(
        "label labels class category sentiment rating stars star score topic intent polarity tag spam stance emotion"
        " genre target grade urgency priority severity y"
    ),
    "text": _all(
        "text sentence content review comment tweet body message post utterance document headline description abstract"
        " email sms snippet phrase paragraph story article"
    ),
    "prompt": _all("instruction prompt question query user human task request source src problem ask asked input"),
    "response": _all(
        "response output completion reply answer assistant bot target solution summary translation chosen tgt replied"
    ),
    "context": _all("context passage paragraph background article document evidence"),
    "question": _all("question query ask asked"),
    "answers": _all("answers answer gold reference references"),
}
"""Words in a column's name that speak for a part; beyond the names that are recognised without `task.columns`."""


@dataclass(frozen=True)
class Profile:
    """What a column holds.

    Attributes:
        name: the column's.
        kind: text, number, chat (a list of messages), other, or empty.
        num_filled: rows looked at that have a value.
        num_distinct: different values among these.
        mean_chars: mean length of the values as text.
        mean_words: of the values as text.
        longest: characters of the longest one.
        question_share: share of the values that end in a question mark.
        has_fractions: whether there are numbers that are no integers.
    """

    name: str
    kind: str
    num_filled: int = 0
    num_distinct: int = 0
    mean_chars: float = 0.0
    mean_words: float = 0.0
    longest: int = 0
    question_share: float = 0.0
    has_fractions: bool = False

    @property
    def is_text(self) -> bool:
        """Whether it is running text: words that seldom repeat."""
        is_worded = self.mean_words >= 2 or self.mean_chars >= NAME_CHARS
        return self.kind == "text" and is_worded and 2 * self.num_distinct >= self.num_filled and not self.is_class

    @property
    def is_class(self) -> bool:
        """Whether it may hold classes: a few short values that come again and again."""
        few = 2 <= self.num_distinct <= min(MAX_CLASSES, max(2, self.num_filled // MIN_REPEATS))
        repeats = self.num_filled > self.num_distinct
        is_short = self.longest <= MAX_CLASS_CHARS and self.mean_words <= 4
        return self.kind in ("text", "number") and few and repeats and is_short and not self.has_fractions

    def describe(self) -> str:
        """Return the column's name and what it holds, for a message."""
        if self.is_class:
            what = f"{self.num_distinct} different values"
        elif self.kind == "text":
            words = f"{self.mean_words:.0f} words" if self.mean_words >= 1.5 else "one word"
            what = f"text, {words} on average" if self.mean_words >= 1.5 else f"{words} each"
        else:
            what = {"number": "numbers", "chat": "lists of messages", "empty": "nothing"}.get(self.kind, "other values")
        return f"{shown(self.name)} ({what})"


def profile(rows: Sequence[Row], column: str) -> Profile:
    """Look at a column of some of the rows."""
    values = [row.values.get(column) for row in some(rows)]
    filled = [value for value in values if value is not None and not (isinstance(value, str) and not value.strip())]
    if not filled:
        return Profile(column, "empty")
    kind = _kind(filled)
    texts = [value if isinstance(value, str) else repr(value) for value in filled]
    return Profile(
        name=column,
        kind=kind,
        num_filled=len(filled),
        num_distinct=len(set(texts)),
        mean_chars=sum(map(len, texts)) / len(texts),
        mean_words=sum(len(text.split()) for text in texts) / len(texts),
        longest=max(map(len, texts)),
        question_share=sum(text.rstrip().endswith(("?", "\uff1f")) for text in texts) / len(texts),
        has_fractions=kind == "number" and any(map(_has_fraction, filled)),
    )


def _has_fraction(value: Any) -> bool:
    """Whether a number, or a text of one, is not whole; `float` does not take all that `str` calls a space."""
    return not float(value.strip() if isinstance(value, str) else value).is_integer()


def some(rows: Sequence[Row]) -> Sequence[Row]:
    """Return `MAX_ROWS` of the rows at most, evenly spread."""
    return rows[:: max(1, -(-len(rows) // MAX_ROWS))]


def _kind(values: Sequence[Any]) -> str:
    if all(_is_chat(value) for value in values):
        return "chat"
    if all(_is_number(value) for value in values):
        return "number"
    return "text" if all(isinstance(value, str) for value in values) else "other"


def _is_number(value: Any) -> bool:
    if isinstance(value, str):
        return re.fullmatch(r"\s*[+-]?\d{1,18}(\.\d*)?\s*", value) is not None
    return isinstance(value, int | float) and abs(value) < 1e18


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(one, dict) and {"role", "from"} & set(one) and {"content", "value"} & set(one) for one in value
        )
    )


def named_for(part: str, column: str) -> int:
    """Return how well a column's name speaks for a part: 2 the whole of it, 1 a word in it, 0 nothing."""
    whole = "_".join(_words(column))
    if whole in NAMES[part]:
        return 2
    return int(bool(NAMES[part] & set(_words(column))))


def _words(name: str) -> list[str]:
    """Return the words of a name such as `userQuestion`, `user_question` or `User question`, in lower case."""
    return re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z\d])(?=[A-Z])", " ", name).lower())


def looks_headless(rows: Sequence[Row], present: Sequence[str]) -> bool:
    """Whether the names of the columns are values: numbers, long texts, or among the values below them."""
    if any(len(name) > NAME_CHARS or _is_number(name) for name in present):
        return True
    looked = some(rows)
    return any(name in {row.values.get(name) for row in looked} for name in present if name)


def holds_share(rows: Sequence[Row], inner: str, outer: str) -> float:
    """Return in which share of the rows a value of one column stands within that of another, and is shorter."""
    looked = [(texts(row.values.get(inner)), row.values.get(outer)) for row in some(rows)]
    pairs = [(found, around) for found, around in looked if found and isinstance(around, str)]
    if not pairs:
        return 0.0
    return sum(any(one in around and 2 * len(one) < len(around) for one in found) for found, around in pairs) / len(
        pairs
    )


def texts(value: Any) -> list[str]:
    """Return the texts in an answer: a text, a list of texts or of `{text}`, or SQuAD's `{text: [...]}`."""
    if isinstance(value, dict):
        value = value.get("text")
    if isinstance(value, str):
        return [value.strip()] if value.strip() else []
    return [text for one in value for text in texts(one)] if isinstance(value, list) else []
