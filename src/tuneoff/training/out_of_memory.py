"""Which errors mean that memory ran out. Allocators, kernels, Python and the system each have their own way to say so.

Seen with torch 2.13 on Linux, under `ulimit -v`: the CPU's allocator raises a plain `RuntimeError` with "can't allocate
memory: you tried to allocate N bytes" ("not enough memory" on other systems), NumPy and safetensors a `MemoryError`,
threads a `RuntimeError`. oneDNN's "could not create a primitive" hides its reason, so it counts where memory is short.
"""

import errno
import re
from collections.abc import Iterator

from tuneoff.training.memory_limits import MEBIBYTE, available_bytes

SURE = re.compile(
    r"can't allocate memory|cannot allocate memory|not enough memory|std::bad_alloc|CUDA error: out of memory"
    r"|CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|unable to mmap",
    re.IGNORECASE,
)
PERHAPS = re.compile(
    r"could not (create|execute) a primitive|could not create a memory object|can't start new thread"
    r"|thread creation failed|resource temporarily unavailable",
    re.IGNORECASE,
)
"""What has other reasons too, so that it counts only where memory is short."""
SHORT_BYTES = 256 * MEBIBYTE
"""Left to a process that is short of memory: about what oneDNN's scratch memory or a few threads' stacks take."""
ASKED = re.compile(r"(?:allocate|allocating) ([\d.]+) ?(bytes|KiB|MiB|GiB)", re.IGNORECASE)
UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30}
END_CHARS = 4_000
"""Of a log's end that may say why a process ended itself."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: the error says so, or one that it was raised from."""
    return any(_is_one(link) for link in _chain(error))


def asked_bytes(error: BaseException) -> int | None:
    """Return how much could not be had, where the error says so."""
    found = next((found for link in _chain(error) if (found := ASKED.search(str(link)))), None)
    return None if found is None else round(float(found[1]) * UNITS[found[2].lower()])


def ended_for_memory(log: str) -> bool:
    """Whether a process that ended itself (OpenMP exits, C++ aborts) said in its log that memory ran out."""
    end = log[-END_CHARS:]
    return bool(SURE.search(end)) or bool(re.search(r"thread creation failed", end, re.IGNORECASE))


def _is_one(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, without torch
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    text = str(error)
    return bool(SURE.search(text)) or (bool(PERHAPS.search(text)) and available_bytes().num_bytes < SHORT_BYTES)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and those that it was raised from, each once."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__
