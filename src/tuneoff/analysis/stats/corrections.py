"""Holm's correction over a study's verdicts, sharpened by what cannot be true at once.

Every pair of arms has two hypotheses: "no difference" and "not equivalent". A difference of 0 is within any margin, so
at most one of the two is true. Shaffer's step-down (1986, "Modified sequentially rejective multiple test procedures",
JASA 81, 826-831, section 3) multiplies the j-th smallest p-value by the largest number of hypotheses that can be true
once those before it are false: here the number of pairs that have a hypothesis left, at most half of Holm's. The chance
of any false claim in a study stays at most the level, whatever depends on what.
"""

from collections.abc import Hashable, Sequence

P = tuple[Hashable, float]


def step_down(hypotheses: Sequence[P]) -> list[float]:
    """Return the corrected p-values, in the order given.

    Args:
        hypotheses: (pair, p) each; of those that share a pair at most one is true. With every pair its own this is
            Holm's correction (1979, Scandinavian Journal of Statistics 6, 65-70).
    """
    order = sorted(range(len(hypotheses)), key=lambda place: hypotheses[place][1])
    left: dict[Hashable, int] = {}
    for pair, _ in hypotheses:
        left[pair] = left.get(pair, 0) + 1
    corrected, largest = [0.0] * len(hypotheses), 0.0
    for place in order:
        pair, p = hypotheses[place]
        largest = max(largest, min(1.0, len(left) * p))
        corrected[place] = largest
        left[pair] -= 1
        if not left[pair]:
            del left[pair]
    return corrected
