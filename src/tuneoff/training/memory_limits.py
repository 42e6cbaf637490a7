"""What memory a process may still have and what keeps it from more, and whether the kernel has killed for want of it.

Three limits count, and the tightest says what is there: the machine's memory, the control group's (containers, systemd,
batch systems) and the limit on a process's address space (`ulimit -v`). Nothing here needs torch, so that a plan and
the process that starts others can ask, too.

Sources: proc(5) for meminfo, self/status, self/cgroup and vmstat; the kernel's cgroup-v1/memory and cgroup-v2 pages.
"""

import ctypes
import re
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from tuneoff.study.sizes import shown_bytes as shown_bytes
from tuneoff.study.value import Value

MEBIBYTE = 2**20
PROC = Path("/proc")
CGROUP_ROOT = Path("/sys/fs/cgroup")
UNLIMITED_BYTES = 2**60
"""A limit of version 1 that is not set reads as the largest multiple of a page below 2^63."""
V1_FILES = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "memory.oom_control")
V2_FILES = ("memory.max", "memory.current", "inactive_file", "memory.events")
"""Of the two versions of control groups: limit, use, the line of `memory.stat` that tells the file pages which the
kernel drops before it kills, and the file that counts the kills."""

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
"""Of mallopt(3)."""
MAPPED_BYTES = 256 * 1024
"""From which a tensor gets pages of its own where address space is limited."""


class Available(Value):
    """Memory that a process may still have.

    Attributes:
        num_bytes: how much.
        source: the limit that says so.
    """

    num_bytes: int
    source: Literal["RAM", "cgroup", "ulimit -v", "GPU"]

    def __str__(self) -> str:
        return f"{shown_bytes(self.num_bytes)} ({self.source})"


def available_bytes() -> Available:
    """Return what this process may still take: the least of what the machine, its control group and `ulimit -v` leave.

    Of the address space what the process holds already is taken off, so a process with the libraries loaded has less.
    Swap does not count: a model that trains in it does not come to an end.
    """
    found = shared_bytes()
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return found
    own = Available(num_bytes=max(0, limit - _held_bytes()), source="ulimit -v")
    return min(found, own, key=lambda one: one.num_bytes)


def shared_bytes() -> Available:
    """Return what the machine and the control group leave to all of its processes."""
    found = [Available(num_bytes=_machine_bytes(), source="RAM")]
    found += [Available(num_bytes=room, source="cgroup") for room in _cgroup_rooms()]
    return min(found, key=lambda one: one.num_bytes)


def close_holes() -> None:
    """Where address space is limited, have glibc map no more of it than there is in use, from now on.

    Tensors of 256 KiB and more get pages of their own, which go back when they are freed: without it the heap of a LoRA
    step of 160 MB grew to 250 MB (docs/performance.md, "Holes in the heap"); mapping anew each time costs a small model
    15 % of its time. And all threads share one heap, where each would reserve 64 MiB for its own.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and available_bytes().source == "ulimit -v":
        mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
        mallopt(M_ARENA_MAX, 1)


def kill_count_file(pid: int | None = None) -> Path:
    """Return the file in which the kernel counts what it kills for want of memory in a process's control group.

    Whatever limit ran out, the victim's own group counts it. Where no group counts, it is the whole machine's.

    Args:
        pid: of the process, which must be alive; none is this one.
    """
    files = (folder / files[3] for folder, files in _cgroup_folders(str(pid or "self")))
    return next((file for file in files if _count(file, "oom_kill") is not None), PROC / "vmstat")


def num_oom_kills(file: Path | None = None) -> int:
    """Return how many processes the kernel has killed so far for want of memory.

    Args:
        file: of `kill_count_file`; none is this process's.
    """
    return _count(file or kill_count_file(), "oom_kill") or 0


def resident_bytes(pid: int) -> int | None:
    """Return the resident memory of a process; none where it is gone, or is not told."""
    found = _kilobytes(PROC / str(pid) / "status", "VmRSS")
    return None if found is None else found * 1024


def _machine_bytes() -> int:
    found = _kilobytes(PROC / "meminfo", "MemAvailable")
    if found is not None:
        return found * 1024
    import psutil  # type: ignore[import-untyped]  # on other systems; comes with Accelerate

    return int(psutil.virtual_memory().available)


def _held_bytes() -> int:
    """Return the size of this process's address space; 0 where it is not told."""
    return (_kilobytes(PROC / "self" / "status", "VmSize") or 0) * 1024


def _cgroup_rooms() -> Iterator[int]:
    """Yield what each control group with a limit leaves: the process's own and those above it."""
    for folder, (limit_file, use_file, dropped, _) in _cgroup_folders():
        limit, use = _number(folder / limit_file), _number(folder / use_file)
        if limit is not None and use is not None and limit < UNLIMITED_BYTES:
            yield max(0, limit - use + (_count(folder / "memory.stat", dropped) or 0))


def _cgroup_folders(process: str = "self") -> Iterator[tuple[Path, tuple[str, str, str, str]]]:
    """Yield the folders of a process's control groups, from its own upwards, with the names of their files.

    In a container the path that the kernel tells may be the host's, which is not to be seen: then the root stands for
    the container's own group.
    """
    try:
        lines = (PROC / process / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        roots: tuple[Path, ...]
        if number == "0":
            roots, files = (CGROUP_ROOT, CGROUP_ROOT / "unified"), V2_FILES
        elif "memory" in controllers.split(","):
            roots, files = (CGROUP_ROOT / "memory",), V1_FILES
        else:
            continue
        for root in roots:
            own = root / path.lstrip("/")
            own = own if own.is_dir() else root
            for folder in (own, *own.parents):
                if (folder / files[1]).exists():
                    yield folder, files
                if folder == root:
                    break


def _number(path: Path) -> int | None:
    """Return the number that a file holds; none where it is not there, or holds a word (`max`)."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None


def _count(path: Path, name: str) -> int | None:
    """Return the number behind a name in a file of `name number` lines."""
    return _named(path, rf"^{name} (\d+)$")


def _kilobytes(path: Path, name: str) -> int | None:
    return _named(path, rf"^{name}:\s+(\d+) kB$")


def _named(path: Path, pattern: str) -> int | None:
    try:
        found = re.search(pattern, path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1])
