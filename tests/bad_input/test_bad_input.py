"""Every kind of bad input: one clear error, the exit code, no traceback, no hang, nothing half-written."""

import sys
from pathlib import Path

import pytest
from tests.bad_input.case import check, run_case
from tests.bad_input.catalogue import GROUPS, PAGE, PYTHON, placed, row

CASES = {case.given: case for cases in GROUPS.values() for case in cases}


@pytest.mark.filterwarnings("default")  # what libraries warn of is looked for on stderr
@pytest.mark.parametrize("given", CASES)
def test_a_case(given: str, world: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    case = CASES[given]
    found = run_case(case, placed(case, world, lambda: request.getfixturevalue("finished").store.folder, tmp_path))
    check(case, found)
    if sys.version.startswith(PYTHON):
        page = PAGE.read_text(encoding="utf-8")
        assert row(case, found, tmp_path) in page, "run `python -m tests.bad_input.catalogue`, which writes the page"


def test_the_page_has_every_case_and_no_other() -> None:
    listed = [line.split(" | ")[0].removeprefix("| ") for line in PAGE.read_text("utf-8").splitlines() if "` |" in line]
    assert listed == list(CASES)
    assert sum(map(len, GROUPS.values())) == len(CASES), "each case has a name of its own"
