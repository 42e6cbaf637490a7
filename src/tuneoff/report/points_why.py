"""From an explanation to the points of its charts: when arms part, how the weights change, what is forgotten."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from statistics import fmean

from tuneoff.analysis.explanation import Capacity, Explanation, LayerEstimates, Leaving
from tuneoff.analysis.values import Summary
from tuneoff.report.points import MAX_POINTS, CurveLine, Point, by_step, rounded, score_of, spread
from tuneoff.report.text import clean

MAX_SPECTRUM = 60
"""Points of a spectrum, spread evenly over the logarithm of the direction's place."""


def gap_points(summary: Summary, explanation: Explanation, curves: Mapping[str, Sequence[CurveLine]]) -> list[Point]:
    """Return how far each arm's validation loss lies above the reference's, by step, and where it leaves it.

    Each seed is held against the reference's own; the point is the mean over seeds, with the lowest and the highest.
    Steps that a seed lacks are left out, since they would move the mean.

    Args:
        summary: what is known.
        explanation: says which arm is held against which.
        curves: the lines of each run's `curve.jsonl`.
    """
    points: list[Point] = []
    for leaving in explanation.leaving:
        if leaving.arm == leaving.reference:
            continue
        own = list(_gaps(summary, leaving, curves))
        points += own
        points += [point | {"kind": "leaves"} for point in own if point["step"] == leaving.step]
    return points


def _gaps(summary: Summary, leaving: Leaving, curves: Mapping[str, Sequence[CurveLine]]) -> Iterator[Point]:
    pairs = zip(summary.arm(leaving.arm).chosen_run_ids, summary.arm(leaving.reference).chosen_run_ids, strict=False)
    found = [
        ([*by_step([curves[one]], "validation")], [*by_step([curves[other]], "validation")])
        for one, other in pairs
        if curves.get(one) and curves.get(other)
    ]
    steps: dict[int, list[tuple[float, float]]] = {}
    for own, reference in found:
        losses = {int(lines[0]["step"]): float(lines[0]["loss_nats"]) for lines in reference}
        for lines in own:
            step = int(lines[0]["step"])
            if step in losses:
                gap = float(lines[0]["loss_nats"]) - losses[step]
                steps.setdefault(step, []).append((gap, float(lines[0]["target_tokens"])))
    for step, seen in sorted(steps.items()):
        if len(seen) == len(found):
            gaps = [gap for gap, _ in seen]
            yield {
                "arm": leaving.arm,
                "kind": "gap",
                "step": step,
                "tokens": round(fmean(tokens for _, tokens in seen)),
                "gap": rounded(fmean(gaps)),
                "low": rounded(min(gaps)),
                "high": rounded(max(gaps)),
                "reference": leaving.reference,
            }


def spectrum_points(explanation: Explanation) -> list[Point]:
    """Return the singular values of each arm's weight change over the largest one, by the place of their direction."""
    return [
        {"arm": weights.arm, "direction": place + 1, "value": rounded(weights.spectrum[place])}
        for weights in explanation.weights
        for place in _spread_evenly(len(weights.spectrum))
        if weights.spectrum[place] > 0
    ]


def _spread_evenly(length: int) -> list[int]:
    """Return places from 0 to `length`, all of few, and about even steps of the logarithm of many."""
    if length <= MAX_SPECTRUM:
        return list(range(length))
    steps = (math.exp(math.log(length) * place / (MAX_SPECTRUM - 1)) for place in range(MAX_SPECTRUM))
    return sorted({min(length, round(step)) - 1 for step in steps})


def held_points(explanation: Explanation) -> list[Point]:
    """Return the share of each arm's weight change, in per cent, that its best approximation of each rank holds."""
    return [
        {
            "arm": weights.arm,
            "rank": rank,
            "held": rounded(100 * share.value),
            "low": None if share.low is None else rounded(100 * share.low),
            "high": None if share.high is None else rounded(min(100.0, 100 * share.high)),
        }
        for weights in explanation.weights
        for rank, share in sorted(weights.share_held.items())
    ]


def kinds_of(explanation: Explanation) -> dict[str, str]:
    """Return the kinds of module whose weights changed, in the model's order: a short name by the full one.

    Modules that differ in nothing but the numbers in their names, which count layers, are of one kind.
    """
    modules = dict.fromkeys(layer.module for weights in explanation.weights for layer in weights.layers)
    kinds = list(dict.fromkeys(kind_and_layer(module)[0] for module in modules))
    parts = [kind.split(".") for kind in kinds]
    shared = sum(
        1 for _ in takewhile(lambda same: len(set(same)) == 1, zip(*(part[:-1] for part in parts), strict=False))
    )
    return {kind: clean(".".join(part[shared:])) for kind, part in zip(kinds, parts, strict=True)}


def kind_and_layer(module: str) -> tuple[str, int | None]:
    """Return the kind of a module and its layer, if any: `h.3.mlp.c_fc` is the `h.mlp.c_fc` of layer 3."""
    parts = module.split(".")
    numbers = [int(part) for part in parts if part.isdecimal()]
    return ".".join(part for part in parts if not part.isdecimal()) or module, numbers[0] if numbers else None


def module_points(explanation: Explanation) -> list[Point]:
    """Return the relative norm of each module's change and its intruder dimensions, for modules that lie in a layer.

    `kind` is the place in `kinds_of`. Where there are more than a page can hold, every other layer, every third one and
    so on is kept.
    """
    kinds = {kind: place for place, kind in enumerate(kinds_of(explanation))}
    found = [
        _module_point(weights.arm, layer, kinds[kind], number)
        for weights in explanation.weights
        for layer in weights.layers
        for kind, number in [kind_and_layer(layer.module)]
        if number is not None
    ]
    every = max(1, math.ceil(len(found) / MAX_POINTS))
    return [point for point in found if point["layer"] % every == 0]


def _module_point(arm: str, layer: LayerEstimates, kind: int, number: int) -> Point:
    norm = layer.relative_norm
    return {
        "arm": arm,
        "kind": kind,
        "layer": number,
        "norm": None if norm is None else rounded(norm.value),
        "intruders": rounded(layer.num_intruders.value),
        "top": layer.num_top,
    }


def forgetting_points(summary: Summary, explanation: Explanation) -> list[Point]:
    """Return what each arm forgot, with its test score; arms without one have no place."""
    found = []
    for forgot in explanation.forgetting:
        score = score_of(summary.arm(forgot.arm), summary)
        if score is not None:
            found.append(
                {
                    "arm": forgot.arm,
                    "forgot": rounded(forgot.difference.value),
                    "from": rounded(forgot.difference.low),
                    "to": rounded(forgot.difference.high),
                    **spread(score),
                }
            )
    return found


def capacity_points(summary: Summary, explanation: Explanation) -> list[Point]:
    """Return each arm's trainable parameters for a target token that it had to learn, with its test score."""
    found = []
    for capacity in explanation.capacity:
        score = score_of(summary.arm(capacity.arm), summary)
        if score is not None and capacity.trainable and tokens_of(capacity):
            found.append(
                {
                    "arm": capacity.arm,
                    "ratio": rounded(capacity.trainable / tokens_of(capacity)),
                    "parameters": capacity.trainable,
                    "tokens": tokens_of(capacity),
                    **spread(score),
                }
            )
    return found


def tokens_of(capacity: Capacity) -> int:
    """Return the target tokens that there were to learn: without repeats, where that is known."""
    return capacity.num_unique_target_tokens or capacity.num_target_tokens
