"""A study's folder read once, however many tables and pages are made from it."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tuneoff.analysis.progress import Progress, current_tests, progress
from tuneoff.analysis.time_to_go import TimeToGo, UnderWay, Workload, time_to_go
from tuneoff.running.lazily import Lazily
from tuneoff.running.store import Store
from tuneoff.running.underway import planned_step_s, read_workload, runs_under_way
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
    def running(self) -> frozenset[str]:
        """The runs that some process works on now."""
        return frozenset(run_id for run_id in self.store.run_ids() if self.store.is_locked(run_id))

    @cached_property
    def under_way(self) -> dict[str, UnderWay]:
        """The runs that were begun and are not finished, with how far they are."""
        return runs_under_way(self.store, self.records.keys(), self.running)

    @cached_property
    def _workload(self) -> Workload | None:
        return read_workload(self.store)

    @property
    def num_steps(self) -> int | None:
        """Optimizer steps of each run; none where the data decide, and the study was not run yet."""
        if self.study.budget.steps is not None:
            return self.study.budget.steps
        return None if self._workload is None else self._workload.num_steps

    @cached_property
    def time_to_go(self) -> TimeToGo:
        """How long the study still takes, with as many processes as work on it now, or else as it was last run with."""
        at_work = sum(1 / own.num_runs for own in self.under_way.values() if own.is_at_work)
        return time_to_go(
            self.study,
            self.progress,
            self.records,
            current_tests(self.study, self.tests),
            workload=self._workload,
            under_way=self.under_way,
            planned_step_s=planned_step_s(self.store),
            num_jobs=round(at_work) or None,
        )

    @cached_property
    def summary(self) -> "Summary":
        """What is known about each arm."""
        from tuneoff.analysis.summary import summarise

        return summarise(
            self.study,
            self.records,
            self.tests,
            self._items(),
            self._solo(),
            self.store.predicted(),
            progress=self.progress,
        )

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
        names: dict[tuple[str, ...], tuple[str, ...]] = {}  # runs were mostly tested on the same items
        return {
            run_id: replace(items, names=names.setdefault(items.names, items.names))
            for run_id, items in found
            if items is not None
        }

    @cached_property
    def curves(self) -> Mapping[str, list[dict[str, Any]]]:
        """Learning curves of the runs at the chosen rates, each read when it is asked for: a page draws few of many.

        No chart shows those of other trials.
        """
        return Lazily([*self._chosen()], self.store.curve)

    @cached_property
    def validations(self) -> dict[str, list[dict[str, Any]]]:
        """The same curves' validated steps, which every arm is explained by; the whole of one that has none."""
        return {run_id: self.store.curve(run_id, "validation") for run_id in self._chosen()}

    def _chosen(self) -> Iterator[str]:
        """Yield the runs at the chosen rates, whether they are done or not."""
        return (run_id for arm in self.progress.arms for run_id in arm.chosen_run_ids)

    @cached_property
    def explained(self) -> dict[str, ExplainRecord]:
        """What was worked out of the runs at the chosen rates, and of the base, by run id."""
        wanted = dict.fromkeys((base_run(self.study).run_id, *self._chosen()))  # a zero-shot arm's run is the base's
        return self.store.explanations(wanted)

    @cached_property
    def explanation(self) -> "Explanation":
        """When, why and how the arms differ, as far as the finished runs tell."""
        from tuneoff.analysis.explain import explain

        return explain(self.study, self.summary, self.records, self.validations, self.explained)

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
