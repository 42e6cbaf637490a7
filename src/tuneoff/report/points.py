"""From records and curves to the few points that a chart needs: seeds averaged, long curves thinned."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from tuneoff.analysis.comparison import Comparison
from tuneoff.analysis.estimates import Estimate
from tuneoff.analysis.explanation import NOTHING, Cost, Explanation
from tuneoff.analysis.measures import Measure
from tuneoff.analysis.values import ArmSummary, Summary
from tuneoff.report import numbers
from tuneoff.report.comparisons import against, references

Point = dict[str, Any]
CurveLine = Mapping[str, Any]

MAX_POINTS_PER_CURVE = 300
"""More than a curve has pixels between its bends."""
MAX_POINTS = 4500
"""Over all curves of a page, so that a study of hundreds of arms still opens at once."""
MAX_FOREST = 40
"""Rows of a chart of differences; the table below it has them all."""


def learning_points(summary: Summary, curves: Mapping[str, Sequence[CurveLine]]) -> list[Point]:
    """Return the points of the learning curves of every arm's chosen runs.

    Training losses are means over seeds and over the steps between two points; validation losses are means over seeds,
    with the lowest and highest seed. An arm that is not trained gives one point of kind `base`.

    Args:
        summary: what is known.
        curves: the lines of each run's `curve.jsonl`.
    """
    drawn = [arm for arm in summary.arms if any(curves.get(run_id) for run_id in arm.chosen_run_ids)]
    limit = max(20, min(MAX_POINTS_PER_CURVE, MAX_POINTS // max(1, len(drawn))))
    points: list[Point] = []
    for arm in drawn:
        runs = [curves[run_id] for run_id in arm.chosen_run_ids if curves.get(run_id)]
        points += _thinned(arm.name, list(by_step(runs, "train")), limit)
        points += (_point(arm.name, "validation", [group]) for group in by_step(runs, "validation"))
    points += (_base_point(arm) for arm in summary.arms if not arm.is_trained and arm.validation is not None)
    return points


def rate_points(summary: Summary) -> list[Point]:
    """Return the points of the learning-rate curves: every trial that is finished."""
    return [
        {
            "arm": arm.name,
            "lr": trial.lr,
            "loss": rounded(trial.loss_nats),
            "state": "infeasible" if trial.loss_nats is None else "chosen" if trial.lr == arm.chosen_lr else "tried",
            "reason": trial.reason,
        }
        for arm in summary.arms
        for trial in arm.trials
        if trial.lr is not None and trial.status != "missing"
    ]


def optimum_points(explanation: Explanation) -> list[Point]:
    """Return where a parabola through the best rate and its two neighbours is lowest, for each arm that has one."""
    return [
        {
            "arm": optimum.arm,
            "lr": rounded(optimum.fitted_lr),
            "loss": None,
            "state": "fitted",
            "from": optimum.low_lr,
            "to": optimum.high_lr,
        }
        for optimum in explanation.optima
        if optimum.fitted_lr is not None
    ]


def difference_points(summary: Summary) -> list[Point]:
    """Return one point for each tested arm and each arm that it is held against: the difference with its interval.

    `reference` counts the arms that others are held against: the best, then full fine-tuning. What lies far off is left
    out, see `far_off`.
    """
    return [
        {
            "arm": pair.one,
            "reference": place,
            "other": pair.other,
            "difference": rounded(pair.difference.value),
            "low": rounded(pair.difference.low),
            "high": rounded(pair.difference.high),
            "outcome": pair.outcome,
        }
        for place, reference in enumerate(references(summary))
        for pair in _near(summary, reference)[:MAX_FOREST]
    ]


def far_off(summary: Summary) -> tuple[str, ...]:
    """Return the arms that a chart of differences leaves out, since they would press all the others into one line.

    They are arms that are not trained, and lie more than twice as far from the reference as any that is.
    """
    pairs = [(reference, pair.one) for reference in references(summary) for pair in against(summary, reference)]
    near = {(reference, pair.one) for reference in references(summary) for pair in _near(summary, reference)}
    return tuple(dict.fromkeys(one for reference, one in pairs if (reference, one) not in near))


def _near(summary: Summary, reference: str) -> list[Comparison]:
    pairs = against(summary, reference)
    trained = {arm.name for arm in summary.arms if arm.is_trained}
    reach = max((abs(end) for pair in pairs if pair.one in trained for end in _reach(pair)), default=math.inf)
    return [pair for pair in pairs if pair.one in trained or abs(pair.difference.value) <= 2 * reach]


def _reach(pair: Comparison) -> tuple[float, ...]:
    difference = pair.difference
    return tuple(end for end in (difference.value, difference.low, difference.high) if end is not None)


def cost_points(summary: Summary, explanation: Explanation = NOTHING) -> list[Point]:
    """Return one point for each trained arm with a test score: the score with its interval, and what it cost.

    Arms that are not trained cost nothing and mostly lie far from the others, which they would press into one line.

    Args:
        summary: what is known.
        explanation: says which arms are on the frontier of a cost.
    """
    arms = [(arm, score_of(arm, summary)) for arm in summary.arms if arm.is_trained]
    scored = [(arm, score) for arm, score in arms if score is not None]
    costs = [arm.costs for arm, _ in scored if arm.costs is not None]
    memory = numbers.size_unit(max((cost.train_peak_bytes or 0 for cost in costs), default=0))
    time = numbers.time_unit(max((cost.train_s or 0.0 for cost in costs), default=0.0))
    disk = numbers.size_unit(max((cost.weights_bytes for cost in costs), default=0))
    units: dict[Cost, tuple[float, str]] = {"memory": memory, "time": time, "disk": disk}
    return [_cost_point(arm, score, units) | _standing(arm.name, explanation) for arm, score in scored]


def score_of(arm: ArmSummary, summary: Summary) -> Estimate | None:
    """Return an arm's test score by the measure that ranks the arms."""
    return None if arm.test is None else arm.test.of(summary.primary)


