"""When runs are explained: after all scoring of their seed, before the next seed is trained, and only once."""

from pathlib import Path
from typing import Any

import pytest
from tests.running.test_schedule import Known, brief, likelihood
from tests.running.world import study_of

from tuneoff.running.schedule import Explained, Task, ready_tasks
from tuneoff.study.expand import base_run
from tuneoff.study.explained import Explaining, ExplainRecord
from tuneoff.study.options import ExplainSpec
from tuneoff.study.records import TestRecord
from tuneoff.study.spec import Study

ARMS = {"fixed": {"method": "lora", "lr": 1e-3}, "tuned": {"method": "full", "tune": {"lr": [1e-3, 1e-2]}}}
ZERO = {"zero": {"method": "none"}} | ARMS


def study(arms: dict[str, Any], **changes: Any) -> Study:
    return study_of(Path(), "s", arms, seeds=[0, 1], **({"explain": {}} | changes))


class Worked(Known):
    """Records, tests and explanations as they come in."""

    def __init__(self, study: Study, sha256: str = "") -> None:
        super().__init__(study)
        wanted = Explaining(asked=study.explain, retention=study.retention, retention_sha256=sha256)
        self.explained = Explained(wanted, {})

    def ready(self) -> list[Task]:
        return list(ready_tasks(self.study, self.study.arms, self.records, self.tests, self.explained))

    def do(self, task: Task) -> None:
        if task.kind != "explain":
            super().do(task)
            return
        assert task.explaining is not None
        done = dict(self.explained.records)
        done[task.run.run_id] = met(task.explaining, task.run.run_id)
        self.explained = Explained(self.explained.wanted, done)

    def all_of_it(self) -> list[Task]:
        found = []
        while ready := self.ready():
            found.append(ready[0])
            self.do(ready[0])
        return found


def met(wanted: Explaining, run_id: str = "") -> ExplainRecord:
    sha256 = "" if wanted.retention is None else wanted.retention_sha256 or "some"
    return ExplainRecord(
        run_id=run_id,
        asked=wanted.asked,
        retention_sha256=sha256,
        model_sha256=wanted.model_sha256,
        explain_s=0.0,
    )


def test_runs_are_explained_after_the_scoring_of_their_seed() -> None:
    tasks = Worked(study(ARMS, retention="demo")).all_of_it()
    assert [(kind, arm, seed) for kind, arm, _, seed in brief(tasks)] == [
        ("train", "fixed", 0),
        ("train", "tuned", 0),
        ("train", "tuned", 0),
        ("score", "tuned", 0),
        ("explain", "base", None),
        ("explain", "fixed", 0),
        ("explain", "tuned", 0),
        ("train", "fixed", 1),
        ("train", "tuned", 1),
        ("explain", "fixed", 1),
        ("explain", "tuned", 1),
    ]


def test_the_base_is_explained_once_and_as_the_zero_shot_arm_where_there_is_one() -> None:
    tasks = [task for task in Worked(study(ZERO, retention="demo")).all_of_it() if task.kind == "explain"]
    assert [task.arm for task in tasks] == ["zero", "fixed", "tuned", "fixed", "tuned"]
    assert tasks[0].run == base_run(study(ZERO))


@pytest.mark.parametrize(
    ("explain", "retention", "wanted"),
    [
        ({"weights": False, "samples": 0}, None, set()),
        ({"weights": False, "samples": 0}, "demo", {"zero", "fixed", "tuned"}),
        ({"weights": True, "samples": 0}, None, {"fixed", "tuned"}),  # the base's weights did not change
        ({"weights": False, "samples": 1}, None, {"zero", "fixed", "tuned"}),
    ],
)
def test_what_is_trivially_nothing_is_not_scheduled(explain: dict[str, Any], retention: str, wanted: set[str]) -> None:
    tasks = Worked(study(ZERO, explain=explain, retention=retention)).all_of_it()
    assert {task.arm for task in tasks if task.kind == "explain"} == wanted


def test_a_run_that_is_not_tested_as_asked_is_not_explained_yet() -> None:
    known = Worked(study(ARMS))
    known.all_of_it()
    known.explained = Explained(known.explained.wanted, {})
    (run_id, *_) = known.tests
    known.tests[run_id] = TestRecord(
        run_id=run_id,
        test=likelihood(),
        score_s=0.0,
        testing=known.study.testing.model_copy(update={"metrics": ("x",)}),
    )
    explained = [task.run.run_id for task in known.ready() if task.kind == "explain"]
    assert sorted(explained) == sorted(set(known.tests) - {run_id})


WANTED = Explaining(asked=ExplainSpec(), retention="general.txt", retention_sha256="new", model_sha256="base")


@pytest.mark.parametrize(
    ("change", "is_met"),
    [
        ({}, True),
        ({"asked": ExplainSpec(samples=5)}, False),
        ({"retention_sha256": "old"}, False),
        ({"retention_sha256": ""}, False),
        ({"model_sha256": "other"}, False),
    ],
)
def test_what_was_asked_otherwise_is_worked_out_anew(change: dict[str, Any], is_met: bool) -> None:
    assert WANTED.is_met_by(met(WANTED).model_copy(update=change)) == is_met


def test_what_nobody_looked_at_is_not_held_against_a_record() -> None:
    unseen = WANTED.model_copy(update={"retention_sha256": "", "model_sha256": ""})
    assert unseen.is_met_by(met(WANTED))
    assert not unseen.is_met_by(None)
    assert not unseen.model_copy(update={"retention": None}).is_met_by(met(WANTED))
