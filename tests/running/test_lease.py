"""Leases of runs: one holder at a time, whoever it is and however it ends."""

import json
import os
import subprocess
import sys
import threading
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from filelock import Timeout

from tuneoff.running import lease
from tuneoff.running.lease import EXPIRY_S, LEASE_FILE, RunLock, is_held, started, this_host

ELSEWHERE = "another host"


def write_lease(folder: Path, age_s: float = 0.0, **changes: Any) -> None:
    """Leave a lease as another process would have."""
    folder.mkdir(exist_ok=True)
    body = {"id": "theirs", "host": this_host(), "pid": os.getpid(), "started": started()} | changes
    (folder / LEASE_FILE).write_text(json.dumps(body))
    now = time.time()
    os.utime(folder / LEASE_FILE, (now - age_s, now - age_s))


def holder(folder: Path) -> str:
    return str(json.loads((folder / LEASE_FILE).read_text())["id"])


def test_one_holder_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with RunLock(folder) as held:
        assert is_held(folder)
        assert held.is_locked
        with pytest.raises(Timeout):
            RunLock(folder).acquire()
        assert holder(folder) == held.owner["id"]
    assert not is_held(folder)
    assert [path.name for path in folder.iterdir()] == [".lock"]
    with RunLock(folder):
        pass


def test_the_lease_of_a_dead_process_is_taken_at_once(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from tuneoff.running.lease import RunLock\n"
    code += f"RunLock(Path({str(tmp_path)!r})).acquire(); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(Timeout):
            RunLock(tmp_path).acquire()
        process.kill()
        process.wait()
    assert (tmp_path / LEASE_FILE).exists()
    assert not is_held(tmp_path)
    with RunLock(tmp_path) as held:
        assert holder(tmp_path) == held.owner["id"]


@pytest.mark.parametrize(
    ("age_s", "changes", "is_taken"),
    [
        (0.0, {}, False),
        (10 * EXPIRY_S, {}, False),  # it lives, and so it holds, however long it was stopped
        (0.0, {"started": "12345"}, True),  # its number is another process's now
        (0.0, {"pid": 2**22 + 1}, True),
        (0.0, {"pid": None}, True),
        (0.0, {"host": ELSEWHERE, "pid": 2**22 + 1}, False),
        (EXPIRY_S - 20.0, {"host": ELSEWHERE}, False),
        (EXPIRY_S + 20.0, {"host": ELSEWHERE}, True),
    ],
)
def test_when_a_lease_has_ended(tmp_path: Path, age_s: float, changes: dict[str, Any], is_taken: bool) -> None:
    write_lease(tmp_path, age_s, **changes)
    assert is_held(tmp_path) != is_taken
    if is_taken:
        with RunLock(tmp_path) as held:
            assert holder(tmp_path) == held.owner["id"]
    else:
        with pytest.raises(Timeout):
            RunLock(tmp_path).acquire()
        assert holder(tmp_path) == "theirs"
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".aside")] == []


def test_an_empty_lease_has_ended(tmp_path: Path) -> None:
    (tmp_path / LEASE_FILE).touch()
    with RunLock(tmp_path) as held:
        assert holder(tmp_path) == held.owner["id"]


def test_ages_do_not_depend_on_this_hosts_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lease(tmp_path, host=ELSEWHERE)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert is_held(tmp_path)
    monkeypatch.setattr(time, "time", lambda: 1e12)
    assert is_held(tmp_path)


def test_a_held_lease_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.02)
    with RunLock(tmp_path):
        os.utime(tmp_path / LEASE_FILE, (0.0, 0.0))
        end = time.monotonic() + 30.0
        while (tmp_path / LEASE_FILE).stat().st_mtime == 0.0:
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.mark.parametrize("is_removed", [False, True])
def test_who_lost_the_lease_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_removed: bool) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.02)
    lost = threading.Event()
    with RunLock(tmp_path, lose=lost.set):
        if is_removed:
            (tmp_path / LEASE_FILE).unlink()
        else:
            write_lease(tmp_path, host=ELSEWHERE)
        assert lost.wait(30.0)
    assert is_removed or holder(tmp_path) == "theirs"  # what is not ours is left where it is


def _compete(folder: Path, go: Any, won: Any, over: Any) -> None:
    """Take the run without a lock of the system, as on a share that has none, and say so."""

    def without(*_: Any) -> None:
        raise NotImplementedError

    lease.FileLock.acquire = without  # type: ignore[method-assign]
    go.wait()
    try:
        RunLock(folder).acquire()
        won.put(os.getpid())
        over.wait(120)
    except Timeout:
        won.put(0)


@pytest.mark.slow
@pytest.mark.parametrize("is_left", [False, True], ids=["no lease", "a dead lease"])
def test_of_several_one_takes_it_without_locks_of_the_system(tmp_path: Path, is_left: bool) -> None:
    if is_left:
        write_lease(tmp_path, pid=2**22 + 1)
    context = get_context("spawn")
    go, won, over = context.Event(), context.Queue(), context.Event()
    processes = [context.Process(target=_compete, args=(tmp_path, go, won, over)) for _ in range(6)]
    for process in processes:
        process.start()
    go.set()
    winners = [pid for pid in (won.get(timeout=120) for _ in processes) if pid]
    over.set()
    for process in processes:
        process.join()
    assert len(winners) == 1
