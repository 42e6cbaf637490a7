"""What a study can find out with its seeds, before they are paid for: power of the equivalence test."""

from tuneoff.analysis.measures import measure
from tuneoff.analysis.stats.power import seeds_power
from tuneoff.study.spec import Study
from tuneoff.study.value import Value

SPREADS = (0.25, 0.5, 1.0)
"""Of a difference between two arms over seeds, as shares of the margin."""
_FEW = 0.8
"""Power below which a study is called too small; the convention that is used for more seeds, too."""


class PowerAt(Value):
    """How often two arms that are the same are found to be equivalent."""

    spread: float
    """Standard deviation over seeds of the difference between the two, in the margin's unit."""
    spread_of_margin: float
    power: float
    """Of one pair of arms alone."""
    power_corrected: float
    """With the correction for all pairs of the study, for the first of them to be decided."""


class Power(Value):
    """What a study's seeds can show. The noise of the test items is left out, so that it is at most this."""

    num_seeds: int
    margin: float
    unit: str
    num_comparisons: int
    """Pairs of arms, each of which gets a verdict."""
    at: tuple[PowerAt, ...]


def study_power(study: Study) -> Power | None:
    """Return how often a study would find that arms are equivalent which are the same.

    Args:
        study: the study.

    Returns:
        The power; none where fewer than two arms are compared, or none is trained.
    """
    num_arms = len(study.arms)
    if num_arms < 2 or not any(arm.is_trained for arm in study.arms):
        return None
    num_pairs, num_seeds = num_arms * (num_arms - 1) // 2, len(study.seeds)
    margin = study.equivalence_margin
    return Power(
        num_seeds=num_seeds,
        margin=margin,
        unit=measure(study.primary_metric, study.task.kind).unit,
        num_comparisons=num_pairs,
        at=tuple(
            PowerAt(
                spread=share * margin,
                spread_of_margin=share,
                power=seeds_power(margin, share * margin, num_seeds),
                power_corrected=seeds_power(margin, share * margin, num_seeds, num_pairs),
            )
            for share in SPREADS
        ),
    )


def power_text(power: Power) -> str:
    """Return the power in a few lines, with a warning where it is low."""
    margin = f"{power.margin:g} {power.unit}".rstrip()
    if power.num_seeds < 2:
        return (
            "1 seed: no claim that one arm is better than another or equivalent to it can be made, because another "
            "seed may turn it; three seeds or more can"
        )
    lines = [
        f"at {power.num_seeds} seeds and a margin of {margin}, two arms that are the same are found to be equivalent",
        *(
            f"  {_percent(one.power)} of the time where their difference has a spread over seeds of {one.spread:g}"
            + (f" ({_percent(one.power_corrected)} corrected: {power.num_comparisons} pairs)" if _many(power) else "")
            for one in power.at
        ),
        "  (spread: standard deviation over seeds of the difference between the two; noise of the test items, which "
        "comes on top, is left out)",
    ]
    half = next(one for one in power.at if one.spread_of_margin == 0.5)
    if min(half.power, half.power_corrected if _many(power) else 1.0) < _FEW:
        lines.append("  more seeds, or a wider margin, would find equivalence more often")
    return "\n".join(lines)


def _many(power: Power) -> bool:
    return power.num_comparisons > 1


def _percent(share: float) -> str:
    return "> 99 %" if share > 0.99 else f"{100 * share:.0f} %"
