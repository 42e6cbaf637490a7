"""How many threads a process may use, under each limit that a person or a batch system sets."""

import os
from pathlib import Path

import pytest

from tuneoff.running import threads


def test_omp_num_threads_counts_for_each_process() -> None:
    assert threads.threads_per_job(1, {"OMP_NUM_THREADS": "3"}) == 3
    assert threads.threads_per_job(4, {"OMP_NUM_THREADS": "3"}) == 3
    assert threads.threads_per_job(1, {"OMP_NUM_THREADS": "2,4"}) == 2


@pytest.mark.parametrize("asked", ["", "0", "-1", "many"])
def test_what_is_no_number_of_threads_is_not_looked_at(asked: str) -> None:
    assert threads.threads_per_job(1, {"OMP_NUM_THREADS": asked}) == threads.num_processors()


def test_processors_are_shared_out_and_each_process_gets_one_at_least() -> None:
    own = threads.num_processors()
    assert threads.threads_per_job(1, {}) == own
    assert threads.threads_per_job(own, {}) == 1
    assert threads.threads_per_job(10 * own, {}) == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds processes to processors")
def test_a_process_that_is_bound_to_one_processor_has_one() -> None:
    usual = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(usual)})
        assert threads.num_processors() == 1
    finally:
        os.sched_setaffinity(0, usual)


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


@pytest.mark.parametrize(
    ("own", "above", "quota"),
    [
        ("150000 100000\n", "max 100000\n", 1.5),
        ("max 100000\n", "200000 100000\n", 2.0),
        ("400000 100000\n", "50000 100000\n", 0.5),
        ("max 100000\n", "max 100000\n", None),
        ("broken", "max 100000\n", None),
    ],
)
def test_the_quota_of_control_groups_of_version_2(tmp_path: Path, own: str, above: str, quota: float | None) -> None:
    group(tmp_path / "slice", cpu__max=above)
    group(tmp_path / "slice" / "job", cpu__max=own)
    (tmp_path / "membership").write_text("0::/slice/job\n")
    assert threads.cgroup_quota(tmp_path, tmp_path / "membership") == quota


def test_the_quota_of_control_groups_of_version_1(tmp_path: Path) -> None:
    files = {"cpu.cfs_quota_us": "250000\n", "cpu.cfs_period_us": "100000\n"}
    group(tmp_path / "cpu,cpuacct" / "docker" / "one", **files)
    group(tmp_path / "cpu,cpuacct", **files | {"cpu.cfs_quota_us": "-1\n"})
    (tmp_path / "membership").write_text("4:memory:/docker/one\n3:cpu,cpuacct:/docker/one\n")
    assert threads.cgroup_quota(tmp_path, tmp_path / "membership") == 2.5


def test_no_control_groups_no_quota(tmp_path: Path) -> None:
    assert threads.cgroup_quota(tmp_path, tmp_path / "none") is None
