"""Disk space: what a study will still write, against what is free, before the first step.

Counted are the weights that stay (of full fine-tuning those that are there at the same time: its trials until the rate
is chosen, then one for each seed), two checkpoints of the largest run for each process (the new one is written beside
the old one), and about what learning curves, records, tests and the page take.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tuneoff.analysis.progress import ArmProgress, Progress
from tuneoff.errors import StoreError
from tuneoff.running.reading import Reading
from tuneoff.running.store import FULL_WEIGHTS, Store
from tuneoff.study.spec import Arm, Study
from tuneoff.study.value import Value

if TYPE_CHECKING:
    from tuneoff.planning.plan import ArmPlan, Plan
    from tuneoff.running.preflight import Preflight

FP32_BYTES = 4
TIGHT_SHARE = 0.8
"""Of what is free, above which a warning is worth it: others write, too, and the estimate is one."""
STEP_BYTES = 360
"""A step's line in a learning curve, and its losses and times in two checkpoints."""
RUN_BYTES = 32_000
"""Records, setup and log of a run."""
SEQUENCE_BYTES = 250
"""Of each sequence of a test: its prediction, and its place among the scores by item."""
TOKEN_BYTES = 6
"""Of generated text, with what JSON adds."""
REPORT_BYTES = 4_000_000
"""The page and its companions."""
HEADER_BYTES = 16_000
"""Of a file of tensors."""
UNITS = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


class Space(Value):
    """Bytes that a study still has to write and that are there at the same time."""

    weights_bytes: dict[str, int]
    """By arm; those of which nothing is left are left out."""
    checkpoint_bytes: int
    """Of all processes together."""
    results_bytes: int
    """Curves, records, tests and the page, about."""

    @property
    def needed_bytes(self) -> int:
        """All of it."""
        return sum(self.weights_bytes.values()) + self.checkpoint_bytes + self.results_bytes


def needed_space(
    study: Study,
    arms: Sequence[Arm],
    plan: "Plan",
    progress: Progress,
    *,
    num_steps: int,
    num_test_sequences: int,
    num_jobs: int = 1,
    cohort_size: int = 1,
    num_present: dict[str, int] | None = None,
) -> Space:
    """Return what a study still has to write.

    Args:
        study: the study.
        arms: those that are worked on.
        plan: what each arm trains.
        progress: how far it is.
        num_steps: of each run.
        num_test_sequences: of the test split.
        num_jobs: processes at a time.
        cohort_size: LoRA runs of one pass at most.
        num_present: how many files of all weights each arm has already, by name.
    """
    planned = {arm.name: arm for arm in plan.arms}
    known = {arm.name: arm for arm in progress.arms}
    weights, checkpoints, num_runs, num_tests = {}, [0], 0, 0
    for arm in arms:
        own, at = planned[arm.name], known[arm.name]
        num_left = at.num_left + own.num_extra if at.num_left else 0
        num_tests += max(0, at.num_seeds - at.num_tested)
        if own.problem or not (arm.is_trained and num_left):
            continue
        num_runs += num_left
        num_kept = _num_kept(study, arm, own, at, num_left, num_jobs, (num_present or {}).get(arm.name, 0))
        weights[arm.name] = num_kept * _file_bytes(own)
        share = min(cohort_size, num_left) if arm.method.method == "lora" else 1
        checkpoints.append(2 * share * (_file_bytes(own) + own.optimizer_bytes))
    testing = study.testing
    num_samples = sum(one.samples for one in testing.decoding)
    num_prompts = min(num_test_sequences, testing.generate.limit or num_test_sequences)
    test_bytes = num_test_sequences * SEQUENCE_BYTES
    test_bytes += num_prompts * num_samples * (SEQUENCE_BYTES + TOKEN_BYTES * testing.generate.max_new_tokens)
    return Space(
        weights_bytes=weights,
        checkpoint_bytes=min(num_jobs, num_runs) * max(checkpoints),
        results_bytes=num_runs * (RUN_BYTES + num_steps * STEP_BYTES) + num_tests * test_bytes + REPORT_BYTES,
    )


def _file_bytes(own: "ArmPlan") -> int:
    """Return the size of a run's weights: what is trained, in fp32, and what the method adds frozen."""
    return max(own.saved_bytes, FP32_BYTES * own.parameters.trainable) + HEADER_BYTES


