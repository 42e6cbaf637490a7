"""How training changed the weights: from the records of each matrix and run to an arm's estimates over seeds.

Of all matrices together the share that rank r could hold is the sum over matrices of the squared norm that the best
approximation of rank r of each holds (Eckart and Young, 1936), over the sum of their squared norms: every matrix has
its own r directions, as LoRA gives them. It is what such an approximation keeps of a change that is there, and not what
training at that rank would find.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean

import numpy as np

from tuneoff.analysis.estimates import Estimate
from tuneoff.analysis.explaining.evidence import Evidence, each_over_runs, over_runs
from tuneoff.analysis.explanation import LayerEstimates, Weights
from tuneoff.study.explained import LayerChange
from tuneoff.study.methods import rank_of

RANKS = (1, 4, 16, 64)
"""Ranks that the share is given of, beside those of the study's own arms."""

_NUM_OTHERS = 4
"""Numbers of a matrix beside its shares."""

Layers = Sequence[LayerChange]
Shares = Sequence[float | None]
"""Of a squared norm, that each of the ranks could hold."""


def weights(evidence: Evidence) -> tuple[Weights, ...]:
    """Return how the training of every arm changed the weights, in the study's order."""
    ranks = shown_ranks(evidence)
    found = []
    for arm in evidence.summary.arms:
        runs = [record.layers for record in evidence.explained_of(arm) if record.layers]
        common = set.intersection(*({layer.module for layer in layers} for layers in runs)) if runs else set()
        if common:
            kept = [[layer for layer in layers if layer.module in common] for layers in runs]
            found.append(_weights(arm.name, kept, ranks, is_drawn=arm.is_trained))
    return tuple(found)


def shown_ranks(evidence: Evidence) -> tuple[int, ...]:
    """Return the ranks that shares are given of, rising."""
    own = (rank_of(arm.method) for arm in evidence.summary.arms)
    return tuple(sorted({*RANKS, *(rank for rank in own if rank is not None)}))


def _weights(arm: str, runs: Sequence[Layers], ranks: Sequence[int], *, is_drawn: bool) -> Weights:
    def over(values: Iterable[float | None]) -> Estimate | None:
        return _over(values, is_drawn=is_drawn)

    by_module = [{layer.module: layer for layer in layers} for layers in runs]
    shares = [_shares(layers, ranks) for layers in runs]
    return Weights(
        arm=arm,
        layers=tuple(
            _each_layer(
                [[layers[first.module] for first in runs[0]] for layers in by_module], shares, ranks, is_drawn=is_drawn
            )
        ),
        spectrum=_spectrum(layer for layers in runs for layer in layers),
        relative_norm=over(_relative(layers) for layers in runs),
        num_intruders=over_runs(
            [sum(layer.num_intruders for layer in layers) for layers in runs], is_drawn=is_drawn, lowest=0.0
        ),
        num_top=max(sum(layer.num_top for layer in layers) for layers in runs),
        share_held=_over_ranks(
            [_held(layers, held, len(ranks)) for layers, held in zip(runs, shares, strict=True)],
            ranks,
            is_drawn=is_drawn,
        ),
        rank_90=over(_mean_rank_90(layers) for layers in runs),
    )


def _shares(layers: Layers, ranks: Sequence[int]) -> dict[str, Shares]:
    """Return the share of each matrix's change that each rank could hold, by module; see `LayerChange.share_held`.

    Matrices of which as many singular values are known, as those of one adapter, are worked out together.
    """
    alike: dict[int, list[LayerChange]] = {}
    for layer in layers:
        alike.setdefault(len(layer.singular_values), []).append(layer)
    found: dict[str, Shares] = {}
    for known, members in alike.items():
        squares = np.square(np.array([layer.singular_values for layer in members]))
        held = np.cumsum(squares, axis=1)[:, [min(rank, known) - 1 for rank in ranks]] if known else None
        for place, layer in enumerate(members):
            square = layer.change_norm**2
            if square == 0 or held is None:
                found[layer.module] = layer.shares_held(ranks)
                continue
            own = np.minimum(held[place] / square, 1.0).tolist()
            is_cut = known < layer.num_singular_values
            found[layer.module] = [
                None if is_cut and rank > known else share for rank, share in zip(ranks, own, strict=True)
            ]
    return found


