"""How many threads the processes of a study may use: what the machine has, less what limits hold for this process."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
ASKED = "OMP_NUM_THREADS"


def threads_per_job(num_jobs: int, environment: Mapping[str, str] = os.environ) -> int:
    """Return the CPU threads of each of several processes: OMP_NUM_THREADS where it is set, else an even share.

    OMP_NUM_THREADS counts for each process, as for any other program. It may be a list, one number for each level of
    nesting (OpenMP 5.2, section 21.1.2); the first counts.

    Args:
        num_jobs: processes at a time.
        environment: where OMP_NUM_THREADS is looked up.
    """
    asked = environment.get(ASKED, "").split(",")[0].strip()
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return max(1, num_processors() // num_jobs)


def num_processors() -> int:
    """Return the processors that this process may use.

    That is the least of those that there are, those that it is bound to (`taskset`, a batch system), and the quota of
    its control groups (`docker --cpus`), rounded up as a part of a processor is one thread.
    """
    counts = [os.cpu_count() or 1]
    if hasattr(os, "sched_getaffinity"):
        counts.append(len(os.sched_getaffinity(0)))
    quota = cgroup_quota()
    if quota is not None:
        counts.append(max(1, -int(-quota // 1)))
    return min(counts)


def cgroup_quota(root: Path = CGROUPS, membership: Path = MEMBERSHIP) -> float | None:
    """Return the processors that the control groups of this process allow; none where none of them limits any.

    Both versions are read: `cpu.max` ("200000 100000", "max 100000"), and `cpu.cfs_quota_us` with `cpu.cfs_period_us`.
    The groups above a process's own count, too.

    Args:
        root: where control groups are mounted.
        membership: says which group the process is in of each hierarchy (`ID:CONTROLLERS:/PATH`).
    """
    return min((quota for folder in _groups(root, membership) for quota in _quotas(folder)), default=None)


def _groups(root: Path, membership: Path) -> Iterator[Path]:
    """Yield the folders of the process's groups and of all above them."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        tops = {"": [root]}.get(controllers, [root / controllers, root / "cpu"])
        if controllers and "cpu" not in controllers.split(","):
            continue
        for top in tops:
            own = top / path.lstrip("/")
            while own != top and top in own.parents:
                yield own
                own = own.parent
            yield top


def _quotas(folder: Path) -> Iterator[float]:
    try:
        quota, period = (folder / "cpu.max").read_text().split()[:2]
        if quota != "max":
            yield int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota = (folder / "cpu.cfs_quota_us").read_text()
        if int(quota) > 0:
            yield int(quota) / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        pass