def _num_kept(
    study: Study, arm: Arm, own: "ArmPlan", at: ArmProgress, num_left: int, num_jobs: int, num_present: int
) -> int:
    """Return how many further files of weights of an arm are there at the same time."""
    if arm.method.method != "full":
        return num_left  # adapters are small and stay
    num_trials = len(at.trials) + own.num_extra
    num_later = at.num_seeds if study.keep != "none" else num_jobs  # else each goes once it is tested
    return max(0, min(num_left, max(num_trials, num_later) - num_present))


def check_space(
    space: Space, folder: Path, *, lean: Space | None = None, num_jobs: int = 1, free_bytes: int | None = None
) -> str:
    """Hold what a study has to write against what is free.

    Args:
        space: what it has to write.
        folder: its store, which need not be there yet.
        lean: the same with `keep: none`, where that is another.
        num_jobs: processes at a time.
        free_bytes: what is free; none asks the file system.

    Returns:
        A warning where it will be tight; else nothing.

    Raises:
        StoreError: it cannot fit.
    """
    free = _free_bytes(folder) if free_bytes is None else free_bytes
    if space.needed_bytes <= TIGHT_SHARE * free:
        return ""
    found = f"{folder}: the study still writes about {_size(space.needed_bytes)} ({_parts(space, num_jobs)})"
    if space.needed_bytes <= free:
        return f"{found}; {_size(free)} are free there, which is tight"
    todo = ["make room", "name another folder with --out"]
    if lean is not None and lean.needed_bytes < space.needed_bytes:
        fits = " (which fits)" if lean.needed_bytes <= free else ""
        todo.append(f"keep no weights of full fine-tuning with --set keep=none: {_size(lean.needed_bytes)}{fits}")
    if num_jobs > 1:
        todo.append("take fewer --jobs, as each holds checkpoints of its own")
    raise StoreError(f"{found}, and {_size(free)} are free there. What to do: {'; '.join(todo)}.")


def _parts(space: Space, num_jobs: int) -> str:
    largest = sorted(space.weights_bytes.items(), key=lambda item: -item[1])
    arms = ", ".join(f"{name} {_size(size)}" for name, size in largest[:3])
    more = f" and {len(largest) - 3} more arms" if len(largest) > 3 else ""
    weights = [f"weights of {arms}{more}"] if largest else []
    at_work = "one run" if num_jobs == 1 else f"{num_jobs} runs at a time"
    checkpoints = [f"checkpoints of {at_work} {_size(space.checkpoint_bytes)}"] if space.checkpoint_bytes else []
    return "; ".join([*weights, *checkpoints, f"results {_size(space.results_bytes)}"])


def _size(num_bytes: int) -> str:
    unit, name = next(((unit, name) for unit, name in UNITS if num_bytes >= unit), (1, "bytes"))
    return f"{num_bytes / unit:.3g} {name}"


def _free_bytes(folder: Path) -> int:
    """Return what this user may still write to the file system that a folder is, or will be, on."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def num_whole_weights(store: Store, progress: Progress) -> dict[str, int]:
    """Return how many files of all weights each arm has, by name."""
    return {
        arm.name: sum((store.run_folder(run_id) / FULL_WEIGHTS).exists() for run_id in arm.run_ids)
        for arm in progress.arms
    }


def check_room(
    study: Study, arms: Sequence[Arm], store: Store, found: "Preflight", num_jobs: int, cohort_size: int
) -> str:
    """Hold what a study has yet to write against what is free; return a warning where that is tight.

    Raises:
        StoreError: it cannot fit.
    """
    progress = Reading(study, store).progress

    def needed(study: Study) -> Space:
        return needed_space(
            study,
            arms,
            found.plan,
            progress,
            num_steps=found.num_steps,
            num_test_sequences=found.num_sequences.get("test", 0),
            num_jobs=num_jobs,
            cohort_size=cohort_size,
            num_present=num_whole_weights(store, progress),
        )

    lean = needed(study.model_copy(update={"keep": "none"}))
    return check_space(needed(study), store.folder, lean=lean, num_jobs=num_jobs)
