"""Numbers and lists of arms as the sentences of an explanation have them."""

from collections.abc import Sequence

from tuneoff.analysis.estimates import Estimate

MAX_NAMED = 5
"""Arms that a sentence names one by one; of more it gives the lowest and the highest."""


def listed(parts: Sequence[str]) -> str:
    """Return `a, b and c`."""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def arms(number: int) -> str:
    """Return `1 arm`, `2 arms`."""
    return "1 arm" if number == 1 else f"{number:,} arms"


def named(names: Sequence[str]) -> str:
    """Return the names of a few arms, and how many of more."""
    return listed(names) if len(names) <= MAX_NAMED else arms(len(names))


def digits(value: float) -> str:
    """Return a positive number with two significant digits: 5.6, 18, 120, 0.31."""
    return f"{float(f'{value:.1e}'):,g}"


def share(value: float) -> str:
    """Return a share as a percentage, and never all or nothing for a little less or more."""
    if 0 < value < 0.005:
        return "less than 1 %"
    return "more than 99 %" if 0.995 <= value < 1 else f"{100 * value:.0f} %"


def times(value: float) -> str:
    """Return a mean of counts: a whole number where it is one."""
    return f"{value:.0f}" if abs(value - round(value)) < 0.05 else f"{value:.1f}"


def nats(value: float) -> str:
    """Return a loss, or the size of a difference of losses."""
    return f"{value:.3f}"


def span(first: str, last: str, before: str = "") -> str:
    """Return `1 to 3`, or `1` where both ends are the same.

    Args:
        first: the lower end.
        last: the upper end.
        before: what stands before it.
    """
    return f"{before}{first}" if first == last else f"{before}{first} to {last}"


def interval(estimate: Estimate) -> str:
    """Return ` [-0.010, +0.021]`; empty where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    return f" [{estimate.low:+.3f}, {estimate.high:+.3f}]"
