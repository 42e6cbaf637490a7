"""What a study's folder holds, for people: its records, its table, its charts and its report."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tuneoff.errors import StoreError
from tuneoff.study.explained import ExplainRecord
from tuneoff.study.records import Record, TestRecord
from tuneoff.study.spec import Study

if TYPE_CHECKING:
    from altair import LayerChart

    from tuneoff.analysis.explanation import Explanation
    from tuneoff.analysis.progress import Progress
    from tuneoff.analysis.time_to_go import TimeToGo
    from tuneoff.analysis.values import Summary
    from tuneoff.running.reading import Reading
    from tuneoff.running.store import Store


@dataclass(frozen=True)
class Result:
    """What a study's folder holds.

    Attributes:
        study: the study.
        store: its folder.
        failed: runs that crashed in this sitting, with what is known of it; they are tried again by the next `run`.
        is_cut: whether this sitting ended for want of time, before its work was done; the next `run` goes on.
    """

    study: Study
    store: "Store"
    failed: dict[str, str] = field(default_factory=dict)
    is_cut: bool = False

    def read(self) -> "Reading":
        """Return what the folder holds now. Given to `report` and to `table`, it is read once for both."""
        from tuneoff.running.reading import Reading

        return Reading(self.study, self.store)

    def records(self) -> tuple[dict[str, Record], dict[str, TestRecord]]:
        """Return the finished runs, and the readings of the test split, by run id."""
        return self.store.records()

    def summary(self) -> "Summary":
        """Return what is known about each arm."""
        return self.read().summary

    def progress(self) -> "Progress":
        """Return how far each arm is."""
        return self.read().progress

    def time_to_go(self) -> "TimeToGo":
        """Return how long each arm, and the study, still takes by what its runs took so far."""
        return self.read().time_to_go

    def explained(self) -> dict[str, ExplainRecord]:
        """Return what was worked out of the arms' runs at their chosen rates, and of the base, by run id."""
        return self.read().explained

    def explanation(self) -> "Explanation":
        """Return when, why and how the arms differ, as far as the finished runs tell."""
        return self.read().explanation

    def num_other_runs(self) -> int:
        """Return how many finished runs in the folder the study as given does not want: other settings made them."""
        return self.read().num_other_runs

    def running(self) -> frozenset[str]:
        """Return the runs that some process works on now."""
        return self.read().running

    def charts(self) -> "dict[str, LayerChart]":
        """Return the report's charts by name (`learning`, `rates`, ...), as Altair: a notebook shows what it is given.

        Charts that have nothing to show are left out.
        """
        from tuneoff.report.charts import figures

        found = self.read()
        return figures(found.summary, found.curves, found.explanation)

    def table(self, reading: "Reading | None" = None) -> None:
        """Print the main table.

        Args:
            reading: what the folder held; none reads it now.
        """
        from tuneoff.report.console import SafeConsole as Console
        from tuneoff.report.tables import study_table

        found = reading or self.read()
        Console().print(study_table(found.summary, found.explanation))

    def report(
        self, folder: Path | None = None, *, figures: Sequence[str] = (), reading: "Reading | None" = None
    ) -> list[Path]:
        """Write report.html, .md, .csv and .json, and return their paths.

        Args:
            folder: where to; none is the study's own folder.
            figures: kinds of file (png, svg, pdf) that every chart is written as, into `figures/`.
            reading: what the folder held; none reads it now.

        Raises:
            StudyError: a kind of file that charts cannot be written as.
            StoreError: the folder cannot be written to, the disk does not give what is in it (a page without that would
                take the place of a whole one), or none of its finished runs belongs to the study as given.
        """
        from tuneoff.report.write import write_report

        found = reading or self.read()
        if found.records and found.num_other_runs == len(found.records):
            raise StoreError(
                f"none of the {len(found.records)} finished runs in {self.store.folder} belongs to the study as given. "
                "Give the --set that they were run with."
            )
        summary, curves, explanation, samples = found.summary, found.curves, found.explanation, found.samples
        if found.store.unread:
            raise StoreError(
                f"{found.store.unread[0]}. No report is written, as it would lack what that file holds. "
                "Look after the disk; the same command reads it again."
            )
        return write_report(
            folder or self.store.folder,
            self.study,
            summary,
            curves,
            found.records,
            found.tests,
            figures,
            explanation=explanation,
            samples=samples,
        )
