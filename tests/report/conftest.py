"""Lets the tests of this folder import `fakes`, which pytest's importlib mode leaves off the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
