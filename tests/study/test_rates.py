"""Rungs of the search, and the rate between two others."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tuneoff.study.methods import DEFAULT_RATES
from tuneoff.study.rates import auto_rates, between, step_down, step_up

RATES = st.floats(1e-9, 1e3)


@pytest.mark.parametrize(
    ("rate", "below", "above"),
    [
        (1e-4, 3e-5, 3e-4),
        (3e-4, 1e-4, 1e-3),
        (0.3, 0.1, 1.0),
        (1.0, 0.3, 3.0),
        (3.0, 1.0, 10.0),
        (5e-5, 1e-5, 1e-4),  # no rung itself: nearest to 3e-5
        (2e-4, 1e-4, 1e-3),
        (3.2e-3, 1e-3, 1e-2),
    ],
)
def test_steps(rate: float, below: float, above: float) -> None:
    assert (step_down(rate), step_up(rate)) == (below, above)


@given(RATES)
def test_a_step_is_about_half_a_decade_and_goes_back(rate: float) -> None:
    low, high = step_down(rate), step_up(rate)
    assert 0.2 < math.log10(rate / low) < 0.8
    assert 0.2 < math.log10(high / rate) < 0.8
    assert step_up(step_down(low)) == low
    assert step_down(step_up(high)) == high


@pytest.mark.parametrize(("method", "rates"), DEFAULT_RATES.items())
def test_the_rule_is_the_middle_of_the_defaults(method: str, rates: tuple[float, ...]) -> None:
    low, rule, high = auto_rates(method)
    assert rule == rates[1]
    assert (low, high) == (step_down(rule), step_up(rule))


def test_full_starts_ten_times_below_lora() -> None:
    assert auto_rates("full") == (1e-5, 3e-5, 1e-4)
    assert auto_rates("lora") == (1e-4, 3e-4, 1e-3)
    assert auto_rates("prompt") == (3e-2, 1e-1, 3e-1)


@given(RATES, RATES)
def test_between(one: float, other: float) -> None:
    low, high = sorted((one, other))
    assume(high > low * (1 + 1e-12))
    found = between(low, high)
    assert low < found < high
    # Two digits are within 5 % of what they round; more are closer.
    assert math.log(found) == pytest.approx((math.log(low) + math.log(high)) / 2, abs=math.log(1.055))


def test_between_takes_two_digits_where_they_do() -> None:
    assert between(1e-4, 3e-4) == 1.7e-4
    assert between(3e-4, 3.1e-4) == 3.05e-4
