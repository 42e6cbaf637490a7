"""The page: one HTML file that holds all it needs, opens offline, asks for nothing and runs no text as code.

The charts are Vega-Lite, drawn by the bundle that vl-convert carries. Vega makes functions of expressions by `eval`
unless it is given its interpreter, which is in the bundle too; so the content-security policy can name our scripts by
their hashes and forbid the rest. A picture of each chart stands where JavaScript is off.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from types import MappingProxyType
from typing import Any

from altair.utils.schemapi import debug_mode
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from tuneoff.analysis.explanation import NOTHING, Explanation
from tuneoff.analysis.values import Summary
from tuneoff.report import columns as col
from tuneoff.report import comparisons, standing
from tuneoff.report.bundle import vega_bundle
from tuneoff.report.chart_parts import targets_word
from tuneoff.report.decoding import decoding_columns, texts_note, texts_of
from tuneoff.report.drawn import drawn_part
from tuneoff.report.examples import examples
from tuneoff.report.look import PAGE, Arms
from tuneoff.report.panel import Panel
from tuneoff.report.panels import learning_numbers, panels, trial_numbers
from tuneoff.report.panels_why import frontier_numbers, optimum_numbers, topics
from tuneoff.report.points import MAX_FOREST, CurveLine, arms_in, far_off, score_of, tradeoff_note
from tuneoff.report.reproduce import commands, study_yaml
from tuneoff.report.settings import describe
from tuneoff.report.tables import progress
from tuneoff.report.terms import meaning
from tuneoff.report.text import clean
from tuneoff.study.explained import Sample
from tuneoff.study.spec import Study

FILES = resources.files("tuneoff.report")
SHAPE_PATHS = {
    "circle": "M8 3.5a4.5 4.5 0 1 0 .01 0z",
    "square": "M4 4h8v8H4z",
    "triangle-up": "M8 3l5 9.5H3z",
    "diamond": "M8 2.5L12.5 8 8 13.5 3.5 8z",
    "cross": "M6.2 3h3.6v3.2H13v3.6H9.8V13H6.2V9.8H3V6.2h3.2z",
    "triangle-down": "M3 3.5h10L8 13z",
    "triangle-right": "M3.5 3v10L13 8z",
}
"""Vega's shapes, in a square of 16."""


@dataclass(frozen=True)
class Span:
    """Where an estimate and its interval lie on the table's small common axis, in per cent of its width."""

    at: float
    low: float | None
    high: float | None
    is_beyond: bool
    """Whether it lies off the axis, to the right."""
    is_before: bool
    """Whether it lies off the axis, to the left."""


def render_page(
    study: Study,
    summary: Summary,
    curves: Mapping[str, Sequence[CurveLine]],
    explanation: Explanation = NOTHING,
    samples: Mapping[str, Sequence[Sample]] = MappingProxyType({}),
) -> str:
    """Return the report as one HTML file.

    Args:
        study: the question.
        summary: what is known.
        curves: the lines of each run's `curve.jsonl`.
        explanation: when, why and how the arms differ.
        samples: what each arm wrote for some items of the test split, by its name.
    """
    part, part_explained, drawn_note = drawn_part(summary, explanation)
    with debug_mode(False):  # altair would check every part of every chart against its schema; the tests do
        found = panels(part, curves, part_explained)
        why = topics(part, part_explained, curves)
    drawn = {**found, **{panel.key: panel for topic in why for panel in topic.panels}}
    script = _file("page.js")
    style = _file("page.css")
    bundle = vega_bundle() if drawn else ""
    return (
        _environment()
        .get_template("page.html")
        .render(
            study=study,
            summary=summary,
            policy=_policy([bundle, script], style),
            style=Markup(style),
            bundle=Markup(bundle),
            script=Markup(script),
            data=_json_for_html(chart_data(drawn)),
            **_results(summary, found),
            **_standings(summary, part),
            arms=Arms(part, PAGE),
            learning_numbers=learning_numbers(found["learning"].points) if "learning" in found else None,
            trial_numbers=trial_numbers(part),
            drawn_note=drawn_note,
            why=why,
            sentences=explanation.sentences,
            unknown=explanation.notes,
            arms_of=arms_of,
            optima=optimum_numbers(part_explained),
            frontiers=frontier_numbers(explanation),
            examples=examples(summary, samples),
            facts=list(facts(study)),
            yaml=study_yaml(study),
            commands=commands(study),
        )
    )


@cache
def _environment() -> Environment:
    """Return what renders templates; it keeps them once they are compiled."""
    found = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_file)
    )
    found.filters |= {"clean": clean}
    return found


def chart_data(drawn: Mapping[str, Panel]) -> dict[str, Any]:
    """Return what the page's script draws the charts from; points that several share stand with the first of them."""
    found: dict[str, Any] = {}
    first: dict[int, str] = {}
    for key, panel in drawn.items():
        owner = first.setdefault(id(panel.points), key)
        found[key] = panel.data() if owner == key else panel.data() | {"points": owner}
    return found


def arms_of(drawn: Sequence[Panel]) -> list[str]:
    """Return the arms that some panels show, in their order."""
    return list(dict.fromkeys(arm for panel in drawn for arm in arms_in(panel.points)))


