"""What memory a process may have, against limits that are really set: `ulimit -v` and, where it may be, a cgroup."""

import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tuneoff import fork_server
from tuneoff.training.memory_limits import MEBIBYTE, available_bytes, num_oom_kills, resident_bytes

SAY = (
    "from tuneoff.training.memory_limits import *; a = available_bytes(); print(a.num_bytes, a.source, num_oom_kills())"
)
GROUP_BYTES = 256 * MEBIBYTE


def in_limits(before: str, code: str = SAY) -> subprocess.CompletedProcess[str]:
    """Run Python code in a shell of its own that first does something to itself."""
    line = f'{before}; exec "$0" -c "$1"'
    return subprocess.run(["sh", "-c", line, sys.executable, code], capture_output=True, text=True, timeout=60)


def test_the_machine_alone() -> None:
    found = available_bytes()
    if found.source != "RAM":
        pytest.skip("the tests themselves run within a limit")
    assert found.num_bytes == pytest.approx(psutil.virtual_memory().available, rel=0.2)


def test_an_address_space_leaves_what_the_process_does_not_hold() -> None:
    kilobytes = 512 * 1024
    num_bytes, source = in_limits(f"ulimit -v {kilobytes}").stdout.split(" ", 1)
    assert source.startswith("ulimit -v")
    assert 0 < int(num_bytes) < kilobytes * 1024
    # It is what can be had: a little less is, a little more is not.
    code = f"{SAY}\nb = bytearray(a.num_bytes - 2**22)\nprint('had')\ndel b\nbytearray(a.num_bytes + 2**22)"
    told = in_limits(f"ulimit -v {kilobytes}", code)
    assert told.stdout.endswith("had\n")
    assert "MemoryError" in told.stderr


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group with little memory; skipped where none can be made."""
    for root, limit in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
        folder = Path(root) / f"tuneoff-test-{os.getpid()}"
        try:
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / limit).write_text(str(GROUP_BYTES))
            yield folder
        except OSError:
            break
        finally:
            folder.rmdir()
        return
    pytest.skip("no control group can be made here")


def test_a_control_group(group: Path) -> None:
    enter = f"echo $$ > {group}/cgroup.procs"
    num_bytes, source, kills = in_limits(enter).stdout.split()
    assert source == "cgroup"
    assert GROUP_BYTES / 2 < int(num_bytes) <= GROUP_BYTES
    assert kills == "0"
    killed = in_limits(enter, f"b = b'x' * {2 * GROUP_BYTES}")
    assert killed.returncode == -9
    assert in_limits(enter).stdout.split()[2] == "1"


HOLES = """
import re, threading
from pathlib import Path
from tuneoff.training.memory_limits import close_holes

def mapped(name):
    return int(re.search(rf"^{name}:\\s+(\\d+)", Path("/proc/self/status").read_text(), re.M)[1]) * 1024

large = bytearray(30 * 2**20)
del large  # from now on glibc takes blocks as large as this from its heap
CALL
blocks = [bytearray(8 * 2**20) for _ in range(8)]  # larger than any hole that the imports leave
before = mapped("VmData")
del blocks[::2]
given_back = before - mapped("VmData")
before = mapped("VmSize")
done = threading.Event()
thread = threading.Thread(target=lambda: (bytearray(100_000), done.wait()))
thread.start()
reserved = mapped("VmSize") - before
done.set()
thread.join()
print(given_back, reserved)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_where_address_space_is_limited_what_is_freed_goes_back_and_threads_reserve_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(fork_server.ALLOCATOR[0], raising=False)  # another test may have started runs from here
    found = {}
    for before, call in (("ulimit -v 4194304", "close_holes()"), ("ulimit -v 4194304", ""), ("true", "close_holes()")):
        done = in_limits(before, HOLES.replace("CALL", call))
        assert done.returncode == 0, done.stderr
        found[before, call] = [int(word) for word in done.stdout.split()]
    given_back, reserved = found.pop(("ulimit -v 4194304", "close_holes()"))
    assert given_back >= 4 * 8 * MEBIBYTE
    assert reserved < 32 * MEBIBYTE
    for given_back, reserved in found.values():  # as glibc does it of itself
        assert given_back < MEBIBYTE
        assert reserved > 64 * MEBIBYTE


def test_resident_memory_is_told_of_processes_that_are_there() -> None:
    own = resident_bytes(os.getpid())
    assert own is not None
    assert own == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)
    assert resident_bytes(2**22 + 1) is None
    assert num_oom_kills() >= 0
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
