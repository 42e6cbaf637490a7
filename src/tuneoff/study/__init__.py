"""The study as a pure value: spec, expansion, identity, records."""
