"""What an explanation is worked out from: the chosen runs of every arm, with their curves and what became of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from tuneoff.analysis.estimates import ONE_SEED, Estimate, mean_and_half, t_quantile
from tuneoff.analysis.findings import OF_ONE_ARM, Finding
from tuneoff.analysis.values import ArmSummary, Summary
from tuneoff.study.expand import base_run
from tuneoff.study.explained import ExplainRecord
from tuneoff.study.records import Record
from tuneoff.study.spec import Study

CurveLine = Mapping[str, Any]
_ESTIMATES = TypeAdapter(list[Estimate | None])
NOT_TRAINED = "nothing is trained here, so no seed can move it"


@dataclass(frozen=True)
class Evidence:
    """All that is known of a study.

    Attributes:
        study: the question.
        summary: what is known, from `summarise`.
        records: finished runs by `run_id`; runs of other studies may be among them.
        curves: the lines of each run's `curve.jsonl`, by `run_id`; runs may be missing.
        explained: what was worked out of finished runs, and of the base, by `run_id`; runs may be missing.
        notes: what could not be worked out, and why; the parts add to it.
    """

    study: Study
    summary: Summary
    records: Mapping[str, Record]
    curves: Mapping[str, Sequence[CurveLine]]
    explained: Mapping[str, ExplainRecord]
    notes: list[str] = field(default_factory=list)
    _validated: dict[str, Mapping[int, tuple[float, int]]] = field(default_factory=dict)

    def runs(self, arm: ArmSummary) -> list[Record]:
        """Return the records of an arm's chosen runs that came to a result, seeds rising."""
        found = (self.records[run_id] for run_id in arm.chosen_run_ids if run_id in self.records)
        return sorted((one for one in found if one.status == "done"), key=lambda one: one.run.seed or 0)

    def explained_of(self, arm: ArmSummary) -> list[ExplainRecord]:
        """Return what was worked out of these runs, in the same order."""
        return [self.explained[run.run_id] for run in self.runs(arm) if run.run_id in self.explained]

    @cached_property
    def base(self) -> ExplainRecord | None:
        """What was worked out of the base as it is."""
        return self.explained.get(base_run(self.study).run_id)

    @cached_property
    def full(self) -> ArmSummary | None:
        """The arm that trains every weight, which others are held against: of several the one that ranks highest."""
        ranking = self.summary.ranking
        found = [arm for arm in self.summary.arms if arm.method.method == "full" and self.runs(arm)]
        return min(
            found, key=lambda arm: ranking.index(arm.name) if arm.name in ranking else len(ranking), default=None
        )

    def barriers(self, one: str, other: str) -> tuple[Finding, ...]:
        """Return why the curves of two arms must not be held against each other, differences that are meant too."""
        return tuple(
            finding
            for finding in self.summary.audit.findings
            if finding.kind not in OF_ONE_ARM and (one in finding.arms) != (other in finding.arms)
        )

    def validated(self, run_id: str) -> Mapping[int, tuple[float, int]]:
        """Return loss and target tokens of each validated step of a run; a reference's are asked for by every arm."""
        if run_id not in self._validated:
            self._validated[run_id] = {
                int(line["step"]): (float(line["loss_nats"]), int(line["target_tokens"]))
                for line in self.curves[run_id]
                if line.get("kind") == "validation" and isinstance(line.get("loss_nats"), int | float)
            }
        return self._validated[run_id]

    def note(self, text: str) -> None:
        """Add what could not be worked out, once."""
        if text not in self.notes:
            self.notes.append(text)


def over_runs(
    values: Sequence[float], *, is_drawn: bool = True, lowest: float = -math.inf, highest: float = math.inf
) -> Estimate:
    """Return the mean of what was worked out of an arm's runs, with its t interval over seeds; none of one seed.

    Args:
        values: at least one, one for each seed.
        is_drawn: whether seeds were drawn at all.
        lowest: what no such number can be below: the interval is cut off there, which costs it no coverage.
        highest: what none can be above.
    """
    mean, half = mean_and_half(values)
    if half is None:
        return Estimate(value=mean, n=1, how=_how(1, is_drawn=is_drawn))
    low, high = (min(max(end, lowest), highest) for end in (mean - half, mean + half))
    return Estimate(value=mean, low=low, high=high, n=len(values), how=_how(len(values), is_drawn=is_drawn))


def each_over_runs(
    values: NDArray[np.float64], highest: NDArray[np.float64], *, is_drawn: bool
) -> list[Estimate | None]:
    """Return `over_runs` of many things, but for rounding; none where a run has no value of it.

    Args:
        values: (runs, things), none below 0; NaN where there is none.
        highest: (things,), what each cannot be above.
        is_drawn: whether seeds were drawn at all.
    """
    num_runs = len(values)
    mean = values.mean(axis=0)
    fields = {"value": mean}
    if num_runs > 1:
        half = t_quantile(num_runs - 1) * np.sqrt(np.square(values - mean).sum(axis=0) / (num_runs - 1) / num_runs)
        fields |= {"low": np.clip(mean - half, 0, highest), "high": np.clip(mean + half, 0, highest)}
    same = {"n": num_runs, "how": _how(num_runs, is_drawn=is_drawn)}
    columns = zip(*(own.tolist() for own in fields.values()), strict=True)
    bodies = ({**dict(zip(fields, own, strict=True)), **same} if own[0] == own[0] else None for own in columns)
    return _ESTIMATES.validate_python(list(bodies))  # all at once: one by one takes three times as long


def _how(num_runs: int, *, is_drawn: bool) -> str:
    if num_runs > 1:
        return f"t over {num_runs} seeds"
    return ONE_SEED if is_drawn else NOT_TRAINED
