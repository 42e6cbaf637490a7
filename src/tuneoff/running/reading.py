"""A study's folder read once, however many tables and pages are made from it."""

from functools import cached_property
from typing import TYPE_CHECKING, Any

from tuneoff.analysis.progress import Progress, progress
from tuneoff.running.store import Store
from tuneoff.study.expand import base_run
from tuneoff.study.explained import ExplainRecord, Sample
from tuneoff.study.solo import SoloCosts, solo_key
from tuneoff.study.spec import Study

if TYPE_CHECKING:
    from tuneoff.analysis.explanation import Explanation
    from tuneoff.analysis.items import ItemScores
    from tuneoff.analysis.values import Summary


class Reading:
    """What a study's folder held at one moment. The rest is read and worked out when it is first asked for, and kept.

    Args:
        study: the study.
        store: its folder.
    """

    def __init__(self, study: Study, store: Store) -> None:
        self.study = study
        self.store = store
        self.records, self.tests = store.records()

    @cached_property
    def progress(self) -> Progress:
        """How far each arm is; takes no score, so it is there long before the summary of a large study."""
        return progress(self.study, self.records, self.tests)

    @cached_property
    def summary(self) -> "Summary":
        """What is known about each arm."""
        from tuneoff.analysis.summary import summarise

        return summarise(self.study, self.records, self.tests, self._items(), self._solo(), self.store.predicted())

    def _solo(self) -> "dict[str, SoloCosts]":
        """Return what was measured of each arm alone, by its name."""
        found = {}
        for arm in self.progress.arms:
            record = next((self.records[run_id] for run_id in arm.chosen_run_ids if run_id in self.records), None)
            solo = None if record is None else self.store.solo(solo_key(record, self.study.testing))
            if solo is not None:
                found[arm.name] = solo
        return found

    def _items(self) -> "dict[str, ItemScores]":
        found = ((run_id, self.store.items(run_id)) for run_id in self.tests)
        return {run_id: items for run_id, items in found if items is not None}

    @cached_property
    def curves(self) -> dict[str, list[dict[str, Any]]]:
        """Learning curves of the runs at the chosen rates. No chart shows those of other trials."""
        return {run_id: self.store.curve(run_id) for arm in self.summary.arms for run_id in arm.chosen_run_ids}

    @cached_property
    def explained(self) -> dict[str, ExplainRecord]:
        """What was worked out of the runs at the chosen rates, and of the base, by run id."""
        chosen = (run_id for arm in self.summary.arms for run_id in arm.chosen_run_ids)
        wanted = dict.fromkeys((base_run(self.study).run_id, *chosen))  # a zero-shot arm's run is the base's
        found = ((run_id, self.store.explained(run_id)) for run_id in wanted)
        return {run_id: record for run_id, record in found if record is not None}

    @cached_property
    def explanation(self) -> "Explanation":
        """When, why and how the arms differ, as far as the finished runs tell."""
        from tuneoff.analysis.explain import explain

        return explain(self.study, self.summary, self.records, self.curves, self.explained)

    @property
    def samples(self) -> dict[str, tuple[Sample, ...]]:
        """What each arm wrote at its first seed, or at the first that is known, by the arm's name."""
        found = {}
        for arm in self.summary.arms:
            records = (self.explained[run_id] for run_id in arm.chosen_run_ids if run_id in self.explained)
            found[arm.name] = next((one.samples for one in records if one.samples), ())
        return {name: samples for name, samples in found.items() if samples}

    @property
    def num_other_runs(self) -> int:
        """How many finished runs the study as given does not want: other settings made them."""
        wanted = {run_id for arm in self.progress.arms for run_id in arm.run_ids}
        return sum(run_id not in wanted for run_id in self.records)
