"""Names that differ in numbers alone are written as one."""

from hypothesis import given
from hypothesis import strategies as st

from tuneoff.planning.groups import collapse, group_modules, ranges


def test_ranges() -> None:
    assert ranges([3, 0, 1, 7, 5, 4, 1]) == "0-1,3-5,7"
    assert ranges([4]) == "4"


@given(st.sets(st.integers(0, 200), min_size=1))
def test_ranges_hold_the_numbers_and_no_others(numbers: set[int]) -> None:
    spans = [[int(end) for end in span.split("-")] for span in ranges(numbers).split(",")]
    assert {number for span in spans for number in range(span[0], span[-1] + 1)} == numbers


def test_only_the_number_that_varies_becomes_a_range() -> None:
    assert collapse(["h.0.w1.x", "h.1.w1.x"]) == "h.{0-1}.w1.x"
    assert collapse(["0.h.0", "0.h.2"]) == "0.h.{0,2}"
    assert collapse(["h.3.c_attn"]) == "h.3.c_attn"
    assert collapse(["lm_head"]) == "lm_head"


def test_other_sizes_and_kinds_are_other_groups() -> None:
    groups = group_modules(
        {
            "h.0.a": ("Linear", 4, 8, 10),
            "h.0.b": ("Linear", 4, 8, 10),
            "h.1.a": ("Linear", 4, 8, 10),
            "h.2.a": ("Linear", 4, 16, 10),
            "h.3.a": ("Conv1D", 4, 8, 10),
        }
    )
    assert [(group.names, group.num_modules, group.trainable) for group in groups] == [
        ("h.{0-1}.a", 2, 20),
        ("h.0.b", 1, 10),
        ("h.2.a", 1, 10),
        ("h.3.a", 1, 10),
    ]
