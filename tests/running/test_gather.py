"""Which runs share a pass, as a pure function of what is ready and what was begun."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.running.test_schedule import Known, infeasible
from tests.running.world import study_of

from tuneoff.errors import StudyError
from tuneoff.running.cohorts import asked_size, gather, part_stored, parted, pass_key, stored_cohort, unsettled
from tuneoff.running.schedule import Task
from tuneoff.running.store import Store
from tuneoff.running.tracking import Tracking
from tuneoff.study.expand import trials
from tuneoff.study.records import RECORD_VERSION
from tuneoff.study.spec import Study

LORA: dict[str, Any] = {"method": "lora", "rank": [2, 4], "tune": {"lr": [1e-3, 1e-2]}}
ARMS = {"zero": {"method": "none"}, "lora": LORA, "full": {"method": "full", "lr": 1e-3}}


def study(arms: Mapping[str, Any] = ARMS, **changes: object) -> Study:
    return study_of(Path(), "s", arms, seeds=[0, 1, 2], **changes)


def gathered(known: Known, size: int, **more: Any) -> list[Task]:
    given_up = more.pop("given_up", ())
    waiting = unsettled(known.study, known.study.arms, known.records, given_up)
    ready = [task for task in known.ready() if task.run.run_id not in given_up]
    options: dict[str, Any] = {"stored": {}, "find": lambda run_id: None} | more
    return list(gather(ready, size, first_seed=known.study.seeds[0], waiting=waiting, **options))


def brief(tasks: list[Task]) -> list[list[tuple[str, float | None, int | None]]]:
    return [[(member.arm, member.run.lr, member.run.seed) for member in task.members] for task in tasks]


def test_trials_of_all_ranks_and_rates_are_one_pass_and_the_rest_is_alone() -> None:
    assert brief(gathered(Known(study()), 8)) == [
        [("zero", None, None)],
        [(arm, lr, 0) for arm in ("lora-rank2", "lora-rank4") for lr in (1e-3, 1e-2)],
        [("full", 1e-3, 0)],
    ]


def test_a_size_of_one_leaves_everything_as_it_is() -> None:
    known = Known(study())
    assert list(gather(known.ready(), 1, stored={}, find=lambda run_id: None, first_seed=0)) == known.ready()


def test_later_seeds_wait_until_every_arm_that_may_share_their_pass_has_its_rate() -> None:
    known = Known(study())
    for task in [task for task in known.ready() if task.arm in ("zero", "full", "lora-rank2")]:
        known.do(task)
    found = brief(gathered(known, 8))
    assert [("full", 1e-3, 1)] in found
    assert not any(
        arm == "lora-rank2" and seed for cohort in found for arm, _, seed in cohort if cohort[0][0] != "full"
    )
    (high, low) = (task for task in known.ready() if task.arm == "lora-rank4")
    known.do(high)
    crashed = brief(gathered(known, 8, given_up={low.run.run_id}))
    assert [("lora-rank2", 1e-3, 1), ("lora-rank2", 1e-3, 2)] in crashed
    known.records[low.run.run_id] = infeasible(low.run)
    assert [(arm, 1e-3, seed) for seed in (1, 2) for arm in ("lora-rank2", "lora-rank4")] in brief(gathered(known, 8))


def test_what_was_begun_together_goes_on_together_whatever_is_ready() -> None:
    known = Known(study())
    ready = [task for task in known.ready() if task.arm.startswith("lora")]
    ids = tuple(task.run.run_id for task in ready)
    begun = (ids[1], ids[2])
    found = gathered(known, 8, stored=dict.fromkeys(begun, begun) | {ids[3]: (ids[3],)})
    assert [task.run_ids for task in found if task.arm.startswith("lora")] == [(ids[0],), begun, (ids[3],)]
    along = Task(kind="train", arm="", run=ready[0].run, is_along=True)
    known.do(ready[0])
    for size in (1, 3):
        pair = (ids[0], ids[1])
        found = gathered(known, size, stored={ids[1]: pair}, find=lambda run_id: along)
        (task,) = (task for task in found if ids[1] in task.run_ids)
        assert task.run_ids == pair
        assert [member.is_along for member in task.members] == [True, False]
        assert (task.shown.arm, task.shown.run) == ("lora-rank2", ready[1].run)
    unknown = gathered(known, 1, stored={ids[1]: ("0" * 16, ids[1])})
    assert (ids[1],) in [task.run_ids for task in unknown]


def test_trials_that_are_held_against_one_another_are_trained_one_after_another() -> None:
    halved = Known(study(tuning={"search": "halving"}))
    assert all(not task.others for task in gathered(halved, 8))
    ids = tuple(task.run.run_id for task in halved.ready() if task.halving is not None)
    assert len(ids) == 2  # the first of each rank
    assert all(not task.others for task in gathered(halved, 8, stored=dict.fromkeys(ids, ids)))


def test_each_run_of_a_cohort_is_tracked_under_its_own_arm(tmp_path: Path) -> None:
    first, other, *_ = (task for task in Known(study()).ready() if task.arm.startswith("lora"))
    tracking = Tracking((), "s", "lora-rank2", tmp_path, arms={other.run.run_id: "lora-rank4"})
    assert (tracking.of(first.run).arm, tracking.of(other.run).arm) == ("lora-rank2", "lora-rank4")
    assert tracking.of(other.run).lost is tracking.lost


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({"rank": 8}, True),
        ({"alpha": 4.0}, True),
        ({"rslora": True}, True),
        ({"lr_ratio": 4.0}, True),
        ({"dropout": 0.1}, False),
        ({"targets": ["c_attn"]}, False),
        ({"dora": True}, False),
        ({"quantize": "nf4"}, False),
    ],
)
def test_what_a_pass_has_in_common(change: dict[str, Any], is_same: bool) -> None:
    arms = {
        "one": {"method": "lora", "rank": 2, "lr": 1e-3},
        "other": {"method": "lora", "rank": 2, "lr": 1e-2} | change,
    }
    made = study(arms)
    one, other = (trials(made, arm)[0] for arm in made.arms)
    assert (pass_key(one) == pass_key(other)) == is_same
    (fewer,) = (trials(own, own.arms[0])[0] for own in [study(arms, budget={"steps": 5, "batch_size": 4})])
    assert pass_key(one) != pass_key(fewer)


def test_what_is_trained_alone() -> None:
    arms = {"biases": {"method": "lora", "bias": "all", "lr": 1e-3}, "full": {"method": "full", "lr": 1e-3}}
    made = study(arms)
    assert [pass_key(trials(made, arm)[0]) for arm in made.arms] == [None, None]


@given(num=st.integers(1, 60), size=st.integers(1, 12), gone=st.sets(st.integers(0, 59)))
def test_what_is_left_is_parted_as_it_was(num: int, size: int, gone: set[int]) -> None:
    """So a study that was killed forms the cohorts that it would have formed, whichever of them were done."""
    (arm,) = study({"lora": {"method": "lora", "lr": 1e-3}}).arms
    run = trials(study({"lora": {"method": "lora", "lr": 1e-3}}), arm)[0]
    tasks = [Task(kind="train", arm=f"{place}", run=run) for place in range(num)]
    parts = list(parted(tasks, size))
    assert [task for part in parts for task in part] == tasks
    assert len(parts) == -(-num // size)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    left = [part for place, part in enumerate(parts) if place not in gone]
    assert list(parted([task for part in left for task in part], size)) == left


def test_a_cohort_that_crashed_before_its_start_is_parted_for_good(tmp_path: Path) -> None:
    store, (a, b) = Store(tmp_path), ("a" * 16, "b" * 16)
    store.write_setup(b, {"cohort": [a, b], "version": RECORD_VERSION - 1, "micro_batch": 7})
    part_stored(store, (a, b), 1, "why")
    assert [stored_cohort(store, run_id) for run_id in (a, b)] == [(a,), (b,)]
    assert "micro_batch" not in store.setup(b)  # type: ignore[operator]


def setup(*cohort: str) -> dict[str, Any]:
    return {"cohort": list(cohort), "version": RECORD_VERSION, "num_sittings": 3}


def test_a_stored_cohort_holds_as_long_as_its_first_run_says_so(tmp_path: Path) -> None:
    store, (a, b, c, d) = Store(tmp_path), (letter * 16 for letter in "abcd")
    for run_id in (a, b, c, d):
        store.write_setup(run_id, setup(a, b, c, d))
    assert stored_cohort(store, c) == (a, b, c, d)
    part_stored(store, (a, b, c, d), 3, "why")
    assert [stored_cohort(store, run_id) for run_id in (a, b, c, d)] == [(a, b, c)] * 3 + [(d,)]
    store.write_setup(a, setup(a))
    assert [stored_cohort(store, run_id) for run_id in (a, b, c)] == [(a,), (), ()]
    store.write_setup(d, setup("../../elsewhere", d))
    assert stored_cohort(store, d) == ()
    store.write_setup(d, setup(d) | {"version": RECORD_VERSION - 1})
    assert stored_cohort(store, d) == ()
    assert stored_cohort(store, "e" * 16) == ()


def test_a_kill_while_a_cohort_is_parted_leaves_it_whole_or_parted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = tuple(letter * 16 for letter in "abcd")
    write, whole = Store.write_setup, [ids] * 4
    for num_written in range(5):
        store, written = Store(tmp_path / str(num_written)), 0
        for run_id in ids:
            store.write_setup(run_id, setup(*ids))

        def cut(own: Store, run_id: str, body: Mapping[str, Any], at: int = num_written) -> None:
            nonlocal written
            if written == at:
                raise KeyboardInterrupt
            written += 1
            write(own, run_id, body)

        with monkeypatch.context() as patch:
            patch.setattr(Store, "write_setup", cut)
            try:
                part_stored(store, ids, 2, "why")
            except KeyboardInterrupt:
                assert stored_cohort(store, ids[0]) == ids  # is read first, and claims them all
        if num_written == 4:
            whole = [ids[:2], ids[:2], ids[2:], ids[2:]]
            assert [stored_cohort(store, run_id) for run_id in ids] == whole


@pytest.mark.parametrize(("asked", "size"), [("auto", None), ("off", 1), (3, 3), ("12", 12)])
def test_sizes_that_can_be_asked_for(asked: int | str, size: int | None) -> None:
    assert asked_size(asked) == size


@pytest.mark.parametrize("asked", ["on", 0, "-1", 1000, "4.5"])
def test_other_sizes_are_refused(asked: int | str) -> None:
    with pytest.raises(StudyError, match="--cohort"):
        asked_size(asked)
