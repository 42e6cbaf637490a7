"""Metrics of what the arms wrote or chose, over seeds: one estimate for each metric, and for each decoding strategy."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from tuneoff.analysis.estimates import Estimate, over_seeds
from tuneoff.analysis.items import ItemScores
from tuneoff.analysis.stats.tables import estimate_of
from tuneoff.analysis.values import DecodingSummary
from tuneoff.study.records import Generated


def metric_estimates(
    seeds: Sequence[Mapping[str, float]],
    items: Sequence[ItemScores | None] = (),
    suffix: str = "",
    *,
    is_drawn: bool,
) -> dict[str, Estimate]:
    """Return the mean of each metric over seeds with its interval, in the metric's own unit.

    Args:
        seeds: metrics by name, of each seed.
        items: scores by item, of each seed; without them the interval is over seeds alone.
        suffix: what stands behind the metric's name among the scores by item.
        is_drawn: whether seeds were drawn at all.
    """
    names = dict.fromkeys(name for seed in seeds for name in seed)
    scores = items or [None] * len(seeds)

    def estimate(name: str) -> Estimate:
        having = [(seed[name], own) for seed, own in zip(seeds, scores, strict=True) if name in seed]
        values = [value for value, _ in having]
        found = estimate_of(values, [own for _, own in having], name + suffix, is_drawn=is_drawn)
        assert found is not None  # a seed has it, else it would have no name
        return found

    return {name: estimate(name) for name in names}


def decoding_summaries(
    seeds: Sequence[Sequence[Generated]], items: Sequence[ItemScores | None], *, is_drawn: bool
) -> tuple[DecodingSummary, ...]:
    """Return what was written with each strategy, over seeds, in the order in which the strategies first appear.

    Args:
        seeds: of each seed, one entry for each strategy.
        items: scores by item, of each seed.
        is_drawn: whether seeds were drawn at all.
    """
    return tuple(_summary(texts, is_drawn) for texts in _by_strategy(seeds, items))


Written = tuple[Generated, ItemScores | None]


def _by_strategy(seeds: Sequence[Sequence[Generated]], items: Sequence[ItemScores | None]) -> Iterator[list[Written]]:
    found: dict[str, list[Written]] = {}
    for seed, scores in zip(seeds, items, strict=True):
        for texts in seed:
            found.setdefault(texts.decoding.name, []).append((texts, scores))
    yield from found.values()


def _summary(written: Sequence[Written], is_drawn: bool) -> DecodingSummary:
    seeds, items = [texts for texts, _ in written], [scores for _, scores in written]
    first = seeds[0]
    return DecodingSummary(
        decoding=first.decoding,
        num_items=first.num_items,
        num_samples=first.num_samples,
        metrics=metric_estimates([seed.metrics for seed in seeds], items, f"@{first.decoding.name}", is_drawn=is_drawn),
        best_of_n=metric_estimates([seed.best_of_n for seed in seeds], is_drawn=is_drawn),
        distinct_1=_mean([seed.distinct_1 for seed in seeds], is_drawn),
        distinct_2=_mean([seed.distinct_2 for seed in seeds], is_drawn),
        truncated_pct=_mean([seed.truncated_pct for seed in seeds], is_drawn),
        num_near_ties=sum(seed.num_near_ties for seed in seeds),
        mean_new_tokens=_mean([seed.mean_new_tokens for seed in seeds], is_drawn),
        generate_s=median(seed.generate_s for seed in seeds),
    )


def _mean(values: Sequence[float], is_drawn: bool) -> Estimate:
    found = over_seeds(values, is_drawn=is_drawn)
    assert found is not None  # there is a seed, else there would be nothing to ask for
    return found
