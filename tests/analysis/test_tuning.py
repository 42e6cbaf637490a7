"""The search of learning rates, over made-up losses: who gets a round, which rate it tries, and when it ends."""

import math
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.report.fakes import make_infeasible, make_likelihood, make_provenance, make_study

from tuneoff.analysis.selection import choose_rate
from tuneoff.analysis.summary import summarise
from tuneoff.analysis.tuning import Rounds, Search
from tuneoff.study.expand import trials
from tuneoff.study.identity import Run
from tuneoff.study.records import Record
from tuneoff.study.spec import Study

AUTO = {"tune": {"lr": "auto"}}
Loss = Callable[[float], float]
"""Validation loss at a rate; not a number where it diverges."""


def study(arms: Mapping[str, Any], **changes: Any) -> Study:
    return make_study(arms=dict(arms), explain={"weights": False, "samples": 0}, **changes)


def autos(*names: str, **changes: Any) -> Study:
    """A study of LoRA arms of different ranks, all with `lr: auto`: they start from 1e-4, 3e-4 and 1e-3."""
    return study({name: {"method": "lora", "rank": 2 + place, **AUTO} for place, name in enumerate(names)}, **changes)


def bowl(best: float) -> Loss:
    return lambda lr: 2 + math.log10(lr / best) ** 2


def record_of(run: Run, loss: float, reason: str = "diverged: the loss was nan at step 3") -> Record:
    if not math.isfinite(loss):
        return make_infeasible(run, reason)
    return Record(
        run_id=run.run_id, run=run, status="done", validation=make_likelihood(loss), provenance=make_provenance()
    )


def missing(found: Study, records: Mapping[str, Record], arms: tuple[str, ...] | None = None) -> list[tuple[str, Run]]:
    """What the arms that are worked on have still to try."""
    names = tuple(arm.name for arm in found.arms) if arms is None else arms
    rounds = Search(found, records).rounds(names)
    wanted = [(name, run) for name in names for run in trials(found, found.arm(name), rounds.rates(found.arm(name)))]
    return [(name, run) for name, run in wanted if run.run_id not in records]


def searched(
    found: Study,
    losses: Mapping[str, Loss],
    records: dict[str, Record] | None = None,
    arms: tuple[str, ...] | None = None,
    order: Random | None = None,
) -> tuple[Rounds, dict[str, Record]]:
    """Do what is missing, one trial at a time, in an order of its own, until nothing is."""
    records = {} if records is None else records
    while left := missing(found, records, arms):
        name, run = order.choice(left) if order else left[0]
        assert run.lr is not None
        records[run.run_id] = record_of(run, losses[name](run.lr))
    return Search(found, records).rounds(arms or tuple(arm.name for arm in found.arms)), records


def rates(found: Study, rounds: Rounds) -> dict[str, tuple[float, ...]]:
    return {arm.name: rounds.rates(arm) for arm in found.arms}


def test_best_inside_is_not_extended() -> None:
    found = autos("a")
    rounds, records = searched(found, {"a": bowl(3e-4)})
    assert rates(found, rounds) == {"a": (1e-4, 3e-4, 1e-3)}
    assert choose_rate(found, found.arm("a"), records) == 3e-4


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (1e-5, (3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)),
        (1e-2, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)),
        (1e-9, (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)),  # four rounds, and no more
    ],
)
def test_best_at_an_edge(best: float, tried: tuple[float, ...]) -> None:
    found = autos("a")
    rounds, records = searched(found, {"a": bowl(best)})
    assert rates(found, rounds) == {"a": tried}
    assert choose_rate(found, found.arm("a"), records) == max(best, 1e-6)
    assert summarise(found, records, {}).arm("a").edge == ("lowest" if best < 1e-6 else None)


def test_every_arm_gets_what_one_needs() -> None:
    found = autos("edge", "inside")
    rounds, records = searched(found, {"edge": bowl(1e-2), "inside": bowl(4e-4)})
    assert rates(found, rounds) == {
        "edge": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        # 5.5e-4 lies between 3e-4 and 1e-3, the better neighbour; 4.1e-4 between the two best; 3.5e-4 likewise
        "inside": (1e-4, 3e-4, 3.5e-4, 4.1e-4, 5.5e-4, 1e-3),
    }
    assert choose_rate(found, found.arm("inside"), records) == 4.1e-4


def test_a_rate_beyond_which_another_diverged_is_no_edge() -> None:
    found = autos("a")
    rounds, _ = searched(found, {"a": lambda lr: 3 - lr if lr < 1e-3 else math.nan})
    assert rates(found, rounds) == {"a": (1e-4, 3e-4, 1e-3)}
    rounds, _ = searched(found, {"a": lambda lr: 3 - lr if lr < 1e-2 else math.nan})
    assert rates(found, rounds) == {"a": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)}


def test_all_diverged_goes_lower() -> None:
    found = autos("a", "b")
    rounds, records = searched(found, {"a": lambda lr: bowl(1e-5)(lr) if lr < 3e-5 else math.nan, "b": bowl(3e-4)})
    assert rounds.rates(found.arm("a")) == (3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
    assert len(rounds.rates(found.arm("b"))) == 6
    assert choose_rate(found, found.arm("a"), records) == 1e-5


def test_all_diverged_to_the_end_is_a_lost_arm() -> None:
    found = autos("a", "b", tuning={"extend": 2})
    rounds, records = searched(found, {"a": lambda lr: math.nan, "b": bowl(3e-4)})
    assert rates(found, rounds) == {"a": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3), "b": (1e-4, 1.7e-4, 2.3e-4, 3e-4, 1e-3)}
    summary = summarise(found, records, {})
    assert (summary.arm("a").status, summary.arm("a").num_left) == ("infeasible", 0)
    assert summary.arm("b").chosen_lr is not None


