"""Sizes as people read them."""

import pytest

from tuneoff.study.sizes import shown_bytes


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1_769_472, "1.77 MB"),
        (999_400_000, "999 MB"),
        (999_600_000, "1 GB"),
        (3_441_000_000, "3.44 GB"),
        (80_000_000_000, "80 GB"),
        (12 * 10**11, "1.2 TB"),
        (12 * 10**15, "12,000 TB"),
    ],
)
def test_three_digits_and_the_unit_that_leaves_them(num_bytes: int, text: str) -> None:
    assert shown_bytes(num_bytes) == text
