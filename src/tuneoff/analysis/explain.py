"""When, why and how methods differ, from the records alone: a pure function, so that a report can be had at any time.

Each part has a module of its own in `tuneoff.analysis.explaining`, with its equations and sources.
"""

from collections.abc import Iterator, Mapping, Sequence

from tuneoff.analysis.explaining.capacity import capacities
from tuneoff.analysis.explaining.changes import weights
from tuneoff.analysis.explaining.evidence import CurveLine, Evidence
from tuneoff.analysis.explaining.forgetting import forgetting
from tuneoff.analysis.explaining.frontiers import frontiers
from tuneoff.analysis.explaining.leaving import leavings, loss_margin
from tuneoff.analysis.explaining.optima import optima, ratios
from tuneoff.analysis.explaining.sentences import sentences
from tuneoff.analysis.explaining.wording import named
from tuneoff.analysis.explanation import NOTHING, Explanation
from tuneoff.analysis.values import Summary
from tuneoff.study.explained import ExplainRecord
from tuneoff.study.records import Record
from tuneoff.study.spec import Study


def explain(
    study: Study,
    summary: Summary,
    records: Mapping[str, Record],
    curves: Mapping[str, Sequence[CurveLine]],
    explained: Mapping[str, ExplainRecord],
) -> Explanation:
    """Return when, why and how the arms of a study differ, as far as its runs tell; what they do not tell is noted.

    Args:
        study: the question.
        summary: what is known, from `summarise`.
        records: finished runs by `run_id`; runs of other studies may be among them.
        curves: the lines of each run's `curve.jsonl`, by `run_id`; runs may be missing.
        explained: what was worked out of the arms' chosen runs, and of the base, by `run_id`; runs may be missing.
    """
    evidence = Evidence(study, summary, records, curves, explained)
    if not any(evidence.runs(arm) for arm in summary.arms):
        return NOTHING
    best_rates = optima(evidence)
    base = evidence.base
    found = Explanation(
        loss_margin_nats=loss_margin(evidence),
        leaving=leavings(evidence),
        optima=best_rates,
        ratios=ratios(evidence, best_rates),
        weights=weights(evidence),
        base_retention_nats=None if base is None or base.retention is None else base.retention.likelihood.loss_nats,
        forgetting=forgetting(evidence),
        capacity=capacities(evidence),
        frontiers=frontiers(evidence),
    )
    said = sentences(evidence, found)
    return found.model_copy(update={"sentences": said, "notes": (*evidence.notes, *_of_records(evidence))})


def _of_records(evidence: Evidence) -> Iterator[str]:
    """Yield why something could not be worked out of a run, with the arms that it concerns."""
    noted: dict[str, dict[str, None]] = {}
    for arm in evidence.summary.arms:
        for note in (note for record in evidence.explained_of(arm) for note in record.notes):
            noted.setdefault(note, {})[arm.name] = None
    for note, names in noted.items():
        yield f"{named([*names])}: {note}"
