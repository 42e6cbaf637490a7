"""The summary's tests use the same made-up studies as the report's."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "report"))
