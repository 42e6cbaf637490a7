"""Under a limit of the address space (`ulimit -v`) a report is written without charts; what draws them would end it."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tuneoff import api
from tuneoff.errors import StudyError
from tuneoff.report import drawing
from tuneoff.report.write import figure_formats

LIMIT_BYTES = 6 * 2**30
SCRIPT = """
import json, resource, sys
from pathlib import Path
from tuneoff import api
from tuneoff.study.spec import Study
folder = Path(sys.argv[1])
study = Study.model_validate(json.loads((folder / "study.json").read_text()) | {"root": folder})
api.open_result(study, folder.parent).report(Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_the_page_is_written_and_says_why_nothing_is_drawn(finished: api.Result, tmp_path: Path) -> None:
    """In a process of its own, under the real limit: V8 would end it with SIGTRAP."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(finished.store.folder), str(tmp_path)],
        env=os.environ | {"TUNEOFF_CACHE": str(tmp_path / "cache")},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "report.html").read_text()
    assert "Not drawn: `ulimit -v` is 6 GiB" in page
    assert "lora-rank4" in page
    assert (tmp_path / "report.json").exists()


def test_figures_are_refused_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    assert figure_formats(["svg"]) == ("svg",)
    monkeypatch.setattr(drawing.resource, "getrlimit", lambda kind: (LIMIT_BYTES, LIMIT_BYTES))
    with pytest.raises(StudyError, match=r"figures: they cannot be drawn: `ulimit -v` is 6 GiB.*without that limit"):
        figure_formats(["svg"])
    assert figure_formats([]) == ()
