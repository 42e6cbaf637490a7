"""How fast this machine is: rates, and the seconds of the operations that plans asked for, kept on disk.

What is kept depends on the machine (processor or GPU, threads), on PyTorch and on how products of bf16 numbers are
taken, so the file is named by a hash of these; another machine, or another version, starts anew. A file that cannot be
read is measured again; a folder that cannot be written costs time only.

A named device has not been measured: each operation goes by the vendor's peak rates times a stated efficiency, as the
longer of computing and moving (the roofline of Williams et al., 2009, doi:10.1145/1498765.1498785), and a step takes
at least as long as the host needs to start its kernels.
"""

import json
import logging
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from tuneoff.files import user_cache, write_synced
from tuneoff.planning.devices import Device
from tuneoff.planning.operations import Operation, Watch, Work
from tuneoff.planning.timing import (
    FLOOR_S,
    Clock,
    Rates,
    copied,
    operand_type,
    product_operations,
    seconds,
    time_one,
    time_operations,
)
from tuneoff.study.identity import digest

VERSION = 1
"""Raised when what is kept would mean something else."""
BANDWIDTH_BYTES = 24 << 20
"""Of each of the tensors by which the rate of elementwise work is taken: more than a processor's own caches hold."""
PRODUCT_EFFICIENCY, BANDWIDTH_EFFICIENCY = 0.6, 0.75
"""Of a named device's peaks that large products and elementwise work are taken to reach."""
LAUNCH_S = 12e-6
"""That a host is taken to need to start an operation on a named device: Python, autograd and the driver."""
OVERHEAD_STEPS = 8
DIGITS = 12

_logger = logging.getLogger(__name__)


class Speed(Protocol):
    """Tells how long work takes."""

    @property
    def name(self) -> str:
        """What it is the speed of."""

    @property
    def basis(self) -> str:
        """How it is known, for a line below the table."""

    def seconds(self, work: Work) -> float:
        """Return how long a piece of work takes."""


@dataclass(frozen=True)
class DeviceSpeed:
    """The speed of a named device, by its vendor's peak rates."""

    device: Device

    @property
    def name(self) -> str:
        """The device's name."""
        return self.device.name

    @property
    def basis(self) -> str:
        """How it is known."""
        return (
            f"the vendor's peak rates, of which products reach {PRODUCT_EFFICIENCY:.0%} and elementwise work "
            f"{BANDWIDTH_EFFICIENCY:.0%}; not measured"
        )

    def seconds(self, work: Work) -> float:
        """Return how long a piece of work takes: its kernels, or starting them where that takes longer."""
        kernels = sum(count * self._kernel_s(operation) for operation, count in work.counts.items())
        return max(kernels, work.num_operations * LAUNCH_S)

    def _kernel_s(self, operation: Operation) -> float:
        precision = {"bfloat16": "bf16", "float16": "fp16"}.get(operand_type(operation), "fp32")
        computing = operation.flop / (PRODUCT_EFFICIENCY * self.device.flop_per_s(precision))
        return max(computing, operation.moved_bytes / (BANDWIDTH_EFFICIENCY * self.device.bytes_per_s))