def _cost_point(arm: ArmSummary, score: Estimate, units: Mapping[Cost, tuple[float, str]]) -> Point:
    amounts: dict[Cost, float | None] = dict.fromkeys(units)
    if arm.costs is not None:
        found = arm.costs
        amounts |= {"memory": found.train_peak_bytes, "time": found.train_s, "disk": found.weights_bytes}
    return {
        "arm": arm.name,
        **spread(score),
        "parameters": arm.parameters.trainable if arm.parameters else None,
        **{cost: None if amount is None else rounded(amount / units[cost][0]) for cost, amount in amounts.items()},
        "units": {"parameters": ""} | {cost: name for cost, (_, name) in units.items()},
    }


def _standing(arm: str, explanation: Explanation) -> Point:
    """Return on which frontiers an arm is, and on which it may be."""
    found: Point = {}
    for frontier in explanation.frontiers:
        if arm in frontier.arms:
            found[f"{frontier.cost}_frontier"] = "on it"
        elif arm in frontier.contested:
            found[f"{frontier.cost}_frontier"] = "perhaps on it"
    return found


def spread(score: Estimate) -> Point:
    """Return a score with the ends of its interval."""
    return {"score": rounded(score.value), "low": rounded(score.low), "high": rounded(score.high)}


def tradeoff_points(summary: Summary) -> list[Point]:
    """Return one point for each arm and decoding strategy: its score, and how much its texts differ.

    Distinct-2 falls with the number of texts it is taken over, so all points are brought to the same n, the largest in
    the study. A strategy that draws nothing writes the same text n times, whose distinct pairs are those of one text
    over n times as many: its distinct-2 divided by n, exactly. Strategies that drew fewer texts than n are left out.
    """
    measure, n = tradeoff_measure(summary), tradeoff_texts(summary)
    points = []
    for arm in summary.arms:
        for found in arm.generated:
            score = None if measure is None else found.metrics.get(measure.name)
            is_drawn = found.decoding.is_sampled
            if score is None or (is_drawn and found.num_samples < n):
                continue
            diversity = found.distinct_2.value * (1.0 if is_drawn else found.num_samples / n)
            points.append(
                {
                    "arm": arm.name,
                    "decoding": found.decoding.name,
                    "diversity": rounded(diversity),
                    **spread(score),
                    "n": found.num_samples,
                }
            )
    return points


