"""The audit names every planted unfairness, of the right arm and with its values, and is silent where there is none."""

from collections.abc import Callable
from typing import Any

import pytest
from fakes import Fakes, make_infeasible, make_study
from hypothesis import given
from hypothesis import strategies as st

from tuneoff.analysis.findings import Audit
from tuneoff.analysis.summary import summarise
from tuneoff.study.loading import study_from
from tuneoff.study.records import Record

ARMS = ("full", "lora-rank2", "lora-rank8", "lora-rank32")


def audit_of(fakes: Fakes) -> Audit:
    return summarise(fakes.study, fakes.records, fakes.tests).audit


def fair(**changes: Any) -> Fakes:
    """A study in which every best rate lies inside its grid."""
    arms = {
        "zero-shot": {"method": "none"},
        "full": {"method": "full", "tune": {"lr": [1e-5, 3e-5, 1e-4]}},
        "lora": {"method": "lora", "rank": [2, 8, 32], "targets": ["c_attn"], "tune": {"lr": [3e-5, 3e-4, 3e-3]}},
    }
    return Fakes(make_study(arms=arms, **changes))


def _run(path: str, value: Any) -> Callable[[Record], Record]:
    def change(record: Record) -> Record:
        outer, _, inner = path.partition(".")
        if not inner:
            return record.model_copy(update={"run": record.run.model_copy(update={outer: value})})
        part = getattr(record.run, outer).model_copy(update={inner: value})
        return record.model_copy(update={"run": record.run.model_copy(update={outer: part})})

    return change


def _training(**update: Any) -> Callable[[Record], Record]:
    def change(record: Record) -> Record:
        assert record.training is not None
        return record.model_copy(update={"training": record.training.model_copy(update=update)})

    return change


def _provenance(**update: Any) -> Callable[[Record], Record]:
    return lambda record: record.model_copy(update={"provenance": record.provenance.model_copy(update=update)})


PLANTED: dict[str, tuple[Callable[[Record], Record], str]] = {
    "base_model": (_provenance(model_sha256="f" * 64), "sha256 ffffffff; the others: sha256 248dfc39"),
    "data_order": (_training(batch_sequence_sha256="e" * 64), "order eeeeeeee of seed 1"),
    "budget": (_run("budget.steps", 400), "400 steps, 800 steps; the others: 800 steps"),
    "batch_size": (_run("budget.batch_size", 8), "(8; the others: 16)"),
    "optimizer": (_run("optimizer.weight_decay", 0.1), "(weight_decay 0.1; the others: weight_decay 0.0)"),
    "template": (_run("task.template", "{instruction}"), "('{instruction}'; the others: 'the plain one')"),
    "max_length": (_run("task.max_length", 128), "(128 tokens, middle; the others: 384 tokens, middle)"),
    "precision": (_run("precision", "bf16"), "(bf16; the others: fp32)"),
}


def plant(fakes: Fakes, kind: str, arm: str) -> None:
    """Give the arm's chosen runs another value."""
    summary = summarise(fakes.study, fakes.records, fakes.tests)
    runs = summary.arm(arm).chosen_run_ids
    if kind == "lost_seed":
        fakes.records[runs[1]] = make_infeasible(fakes.records[runs[1]].run, "diverged: the loss was nan at step 7")
        fakes.tests.pop(runs[1])
    elif kind == "evaluation_set":
        for run_id in runs:
            fakes.tests[run_id] = fakes.tests[run_id].model_copy(update={"test_sha256": "d" * 64})
    else:
        for run_id in runs:
            fakes.records[run_id] = PLANTED[kind][0](fakes.records[run_id])


def test_silent_where_nothing_is_planted() -> None:
    found = audit_of(fair())
    assert found.findings == ()
    assert len(set(found.checked)) == 12
    assert found.num_runs == 13


@pytest.mark.parametrize("kind", PLANTED)
def test_planted(kind: str) -> None:
    fakes = fair()
    plant(fakes, kind, "lora-rank8")
    found = audit_of(fakes)
    assert {one.kind for one in found.findings} == {kind}
    assert {one.arms for one in found.findings} == {("lora-rank8",)}
    assert any(PLANTED[kind][1] in one.message for one in found.findings)
    assert {one.kind for one in found.between("full", "lora-rank8")} == {kind}
    assert found.between("full", "lora-rank2") == ()


