"""Statistics, audit and verdict: pure functions of records."""
