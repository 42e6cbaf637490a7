"""Where a run that was begun goes on: its newest whole checkpoint, and learning curves that reach up to it."""

from collections.abc import Collection, Sequence
from pathlib import Path

from tuneoff.files import remove_folder
from tuneoff.running.examine import Tell
from tuneoff.running.store import Store
from tuneoff.study.identity import Run
from tuneoff.training.checkpoint import Checkpoint, load_checkpoint


def find_resume(
    store: Store, folder: Path, runs: Sequence[Run], along: Collection[int], tell: Tell
) -> Checkpoint | None:
    """Return the checkpoint to go on from, or none to start anew, and cut the learning curves to it.

    Args:
        store: where the runs are.
        folder: of their checkpoints.
        runs: that are trained in one pass.
        along: places of those that are finished, whose curves stay as they are.
        tell: takes a line for what is torn or altered.

    Raises:
        StoreError: the disk does not give what is there, or takes no writing.
    """
    problems: list[str] = []
    found = load_checkpoint(folder, problems)
    written = [(place, run.run_id) for place, run in enumerate(runs) if place not in along]
    if found is not None:
        short = [run_id for place, run_id in written if not _has_curve(store, run_id, found, place)]
        problems += [f"{store.run_folder(run_id)}: the learning curve is torn; the run starts anew" for run_id in short]
        if short:
            remove_folder(folder)
            found = None
    for problem in problems:
        tell("problem", {"what": problem})
    for _, run_id in written:
        store.cut_curve(run_id, found.step if found is not None else 0)
    return found


def _has_curve(store: Store, run_id: str, checkpoint: Checkpoint, place: int) -> bool:
    """Whether the learning curve has a point for each step that the checkpoint knows the loss of."""
    steps = [row["step"] for row in store.curve(run_id) if row["kind"] == "train" and row["step"] <= checkpoint.step]
    return len(steps) == len(checkpoint.state["members"][place]["losses"])
