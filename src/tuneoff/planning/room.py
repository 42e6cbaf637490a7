"""How much memory a run's tensors may take: of a GPU, or of this machine under the limits on its processes."""

from tuneoff.planning.devices import Device
from tuneoff.planning.resident import predicted_resident_bytes
from tuneoff.study.value import Value
from tuneoff.training.memory_limits import available_bytes
from tuneoff.training.runtime import device_bytes

CONTEXT_BYTES = 600_000_000
"""What a GPU holds beside tensors: the driver's context, kernels, and the workspaces of cuBLAS."""
USABLE_SHARE = 0.95
"""Of a GPU's memory that tensors get: the driver and error correction keep some, and the allocator cannot use all."""
CPU_SHARE = 0.97
"""Of this machine's memory: freed blocks that malloc keeps."""


class Room(Value):
    """What a run may take."""

    where: str
    """What the memory is of, and which limit holds: `RTX 4090`, `this machine (ulimit -v)`."""
    total_bytes: int
    """Of the device, or what this machine has left."""
    process_bytes: int
    """That the process takes of it beside tensors."""
    usable_share: float = 1.0
    """Of the total that can be used."""

    @property
    def tensor_bytes(self) -> int:
        """What is left for tensors."""
        return max(0, int(self.total_bytes * self.usable_share) - self.process_bytes)


def device_room(device: Device) -> Room:
    """Return the room of a named device."""
    return memory_room(device.memory_bytes, device.name)


def memory_room(num_bytes: int, where: str = "") -> Room:
    """Return the room of a GPU with so much memory."""
    name = where or f"a device of {num_bytes / 1e9:.3g} GB"
    return Room(where=name, total_bytes=num_bytes, process_bytes=CONTEXT_BYTES, usable_share=USABLE_SHARE)


def machine_room() -> Room:
    """Return the room of this machine: of its GPU where there is one, else of its memory under the tightest limit."""
    gpu = device_bytes()
    if gpu:
        import torch

        return memory_room(gpu, torch.cuda.get_device_name())
    found = available_bytes()
    # of the address space this process has mapped the same libraries already
    process_bytes = 0 if found.source == "ulimit -v" else predicted_resident_bytes(0)
    where = f"this machine ({found.source})"
    return Room(where=where, total_bytes=found.num_bytes, process_bytes=process_bytes, usable_share=CPU_SHARE)
