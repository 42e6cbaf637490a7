"""Sends learning curves and scores to experiment trackers, through Accelerate's own.

Files go to `trackers/` in the study's folder, and nothing over a network, unless the tracker's own environment
variables say otherwise (WANDB_MODE, MLFLOW_TRACKING_URI, TRACKIO_SPACE_ID). A tracker is a bystander: one that fails
or hangs is let go, the person is told, and a run's scores are the same with and without it.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, TrackioTracker, WandBTracker
from filelock import FileLock

from tuneoff.errors import StudyError
from tuneoff.study.identity import Run
from tuneoff.study.options import Tracker
from tuneoff.study.records import Record, TestRecord
from tuneoff.study.value import plain

FOLDER = "trackers"
PATIENCE_S = 60.0
"""How long a tracker may take over one call. To make MLflow's data base took 10 s on 2 cores at a load of 4."""
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_MODE": "offline",
}
"""Environment of trackers where the person has not set it: no reports to their makers, and no minutes of retries."""

Tell = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Tracking:
    """Where a run is tracked.

    Attributes:
        names: of the trackers.
        study: name of the study, under which its runs are gathered.
        arm: name of the run's arm.
        folder: of the study's results.
        lost: trackers that were let go for good; what is tracked later does not wait for them.
        arms: of the runs of a cohort, by run id.
    """

    names: tuple[Tracker, ...]
    study: str
    arm: str
    folder: Path
    lost: set[Tracker] = field(default_factory=set)
    arms: Mapping[str, str] = field(default_factory=dict)

    def of(self, run: Run) -> "Tracking":
        """Return the same for one run, with its own arm."""
        return replace(self, arm=self.arms.get(run.run_id, self.arm))


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
        tell: takes `untracked` when a tracker is let go.
        what: added to the run's name, such as `test`.
        first_step: the first step that will be sent; TensorBoard then drops that and later ones of earlier sittings.
        sitting: how often the run was started; a later one has a name of its own in trackers that can drop nothing.
    """

    def __init__(
        self, tracking: Tracking | None, run: Run, tell: Tell, what: str = "", *, first_step: int = 0, sitting: int = 1
    ) -> None:
        self._trackers: list[_Bystander] = []
        if tracking is None:
            return
        tracking = tracking.of(run)
        name = " ".join(filter(None, (run_name(tracking.arm, run), what)))
        settings = settings_of(run)
        for kind in (name for name in tracking.names if name not in tracking.lost):
            is_renamed = sitting > 1 and kind != "tensorboard"
            own_name = f"{name} (sitting {sitting})" if is_renamed else name
            tracker = _Bystander(kind, tell, tracking.lost)
            tracker.start(partial(_open, kind, tracking, own_name, settings, first_step))
            self._trackers.append(tracker)

    def curve(self, row: Mapping[str, Any]) -> None:
        """Send a line of the learning curve, as `train/loss_nats`, `validation/perplexity` and so on."""
        kind, step = row["kind"], row["step"]
        values = {f"{kind}/{key}": value for key, value in row.items() if key not in ("kind", "step")}
        self._log({key: value for key, value in values.items() if value is not None}, step)

    def record(self, record: Record) -> None:
        """Send what a run ended with: its validation loss and its costs."""
        values: dict[str, float] = {}
        if record.validation is not None:
            values |= {"final/validation_loss_nats": record.validation.loss_nats}
        if record.costs is not None:
            costs = record.costs
            of_whom = "costs" if costs.num_runs == 1 else "cohort_costs"
            values |= {f"{of_whom}/train_s": costs.train_s, f"{of_whom}/step_s": costs.step_s}
            values |= {f"{of_whom}/peak_bytes_{phase}": value for phase, value in costs.peak_bytes.items()}
        self._log(values, record.training.steps if record.training is not None else 0)

    def test(self, test: TestRecord) -> None:
        """Send the scores on the test split; MLflow refuses most signs in names, which `regex:` metrics have."""
        values = {"test/loss_nats": test.test.loss_nats, "test/perplexity": test.test.perplexity}
        values |= {"test/" + re.sub(r"[^\w.:-]", "_", name): value for name, value in test.metrics.items()}
        self._log(values, 0)

    def finish(self) -> None:
        """Close the trackers."""
        for tracker in self._trackers:
            tracker.do(lambda open_tracker: open_tracker.finish())
            tracker.dismiss()

    def _log(self, values: Mapping[str, float], step: int) -> None:
        for tracker in self._trackers:
            tracker.do(lambda open_tracker: open_tracker.log(dict(values), step=step))


class _Bystander:
    """A tracker in a thread of its own: one that hangs is waited for once and then left to itself.

    MLflow, W&B and trackio keep the run that is open by thread, so the runs of a cohort do not meet either.
    """

    def __init__(self, kind: Tracker, tell: Tell, lost: set[Tracker]) -> None:
        self.kind = kind
        self._tell = tell
        self._lost = lost
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=kind)
        self._tracker: GeneralTracker | None = None

    def start(self, open_tracker: Callable[[], GeneralTracker]) -> None:
        self._tracker = self._wait(open_tracker)

    def do(self, work: Callable[[GeneralTracker], object]) -> None:
        if self._tracker is not None:
            self._wait(work, self._tracker)

    def dismiss(self) -> None:
        self._tracker = None
        self._thread.shutdown(wait=False)

    def _wait(self, work: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return self._thread.submit(work, *arguments).result(PATIENCE_S)
        except TimeoutError:
            self._let_go(f"no answer within {PATIENCE_S:g} s", is_for_good=True)
        except Exception as error:  # a tracker may raise anything, and must not end a run
            self._let_go(f"{type(error).__name__}: {error}", is_for_good=self._tracker is None)
        return None

    def _let_go(self, why: str, *, is_for_good: bool) -> None:
        """Leave the tracker and say so: for good where the next run would wait for it in vain again."""
        self.dismiss()
        if is_for_good:
            self._lost.add(self.kind)
        until = "until the study is run again" if is_for_good else "for this run"
        what = f"tracker {self.kind} is let go {until}: {why}"
        sys.stderr.write(f"{what}\n")
        self._tell("untracked", {"what": what, "tracker": self.kind, "is_for_good": is_for_good})


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


def _open(kind: Tracker, tracking: Tracking, name: str, settings: Mapping[str, Any], first_step: int) -> GeneralTracker:
    """Make a tracker and its run."""
    for variable, value in DEFAULTS.items():
        os.environ.setdefault(variable, value)
    folder = tracking.folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "tensorboard":
        tracker = TensorBoardTracker(name, logging_dir=str(folder / kind), purge_step=first_step)
    elif kind == "mlflow":
        tracker = _mlflow(tracking, folder, name)
    elif kind == "trackio":
        tracker = _trackio(tracking, folder, name, settings)
    else:
        tracker = _wandb(tracking, folder, name, settings)
    with FileLock(folder / f".{kind}.lock"):  # MLflow's tracker looks for the experiment, and makes it where it is not
        tracker.start()
    if kind in ("tensorboard", "mlflow"):
        tracker.store_init_configuration(dict(settings))
    return tracker


def _mlflow(tracking: Tracking, folder: Path, name: str) -> GeneralTracker:
    own = f"sqlite:///{folder / 'mlflow.db'}"
    if os.environ.setdefault("MLFLOW_TRACKING_URI", own) != own:
        return MLflowTracker(tracking.study, run_name=name)
    nobody = {"mlflow.user": "tuneoff", "mlflow.source.name": "tuneoff"}  # else the account and the program's path
    return MLflowTracker(tracking.study, run_name=name, logging_dir=str(folder / "mlflow"), tags=nobody)


def _trackio(tracking: Tracking, folder: Path, name: str, settings: Mapping[str, Any]) -> GeneralTracker:
    os.environ.setdefault("TRACKIO_DIR", str(folder / "trackio"))  # read when it is imported
    return TrackioTracker(
        tracking.study,
        name=name,
        group=tracking.arm,
        config=dict(settings),  # Accelerate would set them in the run that was opened last, of whichever thread
        auto_log_cpu=False,
        auto_log_gpu=False,
        embed=False,
    )


def _wandb(tracking: Tracking, folder: Path, name: str, settings: Mapping[str, Any]) -> GeneralTracker:
    import wandb

    quiet = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        host="tuneoff",
        silent=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
    return WandBTracker(
        tracking.study,
        name=name,
        group=tracking.arm,
        dir=str(folder),
        config=dict(settings),  # as above
        reinit="create_new",
        settings=quiet,
    )
