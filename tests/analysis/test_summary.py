"""What is known about a study, against values worked out by hand."""

import math

import pytest
from fakes import (
    BASE,
    EVERY_METHOD,
    Fakes,
    make_classification,
    make_infeasible,
    make_likelihood,
    make_qa,
    make_record,
    make_study,
)
from scipy import stats

from tuneoff.analysis.estimates import exp_of, over_seeds
from tuneoff.analysis.selection import choose_rate
from tuneoff.analysis.summary import summarise
from tuneoff.analysis.values import Summary
from tuneoff.study.expand import trials
from tuneoff.study.records import Parameters, TestRecord


def summary_of(fakes: Fakes) -> Summary:
    return summarise(fakes.study, fakes.records, fakes.tests)


def test_interval_is_students_t() -> None:
    values = [2.30, 2.34, 2.29]
    found = over_seeds(values)
    low, high = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
    assert found is not None
    assert (found.low, found.high, found.n) == (pytest.approx(low), pytest.approx(high), 3)
    assert found.how == "t over 3 seeds; noise of the test items not included"
    ppl = exp_of(found)
    assert ppl is not None
    assert (ppl.low, ppl.high) == (pytest.approx(math.exp(low)), pytest.approx(math.exp(high)))


def test_one_seed_has_no_interval() -> None:
    found = over_seeds([2.3])
    assert found is not None
    assert (found.low, found.high, found.how) == (None, None, "one seed: no interval over seeds")
    assert over_seeds([]) is None


def test_rate_is_chosen_once_every_candidate_is_finished() -> None:
    study = make_study()
    arm = study.arm("full")
    runs = trials(study, arm)
    records = {run.run_id: make_record(arm, run) for run in runs[:2]}
    assert choose_rate(study, arm, records) is None
    records[runs[2].run_id] = make_infeasible(runs[2])
    assert choose_rate(study, arm, records) == 3e-5
    assert choose_rate(study, arm, {run.run_id: make_infeasible(run) for run in runs}) is None
    assert choose_rate(study, study.arm("zero-shot"), records) is None


def test_ties_go_to_the_lower_rate() -> None:
    study = make_study()
    arm = study.arm("full")
    records = {
        run.run_id: make_record(arm, run).model_copy(update={"validation": make_likelihood(2.0)})
        for run in trials(study, arm)
    }
    assert choose_rate(study, arm, records) == 1e-5


def test_whole_study() -> None:
    summary = summary_of(Fakes(make_study()))
    assert [arm.status for arm in summary.arms] == ["done"] * 5
    assert summary.ranking == ("full", "lora-rank32", "lora-rank8", "lora-rank2", "zero-shot")
    assert (summary.num_done, summary.num_infeasible, summary.num_left) == (20, 1, 0)
    arm = summary.arm("lora-rank8")
    assert arm.parameters is not None
    assert (arm.parameters.trainable, arm.parameters.total) == (294_912, 124_734_720)
    assert arm.parameters.share_pct == pytest.approx(0.2364, abs=5e-5)
    assert arm.parameters.reduction_pct == pytest.approx(99.7630, abs=5e-5)
    assert arm.test is not None
    assert arm.test.loss_nats.n == 3
    assert arm.test.perplexity.value == pytest.approx(math.exp(arm.test.loss_nats.value))
    assert arm.chosen_lr == 3e-4
    assert arm.edge is None


@pytest.mark.parametrize("only", ["lora", "zero-shot"])
def test_reduction_is_known_without_a_full_arm(only: str) -> None:
    lora = {"method": "lora", "rank": 8, "lr": 3e-4}
    arms = {"lora": lora} if only == "lora" else {"zero-shot": {"method": "none"}, "lora": lora}
    parameters = summary_of(Fakes(make_study(arms=arms))).arm("lora").parameters
    assert parameters is not None
    assert parameters.reduction_pct == pytest.approx(100 * (1 - 294_912 / BASE))


