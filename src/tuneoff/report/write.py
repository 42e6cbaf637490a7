"""Writes the report's files, each whole or not at all."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from tuneoff.analysis.values import Summary
from tuneoff.errors import StoreError
from tuneoff.files import write_synced
from tuneoff.report.page import render_page
from tuneoff.report.points import CurveLine
from tuneoff.report.tables import to_csv, to_json, to_markdown
from tuneoff.study.records import Record, TestRecord
from tuneoff.study.spec import Study


def write_report(
    folder: Path,
    study: Study,
    summary: Summary,
    curves: Mapping[str, Sequence[CurveLine]],
    records: Mapping[str, Record],
    tests: Mapping[str, TestRecord],
) -> list[Path]:
    """Write `report.html`, `report.md`, `report.csv` and `report.json` into `folder`, and return their paths.

    Args:
        folder: where they go; made where it is not there.
        study: the question.
        summary: what is known, from `summarise`.
        curves: the lines of each run's `curve.jsonl`, by `run_id`; runs may be missing.
        records: finished runs by `run_id`. Curves of other runs, and of infeasible ones, are not drawn.
        tests: the readings of the test split by `run_id`.

    Raises:
        StoreError: the folder cannot be written to.
    """
    done = {run_id: lines for run_id, lines in curves.items() if _is_done(records.get(run_id))}
    facts = to_json(study, summary, records, tests)
    texts = {
        "report.html": render_page(study, summary, done),
        "report.md": to_markdown(summary),
        "report.csv": to_csv(summary),
        "report.json": json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_synced(folder / name, text.encode())
    except OSError as error:
        reason = error.strerror or error
        raise StoreError(f"{folder}: the report cannot be written there ({reason}). Give another folder.") from None
    return [folder / name for name in texts]


def _is_done(record: Record | None) -> bool:
    return record is not None and record.status == "done"
