"""OpenAssistant message rows (OASST1): message trees to the threads that are learnt from.

The format is that of Köpf et al., 2023, arXiv:2304.07327. Every path from a root to a leaf is a thread. Threads are
taken in depth-first order, best-ranked replies first; a reply carries loss in the first thread that holds it and is
context in the later ones, so that each reply is learnt exactly once. A thread that would add no reply is dropped. The
item is the tree.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuneoff.data.conversations import ROLES, Conversation, Turn, text_of, without_tail
from tuneoff.data.formats import Row
from tuneoff.data.problems import Problems, shown

COLUMNS = ("message_id", "parent_id", "text", "role")
"""What rows of messages are recognised by."""


@dataclass(frozen=True, slots=True)
class _Message:
    row: Row
    key: str
    parent: str | None
    turn: Turn
    rank: float
    is_deleted: bool


def to_threads(rows: Sequence[Row], problems: Problems) -> tuple[list[Conversation], list[str]]:
    """Return the threads of the trees in `rows`, and notes on what was left out.

    A message that is marked as deleted, or whose parent is not in the data (the releases lack a few), is left out with
    all replies below it, and counted. An id that is given twice, a root that is no prompt, and messages that are their
    own ancestors are bad rows.
    """
    messages = _messages(rows, problems)
    if len(problems):
        return [], []
    children: dict[str, list[_Message]] = {}
    for message in messages.values():
        if message.parent is not None:
            children.setdefault(message.parent, []).append(message)
    for replies in children.values():
        replies.sort(key=lambda reply: (reply.rank, reply.key))
    roots = [message for message in messages.values() if message.parent is None]
    for root in roots:
        if root.turn.role != "user":
            text = "expected a tree to begin with a prompter, found an assistant message without a parent"
            problems.add(text, file=root.row.file, line=root.row.line, column="role")
    orphans = [
        message for message in messages.values() if message.parent is not None and message.parent not in messages
    ]
    _note_circles(messages, [*roots, *orphans], children, problems)
    if len(problems):
        return [], []
    return _threads(messages, roots, orphans, children)


def _threads(
    messages: dict[str, _Message], roots: list[_Message], orphans: list[_Message], children: dict[str, list[_Message]]
) -> tuple[list[Conversation], list[str]]:
    threads: list[Conversation] = []
    used: set[str] = set()
    num_paths = 0
    for root in roots:
        learnt: set[str] = set()
        for path in _paths(root, children):
            num_paths += 1
            used.update(message.key for message in path)
            thread = _thread(root, path, learnt)
            if thread is not None:
                threads.append(thread)
    notes = [
        f"{len(messages)} messages in {len(roots)} trees gave {num_paths} threads from root to leaf; {len(threads)} of"
        " them add a reply that no earlier one holds, and each reply carries loss once."
    ]
    num_deleted = sum(message.is_deleted for message in messages.values())
    num_left_out = len(messages) - len(used)
    if num_left_out:
        where = f" (the first in line {orphans[0].row.line})" if orphans else ""
        notes.append(
            f"{num_left_out} messages were left out: {num_deleted} deleted, {len(orphans)} whose parent is not in the"
            f" data{where}, and the replies below these."
        )
    return threads, notes


def _messages(rows: Sequence[Row], problems: Problems) -> dict[str, _Message]:
    messages: dict[str, _Message] = {}
    for row in rows:
        message = _message(row, problems)
        if message is None:
            continue
        if message.key in messages:
            text = f"expected an id of its own, found the one of line {messages[message.key].row.line}"
            problems.add(f"{text}: {shown(message.key)}", file=row.file, line=row.line, column="message_id")
        messages.setdefault(message.key, message)
    return messages


def _message(row: Row, problems: Problems) -> _Message | None:
    is_deleted = str(row.values.get("deleted")).lower() == "true"  # CSV holds it as text
    key = text_of(row, "message_id", problems)
    text = text_of(row, "text", problems, may_be_empty=is_deleted)
    parent = row.values.get("parent_id") or None
    said = row.values.get("role")
    role = ROLES.get(said) if isinstance(said, str) else None
    if parent is not None and not isinstance(parent, str):
        problems.add(f"expected an id or null, found {shown(parent)}", file=row.file, line=row.line, column="parent_id")
        return None
    if role not in ("user", "assistant"):
        message = f"expected prompter or assistant, found {shown(said)}"
        problems.add(message, file=row.file, line=row.line, column="role")
        return None
    if key is None or text is None:
        return None
    return _Message(row, key, parent, Turn(role, text), _rank(row.values.get("rank")), is_deleted)


def _rank(value: Any) -> float:
    """Return the rank, 0 the best; replies without one come last. CSV holds it as text."""
    try:
        rank = float(value)
    except (TypeError, ValueError):
        return float("inf")
    return rank if rank == rank else float("inf")  # a missing number is NaN in some tables


def _paths(root: _Message, children: dict[str, list[_Message]]) -> Iterator[tuple[_Message, ...]]:
    """Yield the paths from `root` to its leaves, best replies first, without what is deleted and what is below that."""
    stack: list[tuple[_Message, ...]] = [(root,)]  # a list, as a tree may be deeper than the interpreter's stack
    while stack:
        path = stack.pop()
        if path[-1].is_deleted:
            continue
        replies = [reply for reply in children.get(path[-1].key, []) if not reply.is_deleted]
        if not replies:
            yield path
        stack += [(*path, reply) for reply in reversed(replies)]


def _thread(root: _Message, path: Sequence[_Message], learnt: set[str]) -> Conversation | None:
    """Return the thread, its replies that are not learnt so far as targets; none where there are none."""
    turns = []
    for message in path:
        is_target = message.turn.role == "assistant" and message.key not in learnt
        turns.append(replace(message.turn, is_target=is_target))
        if is_target:
            learnt.add(message.key)
    if not any(turn.is_target for turn in turns):
        return None
    return Conversation(without_tail(turns), ("tree", root.key), root.row.file, root.row.line)


def _note_circles(
    messages: dict[str, _Message], tops: Sequence[_Message], children: dict[str, list[_Message]], problems: Problems
) -> None:
    reached: set[str] = set()
    stack = list(tops)
    while stack:
        message = stack.pop()
        reached.add(message.key)
        stack += children.get(message.key, [])
    for message in messages.values():
        if message.key not in reached:
            text = f"expected a parent that leads to a root, found a circle at {shown(message.key)}"
            problems.add(text, file=message.row.file, line=message.row.line, column="parent_id")
