"""Message trees to threads: every reply is learnt once, best first, and broken trees are told."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneoff.data.conversations import Conversation
from tuneoff.data.formats import Row
from tuneoff.data.tasks import to_conversations
from tuneoff.errors import DataError
from tuneoff.study.spec import ColumnsSpec


def _message(key: str, parent: str | None, **more: Any) -> dict[str, Any]:
    """Ids say the role: p prompter, a assistant."""
    role = "prompter" if key[0] == "p" else "assistant"
    return {"message_id": key, "parent_id": parent, "text": f"text {key}", "role": role} | more


def _rows(messages: list[dict[str, Any]]) -> list[Row]:
    return [Row(values, "trees.jsonl", line) for line, values in enumerate(messages, start=1)]


def _spell(conversation: Conversation) -> str:
    """The ids of the turns, with a star on those that carry loss."""
    return " ".join(turn.text.removeprefix("text ") + "*" * turn.is_target for turn in conversation.turns)


def _threads(messages: list[dict[str, Any]]) -> tuple[list[str], tuple[str, ...]]:
    found = to_conversations(_rows(messages), ColumnsSpec())
    return [_spell(conversation) for conversation in found.examples], found.notes


def _error(messages: list[dict[str, Any]]) -> DataError:
    with pytest.raises(DataError) as caught:
        _threads(messages)
    return caught.value


TREE = [
    _message("p0", None),
    _message("a1", "p0", rank=1),
    _message("p3", "a1"),
    _message("a4", "p3"),
    _message("a2", "p0", rank=0),
    _message("p5", "a2"),
    _message("p6", "a2"),
    _message("a7", "p6"),
]


def test_threads_in_order_of_rank() -> None:
    threads, notes = _threads(TREE)
    assert threads == ["p0 a2*", "p0 a2 p6 a7*", "p0 a1* p3 a4*"]
    assert notes == (
        "8 messages in 1 trees gave 3 threads from root to leaf; 3 of them add a reply that no earlier one holds, and"
        " each reply carries loss once.",
    )


def test_a_thread_that_adds_nothing_is_dropped() -> None:
    threads, _ = _threads([_message("p0", None), _message("a1", "p0"), _message("p2", "a1"), _message("p3", "a1")])
    assert threads == ["p0 a1*"]


def test_equal_ranks_go_by_id_and_missing_ranks_come_last() -> None:
    replies = [_message("a3", "p0"), _message("a2", "p0", rank="0"), _message("a1", "p0", rank=float("nan"))]
    threads, _ = _threads([_message("p0", None), *replies])
    assert threads == ["p0 a2*", "p0 a1*", "p0 a3*"]


def test_deleted_and_orphaned_messages_are_left_out_and_counted() -> None:
    more = [
        _message("a8", "p0", rank=0, deleted=True, text=""),
        _message("p9", "a8"),
        _message("a10", "p9"),
        _message("p11", "gone"),
        _message("a12", "p11"),
    ]
    threads, notes = _threads(TREE + more)
    assert threads == _threads(TREE)[0]
    assert notes[1] == (
        "5 messages were left out: 1 deleted, 1 whose parent is not in the data (the first in line 12), and the replies"
        " below these."
    )


def test_a_deleted_leaf_does_not_hide_its_parent() -> None:
    threads, _ = _threads([_message("p0", None), _message("a1", "p0"), _message("p2", "a1", deleted="True")])
    assert threads == ["p0 a1*"]


def test_the_item_is_the_tree() -> None:
    second = [_message("pb", None), _message("ab", "pb")]
    found = to_conversations(_rows(TREE + second), ColumnsSpec()).examples
    assert len({conversation.item for conversation in found}) == 2
    assert {conversation.line for conversation in found} == {1, 9}


@pytest.mark.parametrize(
    ("messages", "line", "column", "message"),
    [
        ([*TREE, _message("a1", "p0")], 9, "message_id", "the one of line 2: 'a1'"),
        ([_message("p0", None), _message("p1", "a2"), _message("a2", "p1")], 2, "parent_id", "found a circle at 'p1'"),
        ([_message("p0", "p0")], 1, "parent_id", "found a circle"),
        ([_message("a0", None)], 1, "role", "expected a tree to begin with a prompter"),
        ([_message("p0", None, role="robot")], 1, "role", "found 'robot'"),
        ([_message("p0", None, text=None)], 1, "text", "found null"),
        ([_message("p0", 3)], 1, "parent_id", "found 3 (int)"),
        ([_message("p0", None)], None, None, "none of the 1 rows holds a reply"),
    ],
)
def test_broken_trees(messages: list[dict[str, Any]], line: int | None, column: str | None, message: str) -> None:
    error = _error(messages)
    assert (error.line, error.column) == (line, column)
    assert message in error.message


def test_a_tree_deeper_than_the_stack() -> None:
    messages = [_message("p0", None)]
    for number in range(1, 3000):
        messages.append(_message(("a" if number % 2 else "p") + str(number), messages[-1]["message_id"]))
    threads, _ = _threads(messages)
    assert len(threads) == 1
    assert threads[0].count("*") == 1500


@given(st.lists(st.integers(0, 10_000), min_size=1, max_size=40))
def test_each_reply_is_learnt_once(parents: list[int]) -> None:
    """A random tree in which roles alternate: every reply is a target once, after all that precedes it."""
    messages = [_message("p", None)]
    for number, draw in enumerate(parents):
        parent = messages[draw % len(messages)]["message_id"]
        messages.append(_message(("a" if parent[0] == "p" else "p") + str(number), parent, rank=draw % 3))
    replies = sorted(message["message_id"] for message in messages if message["role"] == "assistant")
    above = {message["message_id"]: message["parent_id"] for message in messages}
    threads, _ = _threads(messages)
    learnt = []
    for thread in threads:
        path = thread.split(" ")
        learnt += [key.rstrip("*") for key in path if key.endswith("*")]
        keys = [key.rstrip("*") for key in path]
        assert [above[key] for key in keys] == [None, *keys[:-1]]
        assert path[-1].endswith("*")
    assert sorted(learnt) == replies
