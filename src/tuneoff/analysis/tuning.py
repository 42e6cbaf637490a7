"""Which learning rates are tried: an arm's own grid, and the rounds that extend those that ask for it.

A round gives every such arm exactly one more trial, so that no arm is tuned better than another. It opens when the
trials of all of them are finished and the best of at least one lies at an edge of what it tried, beyond which a
better may lie; an arm whose trials all diverged counts as one that has to go lower. There an arm goes one rung (half
a decade) further; an arm whose best lies inside looks between it and the better of its two neighbours. So the k-th
extra rate of an arm depends on its own trials alone, and on the other arms only whether there is a k-th: the same
records give the same search, in whatever order they came in.

An arm without a result for another reason than divergence (out of memory) takes no part.
"""

import itertools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tuneoff.study.identity import make_run, run_ids
from tuneoff.study.rates import between, step_down, step_up
from tuneoff.study.records import DIVERGED, Halving, Record
from tuneoff.study.spec import Arm, Study
from tuneoff.study.value import Value

Edge = Literal["lowest", "highest"]
INFINITE = float("inf")


class Trial(Value):
    """One candidate learning rate on the first seed."""

    run_id: str
    lr: float | None
    """None where nothing is trained."""
    status: Literal["done", "infeasible", "pruned", "missing"]
    reason: str = ""
    """Why it is infeasible, or was stopped."""
    loss_nats: float | None = None
    """Validation loss; none unless done: of a trial that was stopped it is of another step than the others'."""

    @property
    def has_diverged(self) -> bool:
        """Whether it is infeasible because of its rate."""
        return self.status == "infeasible" and self.reason.startswith(DIVERGED)

    @property
    def badness(self) -> float:
        """The loss, above all others where there is none."""
        return INFINITE if self.loss_nats is None else self.loss_nats


Trials = tuple[Trial, ...]
"""Of one arm, rates rising."""


@dataclass(frozen=True)
class Rounds:
    """Where the search of a study stands.

    Attributes:
        trials: of every arm, by its name: what it tried, and what it is to try now (missing).
        is_open: whether arms that are extended may get further trials, so that no rate of theirs is chosen yet.
        is_partial: whether an arm that is not worked on was left out, as its trials are not finished.
        num_rounds: how many rounds there were, with the one that is open.
        moving: arms that made the last round necessary: their best lay at an edge, or all had diverged.
    """

    trials: Mapping[str, Trials]
    is_open: bool
    is_partial: bool
    num_rounds: int = 0
    moving: tuple[str, ...] = ()

    def rates(self, arm: Arm) -> tuple[float, ...]:
        """Return the rates that an arm tried or is to try."""
        return tuple(trial.lr for trial in self.trials[arm.name] if trial.lr is not None)

    def choose(self, arm: Arm) -> float | None:
        """Return the rate with the lowest validation loss, the lower of two that tie; none while the search goes on.

        Nor while arms that are left out (`--only`) may still extend it: another rate would then be read on the test
        split, too.
        """
        if is_unfinished(self.trials[arm.name]) or (arm.is_extended and (self.is_open or self.is_partial)):
            return None
        return best_of(self.trials[arm.name])


