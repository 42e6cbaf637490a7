"""What rows are taken for: by names that are known, by what columns hold, and by words in their names; else refused."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneoff.data.examples import to_examples
from tuneoff.data.formats import Row
from tuneoff.data.guessing import guess_layout
from tuneoff.data.profiles import looks_headless, named_for, profile
from tuneoff.errors import DataError
from tuneoff.study.spec import ColumnsSpec

TEXTS = [f"The {word} boat number {index} came in late today." for index in range(12) for word in ("old", "red")]
SHORT = [f"It is number {index}, the {word} one." for index in range(12) for word in ("old", "red")]
ASKED = [f"Which boat is number {index}?" for index in range(len(TEXTS))]
CLASSES = ["good", "bad", "bad"] * 8
PEOPLE = ["Ann", "Bo", "Cy", "Di"] * 6


def table(columns: dict[str, Sequence[Any]]) -> list[Row]:
    number = min(map(len, columns.values()))
    return [
        Row({name: values[place] for name, values in columns.items()}, "rows.csv", place + 2) for place in range(number)
    ]


KNOWN = [
    ({"instruction": TEXTS, "response": SHORT, "category": CLASSES}, "instruction"),
    ({"prompt": TEXTS, "completion": SHORT}, "instruction"),
    ({"sentence": TEXTS, "label": CLASSES}, "classification"),
    ({"context": TEXTS, "question": ASKED, "answers": SHORT}, "qa"),
    ({"n": range(24), "text": TEXTS}, "text"),
    ({"messages": [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]] * 3}, "instruction"),
]


@pytest.mark.parametrize(("columns", "kind"), KNOWN)
def test_names_that_the_readers_know_need_no_columns(columns: dict[str, Sequence[Any]], kind: str) -> None:
    found = guess_layout(table(columns))
    assert (found.kind, found.columns) == (kind, {})
    assert found.reasons


ODD = [
    ({"Ticket": range(24), "customerMessage": TEXTS, "klass": CLASSES}, "classification", {"text": 1, "label": 2}),
    ({"1": TEXTS, "0": CLASSES}, "classification", {"text": 0, "label": 1}),
    ({"text": TEXTS, "agent": PEOPLE, "star_rating": CLASSES}, "classification", {"text": 0, "label": 2}),
    ({"note": TEXTS, "who": SHORT, "User Request": TEXTS[::-1], "botReply": SHORT[::-1]}, "instruction",
     {"prompt": 2, "response": 3}),
    ({"question": ASKED, "answer": SHORT}, "instruction", {"prompt": 0, "response": 1}),
    ({"frage": ASKED, "reply": SHORT}, "instruction", {"prompt": 0, "response": 1}),
    ({"id": range(24), "verse": TEXTS}, "text", {"text": 1}),
    ({"dialogue": [[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]] * 3}, "instruction",
     {"messages": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "kind", "parts"), ODD)
def test_odd_names_are_told_from_what_they_hold(
    columns: dict[str, Sequence[Any]], kind: str, parts: dict[str, int]
) -> None:
    rows = table(columns)
    names = list(columns)
    found = guess_layout(rows)
    assert (found.kind, found.columns) == (kind, {part: names[place] for part, place in parts.items()})
    assert len(found.reasons) == len(parts)
    assert to_examples(found.kind, rows, ColumnsSpec.model_validate(dict(found.columns))).examples


def test_answers_that_stand_in_a_text_make_questions_on_it() -> None:
    passages = [f"{text} {text} {text} Its captain is {who}." for text, who in zip(TEXTS, PEOPLE, strict=True)]
    rows = table({"passage text": passages, "wanted": ASKED, "right": PEOPLE, "row": range(24)})
    found = guess_layout(rows)
    assert (found.kind, found.columns) == (
        "qa",
        {"context": "passage text", "question": "wanted", "answers": "right"},
    )
    assert "100 %" in found.reasons[2]


REFUSED = [
    ({"a": TEXTS, "b": SHORT}, None, "--kind instruction --column prompt=a --column response=b"),
    ({"a": TEXTS, "b": SHORT}, "instruction", "--column prompt=b --column response=a"),
    ({"msg": TEXTS, "by": PEOPLE, "how": CLASSES}, None, "--kind classification --column text=msg --column label=how"),
    ({"my title": TEXTS, "k": PEOPLE, "l": CLASSES}, None, "--column 'text=my title'"),
    ({"x": range(24), "y": range(24)}, None, "expected a column of running text, found 'x' .numbers., 'y' .numbers."),
    ({"a;b;c": [f"{text};1;2" for text in PEOPLE]}, None, "separated by semicolons"),
    ({"a": TEXTS, "n": range(24)}, "classification", "do not tell how to read them as kind: classification"),
]


@pytest.mark.parametrize(("columns", "kind", "message"), REFUSED)
def test_what_could_be_read_in_two_ways_is_refused_with_the_choices(
    columns: dict[str, Sequence[Any]], kind: Any, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        guess_layout(table(columns), kind)
    assert caught.value.file == "rows.csv"


def test_the_choices_of_a_refusal_decide() -> None:
    rows = table({"a": TEXTS, "b": SHORT, "c": CLASSES, "d": PEOPLE})
    assert guess_layout(rows, "classification", {"text": "b", "label": "d"}).columns == {"text": "b", "label": "d"}
    assert guess_layout(rows, None, {"prompt": "b", "response": "a"}).kind == "instruction"
    assert guess_layout(rows, None, {"label": "c", "text": "a"}).kind == "classification"
    assert guess_layout(rows, "text", {"text": "a"}).columns == {"text": "a"}


def test_a_column_that_is_not_there_is_named() -> None:
    with pytest.raises(DataError, match=r"no column 'labell'.*Did you mean label"):
        guess_layout(table({"text": TEXTS, "label": CLASSES}), None, {"label": "labell"})


@settings(max_examples=60)
@given(
    st.permutations(["text", "class", "number"]),
    st.lists(st.text(min_size=1, max_size=12), min_size=3, max_size=3, unique=True),
)
def test_neither_order_nor_names_that_say_nothing_decide(order: list[str], names: list[str]) -> None:
    """Of one column of text, one of classes and one of numbers each is told, whatever they are called."""
    holds = {"text": TEXTS, "class": CLASSES, "number": range(24)}
    parts = ("text", "label", "prompt", "response", "context", "question", "answers")
    if any(named_for(part, name) for name in names for part in parts):
        return
    called = dict(zip(order, names, strict=True))
    found = guess_layout(table({called[what]: holds[what] for what in order}))
    assert (found.kind, found.columns) == ("classification", {"text": called["text"], "label": called["class"]})


COLUMN = st.sampled_from([TEXTS, SHORT, ASKED, CLASSES, PEOPLE, [str(n) for n in range(24)], [None] * 24, [1.5] * 24])
WORDS = st.sampled_from(["text", "label", "user_prompt", "bot reply", "context", "x", "Answer", "stars", "0", "é;"])


@settings(max_examples=150)
@given(st.dictionaries(WORDS, COLUMN, min_size=1, max_size=5))
def test_every_guess_can_be_read(columns: dict[str, Sequence[Any]]) -> None:
    """Whatever the table: a clear refusal, or columns that are there, differ, and are those that the readers need."""
    rows = table(columns)
    try:
        found = guess_layout(rows)
    except DataError:
        return
    chosen = list(found.columns.values())
    assert set(chosen) <= set(columns)
    assert len(set(chosen)) == len(chosen)
    if found.columns:
        assert to_examples(found.kind, rows, ColumnsSpec.model_validate(dict(found.columns))).examples


@pytest.mark.parametrize(
    ("name", "part", "strength"),
    [("label", "label", 2), ("Star Rating", "label", 1), ("userQuestion", "question", 1), ("textile", "text", 0)],
)
def test_words_in_names(name: str, part: str, strength: int) -> None:
    assert named_for(part, name) == strength


def test_a_first_line_of_values_is_no_header() -> None:
    assert looks_headless(table({"1": CLASSES, "a stirring , funny and finally transporting film": TEXTS}), ["1", "a"])
    assert looks_headless(table({"good": CLASSES, "x": TEXTS}), ["good", "x"])
    assert not looks_headless(table({"label": CLASSES, "text": TEXTS}), ["label", "text"])


def test_what_columns_hold() -> None:
    rows = table({"empty": ["", None] * 12, "class": CLASSES, "float": [0.5, 1.0] * 12, "int": ["1", "2"] * 12})
    kinds = {name: profile(rows, name) for name in rows[0].values}
    assert [one.kind for one in kinds.values()] == ["empty", "text", "number", "number"]
    assert [name for name, one in kinds.items() if one.is_class] == ["class", "int"]


@pytest.mark.parametrize("space", ["\x1c", "\x1f", "\x85", "\u2003", " "])
def test_numbers_with_odd_spaces_around_them_are_numbers(space: str) -> None:
    """What `str` calls a space, `float` does not always."""
    found = profile(table({"n": [f"{space}4", f"5.5{space}"]}), "n")
    assert (found.kind, found.has_fractions) == ("number", True)
