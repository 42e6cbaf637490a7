"""From tensors to a process's resident memory on a CPU."""

FIRST_USE_BYTES = 45_000_000
"""What the first step of the smallest model leaves beside its tensors: pages of the libraries' code that are read when
they are first used, modules that are imported then, the kernels' own tables. 40 MB in fp32, 50 MB in bf16 (`python -m
benchmarks.memory --first-use`).
"""


def predicted_resident_bytes(tensor_bytes: int, interpreter_bytes: int) -> int:
    """Return the resident memory that a phase should reach on a CPU.

    What is left out is what the allocator cannot give back at once: pieces of freed tensors that lie between others.

    Args:
        tensor_bytes: alive at the phase's highest point (`PhaseTrace.peak_bytes`).
        interpreter_bytes: what a process holds that has loaded the libraries and built nothing.
    """
    return interpreter_bytes + FIRST_USE_BYTES + tensor_bytes
