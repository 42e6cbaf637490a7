"""What makes an arm fit: against a search of everything, over an abstract need."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tuneoff.errors import StudyError
from tuneoff.planning.fit import ALL_KINDS, SAME_NUMBERS, Change, Kind, Need, find_fit, fitted, parse_kinds
from tuneoff.study.loading import study_from
from tuneoff.study.spec import Arm, Study

ARMS: dict[str, dict[str, Any]] = {
    "none": {"method": "none"},
    "full": {"method": "full", "lr": 1e-4},
    "lora": {"method": "lora", "rank": 4, "lr": 1e-4},
    "qlora": {"method": "lora", "rank": 4, "quantize": "nf4", "lr": 1e-4},
}


def make(**changes: Any) -> Study:
    raw = {
        "name": "fits",
        "model": "gpt2",
        "task": {"kind": "text", "data": "demo", "max_length": 256},
        "budget": {"steps": 10, "batch_size": 16},
        "arms": ARMS,
    }
    return study_from(raw | changes, Path())


def needs(study: Study, arm: Arm) -> Need:
    """Weights, states and activations of a made-up model; in proportions such that every rung matters for some arm."""
    own = study.for_arm(arm)
    half = 1 if own.precision == "fp32" else 2
    weights = 4000 // half
    if arm.method.method == "lora" and arm.method.quantize == "nf4":
        weights = 1100
    states = 12_000 if arm.method.method == "full" else 60 if arm.is_trained else 0
    batch = min(own.micro_batch or own.budget.batch_size, own.budget.batch_size) if arm.is_trained else 8
    layers = 1 if own.gradient_checkpointing and arm.is_trained else 6
    return Need(weights + states + batch * own.task.max_length * layers // half, weights + states)


def brute_force(study: Study, arm: Arm, room: int, kinds: tuple[Kind, ...]) -> int | None:
    """Return the fewest bytes that any change of these kinds comes to, where it fits at all."""
    sizes = [None, *(size for size in (8, 4, 2, 1) if "micro_batch" in kinds)]
    recomputes = [None, *([True] if "gradient_checkpointing" in kinds else [])]
    precisions = [None, *(["bf16"] if "bf16" in kinds else [])]
    quantized = [None, *(["nf4"] if "qlora" in kinds and arm.method.method == "lora" else [])]
    lengths = [None, *([128, 64, 32] if "length" in kinds else [])]
    found = []
    for size, recompute, precision, quantize, length in itertools.product(
        sizes, recomputes, precisions, quantized, lengths
    ):
        values = {"micro_batch": size, "gradient_checkpointing": recompute, "precision": precision}
        change = Change(**values, quantize=quantize, max_length=length)  # type: ignore[arg-type]
        changed = fitted(study, {arm.name: change})
        found.append(needs(changed, next(one for one in changed.arms if one.name == arm.name)).peak_bytes)
    return min(found) if min(found) <= room else None


@pytest.mark.parametrize("kinds", [ALL_KINDS, SAME_NUMBERS, ("micro_batch",), ("gradient_checkpointing", "length")])
@pytest.mark.parametrize("name", ARMS)
def test_a_change_is_found_exactly_where_there_is_one(name: str, kinds: tuple[Kind, ...]) -> None:
    study = make()
    arm = next(one for one in study.arms if one.name == name)
    whole = needs(study, arm).peak_bytes
    for room in range(1000, whole + 500, 4001):
        found = find_fit(study, arm, room, needs, kinds)
        assert found.fits == (whole <= room)
        possible = brute_force(study, arm, room, kinds) is not None
        assert (found.fits or found.change is not None) == possible, (name, room, found)
        if found.change is None:
            continue
        assert set(found.change.kinds) <= set(kinds)
        changed = fitted(study, {name: found.change})
        own = next(one for one in changed.arms if one.name == name)
        assert needs(changed, own).peak_bytes == found.changed_bytes <= room
        assert changed.for_arm(own).budget == study.budget  # the effective batch
        assert [one for one in changed.arms if one.name != name] == [one for one in study.arms if one.name != name]


def test_what_moves_no_number_comes_first_and_the_largest_micro_batch_is_taken() -> None:
    study = make()
    full = study.arms[1]
    one_layer, base = 256, 16_000
    found = find_fit(study, full, base + 4 * 6 * one_layer, needs)
    assert found.change == Change(micro_batch=4)  # 8 would not fit, and 2 would be slower than need be
    found = find_fit(study, full, base + 2 * one_layer, needs)  # 1 without checkpointing takes 6
    assert found.change == Change(micro_batch=2, gradient_checkpointing=True)
    found = find_fit(study, full, base + 16 * one_layer, needs, ("gradient_checkpointing",))
    assert found.change == Change(gradient_checkpointing=True)
    found = find_fit(study, full, 14_000 + one_layer, needs)
    assert found.change is not None
    assert found.change.kinds[-1] == "bf16"
    assert found.change.moves_numbers
    assert find_fit(study, full, 100, needs).change is None


def test_quantising_is_for_lora_alone_and_not_twice() -> None:
    study = make(precision="bf16", gradient_checkpointing=True, micro_batch=1)
    lora, qlora = study.arms[2], study.arms[3]
    assert find_fit(study, lora, 1400, needs).change == Change(quantize="nf4")
    assert find_fit(study, lora, 1400, needs, has_nf4=False).change is None
    changed = fitted(study, {"lora": Change(quantize="nf4")})
    assert changed.arms[2].method == qlora.method
    assert find_fit(study, qlora, 1200, needs).change == Change(max_length=64)


def test_what_the_device_or_the_model_cannot_do_is_not_proposed() -> None:
    study = make()
    full = study.arms[1]
    found = find_fit(study, full, 16_000 + 2 * 256, needs, has_checkpointing=False, has_bf16=False)
    assert found.change is not None
    assert found.change.gradient_checkpointing is None
    assert found.change.precision is None
    assert found.change.max_length == 64


def test_an_arm_keeps_what_it_overrides() -> None:
    arms = {"full": ARMS["full"] | {"override": {"budget": {"steps": 3}, "task": {"template": "x {text}"}}}}
    study = make(task={"kind": "classification", "data": "demo", "max_length": 256}, arms=arms)
    changed = fitted(study, {"full": Change(max_length=64, micro_batch=2)})
    own = changed.for_arm(changed.arms[0])
    assert (own.budget.steps, own.task.template, own.task.max_length, own.micro_batch) == (3, "x {text}", 64, 2)
    assert fitted(study, {}) == study


def test_kinds_are_named() -> None:
    assert parse_kinds("same") == parse_kinds("") == SAME_NUMBERS
    assert parse_kinds("all") == ALL_KINDS
    assert parse_kinds("length, bf16") == (*SAME_NUMBERS, "bf16", "length")
    with pytest.raises(StudyError, match=r"--fit: found 'bf61'; allowed: all, same, micro_batch.*Did you mean bf16\?"):
        parse_kinds("bf61")


def test_few_needs_are_asked_for() -> None:
    """Each is a trace of seconds: the rungs until one fits, and of that the micro-batches by halves."""
    study = make()
    asked: list[object] = []

    def counted(needed: Callable[[Study, Arm], Need]) -> Callable[[Study, Arm], Need]:
        def count(own: Study, arm: Arm) -> Need:
            asked.append(own)
            return needed(own, arm)

        return count

    find_fit(study, study.arms[1], 16_000 + 2 * 256, counted(needs))
    assert len(asked) <= 1 + 2 + 3
    asked.clear()
    assert find_fit(study, study.arms[1], 3000, counted(needs)).change is None  # weights and states alone are more
    assert len(asked) == 1 + 1  # as it is, and in bf16
