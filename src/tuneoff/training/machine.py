"""What this machine is: processor, cores, memory, GPUs, and the precision that pays on it."""

import os
import platform
from pathlib import Path
from typing import Literal

from tuneoff.study.value import Value
from tuneoff.training.memory_limits import Available, available_bytes

CPU_INFO, CPU_QUOTA = Path("/proc/cpuinfo"), Path("/sys/fs/cgroup/cpu.max")
INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512_f": "AVX-512",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX BF16",
    "avx10_2": "AVX10.2",
}
"""Of those that PyTorch tells, what matters to the products of matrices."""
BF16_CAPABILITY = (8, 0)
"""NVIDIA's Ampere and later multiply bf16 numbers."""
FP16_CAPABILITY = (7, 0)
"""Volta and later multiply fp16 numbers in tensor cores."""

Precision = Literal["fp32", "bf16", "fp16"]


class Gpu(Value):
    """One GPU."""

    name: str
    memory_bytes: int
    free_bytes: int
    capability: tuple[int, int]


class Machine(Value):
    """What runs are trained on."""

    processor: str
    num_cores: int
    """That this process may use."""
    num_threads: int
    """That PyTorch uses for one operation."""
    instructions: tuple[str, ...]
    has_bf16_products: bool
    """Whether the processor is known to multiply bf16 numbers itself."""
    memory_bytes: int
    """Of the machine; 0 where it does not say."""
    available: Available
    """Of the CPU's memory, to this process."""
    gpus: tuple[Gpu, ...] = ()

    @property
    def room_bytes(self) -> int:
        """Memory that a run may take: the first GPU's, else what is available to this process."""
        return self.gpus[0].free_bytes if self.gpus else self.available.num_bytes

    @property
    def device(self) -> str:
        """What runs are trained on, in words."""
        return self.gpus[0].name if self.gpus else self.processor

    @property
    def precision(self) -> Precision:
        """The precision that a study should start with here."""
        return self._precision()[0]

    @property
    def precision_reason(self) -> str:
        """Why that one."""
        return self._precision()[1]

    def _precision(self) -> tuple[Precision, str]:
        if self.gpus:
            if self.gpus[0].capability >= BF16_CAPABILITY:
                return (
                    "bf16",
                    "this GPU multiplies bf16 numbers, at twice the speed of fp32 or more and in half the memory",
                )
            if self.gpus[0].capability >= FP16_CAPABILITY:
                return "fp16", "this GPU is fast in fp16 and has no bf16"
            return "fp32", "this GPU is not faster in 16 bits"
        if self.has_bf16_products:
            return "bf16", "this processor multiplies bf16 numbers itself; the frozen base takes half the memory"
        return "fp32", "this processor has no bf16 instructions, so bf16 would save memory but no time"


def look_at_machine() -> Machine:
    """Return what this machine is; takes as long as importing torch."""
    import torch

    from tuneoff.training.products import has_bf16_products

    able = torch.cpu.get_capabilities()
    is_x86 = able.get("architecture") == "x86_64"
    return Machine(
        processor=processor_name(),
        num_cores=num_cores(),
        num_threads=torch.get_num_threads(),
        instructions=tuple(name for key, name in INSTRUCTIONS.items() if able.get(key)),
        has_bf16_products=is_x86 and has_bf16_products(),
        memory_bytes=memory_bytes(),
        available=available_bytes(),
        gpus=_gpus(),
    )


def num_cores() -> int:
    """Return how many cores this process may use: those it is tied to, or fewer by the control group's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        quota, period = CPU_QUOTA.read_text("utf-8").split()
        return max(1, min(cores, -(-int(quota) // int(period))))
    except (OSError, ValueError):  # no such group, or no quota ("max")
        return cores


def processor_name() -> str:
    """Return the processor's model, as the kernel calls it."""
    try:
        lines = CPU_INFO.read_text("utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.lower().startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine() or "unknown"


def memory_bytes() -> int:
    """Return the machine's whole memory; 0 where it does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 0


def _gpus() -> tuple[Gpu, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    found = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        free, _ = torch.cuda.mem_get_info(index)
        found.append(
            Gpu(
                name=properties.name,
                memory_bytes=int(properties.total_memory),
                free_bytes=int(free),
                capability=torch.cuda.get_device_capability(index),
            )
        )
    return tuple(found)
