"""Prints how often the intervals hold the truth, and how often two arms that are the same are told apart.

Run from the repository's root: `.venv/bin/python -m benchmarks.coverage [STUDIES]`. Of every kind of noise 4,000
studies (or STUDIES) are made up at 3, 5 and 10 seeds, and the share whose 95 % interval holds the true mean is printed;
then the share of 1,000 studies of two identical arms in which a difference is claimed. It exits with 1 where a share is
outside
93 to 97 %, or more than 6.5 % of the claims are false.
"""

import sys
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from tuneoff.analysis.stats.twoway import two_way
from tuneoff.data.items import ratio_values

Values = NDArray[np.float64]
Noise = Callable[[np.random.Generator, int, int], tuple[Values, float]]
"""From a generator, studies and seeds to values (studies, seeds, items) and their true mean."""

SEED = 20_260_901
NUM_STUDIES = 4_000
NUM_IDENTICAL = 1_000
SEEDS = (3, 5, 10)
NUM_ITEMS = 64
LOWEST, HIGHEST = 0.93, 0.97
MOST_FALSE = 0.065


def gaussian(seeds: float, items: float, errors: float, num_items: int = NUM_ITEMS) -> Noise:
    """Return normal noise with these standard deviations."""

    def draw(generator: np.random.Generator, num_studies: int, num_seeds: int) -> tuple[Values, float]:
        a = seeds * generator.standard_normal((num_studies, num_seeds, 1))
        b = items * generator.standard_normal((num_studies, 1, num_items))
        return a + b + errors * generator.standard_normal((num_studies, num_seeds, num_items)), 0.0

    return draw


def clustered(seeds: float) -> Noise:
    """Return a loss over the tokens of items of unequal size, long items being harder, linearised as runs do."""

    def draw(generator: np.random.Generator, num_studies: int, num_seeds: int) -> tuple[Values, float]:
        sigma, slope = 0.6, 0.2
        normal = generator.standard_normal((num_studies, 1, NUM_ITEMS))
        sizes = np.maximum(np.rint(100 * np.exp(sigma * normal)), 1)
        a = seeds * generator.standard_normal((num_studies, num_seeds, 1))
        b = slope * normal + 0.3 * generator.standard_normal((num_studies, 1, NUM_ITEMS))
        shape = (num_studies, num_seeds, NUM_ITEMS)
        sums = sizes * (a + b) + np.sqrt(sizes) * generator.standard_normal(shape)  # of tokens with a variance of 1
        rows = zip(sums.reshape(-1, NUM_ITEMS), np.broadcast_to(sizes, shape).reshape(-1, NUM_ITEMS), strict=True)
        values = np.array([ratio_values(top, bottom) for top, bottom in rows]).reshape(shape)
        return values, slope * sigma  # E[D z] / E[D] of D = exp(sigma z)

    return draw


def skewed_arm(seeds: float) -> Noise:
    """Return one arm's own loss: gamma NLL of 40 tokens for each item, their mean lognormal over items."""

    def draw(generator: np.random.Generator, num_studies: int, num_seeds: int) -> tuple[Values, float]:
        shape, tokens, sigma = 0.5, 40, 0.5
        level = 2.5 * np.exp(sigma * generator.standard_normal((num_studies, 1, NUM_ITEMS)))
        sums = generator.gamma(shape * tokens, size=(num_studies, num_seeds, NUM_ITEMS)) / (shape * tokens)
        a = seeds * generator.standard_normal((num_studies, num_seeds, 1))
        return level * sums + a, 2.5 * float(np.exp(sigma**2 / 2))

    return draw


