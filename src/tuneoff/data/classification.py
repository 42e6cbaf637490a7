"""Texts with a class: rows to labelled texts, the classes and their words, and sequences whose last token is read.

A sequence is the template's prompt around the text (by default the text alone), begin of sequence included where the
tokenizer puts it, and no end of sequence: the class is read at the last token, after which zero-shot scores the words
of `task.labels`. White space around a text is dropped. Of a text that is too long its own tokens are cut, by
`task.truncation`; what the template writes around it stays whole. Where the study names words, a sequence leaves room
for the longest of them within `max_length`.

Classes are 0, 1, ... in the order of their integers, or of their names; where the hub names them, in the hub's order;
and in the order of `task.labels` where these are the data's own names. The item is the text: exact copies stay on one
side of a cut.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tuneoff.data.conversations import text_of
from tuneoff.data.encoding import Encoder
from tuneoff.data.fields import FieldTemplate, FittedPrompt, fit_prompts
from tuneoff.data.formats import TABLES, Row
from tuneoff.data.problems import Problems, shown
from tuneoff.data.tasks import check_columns, columns_of, first_of
from tuneoff.data.templates import CHAT
from tuneoff.data.tokens import SplitBuilder, TokenSplit
from tuneoff.errors import DataError, StudyError, did_you_mean
from tuneoff.study.spec import ColumnsSpec

TEXTS = ("text", "sentence", "content", "review")
LABELS = ("label", "labels", "class", "sentiment")
PLAIN = "{text}"
INTEGER = re.compile(r"[+-]?\d+")
CHUNK = 4096
"""Texts that are tokenised in one call."""


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text and the class that the data gives it."""

    text: str
    label: int | str
    item: tuple[str, ...]
    file: str
    line: int
    place: str = ""


def find_columns(rows: Sequence[Row], columns: ColumnsSpec) -> tuple[str, str]:
    """Return the columns of the text and of the label.

    Raises:
        DataError: there is no such column.
    """
    named = {part: name for part in ("text", "label") if (name := getattr(columns, part)) is not None}
    check_columns(rows, named)
    present = columns_of(rows)
    found = []
    for part, known in (("text", TEXTS), ("label", LABELS)):
        column = named.get(part) or first_of(known, present)
        if column is None:
            hint = next(filter(None, (did_you_mean(name, present) for name in known)), "")
            raise DataError(
                f"no column for the {part} (known names: {', '.join(known)}); the data has"
                f" {', '.join(shown(name) for name in present)}. Name it under task.columns.{part}.{hint}"
                + _header_hint(rows[0].file, present),
                file=rows[0].file,
            )
        found.append(column)
    return found[0], found[1]


def _header_hint(file: str, present: Sequence[str]) -> str:
    """Say how to name the columns of a table whose first row does not look like a header."""
    if Path(file).suffix.lower() not in TABLES or {*TEXTS, *LABELS} & set(present):
        return ""
    return (
        " If the file has no header line, name its columns by number, from 0: task.columns: {label: 0, text: 1} says"
        " that the label comes first"
    )


def to_labelled(rows: Sequence[Row], columns: ColumnsSpec) -> list[LabelledText]:
    """Return the labelled texts in the rows.

    Raises:
        DataError: no such columns, or rows without a text or without a class.
    """
    text_column, label_column = find_columns(rows, columns)
    problems = Problems()
    found = []
    for row in rows:
        text = text_of(row, text_column, problems)
        label = _label(row, label_column, problems)
        if text is not None and label is not None:
            found.append(LabelledText(text.strip(), label, (text.strip(),), row.file, row.line, row.place))
    problems.check()
    return found


def _label(row: Row, column: str, problems: Problems) -> int | str | None:
    """Return an integer or a name, or note what is wrong with it and return none."""
    value: Any = row.values.get(column)
    if isinstance(value, str):
        value = value.strip()
        value = int(value) if INTEGER.fullmatch(value) and len(value) < 20 else value
    elif isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    if value == "" or value is None or (isinstance(value, int) and value < 0):
        found = shown(row.values.get(column))
        problems.add_at(row, f"expected a class, found {found}: rows without one cannot be learnt or scored", column)
        return None
    if not isinstance(value, int | str):
        problems.add_at(row, f"expected a class as an integer or a name, found {shown(value)}", column)
        return None
    return value


def number_classes(
    parts: Mapping[str, Sequence[LabelledText]], words: tuple[str, ...] | None, hub_names: Sequence[str] = ()
) -> tuple[tuple[str, ...], dict[int | str, int]]:
    """Return the classes' names, and the number of each label of the data.

    Args:
        parts: the texts by split; classes are those of all splits.
        words: `task.labels`.
        hub_names: names of the labels 0, 1, ... where the hub has them.

    Raises:
        DataError: fewer than two classes.
        StudyError: not as many words as classes, or some of the data's own names among others.
    """
    found = {example.label for examples in parts.values() for example in examples}
    if len(found) < 2:
        raise DataError(f"expected two classes at least, found {len(found)}: {', '.join(map(str, found))}")
    numbers = sorted(label for label in found if isinstance(label, int))
    if len(numbers) == len(found):
        is_named = numbers[-1] < len(hub_names)
        names: dict[int | str, str] = {label: hub_names[label] if is_named else str(label) for label in numbers}
    else:
        names = {label: str(label) for label in sorted(found, key=str)}
    if words is None:
        return tuple(names.values()), {label: number for number, label in enumerate(names)}
    if set(words) == set(names.values()):
        return words, {label: words.index(name) for label, name in names.items()}
    listed = ", ".join(list(names.values())[:8]) + (", ..." if len(names) > 8 else "")
    if len(words) != len(names):
        raise StudyError(
            f"task.labels: expected a word for each of the {len(names)} classes ({listed}), found {len(words)}:"
            f" {', '.join(words)}"
        )
    common = sorted(set(words) & set(names.values()))
    if common:
        raise StudyError(
            f"task.labels: {common[0]!r} is a class of the data, but the others are not; the classes are {listed}. Give"
            " their own names in any order, or other words for all of them in this order"
        )
    return words, {label: number for number, label in enumerate(names)}


