"""What every test stands on: no network, one thread, caches of its own, the same draws each time."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tuneoff.api import Result

# These are read when the libraries are first imported, so they are set before any test module is.
_CACHE = Path(tempfile.mkdtemp(prefix="tuneoff-tests-"))
os.environ |= {
    "HF_DATASETS_OFFLINE": "1",
    "HF_HOME": str(_CACHE / "huggingface"),
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
    "TUNEOFF_CACHE": str(_CACHE / "tuneoff"),
    "TUNEOFF_PLAN": "off",
    "WANDB_CACHE_DIR": str(_CACHE / "wandb"),
}
for _name in ("MLFLOW_TRACKING_URI", "TRACKIO_DIR", "TRACKIO_SPACE_ID", "WANDB_MODE"):
    os.environ.pop(_name, None)  # where the developer's own runs are tracked
# Sums depend on the number of threads in their last bits; one thread each also lets pytest-xdist fill the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shared machine may stall, so no deadline; the same examples each time, so that a red test stays red.
settings.register_profile("tuneoff", deadline=None, derandomize=True)
settings.load_profile("tuneoff")


LONG = (
    "tests/faults/test_faults.py::test_a_sample_of_faults",
    "tests/running/test_kill.py::test_a_killed_command[the whole group]",
    "tests/running/test_sharing.py::test_kills_at_random_instants_move_no_bit",
    "tests/running/test_time_budget.py::test_a_signal_leaves_a_checkpoint_at_the_step_and_the_same_command_goes_on[SIG",
    "tests/test_notebooks.py::test_runs[lora_on_squad]",
    "tests/test_notebooks.py::test_runs[methods_on_sst2]",
    "tests/test_recipes.py::TestSmoke::test_runs_from_end_to_end[book-gpt2]",
    "tests/test_recipes.py::TestSmoke::test_runs_from_end_to_end[dolly-llama3]",
    "tests/test_recipes.py::TestSmoke::test_runs_from_end_to_end[oasst1-gpt2]",
    "tests/test_recipes.py::TestSmoke::test_runs_from_end_to_end[sst2-gpt2]",
    "tests/training/test_loop.py::test_a_cohort_trains_the_same_adapters_as_its_runs_alone[dtype1",
)
"""Tests that take 20 to 70 seconds and go over ground that another of their kind covers: `make test-long` runs them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the long ones."""
    for item in items:
        if item.nodeid.startswith(LONG):
            item.add_marker(pytest.mark.long)


def pytest_unconfigure() -> None:
    """Remove the caches of this session."""
    shutil.rmtree(_CACHE, ignore_errors=True)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs an accelerator where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.accelerator.is_available():
            pytest.skip("no accelerator")


@pytest.fixture(scope="session")
def cache_folder() -> Path:
    """The folder that `TUNEOFF_CACHE` names during this session."""
    folder = Path(os.environ["TUNEOFF_CACHE"])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, rows and a text."""
    from tests.running import world as worlds  # here, because it imports Transformers

    return worlds.world(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> "Result":
    """A finished study; only to be read."""
    from tests.running import world as worlds

    return worlds.finished(tmp_path_factory.getbasetemp())
