"""Cuts: units stay whole, shares are as asked, nothing is empty, and the cut never changes."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneoff.data.splits import cut, cut_document, keep_apart, stable_permutation
from tuneoff.data.tasks import Document
from tuneoff.errors import DataError

SHARES = {"validation": 0.1, "test": 0.1}


def _documents(*texts: str) -> list[Document]:
    return [Document(text, (text,), "rows.jsonl", line) for line, text in enumerate(texts, start=1)]


def test_the_permutation_is_fixed() -> None:
    """Golden: another order would make results of earlier versions incomparable."""
    assert stable_permutation(8, 0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert sorted(stable_permutation(1000, (3, 1)).tolist()) == list(range(1000))
    assert stable_permutation(1000, (3, 1)).tolist() != stable_permutation(1000, (3, 2)).tolist()


@given(st.lists(st.integers(0, 30), min_size=4), st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_units_stay_whole(draws: list[int], validation: float, test: float) -> None:
    documents = _documents(*map(str, draws))
    num_units = len(set(draws))
    sizes = {"validation": max(1, round(validation * num_units)), "test": max(1, round(test * num_units))}
    shares = {"validation": validation, "test": test}
    if sum(sizes.values()) >= num_units:
        with pytest.raises(DataError, match=f"the data has {num_units} independent unit"):
            cut(documents, shares)
        return
    parts = cut(documents, shares)
    units = {name: {document.item for document in part} for name, part in parts.items()}
    assert {name: len(units[name]) for name in sizes} == sizes
    assert len(units["train"] | units["validation"] | units["test"]) == num_units == sum(map(len, units.values()))
    assert sorted(document.line for part in parts.values() for document in part) == list(range(1, len(draws) + 1))
    assert all([d.line for d in part] == sorted(d.line for d in part) for part in parts.values())


def test_the_test_split_does_not_depend_on_the_validation_split() -> None:
    documents = _documents(*map(str, range(100)))
    assert cut(documents, SHARES)["test"] == cut(documents, {"test": 0.1})["test"]
    assert cut(documents, SHARES) == cut(documents, SHARES)


def test_too_few_units() -> None:
    with pytest.raises(DataError, match=r"2 independent units .* asks for 0\.1 for validation and 0\.1 for test"):
        cut(_documents("a", "b", "a"), SHARES)


PARAGRAPHS = "\n\n".join(f"Paragraph {number} says: ä, and more of it." for number in range(200))


def test_one_document_is_cut_at_paragraphs() -> None:
    (document,) = _documents(PARAGRAPHS)
    parts = cut_document(document, SHARES)
    texts = [parts[name][0].text for name in ("train", "validation", "test")]
    assert "".join(texts) == PARAGRAPHS
    assert all(text.startswith("Paragraph") for text in texts)
    assert [round(len(text) / len(PARAGRAPHS), 2) for text in texts] == [0.8, 0.1, 0.1]
    assert [parts[name][0].ends for name in parts] == [False, False, True]
    assert len({parts[name][0].item for name in parts}) == 3


@given(st.text(alphabet="ab \n", min_size=1, max_size=200))
def test_no_character_is_lost(text: str) -> None:
    (document,) = _documents(text)
    with contextlib.suppress(DataError):  # too short
        parts = cut_document(document, SHARES)
        assert "".join(parts[name][0].text for name in ("train", "validation", "test")) == text
        assert all(part[0].text.strip() for part in parts.values())


def test_a_document_that_is_too_short() -> None:
    with pytest.raises(DataError, match="the test split would be empty: one document of 3 characters"):
        cut_document(_documents("abc")[0], SHARES)


def test_one_share_is_the_tail() -> None:
    (document,) = _documents(PARAGRAPHS)
    parts = cut_document(document, {"validation": 0.25})
    assert list(parts) == ["train", "validation"]
    assert PARAGRAPHS.endswith(parts["validation"][0].text)


def test_given_splits_are_kept_apart() -> None:
    parts = {
        "train": _documents("a", "b", "c", "d"),
        "validation": _documents("b", "e", "f"),
        "test": _documents("c", "f"),
    }
    apart, notes = keep_apart(parts)
    assert {name: [document.text for document in part] for name, part in apart.items()} == {
        "train": ["a", "d"],
        "validation": ["b", "e"],
        "test": ["c", "f"],
    }
    assert [note.split(" examples")[0] for note in notes] == ["2 of 4 train", "1 of 3 validation"]


def test_the_same_file_twice() -> None:
    parts = {"train": _documents("a"), "validation": _documents("b"), "test": _documents("b")}
    with pytest.raises(DataError, match="the validation split would be empty: all its 1 examples are in test too"):
        keep_apart(parts)
