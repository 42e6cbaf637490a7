"""What this machine can do, and what keeps it from more: every finding with what to do about it."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneoff.starting.checks import (
    Check,
    HubCheck,
    folder_checks,
    gigabytes,
    limit_checks,
    optional_checks,
    package_checks,
    python_check,
)

if TYPE_CHECKING:
    from tuneoff.training.machine import Gpu, Machine

GPU_FILES = (Path("/dev/nvidia0"), Path("/dev/dxg"))
"""There where a machine has a GPU of NVIDIA's, with its driver."""


@dataclass(frozen=True)
class Diagnosis:
    """All findings.

    Attributes:
        checks: in the order in which they are shown.
    """

    checks: tuple[Check, ...]

    @property
    def is_able(self) -> bool:
        """Whether studies can run here at all."""
        return all(check.state != "broken" for check in self.checks)

    def plain(self) -> dict[str, Any]:
        """Return the findings as JSON types."""
        return {"able": self.is_able, "checks": [asdict(check) for check in self.checks]}


def examine(out: Path) -> Diagnosis:
    """Look at this machine; takes about as long as importing torch.

    Args:
        out: folder of all studies' results.
    """
    hub = HubCheck()  # it asks while torch is imported
    machine = tuple(_machine_checks())
    return Diagnosis(
        (
            *machine,
            *limit_checks(),
            *folder_checks(out),
            python_check(),
            *package_checks(),
            *optional_checks(),
            *hub.checks(),
        )
    )


def _machine_checks() -> Iterator[Check]:
    try:
        from tuneoff.training.machine import look_at_machine

        machine = look_at_machine()
    except Exception as error:
        found = " ".join(str(error).split())[:200]
        yield Check("device", "torch", f"cannot be used: {found}", "broken", "install it anew: pip install -U torch")
        return
    yield from _processor_checks(machine)
    yield from _gpu_checks(machine)
    yield from _precision_checks(machine)


def _processor_checks(machine: "Machine") -> Iterator[Check]:
    yield Check("device", "processor", machine.processor)
    found = f"{machine.num_cores}, of which an operation uses {machine.num_threads}"
    few = machine.num_threads < machine.num_cores
    advice = "OMP_NUM_THREADS says so; unset it to use all cores, or run several at once with --jobs" if few else ""
    yield Check("device", "cores", found, "note" if few else "ok", advice)
    found = ", ".join(machine.instructions) or "none of those that matter are known"
    yield Check("device", "instructions", found)


def _gpu_checks(machine: "Machine") -> Iterator[Check]:
    for gpu in machine.gpus:
        yield Check("device", "GPU", _gpu_text(gpu))
    if machine.gpus:
        return
    import torch

    if not any(path.exists() for path in GPU_FILES):
        yield Check("device", "GPU", "none", "ok", "small models train on the processor; `tuneoff plan` says how long")
    elif torch.version.cuda is None:
        advice = "this torch is built for processors alone: install the one for your GPU (pytorch.org/get-started)"
        yield Check("device", "GPU", "there is one, but torch cannot use it", "note", advice)
    else:
        advice = f"torch is built for CUDA {torch.version.cuda}: an older driver, or CUDA_VISIBLE_DEVICES, may hide it"
        yield Check("device", "GPU", "there is one, but torch finds none", "note", advice)


def _gpu_text(gpu: "Gpu") -> str:
    major, minor = gpu.capability
    free = f"{gigabytes(gpu.free_bytes)} free of {gigabytes(gpu.memory_bytes)}"
    return f"{gpu.name}, {free}, capability {major}.{minor}"


def _precision_checks(machine: "Machine") -> Iterator[Check]:
    best = machine.precision
    for precision, found in _precisions(machine).items():
        advice = f"take it here: {machine.precision_reason}" if precision == best else ""
        yield Check("precision", precision, found, "ok", advice)


def _precisions(machine: "Machine") -> dict[str, str]:
    if machine.gpus:
        fast = machine.precision != "fp32"
        bf16 = "fast" if machine.precision == "bf16" else "works, and is slow: this GPU does it in software"
        return {"fp32": "works", "bf16": bf16, "fp16": "fast" if fast else "works, no faster than fp32"}
    bf16 = (
        "fast, and half the memory"
        if machine.has_bf16_products
        else "half the memory for the base, no faster than fp32"
    )
    return {"fp32": "works", "bf16": bf16, "fp16": "not on a processor"}
