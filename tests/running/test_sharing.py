"""The short form of `python -m benchmarks.sharing`: several processes on one study, and one killed after another."""

import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_crowd_trains_each_run_once() -> None:
    command = [sys.executable, "-m", "benchmarks.sharing", "--processes", "4", "--kills", "3", "--every-s", "1"]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 records written twice, 0 lost; 0 of" in done.stdout
    assert "the table is the same" in done.stdout
