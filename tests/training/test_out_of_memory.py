"""Which errors mean that memory ran out: those that allocators, kernels and Python really raise under a limit."""

import json
import subprocess
import sys

import pytest
import torch

from tuneoff.errors import ModelError
from tuneoff.training.memory_limits import MEBIBYTE
from tuneoff.training.model_errors import explained
from tuneoff.training.out_of_memory import asked_bytes, ended_for_memory, is_out_of_memory

PROVOKE = """
import json, mmap, os, resource, sys, threading
import numpy as np, torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tuneoff.training.memory_limits import _held_bytes
from tuneoff.training.out_of_memory import asked_bytes, is_out_of_memory

path = sys.argv[1]
save_file({"weights": torch.zeros(40 * 2**20)}, path)
hard = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (_held_bytes() + 100 * 2**20, hard))
held = []

def fill():
    while True:
        held.append(bytearray(2**20))

def threads():
    try:
        fill()
    except MemoryError:
        pass
    for _ in range(64):
        threading.Thread(target=threading.Event().wait, args=(5,), daemon=True).start()

found = {}
for name, work in {
    "tensor": lambda: torch.zeros(10**9),
    "array": lambda: np.ones(10**9),
    "list": lambda: bytearray(10**9),
    "weights": lambda: load_file(path),
    "file": lambda: safe_open(path, "pt").__enter__(),
    "map": lambda: mmap.mmap(-1, 10**9),
    "threads": threads,
}.items():
    try:
        work()
    except BaseException as error:
        found[name] = (type(error).__name__, is_out_of_memory(error), asked_bytes(error))
held.clear()
print(json.dumps(found), flush=True)
os._exit(0)
"""


def test_under_a_limit(tmp_path: object) -> None:
    run = [sys.executable, "-c", PROVOKE, f"{tmp_path}/weights.safetensors"]
    told = subprocess.run(run, capture_output=True, text=True, timeout=300)
    found = json.loads(told.stdout)
    assert list(found) == ["tensor", "array", "list", "weights", "file", "map", "threads"], told.stderr
    assert {name: is_one for name, (_, is_one, _) in found.items()} == dict.fromkeys(found, True)
    assert found["tensor"][2] == 4 * 10**9
    assert found["array"][2] == pytest.approx(8 * 10**9, rel=1e-3)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 64 bytes."), True),
        (RuntimeError("std::bad_alloc"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(2, "No such file or directory"), False),
        (RuntimeError("could not create a primitive"), False),  # here there is memory, so it is about something else
        (RuntimeError("can't start new thread"), False),
        (ValueError("the memory of the model"), False),
    ],
)
def test_what_says_so(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected
    wrapped = RuntimeError("it went wrong")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped) == expected
    with pytest.raises(type(error) if expected else ModelError), explained("some-model"):
        raise error


def test_what_was_asked_for() -> None:
    assert asked_bytes(RuntimeError("Tried to allocate 2.50 GiB. GPU 0")) == 2560 * MEBIBYTE
    assert asked_bytes(MemoryError()) is None


def test_what_a_log_says() -> None:
    assert ended_for_memory("libgomp: Thread creation failed: Resource temporarily unavailable\n")
    assert ended_for_memory(
        "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n"
    )
    assert not ended_for_memory("Fatal Python error: Segmentation fault\n")
