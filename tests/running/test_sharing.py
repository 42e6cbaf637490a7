"""The short forms of `python -m benchmarks.sharing` and `benchmarks.kills`: one process killed after another."""

import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]


def run(*words: str) -> str:
    """Return what a benchmark prints that finds all well."""
    done = subprocess.run([sys.executable, "-m", *words], cwd=TOP, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_crowd_trains_each_run_once() -> None:
    said = run("benchmarks.sharing", "--processes", "4", "--kills", "3", "--every-s", "1")
    assert "0 records written twice, 0 lost; 0 of" in said
    assert "the table is the same" in said


@pytest.mark.slow
def test_kills_at_random_instants_move_no_bit() -> None:
    said = run("benchmarks.kills", "--kills", "4", "--commands", "0", "--per-study", "4")
    assert "4 kills over 1 studies of 10 runs; 0 records lost, 0 written twice, 0 files differ" in said