class Search:
    """Works out the search of a study from its records.

    Args:
        study: the question.
        records: the finished runs by `run_id`; others may be among them.
    """

    def __init__(self, study: Study, records: Mapping[str, Record]) -> None:
        self.study = study
        self.records = records
        self._known: dict[str, dict[float | None, Trial]] = {arm.name: {} for arm in study.arms}
        """Of each arm, in the order in which they are to be done."""
        self._halved = _halved(study) if study.tuning.search == "halving" else frozenset()

    def rounds(self, selected: Collection[str]) -> Rounds:
        """Return where the search stands, for arms that are worked on.

        Args:
            selected: their names. All of them are waited for; of the others those take part whose trials are finished,
                so that an arm that `--only` leaves out does not hold up the rest.
        """
        tried = {arm.name: self._trials(arm, arm.lr) for arm in self.study.arms}
        searched = [arm for arm in self.study.arms if arm.is_extended]
        is_open = is_partial = False
        moved: list[tuple[str, ...]] = []
        while len(moved) < self.study.tuning.extend:
            unfinished = {arm.name for arm in searched if is_unfinished(tried[arm.name])}
            is_open = not unfinished.isdisjoint(selected)
            if is_open:
                break
            is_partial = is_partial or bool(unfinished)
            searched = [arm for arm in searched if arm.name not in unfinished and _takes_part(tried[arm.name])]
            moving = tuple(arm.name for arm in searched if _has_to_move(tried[arm.name]))
            if not moving:
                break
            moved.append(moving)
            for arm in searched:
                rates = (trial.lr for trial in tried[arm.name] if trial.lr is not None)
                tried[arm.name] = self._trials(arm, (*rates, next_rate(tried[arm.name])))
        else:
            is_partial = False  # no round is left that an arm could wait for
        return Rounds(tried, is_open, is_partial, len(moved), moved[-1] if moved else ())

    def tried(self, arm: Arm) -> Trials:
        """Return what became of each rate that an arm tried or is to try; one scoring where nothing is trained."""
        return self._view(arm).trials[arm.name]

    def choose(self, arm: Arm) -> float | None:
        """Return the rate that an arm goes on with, so far as the records tell."""
        return self._view(arm).choose(arm)

    def halving(self, arm: Arm, run_id: str) -> Halving | None:
        """Return what a trial of an arm is held against while it is trained; none where it is trained to the end.

        Trials without a result are left out: else the early losses of one that diverged later could stop all others.
        """
        if arm.name not in self._halved:
            return None
        before = itertools.takewhile(lambda trial: trial.run_id != run_id, self._known[arm.name].values())
        names = tuple(trial.run_id for trial in before if trial.status != "infeasible")
        return Halving(reduction=self.study.tuning.reduction, before=names)

    def _view(self, arm: Arm) -> Rounds:
        """Return where the search stands for one arm, whatever else is worked on."""
        if arm.is_extended:
            return self.rounds((arm.name,))
        return Rounds({arm.name: self._trials(arm, arm.lr)}, is_open=False, is_partial=False)

    def _trials(self, arm: Arm, rates: Sequence[float]) -> Trials:
        known = self._known[arm.name]
        new = tuple(rate for rate in rates if rate not in known)
        points = [(rate, self.study.seeds[0]) for rate in new] if arm.is_trained else [] if known else [(None, None)]
        for (lr, _), run_id in zip(points, run_ids(self.study, arm, points), strict=True):
            known[lr] = _trial(run_id, lr, self.records.get(run_id), self.halving(arm, run_id))
        return tuple(known[rate] for rate in (sorted(rates) if arm.is_trained else (None,)))


def is_unfinished(tried: Trials) -> bool:
    """Whether a trial is still to do."""
    return any(trial.status == "missing" for trial in tried)


def best_of(tried: Trials) -> float | None:
    """Return the rate with the lowest validation loss, the lower of two that tie; none where there is no loss."""
    scored = [(trial.loss_nats, trial.lr) for trial in tried if trial.loss_nats is not None and trial.lr is not None]
    return min(scored)[1] if scored else None


def edge_of(tried: Trials, lr: float | None) -> Edge | None:
    """Return at which end of what was tried a rate lies, beyond which a better may lie; none inside or untuned.

    A rate beyond which another diverged lies inside.
    """
    if lr is None or len(tried) < 2:
        return None
    return "lowest" if lr == tried[0].lr else "highest" if lr == tried[-1].lr else None


def next_rate(tried: Trials) -> float:
    """Return the rate that an arm tries next.

    A rung below the lowest where all diverged or the lowest is the best, a rung above the highest where that is the
    best, else the geometric mean of the best and the better one of its neighbours.

    Args:
        tried: finished trials, of which one has a loss, or all diverged.
    """
    rates = [trial.lr for trial in tried if trial.lr is not None]
    best = best_of(tried)
    if best is None or edge_of(tried, best) == "lowest":
        return step_down(rates[0])
    if edge_of(tried, best) == "highest":
        return step_up(rates[-1])
    place = rates.index(best)
    if tried[place - 1].badness <= tried[place + 1].badness:
        return between(rates[place - 1], best)
    return between(best, rates[place + 1])


def _takes_part(tried: Trials) -> bool:
    return best_of(tried) is not None or all(trial.has_diverged for trial in tried)


def _has_to_move(tried: Trials) -> bool:
    best = best_of(tried)
    return best is None or edge_of(tried, best) is not None


def _halved(study: Study) -> frozenset[str]:
    """Return the arms whose trials may be stopped: tuned ones that can share no run with another arm.

    Arms of one method share a run at a rate that both try. One of them may need it whole.
    """
    tuned = [arm for arm in study.arms if arm.is_tuned]
    alike = {arm.name: make_run(study, arm, 1.0, study.seeds[0]).run_id for arm in study.arms if arm.is_trained}
    counts = Counter(alike.values())
    return frozenset(arm.name for arm in tuned if counts[alike[arm.name]] == 1)


def _trial(run_id: str, lr: float | None, record: Record | None, halving: Halving | None) -> Trial:
    if record is None or (record.status == "pruned" and (halving is None or record.halving != halving)):
        return Trial(run_id=run_id, lr=lr, status="missing")
    if record.status == "pruned":
        return Trial(run_id=run_id, lr=lr, status="pruned", reason=record.reason)
    if record.status == "infeasible" or record.validation is None:
        return Trial(run_id=run_id, lr=lr, status="infeasible", reason=record.reason or "no validation score")
    return Trial(run_id=run_id, lr=lr, status="done", loss_nats=record.validation.loss_nats)