def _results(summary: Summary, found: Mapping[str, Panel]) -> dict[str, Any]:
    """Return what the sections on scores and costs are made from."""
    return {
        "panels": found,
        "shapes": SHAPE_PATHS,
        "progress": progress(summary),
        "columns": main_columns(summary),
        "all_columns": col.columns_of(summary).all[1:],
        "cost_columns": col.columns_of(summary).costs,
        "describe": describe,
        "verdict": emphasised(summary),
        "primary": summary.primary,
        "meaning": partial(meaning, is_classification=summary.kind == "classification"),
        "score_of": score_of,
        "spans": spans(summary),
        "targets_word": targets_word(summary),
        "texts": texts_of(summary),
        "text_columns": decoding_columns(summary),
        "texts_note": texts_note(summary),
        "tradeoff_note": tradeoff_note(summary),
        "untrained": [arm for arm in summary.arms if not arm.is_trained and score_of(arm, summary) is not None],
    }


def _standings(summary: Summary, part: Summary) -> dict[str, Any]:
    """Return what the sections on differences, of which a part is drawn, and on the audit are made from."""
    compared = standing.comparison_numbers(summary)
    standings = standing.standings(summary)
    is_cut = len(summary.ranking) - 1 > MAX_FOREST
    return {
        "chips": standing.chips(summary),
        "standings": standings,
        "has_standings": bool(compared.rows) or any(one.reasons for one in standings.values()),
        "compared": compared,
        "about_compared": comparisons.about(summary),
        "margin": f"{summary.margin:g} {summary.primary.unit}".rstrip(),
        "forest_note": f" Drawn are the {MAX_FOREST} that rank highest; the table has all." if is_cut else "",
        "far_off": far_off(part),
        "checks": standing.checks(summary),
        "declared": standing.meant(summary.audit.findings),
        "num_broken": len({finding.kind for finding in summary.audit.broken}),
    }


def main_columns(summary: Summary) -> tuple[col.ArmColumn, ...]:
    """Return the columns of the page's first table; the rest are in the one that has them all."""
    scores = (column for column in col.columns_of(summary).scores if column is not col.SEQUENCE_PERPLEXITY)
    return (*scores, col.RATE, col.TRAINABLE, col.REDUCTION, col.TIME, col.MEMORY, col.DISK)


def emphasised(summary: Summary) -> Markup:
    """Return the verdict with the names of the two arms that it weighs standing out."""
    text = str(escape(clean(summary.verdict)))
    for name in summary.ranking[:2]:
        shown = str(escape(clean(name)))
        text = text.replace(f" {shown} (", f" <strong>{shown}</strong> (", 1)
    return Markup(text)


def spans(summary: Summary) -> dict[str, Span]:
    """Return where each arm's test score lies on a common axis that runs over the trained arms and their intervals."""
    found = [(arm, score_of(arm, summary)) for arm in summary.arms]
    scored = [(arm, score) for arm, score in found if score is not None]
    shown = [score for arm, score in scored if arm.is_trained] or [score for _, score in scored]
    ends = [end for score in shown for end in (score.value, score.low, score.high) if end is not None]
    if not ends:
        return {}
    start, width = min(ends), max(max(ends) - min(ends), 1e-9)

    def place(value: float | None) -> float | None:
        return None if value is None else round(4 + 92 * (value - start) / width, 2)

    places = {}
    for arm, score in scored:
        at = place(score.value) or 0.0
        places[arm.name] = Span(
            min(max(at, 4.0), 96.0), place(score.low), place(score.high), is_beyond=at > 100, is_before=at < 0
        )
    return places


def facts(study: Study) -> Iterator[tuple[str, str]]:
    """Yield what was held fixed for every arm, for the head of the page."""
    budget = study.budget
    length = {"steps": budget.steps, "epochs": budget.epochs, "target tokens": budget.target_tokens}
    yield "model", clean(study.model)
    yield "data", clean(study.task.data)
    yield "task", study.task.kind
    yield "budget", " ".join(f"{value:,} {unit}" for unit, value in length.items() if value is not None)
    yield "effective batch", f"{budget.batch_size} sequences of up to {study.task.max_length:,} tokens"
    if study.task.generates:
        yield "decoding", ", ".join(decoding.name for decoding in study.decoding)
        yield "new tokens", f"at most {study.generate.max_new_tokens:,}"
    yield "seeds", ", ".join(map(str, study.seeds))
    yield "precision", study.precision
    warmup = study.optimizer.warmup
    length_of_warmup = f"{100 * warmup:g} %" if warmup < 1 else f"{warmup:g} steps"
    yield "schedule", f"{study.optimizer.schedule}, {length_of_warmup} warm-up"


def _policy(scripts: Sequence[str], style: str) -> str:
    """Return a content-security policy that lets our own scripts and style run and nothing be fetched or sent."""
    hashes = " ".join(f"'{_hash(script)}'" for script in scripts if script)
    rules = (
        "default-src 'none'",
        f"script-src {hashes}",
        f"style-src '{_hash(style)}'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    )
    return "; ".join(rules)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json_for_html(value: Any) -> Markup:
    """Return JSON that cannot end the element it stands in."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _file(name: str) -> str:
    return (FILES / name).read_text(encoding="utf-8").strip()
