"""From tensors to a process's resident memory on a CPU: what `plan` says, and what decides whether an arm fits."""

INTERPRETER_BYTES = 395_000_000
"""What a run's process holds that has loaded the libraries and built nothing (`python -m benchmarks.memory` shows it
beside each case). PyTorch with CUDA built in takes more, where runs are trained on the CPU all the same.
"""
FIRST_USE_BYTES = 45_000_000
"""What the first step of the smallest model leaves beside its tensors: pages of the libraries' code that are read when
they are first used, modules that are imported then, the kernels' own tables. 40 MB in fp32, 50 MB in bf16 (`python -m
benchmarks.memory --first-use`).
"""


def predicted_resident_bytes(tensor_bytes: int, *, is_loaded: bool = False) -> int:
    """Return the resident memory that a run's process should reach on a CPU.

    What is left out is what the allocator cannot give back at once: pieces of freed tensors that lie between others.

    Args:
        tensor_bytes: alive at the highest point (`PhaseTrace.peak_bytes`).
        is_loaded: whether the libraries are loaded already, so that it is what comes on top of them.
    """
    return tensor_bytes + FIRST_USE_BYTES + (0 if is_loaded else INTERPRETER_BYTES)
