"""State of a run on disk: safetensors and JSON only, written aside, synced, and renamed into place.

A folder `step-N` holds `state.json` and `tensors.safetensors`. The JSON holds a checksum of itself and the tensors'
sha256, so that a torn or altered pair is found out.
"""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tuneoff.files import aside_of, make_folder, on_disk, placed, remove_folder, sync

STATE_FILE = "state.json"
TENSORS_FILE = "tensors.safetensors"
CHECKSUM = "checksum"

MIN_INTERVAL_S = 60.0
"""Time between checkpoints where the study does not say: what a kill loses at most, if saving takes little."""
MAX_COST_SHARE = 0.01
"""Largest share of a run's time that saving may take, where the study does not say; slower disks save more rarely."""

DTYPES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Names of the types in safetensors' header, in the order in which its own writer puts them."""
HEADER_ALIGNMENT = 8
MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR})


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on."""

    step: int
    """Optimizer steps done."""
    state: dict[str, Any]
    tensors: dict[str, Tensor]


class CheckpointTimer:
    """Says when a checkpoint is due.

    Where neither steps nor minutes are given, it is when a minute has passed and the last saving took at most 1 % of
    the time since.

    Args:
        every: optimizer steps between checkpoints; none does not count them.
        minutes: minutes between checkpoints; none does not count them. Of both given the one that comes first counts.
        clock: gives seconds.
    """

    def __init__(
        self, every: int | None, minutes: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.every = every
        self._clock = clock
        self._interval_s: float | None = None if minutes is None else minutes * 60.0
        self._is_own = every is None and minutes is None
        if self._is_own:
            self._interval_s = MIN_INTERVAL_S
        self._last_s = clock()

    def is_due(self, step: int) -> bool:
        """Whether the state after a step is to be saved."""
        if self.every is not None and step % self.every == 0:
            return True
        return self._interval_s is not None and self._clock() - self._last_s >= self._interval_s

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Within the context the state is saved."""
        start = self._clock()
        yield
        self._last_s = self._clock()
        if self._is_own:
            self._interval_s = max(MIN_INTERVAL_S, (self._last_s - start) / MAX_COST_SHARE)


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `folder/step-N`, then remove older ones; at every instant one whole checkpoint is there.

    Raises:
        StoreError: it cannot be written; the one before stays.
    """
    final = folder / f"step-{checkpoint.step:09d}"
    with on_disk(final, "written"):
        _save(folder, final, checkpoint)
    for other in folder.iterdir():
        if other != final and other.name.lstrip(".").startswith("step-"):
            remove_folder(other)


def _save(folder: Path, final: Path, checkpoint: Checkpoint) -> None:
    make_folder(folder)
    aside = aside_of(final)
    remove_folder(aside)
    aside.mkdir()
    try:
        with (aside / TENSORS_FILE).open("wb") as handle:
            sha256 = write_tensors(handle, checkpoint.tensors)
        body = {"step": checkpoint.step, "state": checkpoint.state, "sha256": sha256}
        with (aside / STATE_FILE).open("wb") as handle:
            handle.write(json.dumps({CHECKSUM: _checksum(body)} | body).encode())
            handle.flush()
            os.fsync(handle.fileno())
        sync(aside)
        if final.exists():  # it cannot be read, or the run would have gone on from there
            shutil.rmtree(final)
        aside.rename(final)
    except BaseException:
        remove_folder(aside)
        raise
    sync(folder)


def load_checkpoint(folder: Path, problems: list[str] | None = None) -> Checkpoint | None:
    """Return the newest whole checkpoint under `folder`, or none.

    Args:
        folder: where `save_checkpoint` wrote.
        problems: takes a line for each that is torn or altered.

    Raises:
        StoreError: one is there that the disk does not give, so that whether it is whole cannot be told.
    """
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            with on_disk(path):
                return _load(path)
        except (ValueError, KeyError, TypeError, SafetensorError, RecursionError):
            if problems is not None:
                problems.append(f"{path} is torn or was altered; the run goes on from before it")
    return None


def _load(path: Path) -> Checkpoint:
    try:
        body = json.loads((path / STATE_FILE).read_bytes())
        if body.pop(CHECKSUM) != _checksum(body):
            raise ValueError("its checksum differs")
        with (path / TENSORS_FILE).open("rb") as handle:
            if hashlib.file_digest(handle, "sha256").hexdigest() != body["sha256"]:
                raise ValueError("the tensors' checksum differs")
        return Checkpoint(int(body["step"]), dict(body["state"]), load_file(path / TENSORS_FILE))
    except OSError as error:
        if error.errno in MISSING:
            raise ValueError("a file is missing") from None
        raise
    except AttributeError:
        raise ValueError("it is no JSON object") from None


def _checksum(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write tensors as safetensors, synced and renamed into place; return the file's sha256 (hex).

    Raises:
        StoreError: it cannot be written; what was there is there still.
    """
    with on_disk(path, "written"), placed(path) as aside, aside.open("wb") as handle:
        return write_tensors(handle, tensors)


def write_tensors(handle: IO[bytes], tensors: Mapping[str, Tensor]) -> str:
    """Write tensors into a file in the form of safetensors, and sync it; return its sha256 (hex).

    The bytes are those of `safetensors.torch.save_file` with the metadata that Transformers reads (a test holds them
    against each other). That one hides errors of the disk behind its own kind, leaves files with names of its own
    behind when it is killed, and what it wrote would have to be read once more for the checksum.

    Args:
        handle: opened for writing bytes.
        tensors: on any device.

    Raises:
        ValueError: a type that safetensors does not know, or that no run has.
    """
    ranks = {dtype: rank for rank, dtype in enumerate(DTYPES)}
    unknown = sorted({str(tensor.dtype) for tensor in tensors.values() if tensor.dtype not in ranks})
    if unknown:
        raise ValueError(f"tensors of type {', '.join(unknown)} cannot be saved")
    ordered = sorted(tensors.items(), key=lambda item: (ranks[item[1].dtype], item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered:
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    sha256 = hashlib.sha256()
    for part in _parts(len(text).to_bytes(8, "little") + text, [tensor for _, tensor in ordered]):
        sha256.update(part)
        handle.write(part)
    handle.flush()
    os.fsync(handle.fileno())
    return sha256.hexdigest()


def _parts(head: bytes, tensors: list[Tensor]) -> Iterator[bytes | memoryview]:
    """Yield the file's bytes; those of a tensor on the CPU are not copied."""
    yield head
    for tensor in tensors:
        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        if flat.numel():
            yield flat.view(torch.uint8).numpy().data
