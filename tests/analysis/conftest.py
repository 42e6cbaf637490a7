"""The summary's tests use the same made-up studies as the report's, and one file of their own."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "report")]
