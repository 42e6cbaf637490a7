"""Arms traced in processes of their own, and parts of a loop that one of them stands for: the same figures."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from tuneoff.planning import setting, side_by_side
from tuneoff.planning.costs import Forecast, basis_of
from tuneoff.planning.plan import study_shape
from tuneoff.planning.side_by_side import Errand, trace_all
from tuneoff.planning.trace import Lengths, PhaseTrace, trace_arm
from tuneoff.study.loading import study_from
from tuneoff.study.spec import Study
from tuneoff.training import head_loss

LENGTHS = Lengths(train=(40, 30, 20, 10), targets=(30, 20, 10, 5), prompts=(12, 8))


def study(folder: Path) -> Study:
    task = {"kind": "instruction", "data": "rows.jsonl", "max_length": 64, "metrics": ["rouge1"]}
    arms = {
        "lora": {"method": "lora", "rank": 4, "alpha": 8, "dropout": 0.1, "lr": 1e-3},
        "full": {"method": "full", "lr": 1e-3},
    }
    raw = {"name": "s", "model": "base", "task": task, "budget": {"steps": 3, "batch_size": 4}, "arms": arms}
    return study_from(raw | {"generate": {"max_new_tokens": 8, "batch_size": 4}}, folder)


def traced(folder: Path, arm: str) -> tuple[PhaseTrace, ...]:
    whole = study(folder)
    return trace_arm(whole, next(one for one in whole.arms if one.name == arm), study_shape(whole), LENGTHS)


def work_of(phases: tuple[PhaseTrace, ...]) -> list[tuple[dict[str, float], float]]:
    works = [phase.work() for phase in phases]
    return [({one.signature: count for one, count in work.counts.items()}, work.num_operations) for work in works]


def test_processes_of_their_own_find_the_same(world: Path) -> None:
    whole = study(world)
    found = trace_all([Errand(whole, arm, LENGTHS, "cpu", None) for arm in whole.arms])
    for arm, phases in zip(whole.arms, found, strict=True):
        assert phases is not None
        here = traced(world, arm.name)
        assert phases == here
        assert work_of(phases) == work_of(here)


def test_what_cannot_be_traced_is_left_to_whoever_asked(world: Path) -> None:
    whole = study(world)
    nothing = Lengths(train=(), targets=())
    found = trace_all(
        [Errand(whole, arm, nothing if arm.name == "lora" else LENGTHS, "cpu", None) for arm in whole.arms]
    )
    assert [phases is None for phases in found] == [True, False]


def test_a_plan_does_not_say_how_it_was_traced(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, basis = study(world), basis_of(memory_bytes=6 << 30)
    alone = Forecast(whole, study_shape(whole), basis).plan(whole, None, ())
    asked = []
    monkeypatch.setattr("tuneoff.planning.costs.can_help", lambda number: asked.append(number) is None)
    monkeypatch.setattr(Forecast, "_trace", None)
    assert Forecast(whole, study_shape(whole), basis).plan(whole, None, ()) == alone
    assert asked == [2]


def test_one_part_stands_for_those_like_it(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "CHUNK_BYTES", 4 * 264 * 7)  # a few targets at a time, and a rest
    one_for_all = traced(world, "lora")
    monkeypatch.setattr(setting, "one_for_all", lambda _: nullcontext())
    each = traced(world, "lora")
    assert one_for_all == each
    assert work_of(one_for_all) == work_of(each)


def test_help_is_asked_for_where_there_is_a_server_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(side_by_side.fork_server, "was_started_early", lambda: True)
    assert side_by_side.can_help(2)
    assert not side_by_side.can_help(1)
    monkeypatch.setattr(side_by_side.fork_server, "was_started_early", lambda: False)
    assert not side_by_side.can_help(2)
