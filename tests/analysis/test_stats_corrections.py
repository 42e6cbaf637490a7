"""The step-down correction against a closed test that goes through every hypothesis that can be true with others."""

from itertools import chain, combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneoff.analysis.stats.corrections import step_down

Hypotheses = list[tuple[int, float]]

# Few different values, so that there are ties; and 0, 1 and near-underflows among them.
ps = st.one_of(st.sampled_from([0.0, 1e-300, 0.01, 0.0125, 0.02, 0.025, 0.05, 0.5, 1.0]), st.floats(0, 1))
shared = st.lists(st.tuples(st.integers(0, 4), ps), max_size=7).filter(
    lambda found: all([pair for pair, _ in found].count(one) <= 2 for one, _ in found)
)
apart = st.lists(ps, max_size=7).map(lambda values: list(enumerate(values)))


def closed(hypotheses: Hypotheses) -> list[float]:
    """Corrected p-values by the closure principle (Marcus, Peritz and Gabriel, 1976), with Bonferroni's test.

    Every set of hypotheses that can be true together has the p-value of its size times the smallest p in it; a
    hypothesis is rejected where all sets that hold it are.
    """
    places = range(len(hypotheses))
    sets = chain.from_iterable(combinations(places, size) for size in range(1, len(hypotheses) + 1))
    corrected = [0.0 for _ in places]
    for chosen in sets:
        if len({hypotheses[place][0] for place in chosen}) < len(chosen):
            continue  # two of one pair: no difference, and one outside of the margin
        p = min(1.0, len(chosen) * min(hypotheses[place][1] for place in chosen))
        for place in chosen:
            corrected[place] = max(corrected[place], p)
    return corrected


@settings(deadline=None)
@given(shared)
def test_it_is_the_closed_test(hypotheses: Hypotheses) -> None:
    assert step_down(hypotheses) == pytest.approx(closed(hypotheses), rel=1e-12, abs=0)


@settings(deadline=None)
@given(apart)
def test_with_every_pair_its_own_it_is_holms(hypotheses: Hypotheses) -> None:
    """Holm, 1979: with p rising, the largest of (m - j) p_j over j up to its own place, from 0 on."""
    ordered = sorted(p for _, p in hypotheses)
    holm = {
        p: max(min(1.0, (len(ordered) - j) * one) for j, one in enumerate(ordered[: ordered.index(p) + 1]))
        for p in ordered
    }
    found = step_down(hypotheses)
    assert found == pytest.approx([holm[p] for _, p in hypotheses], rel=1e-12, abs=0)
    assert found == pytest.approx(closed(hypotheses), rel=1e-12, abs=0)


@settings(deadline=None)
@given(shared, st.randoms(use_true_random=False))
def test_the_order_of_hypotheses_does_not_matter(hypotheses: Hypotheses, luck: object) -> None:
    places = list(range(len(hypotheses)))
    luck.shuffle(places)  # type: ignore[attr-defined]
    shuffled = step_down([hypotheses[place] for place in places])
    found = step_down(hypotheses)
    assert shuffled == [found[place] for place in places]


@settings(deadline=None)
@given(shared, st.data())
def test_stronger_evidence_never_weakens_a_claim(hypotheses: Hypotheses, data: st.DataObject) -> None:
    found = step_down(hypotheses)
    for (_, p), corrected in zip(hypotheses, found, strict=True):
        assert p <= corrected <= 1
    in_order = [corrected for _, corrected in sorted(zip([p for _, p in hypotheses], found, strict=True))]
    assert in_order == sorted(in_order)
    if hypotheses:
        place = data.draw(st.integers(0, len(hypotheses) - 1))
        pair, p = hypotheses[place]
        lower = [*hypotheses[:place], (pair, data.draw(st.floats(0, p))), *hypotheses[place + 1 :]]
        assert all(less <= more for less, more in zip(step_down(lower), found, strict=True))


def test_a_pairs_two_hypotheses_cost_as_much_as_one() -> None:
    """One is false whatever is true: six pairs cost a factor of 6, where Holm's costs 12."""
    hypotheses = [(pair, p) for pair in range(6) for p in (0.004, 0.9)]
    assert step_down(hypotheses)[0] == pytest.approx(0.024)
    assert step_down(list(enumerate(p for _, p in hypotheses)))[0] == pytest.approx(0.048)
