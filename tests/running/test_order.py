"""In what order tasks are started: of the first seed the first trial of every arm before the second of any."""

from pathlib import Path

from tests.running.test_gather import gathered
from tests.running.test_schedule import Known, brief
from tests.running.world import study_of

from tuneoff.running.order import breadth_first
from tuneoff.study.spec import Study

ARMS = {
    "zero": {"method": "none"},
    "full": {"method": "full", "tune": {"lr": [1e-3, 1e-2]}},
    "lora": {"method": "lora", "rank": [2, 4], "tune": {"lr": [1e-3, 1e-2, 1e-1]}},
    "fixed": {"method": "bitfit", "lr": 1e-3},
}


def study() -> Study:
    return study_of(Path(), "s", ARMS, seeds=[0, 1])


def test_trials_are_interleaved_and_an_arm_is_tested_as_soon_as_its_rate_is_chosen() -> None:
    known = Known(study())
    order = []
    while ready := breadth_first(known.ready(), first_seed=0):
        known.do(ready[0])
        order += brief(ready[:1])
    assert order == [
        ("train", "zero", None, None),
        ("train", "full", 1e-3, 0),
        ("train", "lora-rank2", 1e-3, 0),
        ("train", "lora-rank4", 1e-3, 0),
        ("train", "fixed", 1e-3, 0),
        ("train", "full", 1e-2, 0),
        ("score", "full", 1e-3, 0),
        ("train", "lora-rank2", 1e-2, 0),
        ("train", "lora-rank4", 1e-2, 0),
        ("train", "lora-rank2", 1e-1, 0),
        ("score", "lora-rank2", 1e-3, 0),
        ("train", "lora-rank4", 1e-1, 0),
        ("score", "lora-rank4", 1e-3, 0),
        ("train", "full", 1e-3, 1),
        ("train", "lora-rank2", 1e-3, 1),
        ("train", "lora-rank4", 1e-3, 1),
        ("train", "fixed", 1e-3, 1),
    ]


def test_the_order_ends_in_the_same_records() -> None:
    by_arm, in_turns = Known(study()), Known(study())
    while ready := by_arm.ready():
        by_arm.do(ready[0])
    while ready := breadth_first(in_turns.ready(), first_seed=0):
        in_turns.do(ready[0])
    assert in_turns.records == by_arm.records
    assert in_turns.tests == by_arm.tests


def test_cohorts_are_those_of_the_studys_order_whichever_is_done_first() -> None:
    """Six trials in passes of four at most: whatever is done first, what is left is parted into the same passes."""
    by_arm, in_turns = Known(study()), Known(study())
    passes: dict[str, set[tuple[str, ...]]] = {"by arm": set(), "in turns": set()}
    while ready := gathered(by_arm, 4):
        passes["by arm"].add(ready[0].run_ids)
        for member in ready[0].members:
            by_arm.do(member)
    while ready := breadth_first(gathered(in_turns, 4), first_seed=0)[::-1]:  # the least urgent first
        passes["in turns"].add(ready[0].run_ids)
        for member in ready[0].members:
            in_turns.do(member)
    assert passes["by arm"] == passes["in turns"]
    assert any(len(own) > 1 for own in passes["by arm"])
