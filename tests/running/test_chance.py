"""Labels that say nothing are learnt at chance, and no arm is claimed to be better; the same texts with labels are."""

from pathlib import Path
from random import Random
from typing import Any

import pytest
from tests.running.world import NUM_JOBS, study_of, write_rows

from tuneoff import api

pytestmark = pytest.mark.slow

NUM_ROWS = 600
FULL = {"full": {"method": "full", "lr": 1e-2}}
ARMS = {**FULL, "lora": {"method": "lora", "rank": 4, "lr": 3e-2}}


def classified(world: Path, out: Path, arms: dict[str, Any], seeds: list[int], *, is_shuffled: bool) -> api.Result:
    """Run a study of texts whose class one word tells, or whose labels were dealt out anew."""
    words = (("grim", "foul"), ("kind", "fair"))
    labels = [n % 2 for n in range(NUM_ROWS)]
    rows = [{"text": f"day {n} was {words[label][n % 3 % 2]}", "label": label} for n, label in enumerate(labels)]
    if is_shuffled:
        Random(0).shuffle(labels)
        rows = [row | {"label": label} for row, label in zip(rows, labels, strict=True)]
    name = "shuffled" if is_shuffled else "told"
    write_rows(world / f"{name}.jsonl", rows)
    task = {
        "kind": "classification",
        "data": f"{name}.jsonl",
        "max_length": 24,
        "splits": {"validation": 0.1, "test": 0.4},
    }
    budget = {"steps": 50 if is_shuffled else 80, "batch_size": 16}
    study = study_of(world, name, arms, task=task, budget=budget, seeds=seeds, evaluate={"every": 25})
    result = api.run(study, out, num_jobs=NUM_JOBS)
    assert not result.failed
    return result


def test_shuffled_labels_come_out_at_chance(world: Path, tmp_path: Path) -> None:
    result = classified(world, tmp_path, ARMS, [0, 1, 2], is_shuffled=True)
    summary = result.summary()
    _, tests = result.records()
    num_items = next(iter(tests.values())).test.num_sequences
    error = 100 * (0.25 / num_items) ** 0.5  # of one run's accuracy, in points
    for test in tests.values():
        assert abs(test.metrics["accuracy"] - 50) < 4 * error
    for arm in summary.arms:
        assert arm.test is not None
        accuracy = arm.test.of(summary.primary)
        assert accuracy is not None
        assert accuracy.low is not None
        assert accuracy.high is not None
        assert accuracy.low < 50 < accuracy.high
    assert [pair.outcome for pair in summary.comparisons if pair.outcome in ("better", "worse")] == []


def test_labels_that_say_something_do_not(world: Path, tmp_path: Path) -> None:
    _, tests = classified(world, tmp_path, FULL, [0], is_shuffled=False).records()
    (test,) = tests.values()
    assert test.metrics["accuracy"] > 80