def test_nothing_done() -> None:
    summary = summary_of(Fakes(make_study(), share=0.0))
    assert {arm.status for arm in summary.arms} == {"missing"}
    assert (summary.num_done, summary.num_wanted) == (0, 21)
    assert summary.verdict == "No arm has a test score yet, so there is nothing to compare."


def test_arm_in_the_middle_of_its_trials() -> None:
    fakes = Fakes(make_study(), share=0.4)
    last = trials(fakes.study, fakes.study.arm("full"))[-1]
    del fakes.records[last.run_id]
    fakes.tests.clear()
    arm = summary_of(fakes).arm("full")
    assert (arm.status, arm.chosen_lr, arm.num_wanted, arm.chosen_run_ids) == ("partly", None, 5, ())


def test_infeasible_arm_is_a_row_with_its_reason() -> None:
    summary = summary_of(Fakes(make_study(), lost=("lora-rank2",)))
    arm = summary.arm("lora-rank2")
    assert (arm.status, arm.num_left, arm.num_infeasible) == ("infeasible", 0, 3)
    assert arm.reason == "diverged: loss is not a number at step 41 (rate 0.0001, 0.0003, 0.001)"
    assert f"lora-rank2 gave no result: {arm.reason}." in summary.caveats


def test_flags() -> None:
    arms = {
        "fixed": {"method": "lora", "rank": 8, "lr": 3e-4, "assumed": ["lr"]},
        "edge": {"method": "lora", "rank": 8, "tune": {"lr": [1e-5, 3e-5]}},
        "loaded": {"method": "load", "path": "somewhere"},
    }
    fakes = Fakes(make_study(arms=arms))
    first, second, _ = summary_of(fakes).arm("fixed").chosen_run_ids
    fakes.records[second] = make_infeasible(fakes.records[second].run, "out of memory")
    del fakes.tests[second]
    fakes.tests[first] = TestRecord(run_id=first, test=make_likelihood(11.0), score_s=1.0)
    summary = summary_of(fakes)
    kinds = {arm.name: {flag.kind for flag in arm.flags} for arm in summary.arms}
    assert kinds["fixed"] == {"untuned", "assumed", "worse_than_uniform"}
    assert [one.kind for one in summary.arm("fixed").findings] == ["num_trials", "lost_seed"]
    assert [one.kind for one in summary.arm("edge").findings] == ["edge"]
    assert summary.arm("edge").edge == "highest"
    assert kinds["loaded"] == {"unverified"}
    assert not summary.arm("loaded").is_verified


def test_arms_that_share_a_run_count_it_once() -> None:
    arms = {"one": {"method": "none"}, "two": {"method": "none"}}
    assert summary_of(Fakes(make_study(arms=arms))).num_wanted == 1


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        (([2.30, 2.31, 2.32], [2.32, 2.31, 2.33]), "but whether it is better than the next, b, is undecided"),
        (([2.30, 2.31, 2.32], [2.32, 2.31, 2.33]), "About 7 more seeds would decide between a and b."),
        (([2.30, 2.301, 2.302], [2.5, 2.502, 2.501]), "is better than the next, b, by 0.200 nats per token, 95 %"),
        (([2.30, 2.31, 2.32], [2.301, 2.312, 2.321]), "is equivalent to the next, b, within the margin of 0.010 nats"),
        (([2.30], [2.5]), "One seed cannot tell a and b apart; run at least 3 seeds."),
        (([2.30, 2.31, 2.32], [2.5]), "One seed cannot tell a and b apart; run at least 3 seeds."),
    ],
)
def test_verdict_claims_no_more_than_is_known(losses: tuple[list[float], list[float]], says: str) -> None:
    arm = {"method": "lora", "rank": 8}
    fakes = Fakes(make_study(arms={"a": {**arm, "lr": 1e-3}, "b": {**arm, "lr": 1e-4}}))
    fakes.tests.clear()
    for summary, values in zip(summary_of(fakes).arms, losses, strict=True):
        for run_id, loss in zip(summary.chosen_run_ids, values, strict=False):
            fakes.tests[run_id] = TestRecord(run_id=run_id, test=make_likelihood(loss), score_s=1.0)
    summary = summary_of(fakes)
    assert summary.verdict.startswith("a has the lowest test loss (2.3")
    assert summary.verdict.count(". ") == 1
    assert says in summary.verdict
    assert any("not finished" in caveat for caveat in summary.caveats) == (min(map(len, losses)) < 3)


