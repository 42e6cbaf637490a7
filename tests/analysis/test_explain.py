"""When, why and how: each number against another way of working it out, and sentences that say no more than it."""

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from fakes import BASE_RETENTION, EVERY_METHOD, Fakes, make_classification, make_items, make_qa, make_study
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from tuneoff.analysis.comparison import Comparison
from tuneoff.analysis.estimates import Estimate
from tuneoff.analysis.explain import explain
from tuneoff.analysis.explaining.capacity import is_too_small
from tuneoff.analysis.explaining.evidence import Evidence
from tuneoff.analysis.explaining.frontiers import beaten, frontiers
from tuneoff.analysis.explaining.leaving import is_with_it, leavings
from tuneoff.analysis.explaining.optima import vertex
from tuneoff.analysis.explaining.wording import share
from tuneoff.analysis.explanation import NOTHING, Capacity, Explanation, Forgetting, Leaving
from tuneoff.analysis.stats.twoway import two_way
from tuneoff.analysis.summary import summarise
from tuneoff.analysis.values import Summary
from tuneoff.analysis.weights import layer_change
from tuneoff.study.spec import Study

MARGIN = 0.01
STEPS = (0, 80, 160, 240, 320, 400)
LORA = {"method": "lora", "alpha": 16, "targets": ["c_attn"], "rank": [2, 8, 32], "tune": {"lr": [1e-4, 3e-4, 1e-3]}}

Gaps = Sequence[Sequence[float]]
"""Of an arm: seeds, then steps."""


def summary_of(fakes: Fakes) -> Summary:
    return summarise(fakes.study, fakes.records, fakes.tests, make_items(fakes))


def told(fakes: Fakes, **parts: Any) -> Explanation:
    """What is made of a study; `parts` stand in for its own curves and explanations."""
    given_parts = {"curves": fakes.curves, "explained": fakes.explained} | parts
    return explain(fakes.study, summary_of(fakes), fakes.records, **given_parts)


