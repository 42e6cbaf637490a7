"""How many LoRA runs should fit: the formula against its paper's own figures, and what follows from it."""

from pathlib import Path

import pytest
from tests.running.world import study_of
from transformers import GPT2Config

from tuneoff.planning.cohort_memory import MAX_AUTO, CohortMemory, activation_bytes, cohort_memory

GPT2 = GPT2Config()  # 12 layers of 768 features and 12 heads


def test_the_formula_is_the_papers() -> None:
    """sbh(34 + 5as/h) for each layer, in 16 bits."""
    expected = 12 * 384 * 8 * 768 * (34 + 5 * 12 * 384 / 768)
    assert activation_bytes(GPT2, 8, 384, "bf16", is_recomputed=False) == round(expected)
    assert activation_bytes(GPT2, 8, 384, "fp32", is_recomputed=False) == round(2 * expected)
    recomputed = expected / 12 + 12 * 384 * 8 * 768 * 2
    assert activation_bytes(GPT2, 8, 384, "bf16", is_recomputed=True) == round(recomputed)


def test_the_largest_lora_arm_decides() -> None:
    arms = {
        "full": {"method": "full", "lr": 1e-3},
        "small": {"method": "lora", "lr": 1e-3},
        "large": {"method": "lora", "lr": 1e-3, "override": {"budget": {"batch_size": 32}}},
    }
    study = study_of(Path(), "s", arms, budget={"steps": 5, "batch_size": 8})
    found = cohort_memory(study, GPT2, 1000, {"full": 10**9, "small": 10, "large": 20}, 10**10)
    kept = activation_bytes(GPT2, 32, study.task.max_length, "fp32", is_recomputed=False)
    assert found == CohortMemory(device_bytes=10**10, base_bytes=1000, run_bytes=kept + 16 * 20)
    nothing = cohort_memory(study_of(Path(), "s", {"full": arms["full"]}), GPT2, 0, {"full": 1}, 10**10)
    assert nothing.size() == 1


@pytest.mark.parametrize(
    ("device_bytes", "num_jobs", "size"),
    [(0, 1, 1), (1000, 1, 7), (1000, 2, 3), (1000, 8, 1), (200, 1, 1), (10**6, 1, MAX_AUTO)],
)
def test_what_fits(device_bytes: int, num_jobs: int, size: int) -> None:
    memory = CohortMemory(device_bytes=device_bytes, base_bytes=100, run_bytes=100)
    assert memory.size(num_jobs) == size