def skewed_pair(seeds: float) -> Noise:
    """Return the difference of two arms' losses on the same items: gamma NLL, one arm worse by a skewed amount."""

    def draw(generator: np.random.Generator, num_studies: int, num_seeds: int) -> tuple[Values, float]:
        shape, tokens, sigma = 0.5, 40, 0.5
        shared = np.exp(sigma * generator.standard_normal((num_studies, 1, NUM_ITEMS)))
        worse = generator.gamma(1.0, 0.1, size=(num_studies, 1, NUM_ITEMS))
        size = (num_studies, num_seeds, NUM_ITEMS)
        one, other = (generator.gamma(shape * tokens, size=size) / (shape * tokens) for _ in range(2))
        a = seeds * generator.standard_normal((num_studies, num_seeds, 1))
        return 2.5 * shared * ((1 + worse) * one - other) + a, 0.25 * float(np.exp(sigma**2 / 2))

    return draw


CASES: Mapping[str, Noise] = {
    "seeds dominate": gaussian(1.0, 1.0, 1.0),
    "items dominate": gaussian(0.01, 1.0, 0.3),
    "mixed": gaussian(0.2, 1.0, 1.0),
    "mixed, 500 items": gaussian(0.08, 1.0, 1.0, 500),
    "errors alone": gaussian(0.0, 0.0, 1.0),
    "clustered, items dominate": clustered(0.01),
    "clustered, mixed": clustered(0.1),
    "skewed pair, items dominate": skewed_pair(0.01),
    "skewed pair, mixed": skewed_pair(0.2),
    "skewed arm, items dominate": skewed_arm(0.02),
    "skewed arm, mixed": skewed_arm(0.4),
}

IDENTICAL: Mapping[str, Noise] = {
    "seeds dominate": gaussian(1.0, 0.0, 1.0),
    "errors alone": gaussian(0.0, 0.0, 1.0),
    "mixed": gaussian(0.15, 0.0, 1.0),
}
"""Two arms that are the same differ by no item's own: what they differ by is seeds and errors."""


def coverage(noise: Noise, generator: np.random.Generator, num_studies: int, num_seeds: int) -> float:
    """Return the share of studies whose 95 % interval holds the true mean."""
    values, truth = noise(generator, num_studies, num_seeds)
    low, high = two_way(values).interval(0.95)
    return float(np.mean((low <= truth) & (truth <= high)))


def false_claims(noise: Noise, generator: np.random.Generator, num_studies: int, num_seeds: int) -> float:
    """Return the share of studies of identical arms in which p is below 5 %."""
    below = two_way(noise(generator, num_studies, num_seeds)[0]).p_below(0.0)
    return float(np.mean(2 * np.minimum(below, 1 - below) < 0.05))


def main() -> None:
    """Print both tables; exit with 1 where a number is not what it is to be."""
    num_studies = int(sys.argv[1]) if len(sys.argv) > 1 else NUM_STUDIES
    num_wrong = 0
    print(f"coverage of 95 % intervals, {num_studies:,} studies each, in per cent" + " " * 5)
    print(f"{'noise':<32}" + "".join(f"{f'{seeds} seeds':>10}" for seeds in SEEDS))
    for place, (name, noise) in enumerate(CASES.items()):
        found = [coverage(noise, np.random.default_rng((SEED, place, seeds)), num_studies, seeds) for seeds in SEEDS]
        num_wrong += sum(not LOWEST <= share <= HIGHEST for share in found)
        print(f"{name:<32}" + "".join(f"{100 * share:>10.1f}" for share in found), flush=True)
    print(f"\nfalse claims of a difference, {NUM_IDENTICAL:,} studies of two identical arms each, in per cent")
    for place, (name, noise) in enumerate(IDENTICAL.items()):
        draws = [np.random.default_rng((SEED, 100 + place, seeds)) for seeds in SEEDS]
        found = [false_claims(noise, draw, NUM_IDENTICAL, seeds) for draw, seeds in zip(draws, SEEDS, strict=True)]
        num_wrong += sum(share > MOST_FALSE for share in found)
        print(f"{name:<32}" + "".join(f"{100 * share:>10.1f}" for share in found), flush=True)
    print("all as they are to be" if not num_wrong else f"{num_wrong} outside")
    raise SystemExit(min(num_wrong, 1))


if __name__ == "__main__":
    main()
