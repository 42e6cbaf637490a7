"""Rows to documents and conversations: which columns are known, and what unusable rows get."""

from typing import Any

import pytest

from tuneoff.data.conversations import Turn
from tuneoff.data.formats import Row
from tuneoff.data.tasks import to_conversations, to_documents
from tuneoff.errors import DataError
from tuneoff.study.spec import ColumnsSpec


def _rows(*values: dict[str, Any]) -> list[Row]:
    return [Row(value, "rows.jsonl", line) for line, value in enumerate(values, start=1)]


def _turns(*values: dict[str, Any], **columns: str) -> list[tuple[Turn, ...]]:
    found = to_conversations(_rows(*values), ColumnsSpec(**columns)).examples
    return [conversation.turns for conversation in found]


def _error(*values: dict[str, Any], **columns: str) -> DataError:
    with pytest.raises(DataError) as caught:
        to_conversations(_rows(*values), ColumnsSpec(**columns))
    assert caught.value.file == "rows.jsonl"
    return caught.value


def _pair(prompt: str, reply: str, context: str = "") -> tuple[Turn, Turn]:
    return Turn("user", prompt, context), Turn("assistant", reply, is_target=True)


@pytest.mark.parametrize(
    ("row", "context"),
    [
        ({"instruction": "p", "context": "c", "response": "r", "category": "qa"}, "c"),
        ({"instruction": "p", "context": None, "response": "r"}, ""),
        ({"instruction": "p", "input": "c", "output": "r", "text": "all"}, "c"),
        ({"prompt": "p", "completion": "r"}, ""),
        ({"prompt": "p", "response": "r"}, ""),
    ],
)
def test_instruction_columns(row: dict[str, Any], context: str) -> None:
    assert _turns(row) == [_pair("p", "r", context)]


def test_columns_named_in_the_study() -> None:
    row = {"question": "p", "passage": "c", "answer": "r", "context": "not this"}
    assert _turns(row, prompt="question", response="answer") == [_pair("p", "r")]
    assert _turns(row, prompt="question", response="answer", context="passage") == [_pair("p", "r", "c")]
    assert _turns({"prompt": "p", "a": "r"}, response="a") == [_pair("p", "r")]
    assert _turns({"chat": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]}, messages="chat")


def test_chat_messages() -> None:
    messages = [
        {"role": "system", "content": ""},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"from": "human", "value": "three"},
        {"from": "gpt", "value": "four"},
        {"role": "user", "content": "dropped, as nothing answers it"},
    ]
    (turns,) = _turns({"messages": messages})
    assert [(turn.role, turn.text, turn.is_target) for turn in turns] == [
        ("system", "", False),
        ("user", "one", False),
        ("assistant", "two", True),
        ("user", "three", False),
        ("assistant", "four", True),
    ]


def test_items_hold_together_what_repeats() -> None:
    rows = _rows(
        {"instruction": "p", "context": "c", "response": "1"},
        {"instruction": " p\n", "context": "c", "response": "2"},
        {"instruction": "p", "context": "", "response": "3"},
    )
    items = [conversation.item for conversation in to_conversations(rows, ColumnsSpec()).examples]
    assert items[0] == items[1] != items[2]


@pytest.mark.parametrize(
    ("messages", "column", "message"),
    [
        ("text", "messages", "expected a list of messages"),
        ([], "messages", "expected a list of messages"),
        (["x"], "messages[1]", "found 'x'"),
        ([{"role": "user", "content": "a"}, {"role": "robot", "content": "b"}], "messages[2]", "found 'robot'"),
        ([{"role": ["user"], "content": "a"}], "messages[1]", "expected a role"),
        ([{"role": "user", "content": None}], "messages[1]", "expected text, found null"),
        ([{"role": "user", "content": "a"}], "messages", "nothing to learn"),
        ([{"role": "assistant", "content": "a"}], "messages", "a user message before"),
        (
            [{"role": r, "content": "a"} for r in ("user", "assistant", "system", "assistant")],
            "messages",
            "system message first",
        ),
    ],
)
def test_bad_messages(messages: Any, column: str, message: str) -> None:
    good = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    error = _error({"messages": good}, {"messages": messages})
    assert (error.line, error.column) == (2, column)
    assert message in error.message


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("", "expected text, found ''"),
        (" \n", "expected text, found ' \\n'"),
        (None, "expected text, found null"),
        (3, "expected text, found 3 (int)"),
        (["x"], "expected text, found ['x'] (list)"),
        ("\ud800", "expected text, found half of a surrogate pair (\\ud800)"),
    ],
)
def test_bad_replies(reply: Any, message: str) -> None:
    error = _error({"instruction": "p", "response": "r"}, {"instruction": "p", "response": reply})
    assert (error.line, error.column, error.message) == (2, "response", message)


def test_all_bad_rows_are_counted() -> None:
    error = _error(*({"instruction": "p", "response": ""} for _ in range(9)))
    assert "9 bad rows in all" in error.message
    assert error.message.endswith("and 4 more")


def test_a_missing_key_is_a_bad_row() -> None:
    assert _error({"instruction": "p", "response": "r"}, {"instruction": "p"}).line == 2


def test_unknown_columns() -> None:
    error = _error({"instruction": "p", "responses": "r"})
    assert "no column for the response" in error.message
    assert "Did you mean responses?" in error.message
    assert "task.columns.response" in error.message
    error = _error({"instruction": "p", "answer": "r"}, response="answr")
    assert error.message.startswith("no column 'answr'; the data has instruction, answer.")
    assert error.message.endswith("Did you mean answer?")
    assert "set task.kind: text" in _error({"text": "a"}).message


def test_documents() -> None:
    found = to_documents(_rows({"text": "one"}, {"text": ""}, {"text": None}, {"text": "two\n"}), ColumnsSpec())
    assert [(document.text, document.line) for document in found.examples] == [("one", 1), ("two\n", 4)]
    assert found.notes == ("2 of 4 rows are empty texts and were left out.",)
    named = to_documents(_rows({"body": "one"}), ColumnsSpec(text="body"))
    assert named.examples[0].text == "one"
    assert named.notes == ()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"txt": "a"}, "Did you mean txt?"),
        ({"text": 3}, "expected text, found 3 (int)"),
        ({"text": ""}, "all 1 rows are empty texts"),
    ],
)
def test_bad_documents(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        to_documents(_rows(row), ColumnsSpec())
    assert message in caught.value.message
