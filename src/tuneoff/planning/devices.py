"""Accelerators by name: memory, bandwidth and peak rates of matrix products, as their vendors state them.

Rates are of dense matrices, without structured sparsity, summed in fp32 (consumer boards take such sums at half the
rate of sums in 16 bits). `fp32` is plain fp32 without TF32, as PyTorch multiplies unless told otherwise. Memory is in
GiB, as boards are built, whatever the box says.

Sources, all NVIDIA: data sheets of T4, V100, A10, L4, L40S, RTX A6000, A100, H100 and H200; architecture white papers
"Turing" (2018), "Ampere GA102" (2021), "Ada GPU Architecture" (2023), "RTX Blackwell" (2025), appendices.

Apple's chips are not here: their memory is the machine's own, and the vendor gives no rate of matrix products.
"""

import re

from tuneoff.errors import StudyError, did_you_mean
from tuneoff.study.value import Value

GIB = 1 << 30
GIGA, TERA = 1e9, 1e12
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
BINARY_UNITS = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*([kmgt]?i?)b?\s*", re.IGNORECASE)


class Device(Value):
    """An accelerator, as its vendor describes it."""

    name: str
    memory_bytes: int
    bytes_per_s: float
    """Memory bandwidth."""
    fp32: float
    """FLOP/s of products of fp32 matrices."""
    fp16: float
    bf16: float | None
    """None where the device has no bf16."""

    def flop_per_s(self, precision: str) -> float:
        """Return the peak rate of matrix products.

        Args:
            precision: fp32, bf16 or fp16. A device without bf16 works it out in fp32.
        """
        if precision == "bf16":
            return self.fp32 if self.bf16 is None else self.bf16
        return self.fp16 if precision == "fp16" else self.fp32


def _device(name: str, gib: float, gb_per_s: float, fp32: float, half: float, *, has_bf16: bool = True) -> Device:
    return Device(
        name=name,
        memory_bytes=round(gib * GIB),
        bytes_per_s=gb_per_s * GIGA,
        fp32=fp32 * TERA,
        fp16=half * TERA,
        bf16=half * TERA if has_bf16 else None,
    )


DEVICES = (
    _device("GTX 1660 Ti", 6, 288, 5.4, 10.9, has_bf16=False),
    _device("RTX 2060", 6, 336, 6.5, 25.8, has_bf16=False),
    _device("RTX 2080 Ti", 11, 616, 13.4, 53.8, has_bf16=False),
    _device("RTX 3050", 8, 224, 9.1, 18.2),
    _device("RTX 3060", 12, 360, 12.7, 25.5),
    _device("RTX 3060 Ti", 8, 448, 16.2, 32.4),
    _device("RTX 3070", 8, 448, 20.3, 40.6),
    _device("RTX 3080", 10, 760, 29.8, 59.5),
    _device("RTX 3090", 24, 936, 35.6, 71.0),
    _device("RTX 3090 Ti", 24, 1008, 40.0, 80.0),
    _device("RTX 4060", 8, 272, 15.1, 30.2),
    _device("RTX 4060 Ti", 8, 288, 22.1, 44.1),
    _device("RTX 4060 Ti 16GB", 16, 288, 22.1, 44.1),
    _device("RTX 4070", 12, 504, 29.1, 58.3),
    _device("RTX 4070 Ti", 12, 504, 40.1, 80.2),
    _device("RTX 4080", 16, 716.8, 48.7, 97.5),
    _device("RTX 4090", 24, 1008, 82.6, 165.2),
    _device("RTX 5070", 12, 672, 30.9, 61.7),
    _device("RTX 5070 Ti", 16, 896, 43.9, 87.9),
    _device("RTX 5080", 16, 960, 56.3, 112.6),
    _device("RTX 5090", 32, 1792, 104.8, 209.5),
    _device("RTX A6000", 48, 768, 38.7, 154.8),
    _device("T4", 16, 320, 8.1, 65.0, has_bf16=False),
    _device("V100 16GB", 16, 900, 15.7, 125.0, has_bf16=False),
    _device("V100 32GB", 32, 900, 15.7, 125.0, has_bf16=False),
    _device("A10", 24, 600, 31.2, 125.0),
    _device("L4", 24, 300, 30.3, 121.0),
    _device("L40S", 48, 864, 91.6, 362.0),
    _device("A100 40GB", 40, 1555, 19.5, 312.0),
    _device("A100 80GB", 80, 2039, 19.5, 312.0),
    _device("H100 PCIe", 80, 2000, 51.0, 756.0),
    _device("H100", 80, 3350, 67.0, 989.0),
    _device("H200", 141e9 / GIB, 4800, 67.0, 989.0),
)


def device_names() -> tuple[str, ...]:
    """Return the names that `find_device` knows."""
    return tuple(device.name for device in DEVICES)


def find_device(name: str) -> Device:
    """Return a device by its name; case, spaces, hyphens and the vendor's name do not matter.

    Raises:
        StudyError: no device of that name; the message names the nearest.
    """
    folded = _folded(name)
    found = {_folded(device.name): device for device in DEVICES}
    if folded in found:
        return found[folded]
    longer = [device for key, device in found.items() if folded and key.startswith(folded + " ")]
    if len(longer) == 1:
        return longer[0]
    names = ", ".join(device.name for device in longer or DEVICES)
    hint = "" if longer else did_you_mean(" ".join(folded.split()), device_names())
    what = f"{name!r} is one of several" if longer else f"no device is known as {name!r}"
    raise StudyError(
        f"--device: {what}; allowed: {names}.{hint} For another give its memory alone: --device-memory 12GB"
    )


def _folded(name: str) -> str:
    words = re.sub(r"[^a-z0-9]+", " ", name.casefold())
    words = re.sub(r"\b(nvidia|geforce|tesla|sxm\d?)\b", " ", words)
    words = re.sub(r"\b(rtx|gtx)(?=\d)", r"\1 ", words)
    words = re.sub(r"(?<=\d)(ti)\b", r" \1", words)
    return " ".join(re.sub(r"\b(\d+) gb\b", r"\1gb", words).split())


def parse_bytes(text: str, option: str = "--device-memory") -> int:
    """Return a size in bytes: `6GB` is 6e9, `6GiB` 6 x 2^30; the B may be left out, a bare number is bytes.

    Raises:
        StudyError: not a size, or nothing.
    """
    match = _SIZE.fullmatch(text)
    unit = match[2].casefold() if match else ""
    if match is None or (unit.endswith("i") and unit not in BINARY_UNITS):
        raise StudyError(
            f"{option}: found {text!r}; expected a number and a unit, such as 6GB (10^9 bytes each), 6GiB (2^30) or "
            "800MB. Units: B, kB, MB, GB, TB, KiB, MiB, GiB, TiB."
        )
    size = round(float(match[1]) * (BINARY_UNITS | UNITS)[unit])
    if size < 1:
        raise StudyError(f"{option}: found {text!r}, which is no memory at all; give a size above 0, such as 6GB")
    if not unit and size < 10**6:
        raise StudyError(f"{option}: found {text!r}, which is {size} bytes; give the unit, such as {match[1]}GB")
    return size
