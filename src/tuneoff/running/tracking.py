"""Sends learning curves and scores to experiment trackers, through Accelerate's own.

Files go to `trackers/` in the study's folder, and nothing over a network, unless the tracker's own environment
variables say otherwise (WANDB_MODE, MLFLOW_TRACKING_URI). A tracker is a bystander: one that fails is let go, with a
line in the run's log, and a run's record is the same with and without it.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker

from tuneoff.errors import StudyError
from tuneoff.study.identity import Run
from tuneoff.study.options import Tracker
from tuneoff.study.records import Record, TestRecord
from tuneoff.study.value import plain

FOLDER = "trackers"
MAX_TRIES = 3
"""Two children may make MLflow's data base at the same moment; the later one finds it there at its second try."""


@dataclass(frozen=True)
class Tracking:
    """Where a run is tracked.

    Attributes:
        names: of the trackers.
        study: name of the study, under which its runs are gathered.
        arm: name of the run's arm.
        folder: of the study's results.
    """

    names: tuple[Tracker, ...]
    study: str
    arm: str
    folder: Path


def check_trackers(names: Sequence[Tracker]) -> None:
    """Refuse trackers whose package is missing.

    Raises:
        StudyError: which one, and how to install it.
    """
    for name in names:
        if find_spec(name) is None:
            raise StudyError(
                f"trackers: {name} was asked for, and its package is not installed. Install it with "
                f"`pip install 'tuneoff[{name}]'`, or take it out of the study."
            )


class RunTrackers:
    """The trackers of one run; every call is harmless.

    Args:
        tracking: where to; none tracks nothing.
        run: the run.
        what: added to the run's name, such as `test`.
        first_step: the first step that will be sent; a resumed run sends none twice where the tracker can drop some.
        sitting: how often the run was started; a later one has a name of its own where it cannot.
    """

    def __init__(
        self, tracking: Tracking | None, run: Run, what: str = "", *, first_step: int = 0, sitting: int = 1
    ) -> None:
        self._trackers: list[GeneralTracker] = []
        if tracking is None:
            return
        name = " ".join(filter(None, (run_name(tracking.arm, run), what)))
        for kind in tracking.names:
            self._start(kind, tracking, run, name, first_step, sitting)

    def _start(self, kind: Tracker, tracking: Tracking, run: Run, name: str, first_step: int, sitting: int) -> None:
        for attempt in range(MAX_TRIES):
            try:
                tracker = _make(kind, tracking, name, first_step, sitting)
                tracker.start()
                tracker.store_init_configuration(settings_of(run))
            except Exception as error:  # a tracker may raise anything, and must not end a run
                if attempt == MAX_TRIES - 1:
                    _say(kind, error)
            else:
                self._trackers.append(tracker)
                return

    def curve(self, row: Mapping[str, Any]) -> None:
        """Send a line of the learning curve, as `train/loss_nats`, `validation/perplexity` and so on."""
        kind, step = row["kind"], row["step"]
        values = {f"{kind}/{key}": value for key, value in row.items() if key not in ("kind", "step")}
        self._log({key: value for key, value in values.items() if value is not None}, step)

    def record(self, record: Record) -> None:
        """Send what a run ended with: its validation scores and its costs."""
        values: dict[str, float] = {}
        if record.validation is not None:
            values |= {"final/validation_loss_nats": record.validation.loss_nats}
        if record.costs is not None:
            costs = record.costs
            values |= {"costs/train_s": costs.train_s, "costs/step_s": costs.step_s}
            values |= {f"costs/peak_bytes_{phase}": value for phase, value in costs.peak_bytes.items()}
        self._log(values, record.training.steps if record.training is not None else 0)

    def test(self, test: TestRecord) -> None:
        """Send the scores on the test split."""
        values = {"test/loss_nats": test.test.loss_nats, "test/perplexity": test.test.perplexity}
        self._log(values | {f"test/{name}": value for name, value in test.metrics.items()}, 0)

    def finish(self) -> None:
        """Close the trackers."""
        for tracker in self._trackers:
            try:
                tracker.finish()
            except Exception as error:  # as above
                _say(tracker.name, error)
        self._trackers = []

    def _log(self, values: Mapping[str, float], step: int) -> None:
        for tracker in list(self._trackers):
            try:
                tracker.log(dict(values), step=step)
            except Exception as error:  # as above
                _say(tracker.name, error)
                self._trackers.remove(tracker)


def run_name(arm: str, run: Run) -> str:
    """Return what a run is called in a tracker: the arm, its rate and its seed."""
    rate = "" if run.lr is None else f" lr {run.lr:g}"
    return f"{arm}{rate}" + ("" if run.seed is None else f" seed {run.seed}")


def settings_of(run: Run) -> dict[str, str | int | float | bool]:
    """Return all settings of a run by dotted key, lists as text: trackers take single values alone."""
    return dict(_flat(plain(run), "")) | {"run_id": run.run_id}


def _flat(body: Mapping[str, Any], before: str) -> list[tuple[str, str | int | float | bool]]:
    found: list[tuple[str, str | int | float | bool]] = []
    for key, value in body.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{before}{key}.")
        elif value is not None:
            found.append((before + key, value if isinstance(value, str | int | float | bool) else str(value)))
    return found


def _make(kind: Tracker, tracking: Tracking, name: str, first_step: int, sitting: int) -> GeneralTracker:
    folder = tracking.folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "tensorboard":
        return TensorBoardTracker(name, logging_dir=str(folder / kind), purge_step=first_step)
    if sitting > 1:
        name = f"{name} (sitting {sitting})"
    if kind == "mlflow":
        import mlflow

        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
        return MLflowTracker(tracking.study, run_name=name, logging_dir=str(folder / "mlflow"))
    if kind == "trackio":
        os.environ.setdefault("TRACKIO_DIR", str(folder / kind))  # read when it is imported
        return TrackioTracker(tracking.study, name=name, group=tracking.arm)
    import wandb

    quiet = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        silent=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    mode = os.environ.get("WANDB_MODE", "offline")
    return WandBTracker(tracking.study, name=name, group=tracking.arm, dir=str(folder), mode=mode, settings=quiet)


def _say(kind: str, error: Exception) -> None:
    sys.stderr.write(f"tracker {kind} failed and is let go: {type(error).__name__}: {error}\n")
