"""What is worked out of many matrices at once, against the same of each alone."""

import math

import numpy as np
import pytest

from tuneoff.analysis.explaining.changes import _shares
from tuneoff.analysis.explaining.evidence import each_over_runs, over_runs
from tuneoff.study.explained import LayerChange

RANKS = (1, 4, 16, 64)


def layer(name: str, values: list[float], num_singular_values: int) -> LayerChange:
    return LayerChange(
        module=name,
        shape=(64, 64),
        base_norm=1.0,
        change_norm=math.sqrt(sum(value * value for value in values)) * 1.1,  # some was not worked out
        singular_values=tuple(values),
        num_singular_values=num_singular_values,
        effective_rank=2.0,
        rank_90=1,
        num_top=0,
        num_intruders=0,
        max_cosines=(),
    )


def test_shares_are_those_of_each_matrix_alone() -> None:
    generator = np.random.default_rng(0)
    layers = [
        layer(f"m.{place}", sorted(generator.random(known).tolist(), reverse=True), number)
        for place, (known, number) in enumerate([(8, 8), (8, 64), (3, 3), (0, 64), (8, 8)])
    ]
    layers.append(layer("still", [0.0, 0.0], 2))
    found = _shares(layers, RANKS)
    assert found.keys() == {one.module for one in layers}
    for one in layers:
        assert list(found[one.module]) == pytest.approx(one.shares_held(RANKS), abs=1e-14)


@pytest.mark.parametrize("num_runs", [1, 2, 7])
@pytest.mark.parametrize("is_drawn", [True, False])
def test_estimates_are_those_of_each_thing_alone(num_runs: int, is_drawn: bool) -> None:
    values = np.random.default_rng(num_runs).random((num_runs, 40))
    values[0, 3] = math.nan
    highest = np.where(np.arange(40) % 2, 1.0, math.inf)
    found = each_over_runs(values, highest, is_drawn=is_drawn)
    assert found.pop(3) is None
    kept = [place for place in range(40) if place != 3]
    for place, one in zip(kept, found, strict=True):
        own = over_runs(values[:, place].tolist(), is_drawn=is_drawn, lowest=0.0, highest=float(highest[place]))
        assert one is not None
        assert (one.n, one.how) == (own.n, own.how)
        assert (one.value, one.low, one.high) == pytest.approx((own.value, own.low, own.high), abs=1e-14)