def curves_with(
    fakes: Fakes, gaps: Mapping[str, Gaps], summary: Summary | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Curves of the chosen runs in which each arm's validation loss lies so far above full fine-tuning's."""
    summary = summary or summary_of(fakes)
    base = [3.0 * math.exp(-step / 300) + 2.0 for step in STEPS]
    of_all = {"full": [[0.0] * len(STEPS)] * len(fakes.study.seeds)} | dict(gaps)
    return {
        run_id: [
            {"kind": "validation", "step": step, "loss_nats": loss + 0.001 * seed + gap, "target_tokens": 1040 * step}
            for step, loss, gap in zip(STEPS, base, own, strict=True)
        ]
        for name, found in of_all.items()
        for seed, (run_id, own) in enumerate(zip(summary.arm(name).chosen_run_ids, found, strict=True))
    }


def leaving_of(found: Explanation, arm: str) -> Leaving:
    return next(one for one in found.leaving if one.arm == arm)


@cache
def _shared() -> tuple[Fakes, Summary]:
    """What the examples of a property share."""
    fakes = Fakes(make_study())
    return fakes, summary_of(fakes)


@pytest.fixture(scope="module")
def whole() -> Fakes:
    return Fakes(make_study())


# Rates


@given(
    best=st.floats(-5.5, -0.5),
    sides=st.tuples(*[st.floats(0.05, 2.0)] * 2),
    heights=st.tuples(*[st.floats(0.0, 3.0)] * 2),
)
def test_vertex_is_that_of_the_parabola_through_three_points(
    best: float, sides: tuple[float, float], heights: tuple[float, float]
) -> None:
    assume(sum(heights) > 1e-3)
    rates = [10 ** (best - sides[0]), 10**best, 10 ** (best + sides[1])]
    losses = [2.0 + heights[0], 2.0, 2.0 + heights[1]]
    found = vertex(rates, losses)
    assert found is not None
    square, slope, _ = np.polyfit(np.log10(rates) - best, losses, 2)
    assert math.log10(found) == pytest.approx(best - slope / (2 * square), abs=1e-8)
    assert rates[0] * (1 - 1e-9) <= found <= rates[2] * (1 + 1e-9)


@pytest.mark.parametrize("losses", [(2.0, 2.0, 2.0), (1.9, 2.0, 2.5), (2.5, 2.0, 1.9)])
def test_no_vertex_where_the_middle_is_not_the_lowest(losses: tuple[float, float, float]) -> None:
    assert vertex((1e-4, 3e-4, 1e-3), losses) is None


def test_optima_and_their_ratio(whole: Fakes) -> None:
    found = told(whole)
    optima = {one.arm: one for one in found.optima}
    losses = {trial.lr: trial.loss_nats for trial in summary_of(whole).arm("lora-rank8").trials}
    square, slope, _ = np.polyfit(np.log10(list(losses)), list(losses.values()), 2)
    assert optima["lora-rank8"].fitted_lr == pytest.approx(10 ** (-slope / (2 * square)), rel=1e-9)
    assert (optima["full"].low_lr, optima["full"].high_lr) == (1e-5, 1e-4)
    # Training diverged at 1e-3: that bounds the best rate, and no parabola goes through it.
    assert (optima["lora-rank32"].high_lr, optima["lora-rank32"].fitted_lr) == (1e-3, None)
    ratio = next(one for one in found.ratios if one.arm == "lora-rank8")
    assert ratio.fitted == pytest.approx(optima["lora-rank8"].fitted_lr / optima["full"].fitted_lr)
    assert (ratio.base, ratio.chosen) == ("full", pytest.approx(10.0))
    assert (ratio.low, ratio.high) == (pytest.approx(1.0), pytest.approx(100.0))
    sentence = next(one for one in found.sentences if one.startswith("Best learning rate"))
    for part in ("over that of full", "lora-rank32 10 [1, 100]", "chosen on the first seed"):
        assert part in sentence


def test_an_edge_encloses_nothing() -> None:
    body = LORA | {"rank": 8, "tune": {"lr": [3e-4, 1e-3]}}
    found = told(Fakes(make_study(arms={"full": EVERY_METHOD["full"], "lora": body})))
    assert (found.optima[1].low_lr, found.optima[1].fitted_lr) == (None, None)
    assert (found.ratios[0].low, found.ratios[0].high) == (None, pytest.approx(100.0))
    assert any("the grids enclose: lora at most 100 (" in one for one in found.sentences)
    assert any("edge of the grid" in note and note.endswith("lora.") for note in found.notes)


def test_rates_at_the_edges_of_both_grids_are_no_estimate() -> None:
    """The grids lie ten times apart, and so do their lowest rates."""
    full = {"method": "full", "tune": {"lr": [3e-5, 1e-4]}}
    found = told(Fakes(make_study(arms={"full": full, "lora": LORA | {"rank": 8, "tune": {"lr": [3e-4, 1e-3]}}})))
    (ratio,) = found.ratios
    assert (ratio.chosen, ratio.low, ratio.high) == (pytest.approx(10.0), None, None)
    sentence = next(one for one in found.sentences if one.startswith("Best learning rate"))
    assert "lora not enclosed (" in sentence
    assert any(one.startswith("Not comparable by the audit (rate at edge)") for one in found.sentences)


# Leaving the common curve


def test_an_arm_leaves_at_the_step_from_which_it_stays_above(whole: Fakes) -> None:
    rises = [[0.0, 0.05, 0.002, 0.02 + luck, 0.05, 0.09 + luck] for luck in (-0.002, 0.0, 0.003)]  # above, back, above
    stays = [[0.0, 0.004, 0.006, 0.004, 0.002, 0.001 + luck] for luck in (-0.001, 0.0, 0.001)]
    noisy = [[0.0, 0.0, 0.01, 0.05, 0.1, last] for last in (0.4, -0.3, 0.1)]
    gaps = {"lora-rank2": rises, "lora-rank8": stays, "lora-rank32": noisy}
    found = told(whole, curves=curves_with(whole, gaps))
    left, with_it, open_one = (leaving_of(found, name) for name in gaps)
    assert (left.step, left.target_tokens, left.rank, left.reference) == (240, 240 * 1040, 2, "full")
    ends = [own[-1] for own in rises]
    expected = stats.t.interval(0.95, 2, loc=np.mean(ends), scale=stats.sem(ends))
    assert not left.is_from_start
    assert (left.gap_nats.low, left.gap_nats.high) == pytest.approx(expected, rel=1e-9)
    assert left.gap_nats.value == pytest.approx(np.mean(ends))
    assert with_it.step is None
    assert is_with_it(with_it, MARGIN)
    assert open_one.step is None
    assert not is_with_it(open_one, MARGIN)
    sentence = next(one for one in found.sentences if "validation curve of full" in one)
    for part in (
        "margin 0.01 nats per token; 95 % intervals over seeds alone",
        "lora-rank2 has left it by step 240 (249,600 target tokens), and ends at +0.090 nats [+0.084, +0.097]",
        "lora-rank8 stays with it to the last step (+0.001 nats",
        "for lora-rank32 it is undecided (+0.067 nats [-0.80",
    ):
        assert part in sentence


def test_an_arm_that_was_never_on_the_curve_did_not_leave_it_for_want_of_capacity(whole: Fakes) -> None:
    above = [[0.05 + luck] * len(STEPS) for luck in (0.0, 0.001, 0.002)]
    stays = [[0.0] * 5 + [luck] for luck in (0.0, 0.001, 0.002)]
    gaps = {"lora-rank2": above, "lora-rank8": stays, "lora-rank32": stays}
    found = told(whole, curves=curves_with(whole, gaps))
    one = leaving_of(found, "lora-rank2")
    assert (one.step, one.target_tokens, one.is_from_start) == (0, 0, True)
    text = "\n".join(found.sentences)
    assert "lora-rank2 lies above it from the first validated step on, 0 (0 target tokens), and ends at +0.051" in text
    assert "the curves agree for lora-rank32, and do not agree for lora-rank8." in text


@given(st.lists(st.lists(st.floats(-0.05, 0.1), min_size=6, max_size=6), min_size=3, max_size=3))
def test_no_more_is_claimed_than_the_interval_holds(gaps: list[list[float]]) -> None:
    """By the definition, in other words: SciPy's interval, and the means looked at one by one."""
    fakes, summary = _shared()
    curves = curves_with(fakes, {"lora-rank2": gaps}, summary)
    (found,) = leavings(Evidence(fakes.study, summary, fakes.records, curves, {}))
    own = np.array(gaps)
    assume(own[:, -1].std() > 1e-6)
    means = own.mean(axis=0)
    assume((np.abs(means - MARGIN) > 1e-9).all())
    low, high = stats.t.interval(0.95, 2, loc=means[-1], scale=stats.sem(own[:, -1]))
    assume(abs(low) > 1e-9)
    steps = [step for place, step in enumerate(STEPS) if (means[place:] > MARGIN).all()]
    assert found.step == (steps[0] if steps and low > 0 else None)
    assert found.is_from_start is (found.step == STEPS[0])
    if found.step is None and abs(high - MARGIN) > 1e-9:
        assert is_with_it(found, MARGIN) is bool(high <= MARGIN)


def test_curves_of_other_batches_are_not_held_against_each_other() -> None:
    fakes = Fakes(make_study())
    for run_id in summary_of(fakes).arm("lora-rank8").chosen_run_ids:
        record = fakes.records[run_id]
        assert record.training is not None
        training = record.training.model_copy(update={"batch_sequence_sha256": "f" * 64})
        fakes.records[run_id] = record.model_copy(update={"training": training})
    found = told(fakes)
    assert [one.arm for one in found.leaving] == ["lora-rank2", "lora-rank32"]
    assert any("curves of lora-rank8 and full are not held against each other: data order" in n for n in found.notes)
    assert all("lora-rank8" not in one for one in found.sentences if "against full" in one or "curve of full" in one)
    assert any(one.startswith("Not comparable by the audit") and "lora-rank8" in one for one in found.sentences)


def test_without_full_the_highest_rank_is_the_reference() -> None:
    fakes = Fakes(make_study(arms={"lora": LORA}))
    found = told(fakes)
    assert [(one.arm, one.reference) for one in found.leaving] == [
        ("lora-rank2", "lora-rank32"),
        ("lora-rank8", "lora-rank32"),
    ]
    assert any("no tuned full arm" in note for note in found.notes)
    assert found.ratios == ()
    assert any("validation curve of lora-rank32" in one for one in found.sentences)


def test_a_rank_alone_has_nothing_to_leave() -> None:
    found = told(Fakes(make_study(arms={"lora": LORA | {"rank": 8}})))
    assert found.leaving == ()
    assert any("When a rank leaves the common curve is not known of lora" in note for note in found.notes)


# Weights


def test_share_held_is_that_of_the_best_approximation(whole: Fakes) -> None:
    """Against the approximation itself, by `numpy.linalg.svd`, of several matrices and seeds."""
    generator = np.random.default_rng(4)
    shapes = {"h.0.wide": (5, 9), "h.0.tall": (8, 4)}
    seeds = [{name: generator.standard_normal(shape) for name, shape in shapes.items()} for _ in range(3)]
    base = {name: generator.standard_normal(shape) for name, shape in shapes.items()}
    explained = dict(whole.explained)
    for run_id, changes in zip(summary_of(whole).arm("full").chosen_run_ids, seeds, strict=True):
        layers = tuple(
            layer_change(name, base[name], change, num_top=2, generator=generator) for name, change in changes.items()
        )
        explained[run_id] = explained[run_id].model_copy(update={"layers": layers})
    found = next(one for one in told(whole, explained=explained).weights if one.arm == "full")
    for rank in (1, 2, 4):
        shares = [_held(list(changes.values()), rank) for changes in seeds]
        assert found.share_held[rank].value == pytest.approx(np.mean(shares), rel=1e-9)
        expected = stats.t.interval(0.95, 2, loc=np.mean(shares), scale=stats.sem(shares))
        low, high = found.share_held[rank].low, found.share_held[rank].high
        assert (low, high) == pytest.approx(np.clip(expected, 0, 1), rel=1e-7)
    norms = [
        np.linalg.norm(np.concatenate([change.ravel() for change in changes.values()]))
        / np.linalg.norm(np.concatenate([matrix.ravel() for matrix in base.values()]))
        for changes in seeds
    ]
    assert found.relative_norm is not None
    assert found.relative_norm.value == pytest.approx(np.mean(norms), rel=1e-9)
    own = [np.linalg.svd(change, compute_uv=False) for changes in seeds for change in changes.values()]
    assert found.spectrum == pytest.approx(np.mean([values[:4] / values[0] for values in own], axis=0), rel=1e-9)
    rank_90 = [1 + int(np.argmax(np.cumsum(values**2) >= 0.9 * np.sum(values**2))) for values in own]
    assert found.rank_90 is not None
    assert found.rank_90.value == pytest.approx(np.mean(rank_90))
    assert found.layers[1].share_held[2].value == pytest.approx(np.mean([_held([s["h.0.tall"]], 2) for s in seeds]))


def _held(changes: Sequence[NDArray[np.float64]], rank: int) -> float:
    kept = 0.0
    for change in changes:
        left, values, right = np.linalg.svd(change, full_matrices=False)
        kept += np.linalg.norm(left[:, :rank] * values[:rank] @ right[:rank]) ** 2
    return float(kept / sum(np.linalg.norm(change) ** 2 for change in changes))


def test_what_was_not_worked_out_is_not_guessed(whole: Fakes) -> None:
    explained = {
        run_id: record.model_copy(
            update={
                "layers": tuple(
                    layer.model_copy(update={"singular_values": layer.singular_values[:6], "rank_90": None})
                    for layer in record.layers
                )
            }
        )
        for run_id, record in whole.explained.items()
    }
    found = told(whole, explained=explained)
    full = next(one for one in found.weights if one.arm == "full")
    assert (sorted(full.share_held), full.rank_90) == ([1, 2, 4], None)
    sentence = next(one for one in found.sentences if "weight change of full" in one)
    assert "keeps 11 % at rank 2." in sentence
    assert "90 %" not in sentence


def test_a_matrix_that_did_not_change_is_no_failure(whole: Fakes) -> None:
    zero = {"change_norm": 0.0, "singular_values": (0.0,) * 8, "effective_rank": None, "rank_90": None}
    explained = {
        run_id: record.model_copy(
            update={"layers": tuple(layer.model_copy(update=zero) for layer in record.layers[:1]) + record.layers[1:]}
        )
        for run_id, record in whole.explained.items()
    }
    found = told(whole, explained=explained)
    full = next(one for one in found.weights if one.arm == "full")
    assert full.layers[0].share_held == {}
    assert full.layers[0].rank_90 is None
    assert full.rank_90 is not None
    assert 0 < full.share_held[8].value < 1


# Forgetting


def _units(fakes: Fakes, arm: str) -> NDArray[np.float64]:
    """Loss on each unit of the retention text after training minus before, (seeds, units)."""
    before = fakes.explained[_base_id(fakes)]
    runs = [fakes.explained[run_id].retention for run_id in summary_of(fakes).arm(arm).chosen_run_ids]
    assert before.retention is not None
    return np.array([run.values for run in runs if run is not None]) - np.array(before.retention.values)


def _base_id(fakes: Fakes) -> str:
    return summary_of(fakes).arm("zero-shot").chosen_run_ids[0]


def _forgetting(found: Explanation, arm: str) -> Forgetting:
    return next(one for one in found.forgetting if one.arm == arm)


def test_forgetting_is_two_way_over_seeds_and_units(whole: Fakes) -> None:
    found = told(whole)
    assert found.base_retention_nats == pytest.approx(BASE_RETENTION)
    assert [one.arm for one in found.forgetting] == ["full", "lora-rank2", "lora-rank8", "lora-rank32"]
    own, full = _units(whole, "lora-rank8"), _units(whole, "full")
    one = _forgetting(found, "lora-rank8")
    low, high = two_way(own).interval(0.95)
    assert one.difference.value == pytest.approx(own.mean(), abs=1e-9)
    assert (one.difference.low, one.difference.high) == pytest.approx((float(low), float(high)), abs=1e-9)
    beyond = one.beyond_reference
    assert beyond is not None
    low, high = two_way(own - full).interval(0.95)
    assert (beyond.value, beyond.low, beyond.high) == pytest.approx((float((own - full).mean()), low, high), abs=1e-9)
    assert _forgetting(found, "full").beyond_reference is None
    sentence = next(one for one in found.sentences if "retention text" in one)
    for part in ("(before: 3.210)", "full +0.309", "less than full: lora-rank2, lora-rank8 and lora-rank32"):
        assert part in sentence


def test_forgetting_of_one_seed_is_a_paired_mean() -> None:
    fakes = Fakes(make_study(seeds=[0]))
    found = told(fakes)
    own, full = _units(fakes, "lora-rank2"), _units(fakes, "full")
    assert own.shape[0] == 1
    one = _forgetting(found, "lora-rank2")
    assert one.difference.value == pytest.approx(own.mean(), abs=1e-9)
    assert one.beyond_reference is not None
    assert one.beyond_reference.value == pytest.approx((own - full).mean(), abs=1e-9)
    assert one.difference.n == 1
    sentence = next(one for one in found.sentences if "retention text" in one)
    assert "one seed, so another may turn the order" in sentence
    assert "than full" not in sentence


def test_runs_on_another_retention_text_do_not_count(whole: Fakes) -> None:
    explained = {
        run_id: record.model_copy(update={"retention_sha256": "b" * 64}) if run_id != _base_id(whole) else record
        for run_id, record in whole.explained.items()
    }
    assert told(whole, explained=explained).forgetting == ()


@pytest.mark.parametrize(
    ("study", "words"),
    [
        (make_classification(), "predicts no text"),
        (make_study(), "names no `retention` text"),
        (make_study(retention="demo"), "has not been worked out"),
    ],
    ids=["classification", "no text", "not yet"],
)
def test_why_forgetting_is_not_known(study: Study, words: str) -> None:
    fakes = Fakes(study)
    found = told(fakes, explained={})
    assert (found.forgetting, found.weights, found.base_retention_nats) == ((), (), None)
    assert any(words in note for note in found.notes)


# Capacity


@pytest.mark.parametrize(("trainable", "is_small"), [(499, True), (500, False), (501, False)])
def test_two_bits_a_parameter_hold_one_bit_a_token(trainable: int, is_small: bool) -> None:
    whole = Capacity(arm="lora", trainable=trainable, num_target_tokens=1000, num_unique_target_tokens=None)
    assert is_too_small(whole) is is_small
    repeated = whole.model_copy(update={"num_target_tokens": 4000, "num_unique_target_tokens": 1000})
    assert is_too_small(repeated) is is_small


def test_repeats_add_nothing_to_store() -> None:
    fakes = Fakes(make_study())
    for run_id, record in fakes.records.items():
        if record.training is not None:
            training = record.training.model_copy(update={"epochs": 4.0})
            fakes.records[run_id] = record.model_copy(update={"training": training})
    found = {one.arm: one for one in told(fakes).capacity}
    assert "zero-shot" not in found
    one = found["lora-rank8"]
    assert (one.trainable, one.num_target_tokens, one.num_unique_target_tokens) == (294_912, 832_000, 208_000)
    assert told(Fakes(make_study())).capacity[0].num_unique_target_tokens == 832_000  # less than one epoch


def test_the_rule_is_held_against_the_curves(whole: Fakes) -> None:
    rises = [[0.0, 0.0, 0.02, 0.05, 0.06, 0.07 + luck] for luck in (0.0, 0.001, 0.002)]
    stays = [[0.0, 0.0, 0.0, 0.0, 0.0, luck] for luck in (0.0, 0.001, 0.002)]
    noisy = [[0.0, 0.0, 0.0, 0.0, 0.0, last] for last in (0.4, -0.3, 0.1)]

    def said(**gaps: Gaps) -> str:
        curves = curves_with(whole, {f"lora-{name}": own for name, own in gaps.items()})
        return next(one for one in told(whole, curves=curves).sentences if "rule of thumb" in one)

    text = said(rank2=rises, rank8=stays, rank32=stays)
    assert "lora-rank2 (0.089) and lora-rank8 (0.35) are too small to hold all there is to learn" in text
    assert "lora-rank32 (1.4) is large enough for all there is to learn" in text
    assert text.endswith("; the curves agree for lora-rank2 and lora-rank32, and do not agree for lora-rank8.")
    undecided = said(rank2=noisy, rank8=noisy, rank32=noisy)
    assert "the curves" not in undecided


# Frontiers

Outcomes = ("better", "equivalent", "undecided", "worse")
PLACES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=7)


