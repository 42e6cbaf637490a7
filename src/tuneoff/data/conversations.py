"""Conversations: turns with a role, some of whose replies are to be learnt, and the item that they belong to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tuneoff.data.formats import Row
from tuneoff.data.problems import Problems, shown

Role = Literal["system", "user", "assistant"]

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
"""Names of the roles in the data (chat messages, ShareGPT, OASST1) and here."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side says."""

    role: Role
    text: str
    context: str = ""
    """What an instruction is about; a user's turn only."""
    is_target: bool = False
    """Whether the reply carries loss."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One example: its last turn is a target."""

    turns: tuple[Turn, ...]
    item: tuple[str, ...]
    """Key of the smallest independent unit, the same for all that must stay on one side of a split."""
    file: str
    line: int


def text_of(row: Row, column: str, problems: Problems, *, may_be_empty: bool = False) -> str | None:
    """Return the text in a row's column, or note what is wrong with it and return none."""
    value = row.values.get(column)
    if value is None and may_be_empty:
        return ""
    return checked_text(value, column, row, problems, may_be_empty=may_be_empty)


def checked_text(value: Any, column: str, row: Row, problems: Problems, *, may_be_empty: bool = False) -> str | None:
    """Return `value` where it is text, else note what is wrong with it and return none."""
    if not isinstance(value, str):
        problems.add_at(row, f"expected text, found {shown(value)}", column)
        return None
    if not value.strip() and not may_be_empty:
        problems.add_at(row, f"expected text, found {shown(value)}", column)
        return None
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        found = f"half of a surrogate pair (\\u{ord(value[error.start]):04x})"
        problems.add_at(row, f"expected text, found {found}", column)
        return None
    return value


def from_pair(row: Row, prompt: str, context: str | None, response: str, problems: Problems) -> Conversation | None:
    """Return the conversation of an instruction row. Its item is the prompt with its context: repeats stay together.

    Args:
        row: the row.
        prompt: column of the instruction.
        context: column of what the instruction is about, if any; it may be empty.
        response: column of the reply.
        problems: where bad rows are noted.
    """
    asked = text_of(row, prompt, problems)
    about = "" if context is None else text_of(row, context, problems, may_be_empty=True)
    reply = text_of(row, response, problems)
    if asked is None or about is None or reply is None:
        return None
    turns = (Turn("user", asked, about), Turn("assistant", reply, is_target=True))
    return Conversation(turns, (asked.strip(), about.strip()), row.file, row.line)


def from_messages(row: Row, column: str, problems: Problems) -> Conversation | None:
    """Return the conversation of a chat row; what follows its last reply is dropped.

    Its item is all that comes before the first reply: threads that begin alike (branches of one tree) stay together.
    """
    messages = row.values.get(column)
    if not isinstance(messages, list) or not messages:
        message = f"expected a list of messages such as {{role, content}}, found {shown(messages)}"
        problems.add(message, file=row.file, line=row.line, column=column)
        return None
    turns: list[Turn] = []
    for number, message in enumerate(messages, start=1):
        turn = _turn(row, message, f"{column}[{number}]", problems)
        if turn is None:
            return None
        turns.append(turn)
    complaint = _order_complaint(turns)
    if complaint is not None:
        problems.add(complaint, file=row.file, line=row.line, column=column)
        return None
    first = next(place for place, turn in enumerate(turns) if turn.role == "assistant")
    return Conversation(without_tail(turns), tuple(turn.text.strip() for turn in turns[:first]), row.file, row.line)


def _turn(row: Row, message: Any, place: str, problems: Problems) -> Turn | None:
    if not isinstance(message, dict):
        expected = f"expected a message such as {{role, content}}, found {shown(message)}"
        problems.add(expected, file=row.file, line=row.line, column=place)
        return None
    said = message.get("role", message.get("from"))
    role = ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        expected = f"expected a role among {', '.join(ROLES)}; found {shown(said)}"
        problems.add(expected, file=row.file, line=row.line, column=place)
        return None
    content = message.get("content", message.get("value"))
    text = checked_text(content, place, row, problems, may_be_empty=role == "system")
    return None if text is None else Turn(role, text, is_target=role == "assistant")


def _order_complaint(turns: list[Turn]) -> str | None:
    roles = [turn.role for turn in turns]
    if "assistant" not in roles:
        return "expected at least one assistant message: without a reply there is nothing to learn"
    if "user" not in roles[: roles.index("assistant")]:
        return "expected a user message before the first assistant message"
    if "system" in roles[1:]:
        return "expected the system message first, found one later"
    return None


def without_tail(turns: list[Turn]) -> tuple[Turn, ...]:
    """Return the turns up to the last target: what follows it changes no loss in a causal model."""
    last = max(place for place, turn in enumerate(turns) if turn.is_target)
    return tuple(turns[: last + 1])
