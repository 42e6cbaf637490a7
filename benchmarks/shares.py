"""Prints what the interval covers over all shares of seeds, items and errors, for several mixes of its two formulas.

Run from the repository's root: `.venv/bin/python -m benchmarks.shares [STUDIES] [--seeds SEED ...]`. This is how the
mix k of `tuneoff.analysis.stats.twoway` was found, and how it is checked. The mean's variance is shared out between
seeds, items and errors in tenths. For normal noise the mean squares are independent chi-squares, so that they are drawn
themselves, exactly, and not the studies: 40,000 (or STUDIES) of each share. Printed are the lowest and highest coverage
over the shares. It exits with 1 where the mix in use is outside 93 to 97 % by more than three standard errors.
"""

import argparse
import math
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from tuneoff.analysis.stats.twoway import ADDED_SHARE, Spread

Values = NDArray[np.float64]

SIMULATION_SEED = 20_260_901
NUM_STUDIES = 40_000
SEEDS = (3, 5, 10)
ITEMS = (20, 64, 500)
TENTHS = 10
MIXES = tuple(sorted({0.0, 0.2, ADDED_SHARE, 0.6, 1.0}))
LEVEL = 0.95
LOWEST, HIGHEST = 0.93, 0.97
NUM_ERRORS = 3


def shares() -> list[tuple[float, float, float]]:
    """Return what seeds, items and errors may have of the variance of the mean, in tenths that add up to 1."""
    whole = [(a, b, TENTHS - a - b) for a, b in product(range(TENTHS + 1), repeat=2) if a + b <= TENTHS]
    return [(a / TENTHS, b / TENTHS, c / TENTHS) for a, b, c in whole]


def draw(
    share: tuple[float, float, float], num_seeds: int, num_items: int, num_studies: int, generator: np.random.Generator
) -> Spread:
    """Return means whose true value is 0 and true variance 1, with mean squares as a two-way table of normals has them.

    Args:
        share: of seeds, items and errors in the variance of the mean.
        num_seeds: S.
        num_items: I.
        num_studies: how many.
        generator: what they are drawn from.
    """
    seeds, items, errors = share
    degrees = (num_seeds - 1, num_items - 1, (num_seeds - 1) * (num_items - 1))
    expected = (seeds + errors, items + errors, errors)  # of each mean square, divided by S I
    squares = [one * generator.chisquare(df, num_studies) / df for one, df in zip(expected, degrees, strict=True)]
    return Spread(
        mean=generator.standard_normal(num_studies),
        by_seeds=squares[0],
        by_items=np.maximum(squares[1] - squares[2], 0),
        num_seeds=num_seeds,
        num_items=num_items,
        item_freedom=np.full(num_studies, num_items - 1.0),
    )


def held(spread: Spread) -> Values:
    """Return the share of intervals that hold the truth, for each of the mixes; the last is the code's own interval."""
    tail = (1 - LEVEL) / 2
    added = stdtrit(spread.num_seeds - 1, tail) ** 2 * spread.by_seeds
    added = added + stdtrit(spread.item_freedom, tail) ** 2 * spread.by_items
    pooled = stdtrit(spread.freedom, tail) ** 2 * spread.variance
    squared = [mix * added + (1 - mix) * pooled for mix in MIXES]
    return np.array([np.mean(spread.mean**2 <= one) for one in (*squared, spread.half_width(LEVEL) ** 2)])


def main() -> None:
    """Print the lowest and highest coverage for each number of seeds and items, and mix."""
    parser = argparse.ArgumentParser(description="What the interval covers over all shares of noise.")
    parser.add_argument("studies", nargs="?", type=int, default=NUM_STUDIES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[SIMULATION_SEED], help="of the simulations")
    asked = parser.parse_args()
    error = math.sqrt(LEVEL * (1 - LEVEL) / asked.studies)
    is_right = True
    for seed in asked.seeds:
        print(f"\n{asked.studies:,} studies of each share, lowest and highest coverage in per cent,")
        print(f"standard error {100 * error:.2f} of each share; seed {seed}")
        print(f"{'seeds x items':<15}" + "".join(f"{f'k = {mix:g}':>16}" for mix in MIXES) + f"{'in use':>16}")
        for num_seeds, num_items in product(SEEDS, ITEMS):
            generator = np.random.default_rng((seed, num_seeds, num_items))
            found = [held(draw(share, num_seeds, num_items, asked.studies, generator)) for share in shares()]
            low, high = np.min(found, axis=0), np.max(found, axis=0)
            is_right &= bool(low[-1] >= LOWEST - NUM_ERRORS * error and high[-1] <= HIGHEST + NUM_ERRORS * error)
            cells = (f"{100 * one:.2f} to {100 * other:.2f}" for one, other in zip(low, high, strict=True))
            print(f"{f'{num_seeds} x {num_items}':<15}" + "".join(f"{cell:>16}" for cell in cells), flush=True)
    print("\nall as they are to be" if is_right else "\noutside")
    raise SystemExit(not is_right)


if __name__ == "__main__":
    main()