@given(places=PLACES, data=st.data())
def test_frontier_is_what_no_other_beats(places: list[tuple[int, int]], data: st.DataObject) -> None:
    names = [f"arm{place}" for place in range(len(places))]
    outcomes = {
        pair: data.draw(st.sampled_from(Outcomes), label=f"{pair}") for pair in itertools.combinations(names, 2)
    }
    summary = _placed(names, places, outcomes)
    found = frontiers(Evidence(_shared()[0].study, summary, {}, {}, {}))
    one = next(frontier for frontier in found if frontier.cost == "parameters")
    turned = {"better": "worse", "worse": "better"}
    on, maybe, off = set(), set(), set()
    for name, (cost, loss) in zip(names, places, strict=True):
        sure = is_beaten = False
        for other, (other_cost, other_loss) in zip(names, places, strict=True):
            no_worse = other_cost <= cost and other_loss <= loss
            if not no_worse or (other_cost, other_loss) == (cost, loss):
                continue
            is_beaten = True
            outcome = outcomes.get((other, name)) or turned.get(outcomes[name, other], outcomes[name, other])
            sure = sure or outcome == "better" or (outcome == "equivalent" and other_cost < cost)
        (off if sure else maybe if is_beaten else on).add(name)
    assert set(one.arms) == on
    assert set(one.contested) == maybe
    assert beaten(summary, one) == off
    costs = [dict(zip(names, places, strict=True))[name] for name in one.arms]
    assert costs == sorted(costs)