def check_classes(
    parts: Mapping[str, Sequence[LabelledText]], classes: Sequence[str], number: Mapping[Any, int]
) -> None:
    """Raise `DataError` where a split has a class that train does not have."""
    learnt = {number[example.label] for example in parts["train"]}
    for name in ("validation", "test"):
        for example in parts[name]:
            if number[example.label] not in learnt:
                raise DataError(
                    f"the class {classes[number[example.label]]!r} is in {name} but not in train, so it cannot be"
                    " learnt; give train more rows (task.limit), or other splits",
                    file=example.file,
                    line=example.line,
                )


def class_note(name: str, split: TokenSplit, classes: Sequence[str]) -> str:
    """Return a sentence on how many texts each class has."""
    counts = Counter(split.labels.tolist())
    shares = [
        f"{word} {counts[number]} ({100 * counts[number] / len(split):.1f} %)" for number, word in enumerate(classes)
    ]
    return f"{name}: {len(split)} texts; {', '.join(shares)}."


def make_field_template(name: str | None) -> FieldTemplate:
    """Return how a text is written; raises `StudyError` for `chat` and for a template without `{text}`."""
    if name == CHAT:
        raise StudyError(
            "task.template: chat has no part in kind: classification, as nothing is said; leave it out for the text"
            " alone, or write what stands around {text}"
        )
    return FieldTemplate(name or PLAIN, "text")


def word_ids(words: Sequence[str], template: FieldTemplate, encoder: Encoder) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of each word as they follow a prompt: after a space, unless the template ends in white space.

    Raises:
        StudyError: a word without a token, or one whose tokens begin another's, so that zero-shot cannot tell them
            apart.
    """
    # A text ends in what is not white space, and so does a prompt that ends with it.
    space = encoder.space_before(template.text)
    found = [tuple(ids) for ids in encoder.encode([space + word.strip() for word in words])]
    for word, ids in zip(words, found, strict=True):
        if not word.strip() or not ids:
            raise StudyError(f"task.labels: expected words, found {word!r}, which has no token")
        for other, others in zip(words, found, strict=True):
            if other != word and others[: len(ids)] == ids:
                raise StudyError(
                    f"task.labels: the tokens of {word!r} are also the first ones of {other!r}, so zero-shot cannot"
                    " tell the two apart; choose other words"
                )
    return tuple(found)


@dataclass
class TextCuts:
    """What did not fit into `max_length`."""

    num_texts: int = 0
    num_long: int = 0
    num_tokens: int = 0

    def note(self, split: str, room: int, truncation: str) -> str | None:
        """Return a sentence on what was cut, or none where nothing was."""
        if not self.num_long:
            return None
        return (
            f"{split}: {self.num_long} of {self.num_texts} texts were longer than {room} tokens;"
            f" {self.num_tokens} tokens were cut from the {truncation} of them."
        )


class TextFitter:
    """Turns labelled texts into sequences.

    Args:
        encoder: the tokenizer.
        template: what stands around a text.
        room: tokens that one sequence may hold.
        truncation: `middle`, `end` or `error`.
    """

    def __init__(self, encoder: Encoder, template: FieldTemplate, room: int, truncation: str) -> None:
        self._encoder = encoder
        self._template = template
        self._room = room
        self._truncation = truncation

    def build(self, texts: Sequence[LabelledText], number: Mapping[Any, int]) -> tuple[TokenSplit, TextCuts]:
        """Return the split's sequences, with the number of each one's label, and what had to be cut.

        Raises:
            DataError: a text that does not fit and may not be cut, or one without a token.
        """
        builder = SplitBuilder()
        problems = Problems()
        cuts = TextCuts(num_texts=len(texts))
        for text, prompt in self._fitted(texts):
            if isinstance(prompt, int):
                problems.add_at(text, self._too_long(prompt))
            elif len(prompt.ids) <= len(self._encoder.bos):
                problems.add_at(text, "expected a text to classify, found one without a token")
            else:
                cuts.num_long += prompt.num_cut > 0
                cuts.num_tokens += prompt.num_cut
                builder.add(
                    prompt.ids,
                    np.arange(len(prompt.ids)) == len(prompt.ids) - 1,
                    target_bytes=0,
                    item=text.item,
                    item_name=f"{text.file}:{text.line}",
                    label=number[text.label],
                )
        problems.check()
        return builder.build(), cuts

    def _fitted(self, texts: Sequence[LabelledText]) -> Iterator[tuple[LabelledText, FittedPrompt | int]]:
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            written = [self._template.write({"text": text.text}) for text in chunk]
            yield from zip(chunk, fit_prompts(self._encoder, written, self._room, self._truncation), strict=True)

    def _too_long(self, num_tokens: int) -> str:
        if self._truncation == "error":
            return (
                f"the text has {num_tokens} tokens, {self._room} fit, and task.truncation is error; raise"
                " task.max_length, or cut texts with truncation: middle"
            )
        return (
            f"expected a text and its template of at most {self._room} tokens, found {num_tokens}, and nothing of the"
            " text would be left; raise task.max_length"
        )
