"""Writes the report's files, each whole or not at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from tuneoff.analysis.explanation import NOTHING, Explanation
from tuneoff.analysis.values import Summary
from tuneoff.errors import StoreError, StudyError, did_you_mean
from tuneoff.files import write_synced
from tuneoff.report.charts import FORMATS, FigureFormat, figures, picture
from tuneoff.report.decoding import decoding_rows, texts_of
from tuneoff.report.drawing import why_not_drawn
from tuneoff.report.page import render_page
from tuneoff.report.points import CurveLine
from tuneoff.report.tables import rows, to_csv, to_json, to_markdown
from tuneoff.running.lazily import Lazily
from tuneoff.study.explained import Sample
from tuneoff.study.records import Record, TestRecord
from tuneoff.study.spec import Study


def write_report(
    folder: Path,
    study: Study,
    summary: Summary,
    curves: Mapping[str, Sequence[CurveLine]],
    records: Mapping[str, Record],
    tests: Mapping[str, TestRecord],
    forms: Sequence[str] = (),
    *,
    explanation: Explanation = NOTHING,
    samples: Mapping[str, Sequence[Sample]] = MappingProxyType({}),
) -> list[Path]:
    """Write `report.html`, `report.md`, `report.csv` and `report.json` into `folder`, and return their paths.

    Studies that generate text also get `report-decoding.csv`, and `forms` asks for `figures/NAME.FORM`.

    Args:
        folder: where they go; made where it is not there.
        study: the question.
        summary: what is known, from `summarise`.
        curves: the lines of each run's `curve.jsonl`, by `run_id`; runs may be missing.
        records: finished runs by `run_id`. Curves of other runs, and of infeasible ones, are not drawn.
        tests: the readings of the test split by `run_id`.
        forms: kinds of file that each chart is written as: png, svg, pdf.
        explanation: when, why and how the arms differ.
        samples: what each arm wrote for some items of the test split, by its name.

    Raises:
        StudyError: a kind of file that charts cannot be written as; nothing is written then.
        StoreError: the folder cannot be written to.
    """
    wanted = figure_formats(forms)
    done = Lazily([run_id for run_id in curves if _is_done(records.get(run_id))], curves.__getitem__)
    files = {
        "report.html": render_page(study, summary, done, explanation, samples).encode(),
        "report.md": to_markdown(summary, explanation).encode(),
        "report.csv": to_csv(rows(summary)).encode(),
        "report.json": to_json(study, summary, records, tests, explanation) + b"\n",
    }
    files |= {"report-decoding.csv": to_csv(decoding_rows(summary)).encode()} if texts_of(summary) else {}
    drawn = figures(summary, done, explanation) if wanted else {}
    files |= {f"figures/{name}.{form}": picture(chart, form) for form in wanted for name, chart in drawn.items()}
    try:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_synced(folder / name, content)
    except (OSError, StoreError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = getattr(cause, "strerror", None) or error
        raise StoreError(f"{folder}: the report cannot be written there ({reason}). Give another folder.") from None
    return [folder / name for name in files]


def figure_formats(forms: Sequence[str]) -> tuple[FigureFormat, ...]:
    """Return the kinds of file that are asked for, each once.

    Raises:
        StudyError: one that charts cannot be written as, or charts cannot be drawn here at all.
    """
    wanted: dict[FigureFormat, None] = {}
    for form in forms:
        known = next((known for known in FORMATS if known == form), None)
        if known is None:
            raise StudyError(f"figures: found {form!r}; allowed: {', '.join(FORMATS)}.{did_you_mean(form, FORMATS)}")
        wanted[known] = None
    if wanted and (why := why_not_drawn()):
        raise StudyError(f"figures: they cannot be drawn: {why}")
    return tuple(wanted)


def _is_done(record: Record | None) -> bool:
    return record is not None and record.status == "done"