def _placed(names: list[str], places: list[tuple[int, int]], outcomes: Mapping[tuple[str, str], str]) -> Summary:
    _, summary = _shared()
    model = summary.arm("lora-rank8")
    assert model.test is not None
    assert model.parameters is not None
    arms = []
    for name, (cost, loss) in zip(names, places, strict=True):
        nats = model.test.loss_nats.model_copy(update={"value": float(loss)})
        arms.append(
            model.model_copy(
                update={
                    "name": name,
                    "test": model.test.model_copy(update={"loss_nats": nats}),
                    "parameters": model.parameters.model_copy(update={"trainable": cost}),
                }
            )
        )
    pairs = tuple(
        Comparison(
            one=one,
            other=other,
            difference=Estimate(value=0.0, n=3, how="made up"),
            outcome=outcome,  # type: ignore[arg-type]
            p_difference=None,
            p_equivalence=None,
            p_difference_corrected=None,
            p_equivalence_corrected=None,
            num_seeds=3,
            num_items=0,
        )
        for (one, other), outcome in outcomes.items()
    )
    return summary.model_copy(update={"arms": tuple(arms), "ranking": tuple(names), "comparisons": pairs})


def test_arms_unlike_the_others_are_on_no_frontier() -> None:
    lora = LORA | {"rank": [2, 8]}
    short = LORA | {"rank": 32, "override": {"budget": {"steps": 100}}}
    fakes = Fakes(make_study(arms={"full": EVERY_METHOD["full"], "lora": lora, "short": short}))
    found = told(fakes)
    assert any(note.startswith("Left out of the frontiers") and "short" in note for note in found.notes)
    assert all("short" not in (*one.arms, *one.contested) for one in found.frontiers)