@pytest.mark.parametrize(("base", "outcome"), [(2.315, "undecided"), (9.0, "better")])
def test_a_base_is_held_against_every_seed(base: float, outcome: str) -> None:
    fakes = Fakes(make_study(arms={"base": {"method": "none"}, "a": {"method": "lora", "rank": 8, "lr": 1e-3}}))
    losses = [base, 2.30, 2.31, 2.32]
    fakes.tests = {
        run_id: TestRecord(run_id=run_id, test=make_likelihood(loss), score_s=1.0)
        for run_id, loss in zip(fakes.tests, losses, strict=True)
    }
    (pair,) = summary_of(fakes).comparisons
    assert (pair.one, pair.outcome, pair.num_seeds) == ("a", outcome, 3)
    assert pair.p_difference == pytest.approx(stats.ttest_1samp([2.30, 2.31, 2.32], base).pvalue, rel=1e-6)


def test_missing_arms_are_said() -> None:
    caveats = summary_of(Fakes(make_study(), share=0.5)).caveats
    assert caveats[0] == "Not in this answer, because not finished: lora-rank8, lora-rank32."


def test_a_caution_about_the_data_stands_beside_the_verdict() -> None:
    fakes = Fakes(make_study())
    caution = "test: 30 of 30 examples were longer than 96 tokens"
    for run_id, record in fakes.records.items():
        provenance = record.provenance.model_copy(update={"cautions": (caution,)})
        fakes.records[run_id] = record.model_copy(update={"provenance": provenance})
    assert summary_of(fakes).caveats.count(caution) == 1


def test_metrics_are_estimates_over_seeds() -> None:
    fakes = Fakes(make_qa())
    arm = summary_of(fakes).arm("full")
    values = [fakes.tests[run_id].metrics["exact_match"] for run_id in arm.chosen_run_ids]
    low, high = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
    assert arm.test is not None
    found = arm.test.metrics["exact_match"]
    assert (found.low, found.high, found.n) == (pytest.approx(low), pytest.approx(high), 3)
    assert [texts.decoding.name for texts in arm.generated] == ["greedy", "top-p-0.9", "t-0.7"]
    drawn = [fakes.tests[run_id].generated[1].best_of_n["f1"] for run_id in arm.chosen_run_ids]
    assert arm.generated[1].best_of_n["f1"].value == pytest.approx(sum(drawn) / 3)
    assert (arm.generated[0].num_near_ties, arm.generated[1].num_samples) == (9, 5)
    assert summary_of(fakes).arm("zero-shot").generated[0].metrics["f1"].n == 1


def with_metric(fakes: Fakes, name: str, values: dict[str, list[float]]) -> None:
    """Give the seeds of some arms these values of a metric."""
    for arm, points in values.items():
        for run_id, value in zip(summary_of(fakes).arm(arm).chosen_run_ids, points, strict=True):
            test = fakes.tests[run_id]
            fakes.tests[run_id] = test.model_copy(update={"metrics": {**test.metrics, name: value}})


def test_arms_rank_by_the_primary_metric() -> None:
    """The loss says otherwise: `a` has the lower one."""
    arm = {"method": "lora", "rank": 8}
    arms = {"a": {**arm, "lr": 3e-4}, "b": {**arm, "lr": 1e-5}, "base": {"method": "none"}}
    fakes = Fakes(make_classification(arms=arms))
    with_metric(fakes, "accuracy", {"a": [88.0, 88.1, 88.2], "b": [91.1, 91.2, 91.3], "base": [50.0]})
    summary = summary_of(fakes)
    first, second = summary.arm("a").test, summary.arm("b").test
    assert first is not None
    assert second is not None
    assert first.loss_nats.value < second.loss_nats.value
    assert summary.ranking == ("b", "a", "base")
    assert summary.verdict.startswith(
        "b has the highest test accuracy (91.2 points, 3 seeds) and is better than the next, a, by 3.1 points, 95 % "
    )


