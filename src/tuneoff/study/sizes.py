"""Sizes as people read them where memory and disks are told: powers of 1000, as they are sold and asked for."""

UNITS = ("B", "kB", "MB", "GB", "TB")
STEP = 1000


def shown_bytes(num_bytes: float) -> str:
    """Return bytes in decimal units with three digits: 1769472 gives `1.77 MB`."""
    value, unit = float(num_bytes), 0
    while value >= STEP - 0.5 and unit < len(UNITS) - 1:
        value, unit = value / STEP, unit + 1
    return f"{value:.3g} {UNITS[unit]}" if value < STEP - 0.5 else f"{value:,.0f} {UNITS[unit]}"
