"""The page's charts: which there are, what each can be switched to, and the numbers behind them as tables."""

from collections.abc import Mapping, Sequence
from itertools import product

from tuneoff.analysis.explanation import NOTHING, Explanation
from tuneoff.analysis.values import Summary
from tuneoff.report import charts, numbers
from tuneoff.report.chart_parts import Across, Axis, targets_word
from tuneoff.report.charts_compare import forest_chart
from tuneoff.report.look import PAGE, Arms
from tuneoff.report.panel import NARROW, Control, Numbers, Panel
from tuneoff.report.points import (
    CurveLine,
    Point,
    cost_points,
    difference_points,
    learning_points,
    optimum_points,
    rate_points,
    tradeoff_points,
)
from tuneoff.report.text import clean

MAX_TABLE_STEPS = 12
"""Rows of the table behind the learning curves; the chart has them all."""


def panels(
    summary: Summary, curves: Mapping[str, Sequence[CurveLine]], explanation: Explanation = NOTHING
) -> dict[str, Panel]:
    """Return the panels that have something to show, by key.

    Args:
        summary: what is known.
        curves: the lines of each run's `curve.jsonl`.
        explanation: where the best rates lie, and which arms are on a frontier.
    """
    arms = Arms(summary, PAGE)
    found = (*_differences(arms, difference_points(summary)), *_learning(arms, learning_points(summary, curves)))
    found += _rates(arms, [*rate_points(summary), *optimum_points(explanation)])
    found += (*_tradeoff(arms, tradeoff_points(summary)), *_costs(arms, cost_points(summary, explanation)))
    return {panel.key: panel for panel in found}


def _differences(arms: Arms, points: Sequence[Point]) -> tuple[Panel, ...]:
    if not points:
        return ()
    others = {point["reference"]: clean(point["other"]) for point in points}
    names = tuple(others.values())
    return (
        Panel(
            key="differences",
            label=f"Difference of every arm to {' and to '.join(names)}, with its 95 % interval",
            variants=tuple(forest_chart(points, arms, reference=place) for place in others),
            points=points,
            controls=(Control("against", names),) if len(names) > 1 else (),
        ),
    )


def _learning(arms: Arms, points: Sequence[Point]) -> tuple[Panel, ...]:
    if all(point["kind"] == "base" for point in points):
        return ()
    ways: tuple[Across, ...] = ("step", "tokens")
    scales: tuple[Axis, ...] = ("linear", "log")
    return (
        Panel(
            key="learning",
            label="Loss while training, for every arm",
            variants=tuple(charts.learning_chart(points, arms, x=x, scale=scale) for x, scale in product(ways, scales)),
            points=points,
            controls=(Control("against", ("steps", targets_word(arms.summary))), Control("axes", scales)),
        ),
    )


def _rates(arms: Arms, points: Sequence[Point]) -> tuple[Panel, ...]:
    # One rate says nothing about rates; it is in the tables.
    if len({point["lr"] for point in points if point["loss"] is not None}) < 2:
        return ()
    scales: tuple[Axis, ...] = ("linear", "log")
    return (
        Panel(
            key="rates",
            label="Validation loss against learning rate, for every arm",
            variants=tuple(charts.rate_chart(points, arms, scale=scale) for scale in scales),
            points=points,
            controls=(Control("loss axis", scales),),
        ),
    )


def _tradeoff(arms: Arms, points: Sequence[Point]) -> tuple[Panel, ...]:
    # One strategy trades nothing; its numbers are in the table.
    if len({point["decoding"] for point in points}) < 2:
        return ()
    label = "Score of generated text against its diversity, for every arm and decoding strategy"
    return (Panel(key="tradeoff", label=label, variants=(charts.tradeoff_chart(points, arms),), points=points),)


def _costs(arms: Arms, points: Sequence[Point]) -> tuple[Panel, ...]:
    found = []
    for cost, (title, usual) in charts.COSTS.items():
        if sum(point[cost] is not None for point in points) < 2:
            continue
        scales: tuple[Axis, ...] = ("log", "linear") if usual == "log" else ("linear", "log")
        panel = Panel(
            key=cost,
            label=f"Test {clean(arms.summary.primary.label)} against {title}",
            variants=tuple(charts.cost_chart(points, arms, cost, scale=scale) for scale in scales),
            points=points,
            width=NARROW,
            controls=(Control("axis", scales),),
        )
        found.append(panel)
    return tuple(found)


def learning_numbers(points: Sequence[Point]) -> Numbers:
    """Return the validation losses by step, one column for each arm, thinned to a dozen rows.

    Args:
        points: from `learning_points`.
    """
    losses = {(point["step"], point["arm"]): point["loss"] for point in points if point["kind"] == "validation"}
    steps = sorted({step for step, _ in losses})
    every = -(-len(steps) // MAX_TABLE_STEPS) if steps else 1
    # The last step is always shown, so the steps are counted from the end.
    shown = steps[::-1][::every][::-1]
    arms = list(dict.fromkeys(arm for _, arm in losses))
    rows = (
        (f"{step:,}", *(numbers.NONE if (step, arm) not in losses else numbers.loss(losses[step, arm]) for arm in arms))
        for step in shown
    )
    return Numbers(("step", *arms), tuple(rows))


def trial_numbers(summary: Summary) -> Numbers:
    """Return every trial: the rate, the validation loss, and what became of it."""
    rows = [
        (
            arm.name,
            numbers.rate(trial.lr),
            numbers.NONE if trial.loss_nats is None else f"{trial.loss_nats:.4f}",
            "chosen"
            if trial.lr == arm.chosen_lr
            else clean(f"{trial.status}: {trial.reason}" if trial.reason else trial.status),
        )
        for arm in summary.arms
        for trial in arm.trials
        if trial.lr is not None
    ]
    return Numbers(("arm", "learning rate", "validation loss", "state"), tuple(rows), frozenset({0, 3}))