# The whole


def test_ranks_are_told_by_the_corrected_test(whole: Fakes) -> None:
    summary = summary_of(whole)
    found = told(whole)
    pairs = {name: summary.comparison(name, "full") for name in ("lora-rank2", "lora-rank8", "lora-rank32")}
    assert found.sentences[0].startswith("By the test's loss, against full (margin 0.01 nats per token): ")
    for name, pair in pairs.items():
        assert pair is not None
        kind = pair.outcome if pair.one == name else {"better": "worse"}.get(pair.outcome, pair.outcome)
        part = next(part for part in found.sentences[0].split("; ") if name in part)
        assert part.endswith(f"is {kind}") or part.endswith(f"are {kind}")
    assert found.sentences[0].endswith("no rank is shown to be as good.")


def test_the_lowest_rank_that_is_as_good() -> None:
    fakes = Fakes(make_study(margin=0.15))
    found = told(fakes)
    assert "lora-rank8 and lora-rank32 are equivalent" in found.sentences[0]
    assert found.sentences[0].endswith("the lowest rank shown to be as good is 8.")


def test_other_sentences_on_a_whole_study(whole: Fakes) -> None:
    text = "\n".join(told(whole).sentences)
    for part in (
        "90 % of the weight change of full (squared norm) lies in 38 of 96 directions a matrix, mean over 4 matrices",
        "keeps 86 % at rank 32, 38 % at rank 8 and 11 % at rank 2.",
        "(intruders, cosine below 0.6): lora-rank2 12 of 40, lora-rank8 12 of 40, lora-rank32 12 of 40 and full 0 of",
        "On the frontier of the test's loss against parameters, memory, time and disk alike, by the means: every",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0 %"), (0.004, "less than 1 %"), (0.386, "39 %"), (0.996, "more than 99 %"), (1.0, "100 %")],
)
def test_a_share_is_never_all_for_a_little_less(value: float, text: str) -> None:
    assert share(value) == text


