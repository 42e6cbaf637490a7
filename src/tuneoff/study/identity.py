"""Canonical JSON and the identity of a run.

The same question always has the same name, whatever the order or spelling in the file.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pydantic import Field, PositiveFloat

from tuneoff.study.methods import MethodSpec
from tuneoff.study.spec import Arm, BudgetSpec, EvaluateSpec, OptimizerSpec, Study, TaskSpec
from tuneoff.study.value import Value, plain

RUN_ID_DIGITS = 16
"""Hex digits of a run's name: 64 bits, so that among a million runs a clash has a chance of 3e-8."""


class Run(Value):
    """A trial with one seed.

    The unit that is trained, stored and resumed. Holds all that its result depends on, and nothing else.
    """

    model: str
    revision: str | None
    trust_remote_code: bool
    task: TaskSpec
    budget: BudgetSpec
    precision: str
    optimizer: OptimizerSpec
    evaluate: EvaluateSpec
    keep: str
    gradient_checkpointing: bool = False
    method: MethodSpec
    lr: PositiveFloat | None = None
    """Peak learning rate; none where nothing is trained."""
    seed: int | None = None
    """None where nothing is drawn (zero-shot, loaded arms)."""
    micro_batch: int | None = Field(default=None)

    @property
    def run_id(self) -> str:
        """Hash that names the run's folder."""
        return digest(plain(self))[:RUN_ID_DIGITS]


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys, no spaces, and the shortest digits that give each number back."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """Return the sha256 (hex) of a JSON value's canonical form."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def task_key(task: TaskSpec) -> str:
    """Return what names a task's data: all of it but the metrics, which belong to the test."""
    return digest(plain(task.model_copy(update={"metrics": None})))


def make_run(study: Study, arm: Arm, lr: float | None, seed: int | None) -> Run:
    """Return the run of `arm` at one learning rate and seed."""
    own = study.for_arm(arm)
    return Run(
        model=own.model,
        revision=own.revision,
        trust_remote_code=own.trust_remote_code,
        task=own.task.model_copy(update={"metrics": None}),  # they belong to the test, not to the run
        budget=own.budget,
        precision=own.precision,
        optimizer=own.optimizer,
        evaluate=own.evaluate,
        keep="last" if own.keep == "last" else "best",
        gradient_checkpointing=own.gradient_checkpointing,
        method=arm.method,
        lr=lr,
        seed=seed,
        micro_batch=own.micro_batch,
    )


def run_ids(study: Study, arm: Arm, points: Sequence[tuple[float | None, int | None]]) -> tuple[str, ...]:
    """Return the names of an arm's runs at several learning rates and seeds, as `make_run` gives them.

    Written down once: a study of thousands of runs names them all before it can say which are done.
    """
    if not points:
        return ()
    body = plain(make_run(study, arm, *points[0]))
    rates = ((None if lr is None else float(lr), seed) for lr, seed in points)
    return tuple(digest(body | {"lr": lr, "seed": seed})[:RUN_ID_DIGITS] for lr, seed in rates)
