"""SplitMix64's finaliser, in tensors of int64 and in Python's own integers: what counter-based draws are hashed with.

Steele, Lea and Flood, 2014, "Fast Splittable Pseudorandom Number Generators", section 5, variant 13 of Stafford.
"""

from torch import Tensor

GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15, SplitMix64's increment
MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
WORD = (1 << 64) - 1


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift of int64, which PyTorch shifts arithmetically."""
    return z.bitwise_right_shift(bits).bitwise_and_((1 << (64 - bits)) - 1)


def mix(z: Tensor) -> Tensor:
    """Return SplitMix64's finaliser of int64 words; arithmetic wraps modulo 2^64."""
    z = z ^ _shift_right(z, 30)
    z *= MIX_1
    z ^= _shift_right(z, 27)
    z *= MIX_2
    z ^= _shift_right(z, 31)
    return z


def mixed(*parts: int) -> int:
    """Return one 64-bit word of several integers, each hashed into what came before it."""
    z = 0
    for part in parts:
        z = (z + part + GOLDEN) & WORD
        z = (z ^ (z >> 30)) * (MIX_1 & WORD) & WORD
        z = (z ^ (z >> 27)) * (MIX_2 & WORD) & WORD
        z ^= z >> 31
    return z
