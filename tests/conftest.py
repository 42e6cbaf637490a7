"""What every test stands on: no network, one thread, caches of its own, the same draws each time."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tuneoff import fork_server

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

# Here one process makes plans and runs, and has one server for both: it must be the one that has all that runs need.
fork_server.FOR_PLANS = fork_server.FOR_RUNS

# A shared machine may stall, so no deadline; the same examples each time, so that a red test stays red.
settings.register_profile("tuneoff", deadline=None, derandomize=True)
settings.load_profile("tuneoff")


LONG = (
    "tests/cli/test_mistakes.py::test_as_a_process_of_its_own",
    "tests/evaluation/test_decoding.py::test_token_frequencies_over_10000_draws[decoding1",
    "tests/evaluation/test_decoding.py::test_token_frequencies_over_10000_draws[decoding4",
    "tests/evaluation/test_decoding.py::test_token_frequencies_over_10000_draws[decoding6",
    "tests/evaluation/test_generation.py::test_beams_are_those_of_generate_at_batch_1[4-",
    "tests/evaluation/test_generation.py::test_sampled_text_does_not_depend_on_the_batch[t-0.8-",
    "tests/faults/test_faults.py::test_a_sample_of_faults",
    "tests/methods/test_peft_interchange.py::test_a_merged_model_writes_the_same_text_in_plain_transformers[bias-",
    "tests/methods/test_peft_interchange.py::test_a_merged_model_writes_the_same_text_in_plain_transformers[rslora-",
    "tests/methods/test_peft_parity.py::test_fifty_steps_give_the_loss_curve_of_peft_in_abare_loop[bias-",
    "tests/methods/test_peft_parity.py::test_fifty_steps_give_the_loss_curve_of_peft_in_abare_loop[dora-llama-tied]",
    "tests/methods/test_peft_parity.py::test_fifty_steps_give_the_loss_curve_of_peft_in_abare_loop[dora-rslora-dropout-g",
    "tests/methods/test_soft_prompt.py::test_the_projects_own_decoding_goes_on_as_the_base_after_the_same_tokens[beam",
    "tests/planning/test_costs.py::test_the_command_line_plans_for_a_device_and_makes_it_fit",
    "tests/planning/test_fitting.py::test_a_run_keeps_what_was_foretold",
    "tests/planning/test_trace.py::test_reckoned_from_a_few_layers_a_trace_is_that_of_all[gpt2-bottleneck]",
    "tests/planning/test_trace.py::test_reckoned_from_a_few_layers_a_trace_is_that_of_all[gpt2-prefix]",
    "tests/planning/test_trace.py::test_reckoned_from_a_few_layers_a_trace_is_that_of_all[llama-none]",
    "tests/planning/test_trace.py::test_the_highest_point_is_the_allocators[gpt2-dropped-bf16]",
    "tests/running/test_cohort.py::test_a_killed_cohort_is_formed_again_whatever_the_flag_says",
    "tests/running/test_explain.py::test_a_crash_while_explaining_leaves_the_result_standing",
    "tests/running/test_kill.py::test_a_killed_child[phase]",
    "tests/running/test_kill.py::test_a_killed_command[",
    "tests/running/test_kill.py::test_an_altered_checkpoint_is_not_gone_on_from",
    "tests/running/test_kill.py::test_two_commands_at_once_share_the_work",
    "tests/running/test_packed_study.py::test_killed_it_goes_on_to_the_bits_of_an_undisturbed_study",
    "tests/running/test_sharing.py::test_kills_at_random_instants_move_no_bit",
    "tests/running/test_time_budget.py::test_a_signal_leaves_a_checkpoint_at_the_step_and_the_same_command_goes_on[SIG",
    "tests/running/test_time_budget.py::test_what_is_trained_is_left_off_after_its_step_and_ends_the_same[at",
    "tests/running/test_tracking.py::test_a_resumed_run_doubles_no_step",
    "tests/running/test_tracking.py::test_mlflow",
    "tests/running/test_tracking.py::test_wandb_offline",
    "tests/running/test_tuning.py::test_stopped_at_any_time_it_ends_the_same",
    "tests/running/test_unfair.py::test_an_unfairness_is_named[longer]",
    "tests/starting/test_init.py::test_a_smaller_micro_batch_comes_before_leaving_out",
    "tests/starting/test_init.py::test_a_study_runs_as_it_is_written",
    "tests/starting/test_init.py::test_the_demo_data_of_every_kind",
    "tests/starting/test_init.py::test_what_does_not_fit_is_left_out_with_the_reason",
    "tests/test_models.py::TestHub::test_an_unreachable_hub_is_not_asked_again_and_again",
    "tests/test_notebooks.py::test_runs[",
    "tests/test_notebooks.py::test_the_first_runs_cell_by_cell",
    "tests/test_recipes.py::TestSmoke::test_runs_from_end_to_end[demo]",
    "tests/test_recipes.py::TestSmoke::test_runs_from_end_to_end[dolly-llama3]",
    "tests/test_recipes.py::TestSmoke::test_runs_from_end_to_end[oasst1-gpt2]",
    "tests/test_recipes.py::TestSmoke::test_runs_from_end_to_end[squad-gpt2]",
    "tests/test_recipes.py::TestSmoke::test_runs_from_end_to_end[sst2-gpt2]",
    "tests/training/test_loop.py::test_a_cohort_trains_the_same_adapters_as_its_runs_alone[dtype0-1e-12-dora]",
    "tests/training/test_loop.py::test_a_cohort_trains_the_same_adapters_as_its_runs_alone[dtype1",
    "tests/training/test_loop.py::test_left_off_at_any_step_it_ends_with_the_bits_of_an_uninterrupted_run[late]",
    "tests/training/test_loop.py::test_left_off_at_any_step_it_ends_with_the_bits_of_an_uninterrupted_run[right",
)
"""Tests that take long (5 to 70 seconds) and go over ground that another of their kind covers, for `make test-long`."""


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

    base = tmp_path_factory.getbasetemp()
    return worlds.finished(base, base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)
