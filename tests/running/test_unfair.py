"""Unfairness that a study file brings in is found in the records of real runs and named, and nothing else is."""

from pathlib import Path
from typing import Any

import pytest
from tests.running.world import NUM_JOBS, study_of

from tuneoff import api
from tuneoff.analysis.findings import Finding
from tuneoff.study.options import Invariant

pytestmark = pytest.mark.slow

TUNED = {"method": "lora", "rank": 4, "tune": {"lr": [1e-5, 1e-2, 1e3]}}
UNFAIR: dict[str, tuple[Invariant, dict[str, Any]]] = {
    "longer": ("budget", {"override": {"budget": {"steps": 9}}}),
    "smaller-batch": ("batch_size", {"override": {"budget": {"batch_size": 2}}}),
    "decayed": ("optimizer", {"override": {"optimizer": {"weight_decay": 0.5}}}),
    "reworded": ("template", {"override": {"task": {"template": "{instruction} ->"}}}),
    "shorter": ("max_length", {"override": {"task": {"max_length": 40}}}),
    "rounded": ("precision", {"override": {"precision": "bf16"}}),
    "untuned": ("num_trials", {"tune": None, "lr": 1e-2}),
}


@pytest.fixture(scope="module")
def unfair(world: Path, tmp_path_factory: pytest.TempPathFactory) -> api.Result:
    """A study of two fair arms and of one for each unfairness."""
    arms = {"fair": TUNED, "fair-too": TUNED | {"rank": 2}}
    for name, (_, changes) in UNFAIR.items():
        arms[name] = {key: value for key, value in (TUNED | changes).items() if value is not None}
    result = api.run(study_of(world, "unfair", arms), tmp_path_factory.mktemp("unfair"), num_jobs=NUM_JOBS)
    assert not result.failed
    return result


@pytest.mark.parametrize("name", UNFAIR)
def test_an_unfairness_is_named(unfair: api.Result, name: str) -> None:
    summary = unfair.summary()
    kinds = {finding.kind for finding in summary.audit.findings if name in finding.arms}
    assert kinds == {UNFAIR[name][0]}
    reasons = {finding.kind for finding in summary.audit.between("fair", name)}
    assert UNFAIR[name][0] in reasons


def test_the_fair_ones_are_comparable(unfair: api.Result) -> None:
    audit = unfair.summary().audit
    found: list[Finding] = [one for one in audit.findings if {"fair", "fair-too"} & set(one.arms)]
    assert found == []
    assert audit.between("fair", "fair-too") == ()


def test_it_is_said_beside_the_numbers(unfair: api.Result) -> None:
    unfair.report()
    text = (unfair.store.folder / "report.md").read_text("utf-8")
    assert "not comparable because its precision differs (bf16; the others: fp32)" in text