def _each_layer(
    runs: Sequence[Layers], shares: Sequence[Mapping[str, Shares]], ranks: Sequence[int], *, is_drawn: bool
) -> Iterator[LayerEstimates]:
    """Yield what is known of each matrix.

    Args:
        runs: its matrices of each run, all in one order.
        shares: of each run, by module.
        ranks: that they are of.
        is_drawn: whether seeds were drawn at all.
    """
    table = [
        [
            (_relative([layer]), layer.effective_rank, layer.rank_90, layer.num_intruders, *held[layer.module])
            for layer in layers
        ]
        for layers, held in zip(runs, shares, strict=True)
    ]
    values = np.array(table, dtype=np.float64)  # none is NaN
    highest = np.array([math.inf] * _NUM_OTHERS + [1.0] * len(ranks))
    found = each_over_runs(
        values.reshape(len(runs), -1), np.broadcast_to(highest, values.shape[1:]).ravel(), is_drawn=is_drawn
    )
    width = _NUM_OTHERS + len(ranks)
    for place, seeds in enumerate(zip(*runs, strict=True)):
        relative_norm, effective_rank, rank_90, num_intruders, *held = found[place * width : (place + 1) * width]
        assert num_intruders is not None  # every run has a number
        yield LayerEstimates(
            module=seeds[0].module,
            shape=seeds[0].shape,
            relative_norm=relative_norm,
            effective_rank=effective_rank,
            rank_90=rank_90,
            num_intruders=num_intruders,
            num_top=max(layer.num_top for layer in seeds),
            share_held={rank: share for rank, share in zip(ranks, held, strict=True) if share is not None},
        )


def _over(values: Iterable[float | None], *, is_drawn: bool, highest: float = math.inf) -> Estimate | None:
    """Return the mean over seeds; none where a seed has no value, as the mean of the others would be another one.

    Args:
        values: none below 0.
        is_drawn: whether seeds were drawn at all.
        highest: what none of them can be above.
    """
    found = [None if value is None else float(value) for value in values]
    known = [value for value in found if value is not None]
    if not known or len(known) < len(found):
        return None
    return over_runs(known, is_drawn=is_drawn, lowest=0.0, highest=highest)


def _relative(layers: Layers) -> float | None:
    base = math.hypot(*(layer.base_norm for layer in layers))
    return math.hypot(*(layer.change_norm for layer in layers)) / base if base > 0 else None


def _mean_rank_90(layers: Layers) -> float | None:
    changed = [layer.rank_90 for layer in layers if layer.change_norm > 0]
    known = [rank for rank in changed if rank is not None]
    return fmean(known) if known and len(known) == len(changed) else None


def _over_ranks(by_run: Sequence[Shares], ranks: Sequence[int], *, is_drawn: bool) -> dict[int, Estimate]:
    found = {
        rank: _over((held[place] for held in by_run), is_drawn=is_drawn, highest=1.0)
        for place, rank in enumerate(ranks)
    }
    return {rank: estimate for rank, estimate in found.items() if estimate is not None}


def _held(layers: Layers, shares: Mapping[str, Shares], num_ranks: int) -> Shares:
    """Return the share of the squared norm of all layers' change that each rank could hold in each of them."""
    if len(layers) == 1:
        return shares[layers[0].module]
    changed = [(layer.change_norm**2, shares[layer.module]) for layer in layers if layer.change_norm > 0]
    return [_share([(square, held[place]) for square, held in changed]) for place in range(num_ranks)]


def _share(changed: Sequence[tuple[float, float | None]]) -> float | None:
    """Return the mean of shares, weighted by the squared norms before them."""
    known = [(square, share) for square, share in changed if share is not None]
    total = math.fsum(square for square, _ in known)
    if total == 0 or len(known) < len(changed):
        return None
    return min(1.0, math.fsum(square * share for square, share in known) / total)


def _spectrum(layers: Iterable[LayerChange]) -> tuple[float, ...]:
    """Return the mean of the singular values over the largest, as far as every changed layer's were worked out."""
    spectra = [layer.singular_values for layer in layers if layer.change_norm > 0 and layer.singular_values]
    length = min(map(len, spectra), default=0)
    if not length:
        return ()
    values = np.array([own[:length] for own in spectra])
    return tuple((values / values[:, :1]).mean(axis=0).tolist())
