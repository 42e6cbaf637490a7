"""Measures what a run costs: time of each step, and the highest memory use of each phase."""

import ctypes
import resource
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import torch

from tuneoff.study.records import Costs
from tuneoff.training.runtime import Runtime

NUM_WARMUP_STEPS = 3
"""Steps that are left out of the medians: allocators, caches and kernels settle in them."""
CLEAR_PEAK = "5"
"""What Linux wants in clear_refs to start the resident peak anew (proc(5))."""


class Meter:
    """Clock and memory gauge of one process.

    A run that goes on after a kill hands in what the sittings before it took.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.step_s: list[float] = []
        self.input_tokens: list[int] = []
        self.target_tokens: list[int] = []
        self.train_s = 0.0
        self.evaluate_s = 0.0
        self.peak_bytes: dict[str, int] = {}
        self.optimizer_bytes = 0
        self.gives_back = False
        """Whether what training freed goes back to the system before an evaluation, so that its peak is its own; it
        costs time, as what comes next takes its pages anew.
        """

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Within the context the peak counts for a phase (load, train, evaluate)."""
        self._reset_peak()
        try:
            yield
        finally:
            self.note_peak(name)

    def note_peak(self, name: str) -> None:
        """Take the peak since the last reset into a phase, and start anew."""
        self.peak_bytes[name] = max(self.peak_bytes.get(name, 0), self._peak())
        self._reset_peak()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within the context time and memory count for evaluation."""
        if self.gives_back:
            give_back()
        self.note_peak("train")
        start = self._now()
        try:
            yield
        finally:
            self.evaluate_s += self._now() - start
            self.note_peak("evaluate")

    @contextmanager
    def step(self, num_input_tokens: int, num_target_tokens: int) -> Iterator[None]:
        """Within the context one optimizer step runs."""
        start = self._now()
        yield
        taken = self._now() - start
        self.train_s += taken
        self.step_s.append(taken)
        self.input_tokens.append(num_input_tokens)
        self.target_tokens.append(num_target_tokens)

    def _now(self) -> float:
        self.runtime.synchronize()
        return time.perf_counter()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps, as JSON types."""
        names = ("step_s", "input_tokens", "target_tokens", "train_s", "evaluate_s", "peak_bytes")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        for name, value in state.items():
            setattr(self, name, value)

    def costs(self, weights_bytes: int) -> Costs:
        """Sum up."""
        kept = slice(min(NUM_WARMUP_STEPS, len(self.step_s) - 1), None)
        taken = sum(self.step_s[kept])
        return Costs(
            train_s=self.train_s,
            step_s=statistics.median(self.step_s[kept]),
            input_tokens_per_s=sum(self.input_tokens[kept]) / taken,
            target_tokens_per_s=sum(self.target_tokens[kept]) / taken,
            evaluate_s=self.evaluate_s,
            peak_bytes=dict(self.peak_bytes),
            peak_kind=self.peak_kind,
            optimizer_bytes=self.optimizer_bytes,
            weights_bytes=weights_bytes,
        )

    @property
    def peak_kind(self) -> Literal["resident", "allocated"]:
        """What the peaks are peaks of."""
        return "allocated" if self.runtime.device.type == "cuda" else "resident"

    def _peak(self) -> int:
        if self.peak_kind == "allocated":
            return int(torch.cuda.max_memory_allocated(self.runtime.device))
        return resident_peak_bytes()

    def _reset_peak(self) -> None:
        if self.peak_kind == "allocated":
            torch.cuda.reset_peak_memory_stats(self.runtime.device)
            return
        start_resident_peak()


def give_back() -> None:
    """Give memory back to the system that was freed and that malloc keeps (of glibc; others have nothing to call)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def start_resident_peak() -> None:
    """Start the peak of resident memory anew; where the system cannot, it stays the process's since its start."""
    with suppress(OSError):  # not Linux, or not allowed
        Path("/proc/self/clear_refs").write_text(CLEAR_PEAK)


def resident_peak_bytes() -> int:
    """Return the process's highest resident memory since the last reset, or else since its start."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
