"""Learning rates to search over: the rungs 1, 3, 10, 30, ..., half a decade apart, and what lies between two rates."""

import math

from tuneoff.study.methods import DEFAULT_RATES

AUTO = "auto"
"""What a study file writes for a grid that starts from a rule and is extended while its best rate lies at an edge."""
FEWEST_DIGITS, MOST_DIGITS = 2, 17


def auto_rates(method: str) -> tuple[float, ...]:
    """Return where the search of a method's rate starts: its rule, and a rung on either side.

    The rule is the middle of the method's default rates: full lies ten times below LoRA (Schulman et al., 2025, "LoRA
    Without Regret").

    Args:
        method: name of a method that trains something.
    """
    rule = DEFAULT_RATES[method][1]
    return step_down(rule), rule, step_up(rule)


def step_up(rate: float) -> float:
    """Return the first rung that is half a decade or so above a rate, which need not be a rung itself."""
    return _rung(_place(rate) + 1)


def step_down(rate: float) -> float:
    """Return the first rung that is half a decade or so below a rate."""
    return _rung(_place(rate) - 1)


def between(low: float, high: float) -> float:
    """Return the geometric mean of two rates, with as few digits (two or more) as keep it between them.

    Args:
        low: a rate.
        high: another above it.
    """
    mean = math.sqrt(low * high)
    written = (float(f"{mean:.{digits - 1}e}") for digits in range(FEWEST_DIGITS, MOST_DIGITS + 1))
    return next(rate for rate in written if low < rate < high)


def _place(rate: float) -> int:
    """Return the number of the rung that is nearest to a rate: 0 is 1, 1 is 3, 2 is 10."""
    return round(2 * math.log10(rate))


def _rung(place: int) -> float:
    return float(f"{3 if place % 2 else 1}e{place // 2}")