def test_identical_arms_are_equivalent() -> None:
    arm = {"method": "lora", "rank": 8}
    fakes = Fakes(make_classification(arms={"a": {**arm, "lr": 1e-3}, "b": {**arm, "lr": 1e-4}}))
    points = [91.0, 91.2, 91.4]
    with_metric(fakes, "accuracy", {"a": points, "b": points})
    summary = summary_of(fakes)
    (pair,) = summary.comparisons
    assert (pair.outcome, pair.p_difference, pair.p_equivalence) == ("equivalent", 1.0, 0.0)
    assert summary.verdict.endswith(
        "It is also the cheapest of the arms that are equivalent, with 294,912 trainable parameters."
    )


def test_a_test_with_other_settings_does_not_count() -> None:
    fakes = Fakes(make_qa())
    other = make_qa(generate={"max_new_tokens": 9})
    summary = summarise(other, fakes.records, fakes.tests)
    assert summary.ranking == ()
    assert {arm.status for arm in summary.arms} == {"partly"}
    assert {arm.num_tested for arm in summary.arms} == {0}
    assert (
        "13 runs were tested with other metrics, decoding or limits; `tuneoff run` reads the test split again."
        in summary.caveats
    )
    assert not any("other metrics" in caveat for caveat in summary_of(fakes).caveats)


def test_texts_that_were_cut_are_flagged() -> None:
    fakes = Fakes(make_qa(), share=0.4)
    for run_id in summary_of(fakes).arm("full").chosen_run_ids:
        first, *rest = fakes.tests[run_id].generated
        cut = (first.model_copy(update={"truncated_pct": 21.0}), *rest)
        fakes.tests[run_id] = fakes.tests[run_id].model_copy(update={"generated": cut})
    summary = summary_of(fakes)
    assert [flag.kind for flag in summary.arm("full").flags] == ["truncated"]
    assert any("more than 20 % of the texts (greedy) reached the limit of 32 new tokens" in c for c in summary.caveats)
    assert not summary.arm("zero-shot").flags


def test_worse_than_guessing_speaks_of_classes() -> None:
    fakes = Fakes(make_classification(arms={"base": {"method": "none"}}))
    (run_id,) = fakes.tests
    fakes.tests[run_id] = fakes.tests[run_id].model_copy(
        update={"test": fakes.tests[run_id].test.model_copy(update={"nll_nats": 0.7 * 872, "num_target_tokens": 872})}
    )
    (flag,) = summary_of(fakes).arm("base").flags
    assert flag.kind == "worse_than_uniform"
    assert "guessing evenly among the 2 classes" in flag.message


@pytest.mark.parametrize("only", ["houlsby", "prompt", "prefix", "biases", "output", "qlora", "loha"])
def test_reduction_is_told_by_methods_whose_count_shows_the_base(only: str) -> None:
    fakes = Fakes(make_study(arms={only: EVERY_METHOD[only]}))
    trainable = {"prompt": 12_345}.get(only, 777)
    is_subset = only in ("biases", "output")
    counts = Parameters(trainable=trainable, total=BASE + (0 if is_subset else trainable))
    fakes.records = {
        run_id: record.model_copy(update={"parameters": counts}) for run_id, record in fakes.records.items()
    }
    parameters = summary_of(fakes).arm(only).parameters
    assert parameters is not None
    if only in ("qlora", "loha"):
        assert parameters.reduction_pct is None  # packed weights, or PEFT's, do not show the base
    else:
        assert parameters.reduction_pct == pytest.approx(100 * (1 - trainable / BASE))
