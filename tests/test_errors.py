import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneoff import errors
from tuneoff.errors import DataError, InfeasibleError, TuneoffError, did_you_mean, nearest_names

ERRORS = [
    *(
        getattr(errors, name)("asked a, found b")
        for name in errors.__all__
        if name.endswith("Error") and name[0] != "I"
    ),
    DataError("expected an object", file="rows.jsonl", line=3, column="answer"),
    InfeasibleError("the loss is not finite at step 7", reason="diverged"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_crosses_to_another_process(error: TuneoffError) -> None:
    error.add_note("run lora-r8/seed0")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_exit_codes() -> None:
    assert {type(error).__name__: error.exit_code for error in ERRORS if error.exit_code != 2} == {"InfeasibleError": 1}


def test_a_data_error_names_its_place() -> None:
    assert (
        str(DataError("expected a number", file="a.csv", line=3, column=2))
        == "a.csv, line 3, column 2: expected a number"
    )
    assert str(DataError("no rows", file="a.csv")) == "a.csv: no rows"
    assert str(DataError("no rows")) == "no rows"


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [("q_prj", "q_proj"), ("Q_PROJ", "q_proj"), ("attn", "c_attn"), ("stpes", "steps")],
)
def test_the_nearest_name_comes_first(asked: str, nearest: str) -> None:
    assert nearest_names(asked, ["c_attn", "k_proj", "q_proj", "steps", "batch_size"])[0] == nearest


def test_did_you_mean() -> None:
    assert did_you_mean("q_prj", ["q_proj", "k_proj"]) == " Did you mean q_proj or k_proj?"
    assert did_you_mean("stpes", ["steps", "batch_size"]) == " Did you mean steps?"
    assert did_you_mean("xyz", ["steps", "batch_size"]) == ""


@given(st.text(), st.lists(st.text()), st.integers(1, 5))
def test_nearest_names_are_distinct_and_allowed(asked: str, allowed: list[str], n: int) -> None:
    found = nearest_names(asked, allowed, n)
    assert len(found) == len(set(found)) <= n
    assert set(found) <= set(allowed)
