"""Devices by name, sizes by unit, and what limits a machine's memory."""

import resource
import subprocess
import sys

import pytest

from tuneoff.errors import StudyError
from tuneoff.planning.devices import DEVICES, GIB, find_device, parse_bytes
from tuneoff.planning.resident import FIRST_USE_BYTES, predicted_resident_bytes
from tuneoff.planning.room import CONTEXT_BYTES, USABLE_SHARE, device_room, machine_room, memory_room


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6GB", 6 * 10**9),
        ("6 gb", 6 * 10**9),
        ("6G", 6 * 10**9),
        ("6GiB", 6 * GIB),
        ("1.5Gi", 3 * GIB // 2),
        ("800MB", 8 * 10**8),
        (".5tb", 5 * 10**11),
        ("6442450944", 6 * GIB),
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["six", "6XB", "-6GB", "", "6GB GB", "i", "6ib", "GB", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(StudyError, match=r"--device-memory: found .*expected a number and a unit, such as 6GB"):
        parse_bytes(text)


def test_a_size_without_sense_is_refused() -> None:
    with pytest.raises(StudyError, match=r"--reserve: found '0GB', which is no memory at all"):
        parse_bytes("0GB", "--reserve")
    with pytest.raises(StudyError, match=r"found '6', which is 6 bytes; give the unit, such as 6GB"):
        parse_bytes("6")


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("RTX 4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4070 Ti", "RTX 4070 Ti"),
        ("rtx-4070ti", "RTX 4070 Ti"),
        ("a100-80gb", "A100 80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("A100 80 GB", "A100 80GB"),
        ("h100", "H100"),
        ("Tesla T4", "T4"),
    ],
)
def test_a_device_is_found_however_it_is_written(asked: str, name: str) -> None:
    assert find_device(asked).name == name


def test_a_device_that_is_not_known_gets_the_nearest_name() -> None:
    with pytest.raises(StudyError, match=r"no device is known as 'RTX 4900'.*Did you mean RTX 4"):
        find_device("RTX 4900")
    with pytest.raises(StudyError, match=r"'A100' is one of several; allowed: A100 40GB, A100 80GB\."):
        find_device("A100")
    with pytest.raises(StudyError, match=r"--device-memory 12GB"):
        find_device("")


def test_devices_are_as_their_vendors_say() -> None:
    assert len({device.name for device in DEVICES}) == len(DEVICES)
    for device in DEVICES:
        assert device.memory_bytes >= 6 * GIB - 1
        assert device.fp16 >= device.fp32
        assert find_device(device.name) is device
    assert find_device("H200").memory_bytes == 141 * 10**9
    assert find_device("T4").flop_per_s("bf16") == find_device("T4").fp32  # it has none
    assert find_device("A100 80GB").flop_per_s("bf16") == 312e12


def test_the_room_of_a_gpu_leaves_what_is_not_for_tensors() -> None:
    room = device_room(find_device("RTX 4090"))
    assert room.tensor_bytes == int(24 * GIB * USABLE_SHARE) - CONTEXT_BYTES
    assert memory_room(10**8).tensor_bytes == 0
    assert memory_room(6 * 10**9).where == "a device of 6 GB"


@pytest.mark.skipif(sys.platform != "linux", reason="ulimit -v and /proc")
def test_ulimit_v_counts_address_space() -> None:
    code = "from tuneoff.planning.room import machine_room as room; print(room().where, room().tensor_bytes)"
    limit = 6 * 10**9

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120, preexec_fn=limited
    )
    where, _, found = done.stdout.strip().rpartition(" ")
    assert where == "this machine (ulimit -v)"
    assert 0 < int(found) < limit
    assert machine_room().where != where


def test_on_this_machine_a_process_is_counted_as_the_benchmark_judges_it() -> None:
    room = machine_room()
    if room.process_bytes != CONTEXT_BYTES:  # a CPU
        assert room.process_bytes + 10**9 == predicted_resident_bytes(10**9)
        assert predicted_resident_bytes(10**9, is_loaded=True) == 10**9 + FIRST_USE_BYTES
