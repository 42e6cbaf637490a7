"""All kinds of bad input; `python -m tests.bad_input.catalogue` runs them and writes the page of the docs."""

import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bad_input.case import Case, Place, check, fresh, run_case, said
from tests.bad_input.data_files import DATA
from tests.bad_input.models import ADAPTERS, MODELS
from tests.bad_input.predictions import PREDICTIONS
from tests.bad_input.stores import STORE, STORES
from tests.bad_input.study_files import STUDIES, VALUES
from tests.cli.shell import Outcome

GROUPS: dict[str, tuple[Case, ...]] = {
    "Study files": STUDIES,
    "Values of the command line": VALUES,
    "Data": DATA,
    "Bases and tokenizers": MODELS,
    "Adapters and targets": ADAPTERS,
    "Results, runs and exports": STORES,
    "Predictions and references": PREDICTIONS,
}
PAGE = Path(__file__).parents[2] / "docs" / "bad-input.md"
PYTHON = "3.11"
"""With which the page was written; another says some things in other words."""
MAX_SHOWN = 320
HEAD = f"""# Bad input

What was given, what was said, and the exit code, of {{number}} kinds of bad input. A test runs each of them and holds
it against this page (`tests/bad_input`): one message on the error output, no traceback, no hang, and no byte written or
changed beside what was there. `python -m tests.bad_input.catalogue` wrote it, with Python {PYTHON} and the packages
that `constraints.txt` names. FOLDER stands for the working folder, RUN for the name of a run; long messages are cut.
"""


def row(case: Case, found: Outcome, folder: Path) -> str:
    """Return a case's line of the page."""
    text = re.sub(r"\b[0-9a-f]{16}\b", "RUN", said(found, folder))
    text = re.sub(r"python -m \S+\.tuneoff", "tuneoff", text)
    text = text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3].rstrip()}..."
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;").replace("`", "&#96;")
    return f"| {case.given} | `{text}` | {found.code} |".replace("&lt;", "<").replace("&amp;", "&")


def placed(case: Case, world: Path, finished: Callable[[], Path], folder: Path) -> Place:
    """Return a place for a case; those of results get a finished study's."""
    place = fresh(world, folder)
    if case in STORES:
        shutil.copytree(finished(), folder / STORE)
    return place


def _tables(folder: Path) -> Iterator[str]:
    from tests.running.world import finished, world

    base = world(folder)
    for title, cases in GROUPS.items():
        yield f"\n## {title}\n\n| given | said | exit code |\n|---|---|---|\n"
        for case in cases:
            own = Path(tempfile.mkdtemp(dir=folder))
            start = time.process_time()
            found = run_case(case, placed(case, base, lambda: finished(folder, folder).store.folder, own))
            check(case, found)
            print(f"{time.process_time() - start:6.2f} s  {case.given}", flush=True)  # noqa: T201
            yield row(case, found, own) + "\n"


def main() -> None:
    """Run every case and write the page."""
    import tests.conftest  # noqa: F401  # no network, one thread, caches of their own

    assert sys.version.startswith(PYTHON), f"the page is written with Python {PYTHON}"
    with tempfile.TemporaryDirectory() as folder:
        tables = "".join(_tables(Path(folder)))
    PAGE.write_text(HEAD.format(number=sum(map(len, GROUPS.values()))) + tables, encoding="utf-8")


if __name__ == "__main__":
    main()