def tradeoff_measure(summary: Summary) -> Measure | None:
    """Return what texts are scored by against their diversity: the first metric of generated text."""
    return summary.measures[0] if summary.measures and summary.kind != "classification" else None


def tradeoff_texts(summary: Summary) -> int:
    """Return the number of texts for each prompt at which strategies are compared: the largest in the study."""
    return max((found.num_samples for arm in summary.arms for found in arm.generated), default=1)


def tradeoff_note(summary: Summary) -> str:
    """Return how the strategies were brought to one n, and which could not be."""
    n = tradeoff_texts(summary)
    found = [texts for arm in summary.arms for texts in arm.generated]
    if n == 1:
        return "n = 1 text for each prompt, so this is how little a text repeats itself."
    fewer = dict.fromkeys(texts.decoding.name for texts in found if texts.decoding.is_sampled and texts.num_samples < n)
    parts = [f"Diversity over n = {n} texts for each prompt"]
    if any(not texts.decoding.is_sampled for texts in found):
        parts.append(f"; greedy and beam search write the same text {n} times")
    left = f" Not drawn, since fewer texts were: {', '.join(fewer)}." if fewer else ""
    return f"{''.join(parts)}.{left}"


def _base_point(arm: ArmSummary) -> Point:
    assert arm.validation is not None
    return {"arm": arm.name, "kind": "base", "loss": rounded(arm.validation.loss_nats.value)}


def by_step(runs: Sequence[Sequence[CurveLine]], kind: str) -> Iterator[list[CurveLine]]:
    """Yield the lines of one kind that the runs have in common, step by step.

    Args:
        runs: the lines of each one's `curve.jsonl`.
        kind: `train` or `validation`.
    """
    steps: dict[int, list[CurveLine]] = {}
    for run in runs:
        for line in run:
            if line.get("kind") == kind and _is_finite(line.get("loss_nats")):
                steps.setdefault(line["step"], []).append(line)
    # A step that not every seed has would move the mean by which seeds it holds.
    num_seeds = max(map(len, steps.values()), default=0)
    yield from (lines for _, lines in sorted(steps.items()) if len(lines) == num_seeds)


def _thinned(arm: str, groups: Sequence[Sequence[CurveLine]], limit: int) -> Iterator[Point]:
    width = math.ceil(len(groups) / limit) if groups else 1
    for start in range(0, len(groups), width):
        yield _point(arm, "train", groups[start : start + width])


def _point(arm: str, kind: str, groups: Sequence[Sequence[CurveLine]]) -> Point:
    """Return the mean of some steps' lines, placed at the last of the steps."""
    losses = [float(line["loss_nats"]) for lines in groups for line in lines]
    last = groups[-1]
    point: Point = {
        "arm": arm,
        "kind": kind,
        "step": int(last[0]["step"]),
        "tokens": round(fmean([line["target_tokens"] for line in last])),
        "loss": rounded(fmean(losses)),
    }
    if kind == "validation":
        point |= {"low": rounded(min(losses)), "high": rounded(max(losses)), "seeds": len(losses)}
    return point


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def rounded(value: float | None) -> float | None:
    """Return five significant digits: a chart cannot show more, and each digit is a byte of the page."""
    return None if value is None else float(f"{value:.5g}")


def arms_in(points: Iterable[Point]) -> list[str]:
    """Return the names of the arms that have a point, in order."""
    return list(dict.fromkeys(str(point["arm"]) for point in points))