def test_other_test_set() -> None:
    fakes = fair()
    plant(fakes, "evaluation_set", "full")
    (finding,) = audit_of(fakes).findings
    assert (finding.kind, finding.arms) == ("evaluation_set", ("full",))
    assert "sha256 dddddddd" in finding.message


def test_lost_seed() -> None:
    fakes = fair()
    plant(fakes, "lost_seed", "full")
    (finding,) = audit_of(fakes).findings
    assert (finding.kind, finding.arms) == ("lost_seed", ("full",))
    assert "1 of its 3 seeds gave no result (diverged: the loss was nan at step 7)" in finding.message


def test_fewer_trials_and_edges() -> None:
    arms = {
        "full": {"method": "full", "tune": {"lr": [1e-5, 3e-5, 1e-4]}},
        "fixed": {"method": "lora", "rank": 8, "targets": ["c_attn"], "lr": 3e-4},
        "low": {"method": "lora", "rank": 2, "targets": ["c_attn"], "tune": {"lr": [1e-5, 3e-5, 1e-4]}},
    }
    found = audit_of(Fakes(make_study(arms=arms)))
    assert [(one.kind, one.arms) for one in found.findings] == [("num_trials", ("fixed",)), ("edge", ("low",))]
    assert "tried at one rate alone, theirs at 3" in found.findings[0].message
    assert "0.0001, is the highest that was tried" in found.findings[1].message
    assert {one.kind for one in found.between("fixed", "low")} == {"num_trials", "edge"}


def test_what_is_meant_is_said_and_does_not_count() -> None:
    fakes = fair(declare=["precision"])
    plant(fakes, "precision", "full")
    summary = summarise(fakes.study, fakes.records, fakes.tests)
    (finding,) = summary.audit.findings
    assert finding.is_declared
    assert summary.audit.broken == summary.audit.between("full", "lora-rank8") == ()
    assert any(caveat.startswith("full: meant: its precision differs") for caveat in summary.caveats)


@given(kind=st.sampled_from([*PLANTED, "evaluation_set", "lost_seed"]), arm=st.sampled_from(ARMS))
def test_one_departure_gives_findings_of_its_own_kind_and_arm(kind: str, arm: str) -> None:
    fakes = fair()
    plant(fakes, kind, arm)
    findings = audit_of(fakes).findings
    assert {one.kind for one in findings} == {kind}
    assert {one.arms for one in findings} == {(arm,)}


def test_the_numbers_say_it() -> None:
    from tuneoff.report.tables import rows, to_markdown

    fakes = fair()
    plant(fakes, "precision", "full")
    summary = summarise(fakes.study, fakes.records, fakes.tests)
    by_arm = {row["arm"]: row for row in rows(summary)}
    assert by_arm["full"]["is_comparable"] is False
    assert by_arm["full"]["not_comparable_because"] == "its precision differs (bf16; the others: fp32)"
    assert by_arm["lora-rank8"]["is_comparable"] is True
    text = to_markdown(summary)
    assert "full: not comparable because its precision differs" in text
    assert "Audit: 12 invariants of a fair comparison checked over 13 runs; 1 broken: precision." in text


def test_a_study_that_mixes_on_purpose() -> None:
    """An override reaches the runs, deeply merged: what is not given stays the study's."""
    raw = {
        "name": "mixed",
        "model": "demo",
        "task": {"kind": "instruction", "data": "demo", "max_length": 64},
        "budget": {"epochs": 1, "batch_size": 8},
        "arms": {"short": {"method": "full", "lr": 1e-3, "override": {"budget": {"steps": 5}}}},
    }
    from pathlib import Path

    from tuneoff.study.expand import trials

    study = study_from(raw, Path())
    (run,) = trials(study, study.arms[0])
    assert (run.budget.steps, run.budget.epochs, run.budget.batch_size) == (5, None, 8)