@dataclass
class Calibration:
    """What was measured of this machine.

    Attributes:
        machine: what it depends on.
        rates: measured rates.
        timed: seconds of operations, by signature.
        budget_s: seconds that further timing may take in all.
        path: file that it is kept in; none keeps nothing.
        clock: gives seconds.
    """

    machine: Mapping[str, Any]
    rates: Rates
    timed: dict[str, float] = field(default_factory=dict)
    budget_s: float = 0.0
    path: Path | None = None
    clock: Clock = time.perf_counter
    is_busy: bool = False
    """Whether the machine had other work, so that all is slower than it will be: nothing of it is kept."""

    @property
    def name(self) -> str:
        """The processor or GPU."""
        return str(self.machine["device"])

    @property
    def basis(self) -> str:
        """How it is known."""
        threads = self.machine["threads"]
        busy = ", busy with other work now: it will be faster without" if self.is_busy else ""
        return f"measured on this machine ({threads} {'thread' if threads == 1 else 'threads'}{busy})"

    def learn(self, work: Work) -> None:
        """Time what a piece of work needs and is not known yet, as far as the budget goes, and keep it."""
        start = self.clock()
        found = time_operations(
            work.counts,
            self.timed,
            self.rates,
            budget_s=self.budget_s,
            device=torch.device("cuda" if self.machine["is_gpu"] else "cpu"),
            clock=self.clock,
        )
        self.budget_s = max(0.0, self.budget_s - (self.clock() - start))
        if found:
            self.timed |= found
            self.save()

    def seconds(self, work: Work) -> float:
        """Return how long a piece of work takes: its operations one after another, and starting each.

        On a GPU starting goes on while kernels run, so that the longer of the two counts.
        """
        self.learn(work)
        kernels = seconds(work.counts, self.timed, self.rates)
        starting = work.num_operations * self.rates.overhead_s
        return max(kernels, starting) if self.machine["is_gpu"] else kernels + starting

    def save(self) -> None:
        """Write it down; where the folder does not allow it, log why and go on."""
        if self.path is None:
            return
        body = {
            "version": VERSION,
            "machine": dict(self.machine),
            "flop_per_s": dict(self.rates.flop_per_s),
            "bytes_per_s": self.rates.bytes_per_s,
            "overhead_s": self.rates.overhead_s,
            "timed": self.timed,
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_synced(self.path, json.dumps(body, sort_keys=True).encode())
        except OSError as error:
            _logger.warning("%s cannot be written (%s): the next plan measures again", self.path, error.strerror)


def calibrate(
    *, budget_s: float = 3.0, anew: bool = False, folder: Path | None = None, clock: Clock = time.perf_counter
) -> Calibration:
    """Return what is known of this machine, measured now where nothing is.

    Args:
        budget_s: seconds that timing operations may take in this process, beside the rates (about two seconds).
        anew: forget what was measured before.
        folder: where it is kept; none is `calibration` in the user's cache.
        clock: gives seconds.
    """
    machine = this_machine()
    path = (folder or user_cache() / "calibration") / f"{digest(machine)[:DIGITS]}.json"
    kept = None if anew else _read(path, machine)
    if kept is not None:
        rates, timed = kept
        return Calibration(machine, rates, timed, budget_s, path, clock)
    is_busy = folder is None and _is_busy()
    rates = measure_rates(bool(machine["is_gpu"]), clock)
    found = Calibration(machine, rates, {}, budget_s, None if is_busy else path, clock, is_busy)
    found.save()
    return found


def _is_busy() -> bool:
    """Whether more processes want to run than there are processors, over the last minute."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > (os.cpu_count() or 1)


def this_machine() -> dict[str, Any]:
    """Return what a calibration depends on, as JSON types."""
    from tuneoff.training.products import has_bf16_products

    is_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if is_gpu else _processor(),
        "is_gpu": is_gpu,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "has_bf16_products": has_bf16_products(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _read(path: Path, machine: Mapping[str, Any]) -> tuple[Rates, dict[str, float]] | None:
    try:
        body = json.loads(path.read_bytes())
        if body["version"] != VERSION or body["machine"] != machine:
            return None
        numbers = {str(name): float(taken) for name, taken in body["timed"].items()}
        rates = {str(kind): float(rate) for kind, rate in body["flop_per_s"].items()}
        found = Rates(rates, float(body["bytes_per_s"]), float(body["overhead_s"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return (found, numbers) if min(*rates.values(), found.bytes_per_s, found.overhead_s) > 0 else None


def measure_rates(is_gpu: bool, clock: Clock = time.perf_counter) -> Rates:
    """Measure the rates of large products, of elementwise work, and what starting an operation takes."""
    device = torch.device("cuda" if is_gpu else "cpu")
    from tuneoff.training.products import has_bf16_products

    precisions = ["fp32", *(["bf16"] if is_gpu or has_bf16_products() else []), *(["fp16"] if is_gpu else [])]
    rates = {}
    for kind, operation in product_operations(precisions).items():
        taken = time_one(operation, device, clock)
        if taken is not None:
            rates[kind] = operation.flop / max(taken, FLOOR_S)
    adding = copied(BANDWIDTH_BYTES)
    taken = time_one(adding, device, clock) or 1.0
    return Rates(rates, adding.moved_bytes / max(taken, FLOOR_S), _overhead_s(device, clock))


def _overhead_s(device: torch.device, clock: Clock) -> float:
    """Return what an operation takes beside its kernel, by training steps of models so small that they are all of it.

    By what a deeper model takes more than a shallow one, as a step begins with work that does not grow.
    """
    few, more = (_tiny_step(device, clock, num_layers) for num_layers in (1, 5))
    return max((more[0] - few[0]) / (more[1] - few[1]), FLOOR_S)


def _tiny_step(device: torch.device, clock: Clock, num_layers: int) -> tuple[float, float]:
    """Return the seconds of a tiny model's training step, the quickest of some, and how many operations it has."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from tuneoff.data.batching import Batch
    from tuneoff.training.models import quiet
    from tuneoff.training.steps import Forward, to_device

    config = GPT2Config(
        vocab_size=97, n_positions=32, n_embd=32, n_layer=num_layers, n_head=2, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    with quiet(), torch.random.fork_rng(devices=[]):
        model: torch.nn.Module = GPT2LMHeadModel(config)
        model.to(device)
    ids = np.arange(16, dtype=np.int64)[None]
    batch = Batch(ids, ids > 0, np.array([16]), np.array([0]), np.zeros(0, dtype=np.int64))
    placed = to_device([batch], device, 0)
    weights = torch.full((15,), 1 / 15, device=device, dtype=torch.float64)
    forward = Forward(model)

    def step() -> None:
        with placed.masked(0):
            loss, _ = forward.summed_nll(placed, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        model.zero_grad()

    watch = Watch()
    with watch:
        step()
    taken = []
    for _ in range(OVERHEAD_STEPS):
        start = clock()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(clock() - start)
    return min(taken), watch.counter.num_operations
