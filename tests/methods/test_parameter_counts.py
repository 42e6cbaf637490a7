"""Trainable parameters on GPT-2 small: closed formulas, and PEFT's own count where it has the method."""

import pytest
from benchmarks.parameters import ROWS, counted, counted_by_peft


@pytest.mark.reference
@pytest.mark.parametrize("name", ROWS)
def test_the_count_is_the_formulas_and_pefts(name: str) -> None:
    row = ROWS[name]
    assert counted(row) == row.expected
    assert counted_by_peft(row) in (None, row.expected)
