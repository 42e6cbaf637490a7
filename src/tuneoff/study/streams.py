"""Named streams of randomness.

One seed gives independent, stable draws for each purpose, whatever is drawn elsewhere and in which order.
"""

import hashlib

INIT = "init"
"""Starting values of what a method adds."""
HEAD = "head"
"""Starting values of a classifier's head, the same for every method."""
ORDER = "data order"
DROPOUT = "dropout"
GENERATION = "generation"


def stream_seed(seed: int, stream: str) -> int:
    """Return the 63-bit seed of a named stream.

    The first bytes of sha256("SEED/STREAM"), so that no two streams are shifted copies.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:8], "big") >> 1
