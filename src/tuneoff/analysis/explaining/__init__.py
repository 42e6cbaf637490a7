"""The parts of an explanation, one module each (put together in `tuneoff.analysis.explain`)."""
