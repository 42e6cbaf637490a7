"""The page of a made-up study with all that a report can hold: scores by item, an explanation, samples."""

from collections.abc import Mapping

from fakes import Fakes, make_items

from tuneoff.analysis.explain import explain
from tuneoff.analysis.explanation import Explanation
from tuneoff.analysis.summary import summarise
from tuneoff.analysis.values import Summary
from tuneoff.report.page import render_page
from tuneoff.study.explained import Sample


def summary_of(fakes: Fakes) -> Summary:
    """Return what is known, scores by item among it."""
    return summarise(fakes.study, fakes.records, fakes.tests, make_items(fakes))


def explanation_of(fakes: Fakes, summary: Summary) -> Explanation:
    """Return when, why and how, from what the study's runs left."""
    return explain(fakes.study, summary, fakes.records, fakes.curves, fakes.explained)


def samples_of(fakes: Fakes, summary: Summary) -> Mapping[str, tuple[Sample, ...]]:
    """Return what each arm wrote at its first seed."""
    found = {arm.name: fakes.explained.get(run_id) for arm in summary.arms for run_id in arm.chosen_run_ids[:1]}
    return {name: record.samples for name, record in found.items() if record is not None and record.samples}


def whole_page(fakes: Fakes) -> str:
    """Return the page with everything on it."""
    summary = summary_of(fakes)
    return render_page(fakes.study, summary, fakes.curves, explanation_of(fakes, summary), samples_of(fakes, summary))