def test_what_is_beaten_for_certain_is_said_and_what_is_not_too() -> None:
    found = told(Fakes(make_study(arms=EVERY_METHOD)))
    on, off = (next(one for one in found.sentences if one.startswith(start)) for start in ("On the fr", "Off the fr"))
    assert "by the means: full, qlora and output; beaten in some cost, but not for certain: houlsby, prompt" in on
    assert off.endswith("one that costs less is equivalent: lora.")
    assert all("lora" not in {*one.arms, *one.contested} for one in found.frontiers)


def test_many_arms_are_counted_and_not_named() -> None:
    ranks = [1, 2, 4, 8, 16, 32, 64]
    fakes = Fakes(make_study(arms={"full": EVERY_METHOD["full"], "lora": LORA | {"rank": ranks}}))
    found = told(fakes)
    assert len(found.leaving) == 7
    assert max(map(len, found.sentences)) < 400
    assert any(one.startswith("Best learning rate over that of full: of ") and "arms" in one for one in found.sentences)
    assert any("7 arms lie above it from the first validated step on" in one for one in found.sentences)


def test_arms_by_rank_of_two_families_stand_in_one_sentence() -> None:
    found = told(Fakes(make_study(arms=EVERY_METHOD)))
    assert len([one for one in found.sentences if "against full" in one]) == 1
    assert "lowest rank" not in found.sentences[0]


