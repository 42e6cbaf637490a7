"""The loop, its steps and its meters: the only code that calls backward()."""
