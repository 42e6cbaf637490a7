"""Metrics of what the arms wrote or chose, over seeds: one estimate for each metric, and for each decoding strategy."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from tuneoff.analysis.estimates import Estimate, over_seeds
from tuneoff.analysis.values import DecodingSummary
from tuneoff.study.records import Generated


def metric_estimates(seeds: Sequence[Mapping[str, float]], *, is_drawn: bool) -> dict[str, Estimate]:
    """Return the mean of each metric over seeds with its t interval, in the metric's own unit.

    Args:
        seeds: metrics by name, of each seed.
        is_drawn: whether seeds were drawn at all.
    """
    names = dict.fromkeys(name for seed in seeds for name in seed)
    found = ((name, [seed[name] for seed in seeds if name in seed]) for name in names)
    return {name: _mean(values, is_drawn) for name, values in found}


def decoding_summaries(seeds: Sequence[Sequence[Generated]], *, is_drawn: bool) -> tuple[DecodingSummary, ...]:
    """Return what was written with each strategy, over seeds, in the order in which the strategies first appear.

    Args:
        seeds: of each seed, one entry for each strategy.
        is_drawn: whether seeds were drawn at all.
    """
    return tuple(_summary(texts, is_drawn) for texts in _by_strategy(seeds))


def _by_strategy(seeds: Sequence[Sequence[Generated]]) -> Iterator[list[Generated]]:
    found: dict[str, list[Generated]] = {}
    for seed in seeds:
        for texts in seed:
            found.setdefault(texts.decoding.name, []).append(texts)
    yield from found.values()


def _summary(seeds: Sequence[Generated], is_drawn: bool) -> DecodingSummary:
    first = seeds[0]
    return DecodingSummary(
        decoding=first.decoding,
        num_items=first.num_items,
        num_samples=first.num_samples,
        metrics=metric_estimates([seed.metrics for seed in seeds], is_drawn=is_drawn),
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
