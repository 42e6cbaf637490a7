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
from functools import cache
from importlib import resources
from typing import Any

import vl_convert
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup, escape

from tuneoff.analysis.values import ArmSummary, Summary
from tuneoff.report import columns as col
from tuneoff.report import numbers
from tuneoff.report.look import PAGE, Arms
from tuneoff.report.panels import learning_numbers, panels, trial_numbers
from tuneoff.report.points import CurveLine
from tuneoff.report.reproduce import commands, study_yaml
from tuneoff.report.tables import progress, shown_with_interval
from tuneoff.report.text import clean
from tuneoff.study.methods import FullMethod, LoadMethod, LoraMethod
from tuneoff.study.spec import Study

FILES = resources.files("tuneoff.report")
MAIN_COLUMNS = (
    col.LOSS,
    col.PERPLEXITY,
    col.BITS,
    col.RATE,
    col.TRAINABLE,
    col.REDUCTION,
    col.TIME,
    col.MEMORY,
    col.DISK,
)
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


_SNIPPET = "window.vegaEmbed = vegaEmbed;"
"""What the bundle hands to the page: no more than the page uses."""


@dataclass(frozen=True)
class Span:
    """Where an estimate and its interval lie on the table's small common axis, in per cent of its width."""

    at: float
    low: float | None
    high: float | None
    is_beyond: bool
    """Whether it lies off the axis, to the right."""


def render_page(study: Study, summary: Summary, curves: Mapping[str, Sequence[CurveLine]]) -> str:
    """Return the report as one HTML file.

    Args:
        study: the question.
        summary: what is known.
        curves: the lines of each run's `curve.jsonl`.
    """
    found = panels(summary, curves)
    script = _file("page.js")
    style = _file("page.css")
    bundle = vega_bundle() if found else ""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"clean": clean}
    return environment.from_string(_file("page.html")).render(
        study=study,
        summary=summary,
        policy=_policy([bundle, script], style),
        style=Markup(style),
        bundle=Markup(bundle),
        script=Markup(script),
        data=_json_for_html({key: panel.data() for key, panel in found.items()}),
        panels=found,
        arms=Arms(summary, PAGE),
        shapes=SHAPE_PATHS,
        progress=progress(summary),
        columns=MAIN_COLUMNS,
        all_columns=col.COLUMNS,
        cost_columns=col.COST_COLUMNS,
        text_of=shown_with_interval,
        describe=describe,
        verdict=emphasised(summary),
        spans=spans(summary.arms),
        learning_numbers=learning_numbers(found["learning"].points) if "learning" in found else None,
        trial_numbers=trial_numbers(summary),
        facts=list(facts(study)),
        untrained=[arm for arm in summary.arms if not arm.is_trained and arm.test is not None],
        numbers=numbers,
        yaml=study_yaml(study),
        commands=commands(study),
    )


def describe(arm: ArmSummary) -> str:
    """Return the method and its scientific hyperparameters, for the line under an arm's name."""
    method = arm.method
    if isinstance(method, LoraMethod):
        parts = [f"LoRA rank {method.rank}", f"alpha {numbers.plain(method.alpha)}"]
        parts += [f"dropout {numbers.plain(method.dropout)}"] if method.dropout else []
        return ", ".join((*parts, " ".join(method.targets)))
    if isinstance(method, LoadMethod):
        return f"loaded from {method.path}"
    return "all weights are trained" if isinstance(method, FullMethod) else "nothing is trained"


def emphasised(summary: Summary) -> Markup:
    """Return the verdict with the names of the two arms that it weighs standing out."""
    text = str(escape(clean(summary.verdict)))
    for name in summary.ranking[:2]:
        shown = str(escape(clean(name)))
        text = text.replace(f" {shown} (", f" <strong>{shown}</strong> (", 1)
    return Markup(text)


def spans(arms: Sequence[ArmSummary]) -> dict[str, Span]:
    """Return where each arm's test loss lies on a common axis that runs over the trained arms and their intervals."""
    scored = [(arm, arm.test.loss_nats) for arm in arms if arm.test is not None]
    shown = [loss for arm, loss in scored if arm.is_trained] or [loss for _, loss in scored]
    ends = [end for loss in shown for end in (loss.value, loss.low, loss.high) if end is not None]
    if not ends:
        return {}
    start, width = min(ends), max(max(ends) - min(ends), 1e-9)

    def place(value: float | None) -> float | None:
        return None if value is None else round(4 + 92 * (value - start) / width, 2)

    found = {}
    for arm, loss in scored:
        at = place(loss.value) or 0.0
        found[arm.name] = Span(min(at, 96.0), place(loss.low), place(loss.high), is_beyond=at > 100)
    return found


def facts(study: Study) -> Iterator[tuple[str, str]]:
    """Yield what was held fixed for every arm, for the head of the page."""
    budget = study.budget
    length = {"steps": budget.steps, "epochs": budget.epochs, "target tokens": budget.target_tokens}
    yield "model", clean(study.model)
    yield "data", clean(study.task.data)
    yield "task", study.task.kind
    yield "budget", " ".join(f"{value:,} {unit}" for unit, value in length.items() if value is not None)
    yield "effective batch", f"{budget.batch_size} sequences of up to {study.task.max_length:,} tokens"
    yield "seeds", ", ".join(map(str, study.seeds))
    yield "precision", study.precision
    warmup = study.optimizer.warmup
    length_of_warmup = f"{100 * warmup:g} %" if warmup < 1 else f"{warmup:g} steps"
    yield "schedule", f"{study.optimizer.schedule}, {length_of_warmup} warm-up"


@cache
def vega_bundle() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as one script. Making it takes some seconds, so it is kept."""
    bundle: str = vl_convert.javascript_bundle(_SNIPPET)
    if "</script" in bundle.lower() or "<!--" in bundle:
        raise AssertionError("the bundle would end its own script element")
    return bundle


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