ARMS = ("zero-shot", "full", "lora-rank2", "lora-rank8", "lora-rank32")
STUDIES: dict[str, Callable[[], Fakes]] = {
    "whole": lambda: Fakes(make_study()),
    "qa": lambda: Fakes(make_qa()),
    "classification": lambda: Fakes(make_classification()),
    "one seed": lambda: Fakes(make_study(seeds=[0])),
    "every method": lambda: Fakes(make_study(arms=EVERY_METHOD)),
    "full is lost": lambda: Fakes(make_study(), lost=("full",)),
    "all is lost": lambda: Fakes(make_study(), lost=ARMS),
    "half": lambda: Fakes(make_study(), share=0.5),
    "nothing": lambda: Fakes(make_study(), share=0.0),
    "untrained": lambda: Fakes(make_study(arms={"zero-shot": {"method": "none"}})),
}
"""Studies that lack something or other."""


@pytest.mark.parametrize("is_explained", [True, False], ids=["explained", "not explained"])
@pytest.mark.parametrize("kind", STUDIES)
def test_whatever_is_missing_there_are_notes_and_finite_numbers(kind: str, is_explained: bool) -> None:
    fakes = STUDIES[kind]()
    found = told(fakes) if is_explained else told(fakes, explained={}, curves={})
    text = json.dumps(found.model_dump(mode="json"), allow_nan=False)
    assert Explanation.model_validate_json(text) == found
    for sentence in (*found.sentences, *found.notes):
        assert "nan" not in sentence.split()
        assert "None" not in sentence
        assert sentence.endswith(".")
    if kind in ("whole", "qa", "one seed") and not is_explained:
        assert any("have no validated step in common" in note for note in found.notes)
        assert (found.leaving, found.weights) == ((), ())


@pytest.mark.parametrize("kind", ["all is lost", "nothing"])
def test_of_no_result_nothing_is_said(kind: str) -> None:
    fakes = STUDIES[kind]()
    if kind == "all is lost":
        fakes.records = {run_id: one for run_id, one in fakes.records.items() if one.status == "infeasible"}
    assert told(fakes) == NOTHING


def test_why_something_could_not_be_worked_out_is_said_with_its_arms(whole: Fakes) -> None:
    runs = {name: summary_of(whole).arm(name).chosen_run_ids for name in ("full", "lora-rank8")}
    explained = dict(whole.explained)
    for run_id in itertools.chain(*runs.values()):
        explained[run_id] = explained[run_id].model_copy(update={"notes": ("The trained weights are gone.",)})
    assert told(whole, explained=explained).notes[-1] == "full and lora-rank8: The trained weights are gone."
