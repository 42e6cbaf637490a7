"""How much memory a run may take: of a GPU, or of this machine under all limits that hold for its processes.

On Linux these are what is free (MemAvailable, proc_meminfo(5)), the limits of the control groups that the process is in
(cgroup v2 `memory.max`, v1 `memory.limit_in_bytes`, of every group above it too), and `ulimit -v` (RLIMIT_AS). The last
counts address space: what the interpreter and its libraries map is several times what is resident of them, so the room
for tensors under each limit is worked out apart, and the least counts.
"""

import resource
from collections.abc import Iterator
from pathlib import Path

from tuneoff.planning.devices import Device
from tuneoff.study.value import Value

CONTEXT_BYTES = 600_000_000
"""What a GPU holds beside tensors: the driver's context, kernels, and the workspaces of cuBLAS."""
USABLE_SHARE = 0.95
"""Of a GPU's memory that tensors get: the driver and error correction keep some, and the allocator cannot use all."""
CPU_SHARE = 0.97
"""Of this machine's memory: freed blocks that malloc keeps."""
PROCESS_BYTES = 450_000_000
"""Resident bytes of a run's process beside tensors, where it cannot be read off this one."""
NO_LIMIT = 1 << 60
CGROUPS = Path("/sys/fs/cgroup")


class Room(Value):
    """What a run may take."""

    where: str
    """What the memory is of, and which limit holds: `RTX 4090`, `ulimit -v`."""
    total_bytes: int
    """Under that limit, of the whole process."""
    process_bytes: int
    """That the process takes beside tensors, counted as the limit counts."""
    usable_share: float = 1.0
    """Of the total that can be used."""

    @property
    def tensor_bytes(self) -> int:
        """What is left for tensors."""
        return max(0, int(self.total_bytes * self.usable_share) - self.process_bytes)


def device_room(device: Device) -> Room:
    """Return the room of a named device."""
    return memory_room(device.memory_bytes, device.name)


def memory_room(num_bytes: int, where: str = "") -> Room:
    """Return the room of a GPU with so much memory."""
    name = where or f"a device of {num_bytes / 1e9:.3g} GB"
    return Room(where=name, total_bytes=num_bytes, process_bytes=CONTEXT_BYTES, usable_share=USABLE_SHARE)


def machine_room() -> Room:
    """Return the room of this machine: of its GPU where there is one, else of its memory under the tightest limit."""
    from tuneoff.training.runtime import device_bytes

    gpu = device_bytes()
    if gpu:
        import torch

        return memory_room(gpu, torch.cuda.get_device_name())
    return min(cpu_rooms(), key=lambda room: room.tensor_bytes)


def cpu_rooms() -> Iterator[Room]:
    """Yield the room under each limit on this machine's memory."""
    own = _status()
    resident, mapped = own.get("VmRSS", PROCESS_BYTES), own.get("VmSize", 0)
    resident = max(resident, PROCESS_BYTES)
    free = _meminfo().get("MemAvailable")
    if free is not None:
        yield _cpu_room("free memory", free + own.get("VmRSS", 0), resident)
    for name, left in cgroup_limits():
        yield _cpu_room(f"memory limit of the control group {name}", left + own.get("VmRSS", 0), resident)
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        yield _cpu_room("ulimit -v", limit, mapped)
    if free is None:  # not Linux
        import os

        yield _cpu_room("memory", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), resident)


def _cpu_room(where: str, total: int, process: int) -> Room:
    return Room(where=where, total_bytes=total, process_bytes=process, usable_share=CPU_SHARE)


def cgroup_limits(
    groups: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")
) -> Iterator[tuple[str, int]]:
    """Yield the control groups above this process that limit memory, with the bytes that are left in each.

    Args:
        groups: where the groups' files are.
        membership: file that says in which groups the process is (cgroups(7)).
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            root, names = groups, ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, names = groups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        folder = root / path.lstrip("/")
        # In a container the path may be the host's, which is not there; the container's own group is the root.
        places = [place for place in (folder, *folder.parents) if place == root or root in place.parents]
        for place in places:
            limit, used = (_number(place / name) for name in names)
            if limit is not None and limit < NO_LIMIT:
                yield "/" + str(place.relative_to(root)).removeprefix("."), max(0, limit - _held(place, used or 0))


def _held(place: Path, used: int) -> int:
    """Return what a group holds and cannot drop: files that were read count in it, and go when memory is needed."""
    try:
        rows = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return used
    return max(0, used - int(rows.get("inactive_file", 0)) - int(rows.get("active_file", 0)))


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" is no limit


def _status() -> dict[str, int]:
    return _kilobytes(Path("/proc/self/status"))


def _meminfo() -> dict[str, int]:
    return _kilobytes(Path("/proc/meminfo"))


def _kilobytes(path: Path) -> dict[str, int]:
    """Return the lines of a file of /proc that are in kB, in bytes."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3 and row[2] == "kB"}
