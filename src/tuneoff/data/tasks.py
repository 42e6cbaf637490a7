"""Rows to examples: documents for `kind: text`, conversations for `kind: instruction`; columns tell what a row is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tuneoff.data import oasst
from tuneoff.data.conversations import Conversation, from_messages, from_pair, text_of
from tuneoff.data.formats import Row
from tuneoff.data.problems import Problems
from tuneoff.errors import DataError, did_you_mean
from tuneoff.study.spec import ColumnsSpec

T = TypeVar("T")

TEXT = "text"
MESSAGES = ("messages", "conversations")
PROMPT = ("instruction", "prompt")
CONTEXT = ("context", "input")
RESPONSE = ("response", "output", "completion")
PARTS = ("prompt", "context", "response", "messages")
"""Of `task.columns`, what instructions have."""
LAYOUTS = (
    "messages; prompt and completion; instruction, response (or output) and perhaps context (or input);"
    f" or message trees with {', '.join(oasst.COLUMNS)}"
)


@dataclass(frozen=True, slots=True)
class Document:
    """A text that is predicted from its first token to its last."""

    text: str
    item: tuple[str, ...]
    """The text itself: exact duplicates are one unit."""
    file: str
    line: int
    ends: bool = True
    """Whether the end-of-sequence token follows; not where a longer document was cut."""


@dataclass(frozen=True)
class Examples(Generic[T]):
    """What the rows of one source gave."""

    examples: list[T]
    notes: tuple[str, ...] = ()


def to_documents(rows: Sequence[Row], columns: ColumnsSpec) -> Examples[Document]:
    """Return one document for each row with text.

    Empty ones (blank lines of a line-by-line corpus) hold nothing to learn; they are left out and counted.

    Raises:
        DataError: no such column, a value that is not text, or nothing but empty texts.
    """
    column = columns.text or TEXT
    check_columns(rows, {"text": column})
    problems = Problems()
    documents = []
    for row in rows:
        text = text_of(row, column, problems, may_be_empty=True)
        if text:
            documents.append(Document(text, (text,), row.file, row.line))
    problems.check()
    if not documents:
        raise DataError(f"all {len(rows)} rows are empty texts; expected text", file=rows[0].file, column=column)
    num_empty = len(rows) - len(documents)
    notes = (f"{num_empty} of {len(rows)} rows are empty texts and were left out.",) if num_empty else ()
    return Examples(documents, notes)


def to_conversations(rows: Sequence[Row], columns: ColumnsSpec) -> Examples[Conversation]:
    """Return the conversations in the rows, by the layout that their columns tell or the study names.

    Where the study names the column of the prompt or of the response, a context is taken only if its column is named
    too.

    Raises:
        DataError: a layout that is not known, a named column that is missing, or rows that cannot be used.
    """
    present = columns_of(rows)
    named = {part: name for part in PARTS if (name := getattr(columns, part)) is not None}
    check_columns(rows, named)
    problems = Problems()
    notes: list[str] = []
    if not named and set(oasst.COLUMNS) <= set(present):
        found, notes = oasst.to_threads(rows, problems)
    elif messages := columns.messages or (None if named else first_of(MESSAGES, present)):
        made = [from_messages(row, messages, problems) for row in rows]
        found = [conversation for conversation in made if conversation is not None]
    else:
        prompt, response = columns.prompt or first_of(PROMPT, present), columns.response or first_of(RESPONSE, present)
        context = columns.context or (None if named else first_of(CONTEXT, present))
        if present == [TEXT]:
            raise DataError("is plain text; kind: instruction needs rows (or set task.kind: text)", file=rows[0].file)
        if prompt is None or response is None:
            raise _unknown_layout(rows, present, "prompt" if prompt is None else "response")
        pairs = [from_pair(row, prompt, context, response, problems) for row in rows]
        found = [conversation for conversation in pairs if conversation is not None]
    problems.check()
    if not found:
        raise DataError(f"none of the {len(rows)} rows holds a reply to learn", file=rows[0].file)
    return Examples(found, tuple(notes))


def columns_of(rows: Sequence[Row]) -> list[str]:
    """Return the names of all columns, in the order in which they are first seen; rows of JSON may differ in theirs."""
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row.values))
    return list(names)


def first_of(names: Sequence[str], present: Sequence[str]) -> str | None:
    """Return the first of the known names that is present."""
    return next((name for name in names if name in present), None)


def check_columns(rows: Sequence[Row], named: dict[str, str]) -> None:
    """Raise `DataError` where a column that the study names, by part, is not in the data."""
    present = columns_of(rows)
    for part, column in named.items():
        if column not in present:
            hint = did_you_mean(column, present)
            raise DataError(
                f"no column {column!r}; the data has {', '.join(present)}. Name the right one under"
                f" task.columns.{part}.{hint}",
                file=rows[0].file,
            )


def _unknown_layout(rows: Sequence[Row], present: Sequence[str], part: str) -> DataError:
    names = PROMPT if part == "prompt" else RESPONSE
    hint = next(filter(None, (did_you_mean(name, present) for name in names)), "")
    return DataError(
        f"no column for the {part} (known names: {', '.join(names)}); the data has {', '.join(present)}."
        f" Name it under task.columns.{part}.{hint} Layouts that are recognised: {LAYOUTS}",
        file=rows[0].file,
    )
