"""Intervals, tests, corrections and power: pure functions of arrays, with NumPy and SciPy alone."""
