"""The device, the compute type and the threads of one process, set up once through Accelerate."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from tuneoff.errors import DeviceError
from tuneoff.training.memory_limits import Available, available_bytes
from tuneoff.training.products import WideProducts, is_slow

COMPUTE_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """Where and in which type this process computes.

    Attributes:
        accelerator: Accelerate's handle: device, distributed state, backward.
        compute_dtype: type of the frozen base and of matrix products. Trained weights and optimizer state are fp32
            always.
    """

    accelerator: Accelerator
    compute_dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        """The device that everything is put on."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def num_threads(self) -> int:
        """CPU threads of one operation."""
        return torch.get_num_threads()

    @contextmanager
    def autocast(self, *, keeps_casts: bool = True) -> Iterator[None]:
        """Within the context matrix products run in the compute type; sums that need it stay in fp32.

        Args:
            keeps_casts: whether what trained weights are cast to is kept until the context's end, for weights that are
                used several times in it; else each goes with its product. The numbers are the same.
        """
        if self.compute_dtype == torch.float32:
            yield
            return
        products = WideProducts() if is_slow(self.compute_dtype, self.device) else nullcontext()
        with torch.autocast(self.device.type, dtype=self.compute_dtype, cache_enabled=keeps_casts), products:
            yield

    def synchronize(self) -> None:
        """Wait until the device has done what it was given, so that a clock read next is true."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def device_name(self) -> str:
        """Name of the device, for the record."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"


def check_precision(precision: str) -> None:
    """Refuse a precision that this machine cannot train in.

    Raises:
        DeviceError: fp16 without a GPU.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise DeviceError(
            "precision fp16 was asked for and no GPU was found. CPUs have no fast fp16. "
            "Allowed here: fp32, bf16. Add --set precision=bf16."
        )


def device_bytes() -> int:
    """Return the whole memory of the GPU that runs are trained on; 0 where there is none."""
    if not torch.cuda.is_available():
        return 0
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory)


def room() -> Available:
    """Return what a run of this process may still take: of the GPU's memory where there is one, else as it is here."""
    if not torch.cuda.is_available():
        return available_bytes()
    return Available(num_bytes=int(torch.cuda.mem_get_info()[0]), source="GPU")


def open_runtime(precision: str, num_threads: int | None = None) -> Runtime:
    """Set this process up. Call it once, before anything is put on a device.

    Args:
        precision: fp32, bf16 or fp16.
        num_threads: CPU threads; none leaves PyTorch's choice. The bits of a run depend on it.

    Raises:
        DeviceError: the precision is not to be had.
    """
    check_precision(precision)
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to give the same bits twice
        torch.use_deterministic_algorithms(True, warn_only=True)
    # Accelerate's own mixed precision is off: its one loss scale for all would tie the runs of a cohort together.
    return Runtime(Accelerator(mixed_precision="no"), COMPUTE_TYPES[precision])
