"""Numbers as people read them: three significant digits where more would pretend, units that say what they count."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tuneoff.analysis.estimates import Estimate


NONE = "-"
"""What stands where there is no number."""

_COUNTS = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k"))
_BYTES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


_TIMES = ((3600.0, "h"), (60.0, "min"))


def significant(value: float, digits: int = 3) -> str:
    """Return `value` with so many significant digits, all digits of the whole part, and no exponent below a million."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.{digits - 1}e}")  # 9.996 has one digit more before the point once it is rounded
    magnitude = math.floor(math.log10(abs(rounded)))
    if magnitude >= 6 or magnitude < -4:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - magnitude)}f}"


def loss(value: float) -> str:
    """Return a loss in nats, to the third decimal: differences below that are rarely worth anything."""
    return f"{value:.3f}"


def count(value: int) -> str:
    """Return a count with an SI unit: 124,439,808 is 124 M."""
    return _with_unit(value, _COUNTS) or f"{value:,}"


def size(value: int) -> str:
    """Return bytes in binary units: 1,294,336 is 1.23 MiB."""
    return _with_unit(value, _BYTES) or f"{value:,} B"


def _with_unit(value: float, units: Sequence[tuple[float, str]]) -> str:
    """Return `value` in the largest unit in which three digits show at least 1; nothing below every unit."""
    for unit, name in units:
        if float(f"{value / unit:.2e}") >= 1:
            return f"{significant(value / unit)} {name}"
    return ""


def size_unit(largest: float) -> tuple[float, str]:
    """Return the bytes and the name of the unit in which numbers up to `largest` bytes read best."""
    return next(((float(unit), name) for unit, name in _BYTES if largest >= unit), (1.0, "B"))


def time_unit(largest: float) -> tuple[float, str]:
    """Return the seconds and the name of the unit in which durations up to `largest` seconds read best."""
    return next(((unit, name) for unit, name in _TIMES if largest >= 2 * unit), (1.0, "s"))


def duration(value: float) -> str:
    """Return seconds as milliseconds, seconds, minutes or hours, whichever reads best."""
    if value == 0:
        return "0 s"
    if value < 1:
        return f"{significant(1000 * value)} ms"
    if value < 120:
        return f"{significant(value)} s"
    minutes, seconds = divmod(round(value), 60)
    if minutes < 120:
        return f"{minutes} min {seconds:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def about(value: float) -> str:
    """Return seconds as far as an estimate of them is worth: `1 h 20 min`, `25 min`, `2 d 3 h`."""
    minutes = round(value / 60)
    if minutes < 1:
        return "less than a minute"
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest:02d} min"
    days, hours = divmod(round(minutes / 60), 24)
    return f"{days} d {hours} h"


def rate(value: float) -> str:
    """Return a learning rate as it is written in a study file: 3e-4."""
    mantissa, _, exponent = f"{value:.3e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def plain(value: float) -> str:
    """Return a hyperparameter: 16.0 is 16."""
    return f"{value:g}"


def percent(value: float) -> str:
    """Return per cent with two decimals, or as many as a small share needs, and never 100 for a little less."""
    if value in (0, 100):
        return f"{value:.0f} %"
    if 0 < value < 0.1:
        return f"{significant(value, 2)} %"
    return "> 99.99 %" if value > 99.995 else f"{value:.2f} %"


def interval(estimate: "Estimate", decimals: int) -> str:
    """Return a value with half the width of its interval: `41.2 ± 0.6`.

    Intervals are symmetrical but for those over items alone, whose ends stand in the files.
    """
    low, high = estimate.low, estimate.high
    half = "" if low is None or high is None else f" ± {(high - low) / 2:.{decimals}f}"
    return f"{estimate.value:.{decimals}f}{half}"


def loss_interval(estimate: "Estimate") -> str:
    """Return a loss with half the width of its interval: `2.325 ± 0.006`."""
    return interval(estimate, 3)


def perplexity_interval(estimate: "Estimate") -> str:
    """Return a perplexity with the ends of its interval, which is not symmetrical: `10.2 [10.1, 10.4]`."""
    text = significant(estimate.value)
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{significant(estimate.low)}, {significant(estimate.high)}]"
