"""A sample of `python -m benchmarks.faults`: two operations of each kind of fault; and what the injector does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.faults import injector
from tests.faults.disk import CUTS
from tests.faults.injector import KINDS, Plan

TOP = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_sample_of_faults() -> None:
    """Every fault ends in a clear line or is gone round, and the same command then gives the undisturbed bits."""
    command = [sys.executable, "-m", "benchmarks.faults", "--points", "1"]
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.partition(":")[0] in KINDS]
    assert len(lines) == len(KINDS), done.stdout
    assert all(", 0 wrong" in line and not line.split(": ")[1].startswith("0 faults") for line in lines), done.stdout


def in_a_child(plan: Plan, work: str) -> int:
    """Run lines of Python under a plan, in a process of their own, and return how it ended."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom tests.faults import injector\nos.setsid()\n"
        f"root = Path({str(plan.roots[0])!r})\n"
        f"injector.install(injector.Plan({plan.action!r}, {plan.at}, (root,), Path({str(plan.shadow)!r})))\n{work}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=TOP, env=os.environ | {"PYTHONPATH": str(TOP)}, timeout=60)
    return done.returncode


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


WORK = """
with (root / "a").open("w") as handle:
    handle.write("synced")
    handle.flush()
    os.fsync(handle.fileno())
(root / "b").write_text("not synced")
folder = os.open(root, os.O_RDONLY)
os.fsync(folder)
os.rename(root / "a", root / "c")
(root / "late").write_text("late")
os.unlink(root / "c")
"""


@pytest.mark.parametrize(
    ("action", "left"),
    [
        ("power", {"a": "synced", "b": ""}),
        ("power-names", {"c": "synced", "b": "not s", "late": "la"}),
        ("die", {"c": "synced", "b": "not synced", "late": "late"}),
    ],
)
def test_what_a_kill_and_a_power_cut_leave(root: Path, tmp_path: Path, action: str, left: dict[str, str]) -> None:
    removal = 11 if action == "die" else 10  # a power cut is not counted at an opening
    plan = Plan(action, removal, (root,), tmp_path / "shadow")
    assert in_a_child(plan, WORK) == -9
    if action != "die":
        injector.lose_unsynced(plan)
    assert files_in(root) == left


@pytest.mark.parametrize("cut", CUTS)
def test_one_sitting_gives_what_a_kill_at_each_operation_leaves(root: Path, tmp_path: Path, cut: str) -> None:
    recorded = Plan(injector.CUTS, 0, (root,), tmp_path / "recorded")
    assert in_a_child(recorded, WORK) == 0
    for at in range(1, injector.result_of(recorded)[0] + 1):
        shutil.rmtree(root)
        root.mkdir()
        plan = Plan(cut, at, (root,), tmp_path / f"killed-{at}")
        assert in_a_child(plan, WORK) == -9
        injector.lose_unsynced(plan)
        assert files_in(injector.left_by(recorded, cut, at) / root.name) == files_in(root)


def files_in(folder: Path) -> dict[str, str]:
    """Return the names in a folder, and what the files hold."""
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_failing_write_leaves_half_of_it(root: Path, tmp_path: Path) -> None:
    plan = Plan("ENOSPC", 2, (root,), tmp_path / "shadow")
    assert in_a_child(plan, "(root / 'a').open('wb', buffering=0).write(b'12345678')") == 1
    assert (root / "a").read_bytes() == b"1234"
    assert injector.result_of(plan) == (2, f"write {root / 'a'}")