def test_out_of_memory_takes_no_part() -> None:
    found = autos("lost", "edge")
    first = {
        run.run_id: make_infeasible(run, "out of memory with one sequence at a time")
        for run in trials(found, found.arm("lost"))
    }
    rounds, records = searched(found, {"edge": bowl(1e-2)}, first)
    assert {name: len(own) for name, own in rates(found, rounds).items()} == {"lost": 3, "edge": 6}
    assert summarise(found, records, {}).arm("lost").status == "infeasible"


@pytest.mark.parametrize("extend", [0, 1, 4])
def test_extra_trials_are_used_up(extend: int) -> None:
    found = autos("a", "b", tuning={"extend": extend})
    rounds, records = searched(found, {"a": bowl(1e3), "b": bowl(3e-4)})
    assert {len(own) for own in rates(found, rounds).values()} == {3 + extend}
    summary = summarise(found, records, {})
    assert summary.arm("a").edge == "highest"
    assert summary.arm("b").edge is None


def test_the_audit_says_the_edge_and_counts_what_was_tried() -> None:
    arms = {
        "auto": {"method": "lora", "rank": 8, **AUTO},
        "grid": {"method": "lora", "rank": 4, "tune": {"lr": [1e-4, 3e-4, 1e-3]}},
    }
    found = study(arms, tuning={"extend": 2})
    _, records = searched(found, {"auto": bowl(1e3), "grid": bowl(3e-4)})
    findings = {one.kind: one for one in summarise(found, records, {}).audit.findings}
    assert findings["edge"].arms == ("auto",)
    assert "its best rate, 0.01, is the highest that was tried" in findings["edge"].message
    assert findings["num_trials"].arms == ("grid",)
    assert "it was tried at 3 rates, theirs at 5" in findings["num_trials"].message


def test_no_rate_is_chosen_while_a_round_is_open() -> None:
    found = autos("edge", "inside")
    losses = {"edge": bowl(3e-3), "inside": bowl(3e-4)}
    records: dict[str, Record] = {}
    seen = []
    while left := missing(found, records):
        for name in losses:
            arm = found.arm(name)
            rounds = Search(found, records).rounds(("edge", "inside"))
            assert rounds.choose(arm) is None
            assert choose_rate(found, arm, records) is None
        name, run = left[0]
        assert run.lr is not None
        seen.append((name, run.lr))
        records[run.run_id] = record_of(run, losses[name](run.lr))
    assert seen[6:] == [("edge", 3e-3), ("inside", 1.7e-4), ("edge", 1e-2), ("inside", 2.3e-4)]
    assert choose_rate(found, found.arm("edge"), records) == 3e-3


def test_an_arm_that_only_leaves_out_may_extend_the_others_so_no_rate_is_chosen_and_tested_before() -> None:
    found = autos("worked", "other")
    losses = {"worked": bowl(3e-3), "other": bowl(1e-2)}
    rounds, records = searched(found, losses, arms=("worked",))
    worked = found.arm("worked")
    assert rounds.rates(worked) == (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    assert rounds.choose(worked) is None
    assert choose_rate(found, worked, records) is None
    # What comes later is added to what there is: nothing is tried twice, and the arms end with as many trials.
    later, whole = searched(found, losses, records)
    assert choose_rate(found, worked, whole) is not None
    assert set(rounds.rates(worked)) < set(later.rates(worked))
    assert {len(own) for own in rates(found, later).values()} == {6}
    assert later.trials == searched(found, losses)[0].trials


LANDSCAPES = st.lists(
    st.tuples(st.floats(-7, 1), st.floats(0, 3), st.floats(-6, 2), st.integers(0, 2**32)), min_size=1, max_size=4
)
"""Of each arm: logarithm of the best rate, noise, logarithm of the rate from which on it diverges, the noise's seed."""


def landscape(best: float, noise: float, limit: float, seed: int) -> Loss:
    def loss(lr: float) -> float:
        if math.log10(lr) > limit:
            return math.nan
        return 2 + (math.log10(lr) - best) ** 2 + noise * Random(f"{seed}/{lr}").random()

    return loss


@settings(max_examples=50)
@given(LANDSCAPES, st.integers(0, 6), st.integers(0, 2**32))
def test_arms_get_equal_trials_whatever_the_order(
    shapes: list[tuple[float, float, float, int]], extend: int, seed: int
) -> None:
    names = tuple("abcd"[: len(shapes)])
    found = autos(*names, tuning={"extend": extend})
    losses = {name: landscape(*shape) for name, shape in zip(names, shapes, strict=True)}
    rounds, records = searched(found, losses)
    shuffled, same = searched(found, losses, order=Random(seed))
    assert shuffled == rounds
    assert {run_id: record.validation for run_id, record in same.items()} == {
        run_id: record.validation for run_id, record in records.items()
    }
    tried = rates(found, rounds)
    assert len({len(own) for own in tried.values()}) == 1
    assert len(tried["a"]) <= 3 + extend
    assert all(list(own) == sorted(set(own)) for own in tried.values())
    is_used_up = len(tried["a"]) == 3 + extend
    for name, arm in zip(names, found.arms, strict=True):
        lr = choose_rate(found, arm, records)
        scores = {rate: losses[name](rate) for rate in tried[name]}
        finite = {rate: score for rate, score in scores.items() if math.isfinite(score)}
        assert lr == (min(finite, key=lambda rate: finite[rate]) if finite else None)
        assert is_used_up or (lr is not None and tried[name][0] < lr < tried[name][-1])
