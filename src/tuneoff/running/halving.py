"""Stops trials whose rate falls behind: successive halving, by Optuna's own pruner.

Its database is the learning curves: before every question the study is built anew in memory, and the validation losses
of the arm's earlier trials are reported to it in their order, so that a run that was killed goes on as if it was not.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tuneoff.errors import StudyError
from tuneoff.running.store import Store
from tuneoff.study.identity import Run
from tuneoff.study.records import Halving
from tuneoff.study.spec import Study

if TYPE_CHECKING:
    from optuna.study import Study as OptunaStudy
    from optuna.trial import Trial

Curve = Sequence[tuple[int, float]]
"""Steps and validation losses, in their order."""


def check_search(study: Study) -> None:
    """Refuse successive halving where Optuna is not installed.

    Raises:
        StudyError: it is asked for and not installed.
    """
    if study.tuning.search == "halving" and importlib.util.find_spec("optuna") is None:
        raise StudyError(
            "tuning.search: halving asks Optuna's pruner, which is not installed. Run `pip install 'tuneoff[optuna]'`, "
            "or use search: grid, which trains every trial to the end."
        )


def reason_to_stop(store: Store, run: Run, halving: Halving) -> str:
    """Return why a run is to stop after the validation that its curve ends with; empty where it goes on.

    Args:
        store: where the curves are.
        run: the run.
        halving: what it is held against.
    """
    own = validations(store.curve(run.run_id))
    if not falls_behind([validations(store.curve(run_id)) for run_id in halving.before], own, halving.reduction):
        return ""
    step, loss = own[-1]
    num = len(halving.before)
    who = "that of the trial" if num == 1 else f"the best of the {num} trials"
    return f"stopped at step {step} by successive halving: its validation loss, {loss:.4f}, is behind {who} before it"


def validations(rows: Sequence[Mapping[str, Any]]) -> Curve:
    """Return the validation losses of a learning curve."""
    return [(int(row["step"]), float(row["loss_nats"])) for row in rows if row["kind"] == "validation"]


def falls_behind(before: Sequence[Curve], own: Curve, reduction: int) -> bool:
    """Ask Optuna's `SuccessiveHalvingPruner` whether a trial is to stop after its last validation.

    Asynchronous successive halving (Li et al., 2020, "A System for Massively Parallel Hyperparameter Tuning", section
    3.2) of trials that run one after another. Its rungs are the steps r, r eta, r eta^2, ... with r the first step
    that is scored and eta the reduction.

    Args:
        before: curves of the earlier trials, in their order.
        own: the trial's curve so far.
        reduction: eta.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=own[0][0], reduction_factor=reduction)
    study = optuna.create_study(pruner=pruner, sampler=optuna.samplers.RandomSampler(seed=0))
    for curve in filter(None, before):
        _replay(study, curve)
    return _reported(study.ask(), own)


def _replay(study: "OptunaStudy", curve: Curve) -> None:
    trial = study.ask()
    _reported(trial, curve)
    study.tell(trial, curve[-1][1])


def _reported(trial: "Trial", curve: Curve) -> bool:
    """Report a curve; return what the pruner says after its last point. It notes at each what a trial has passed."""
    is_behind = False
    for step, loss in curve:
        trial.report(loss, step)
        is_behind = trial.should_prune()
    return is_behind
