"""When, why and how arms differ, as the page shows it: topics with their charts and the numbers behind them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from tuneoff.analysis.estimates import Estimate
from tuneoff.analysis.explaining.leaving import is_with_it
from tuneoff.analysis.explanation import Explanation, LayerEstimates, Leaving, Weights
from tuneoff.analysis.values import Summary
from tuneoff.report import charts_why, numbers
from tuneoff.report.chart_parts import Across, Axis, targets_word
from tuneoff.report.look import PAGE, Arms
from tuneoff.report.panel import HALF, Control, Numbers, Panel
from tuneoff.report.points import CurveLine, score_of
from tuneoff.report.points_why import (
    capacity_points,
    forgetting_points,
    gap_points,
    held_points,
    kind_and_layer,
    kinds_of,
    module_points,
    spectrum_points,
    tokens_of,
)
from tuneoff.report.text import clean

MAX_KINDS = 9
"""Kinds of module that a chart can be switched to; the table has them all."""
_AT_MOST_RANKS = 8
"""Columns of the table of shares."""


@dataclass(frozen=True)
class Topic:
    """A part of the explanation: charts side by side, and tables."""

    title: str
    panels: tuple[Panel, ...]
    tables: tuple[tuple[str, Numbers], ...]
    """With their captions."""


def topics(summary: Summary, explanation: Explanation, curves: Mapping[str, Sequence[CurveLine]]) -> tuple[Topic, ...]:
    """Return the parts of the explanation that have something to show.

    Args:
        summary: what is known.
        explanation: when, why and how the arms differ.
        curves: the lines of each run's `curve.jsonl`.
    """
    arms = Arms(summary, PAGE)
    found = (
        Topic(
            "When: leaving the common curve",
            tuple(_leaving(arms, explanation, curves)),
            _given("Where each arm leaves, in numbers", leaving_numbers(summary, explanation)),
        ),
        Topic(
            "How: the change of the weights",
            (*_spectra(arms, explanation), *_modules(arms, explanation)),
            (
                *_given("Weight changes in numbers", weight_numbers(explanation)),
                *_given("Weight changes by kind of module", module_numbers(explanation)),
            ),
        ),
        Topic(
            "What it costs elsewhere: forgetting",
            tuple(_forgetting(arms, explanation)),
            _given("Forgetting in numbers", forgetting_numbers(summary, explanation)),
        ),
        Topic(
            "Why: capacity",
            tuple(_capacity(arms, explanation)),
            _given("Capacity in numbers", capacity_numbers(summary, explanation)),
        ),
    )
    return tuple(topic for topic in found if topic.panels or topic.tables)


def _given(caption: str, table: Numbers) -> tuple[tuple[str, Numbers], ...]:
    return ((caption, table),) if table.rows else ()


def _leaving(arms: Arms, explanation: Explanation, curves: Mapping[str, Sequence[CurveLine]]) -> Iterator[Panel]:
    points = gap_points(arms.summary, explanation, curves)
    if not points:
        return
    ways: tuple[Across, ...] = ("step", "tokens")
    scales: tuple[Axis, ...] = ("linear", "log")
    margin = explanation.loss_margin_nats
    yield Panel(
        key="leaving",
        label="Validation loss of every arm above that of the arm it is held against",
        variants=tuple(
            charts_why.gap_chart(points, arms, margin, x=x, scale=scale) for x, scale in product(ways, scales)
        ),
        points=points,
        controls=(Control("against", ("steps", targets_word(arms.summary))), Control("axis", scales)),
        note=f"An arm on the zero line learns as the reference does; a ring marks the step from which it stays more "
        f"than the shaded {margin:g} nats above, in a band from the lowest to the highest seed.",
    )


def _spectra(arms: Arms, explanation: Explanation) -> Iterator[Panel]:
    spectra, held = spectrum_points(explanation), held_points(explanation)
    if spectra:
        scales: tuple[Axis, ...] = ("log", "linear")
        yield Panel(
            key="spectrum",
            label="Singular values of every arm's weight change over the largest one",
            variants=tuple(charts_why.spectrum_chart(spectra, arms, scale=scale) for scale in scales),
            points=spectra,
            width=HALF,
            controls=(Control("axes", scales),),
            title="Spectrum",
            note="A line that falls steeply is a change in few directions, which a low rank can hold; mean over "
            "layers and seeds.",
        )
    if held:
        yield Panel(
            key="held",
            label="Share of every arm's weight change that each rank holds",
            variants=(charts_why.held_chart(held, arms),),
            points=held,
            width=HALF,
            title="Share held by rank",
            note="How much of the change, by its squared norm, the best approximation of a rank keeps: where full "
            "fine-tuning's line is low, no adapter of that rank can copy it.",
        )


def _modules(arms: Arms, explanation: Explanation) -> Iterator[Panel]:
    points = module_points(explanation)
    if not points:
        return
    kinds = list(kinds_of(explanation).values())[:MAX_KINDS]
    # One kind is all there is: nothing to choose.
    places = (None, *range(len(kinds))) if len(kinds) > 1 else (None,)
    controls = (Control("modules", ("all", *kinds)),) if len(kinds) > 1 else ()
    yield Panel(
        key="norms",
        label="Norm of every arm's weight change over that of the weights, layer by layer",
        variants=tuple(charts_why.module_chart(points, arms, "norm", kind=place) for place in places),
        points=points,
        width=HALF,
        controls=controls,
        title="Size, layer by layer",
        note="How far training moved the weights of each layer; all modules together is the mean over them.",
    )
    yield Panel(
        key="intruders",
        label="Share of leading directions that are new, of every arm, layer by layer",
        variants=tuple(charts_why.module_chart(points, arms, "intruders", kind=place) for place in places),
        points=points,
        width=HALF,
        controls=controls,
        title="Intruders, layer by layer",
        note="Leading singular vectors of the trained weights that are like none of the base's: intruder dimensions. "
        "Published work found few in full fine-tuning and more at low ranks (Shuttleworth et al., 2024).",
    )


def _forgetting(arms: Arms, explanation: Explanation) -> Iterator[Panel]:
    points = forgetting_points(arms.summary, explanation)
    if points:
        better = "lower" if arms.summary.primary.is_loss else "higher"
        yield Panel(
            key="forgetting",
            label="Test score against the loss gained on general text, for every arm",
            variants=(charts_why.forgetting_chart(points, arms),),
            points=points,
            note=f"Further left forgot less, {better} is better on the task: an arm that is both gives the other "
            "nothing to argue with. Lines are 95 % intervals.",
        )


def _capacity(arms: Arms, explanation: Explanation) -> Iterator[Panel]:
    points = capacity_points(arms.summary, explanation)
    if points:
        yield Panel(
            key="capacity",
            label="Test score against trainable parameters for each target token, for every arm",
            variants=(charts_why.capacity_chart(points, arms),),
            points=points,
            note="Left of the dashed line an arm has fewer bits to store in than the data has to teach, by a rule of "
            "thumb (2 bits a parameter, 1 bit a token; Schulman et al., 2025) that this chart puts to the test.",
        )


def leaving_numbers(summary: Summary, explanation: Explanation) -> Numbers:
    """Return when each arm leaves the curve of the one that it is held against."""
    rows = [
        (
            leaving.arm,
            numbers.NONE if leaving.rank is None else str(leaving.rank),
            leaving.reference,
            _left(leaving, explanation.loss_margin_nats),
            numbers.NONE if leaving.target_tokens is None else f"{leaving.target_tokens:,}",
            _signed(leaving.gap_nats, 4),
        )
        for leaving in explanation.leaving
        if leaving.arm != leaving.reference
    ]
    heads = ("arm", "rank", "held against", "leaves at step", f"{targets_word(summary)} by then", "gap at the end")
    return Numbers(heads, tuple(rows), frozenset({0, 2}))


def _left(leaving: Leaving, margin: float) -> str:
    """Return at which step an arm leaves, or that it does not, or that the last step does not tell."""
    if leaving.step is not None:
        return f"{leaving.step:,}"
    return "stays with it" if is_with_it(leaving, margin) else "not told apart at the end"


def optimum_numbers(explanation: Explanation) -> Numbers:
    """Return where each arm's best rate lies, and how many times that of another arm it is."""
    ratios = {ratio.arm: ratio for ratio in explanation.ratios}
    rows = []
    for optimum in explanation.optima:
        ratio = ratios.get(optimum.arm)
        is_enclosed = ratio is not None and ratio.low is not None and ratio.high is not None
        ends = None if ratio is None else _ends(ratio.low, ratio.high, numbers.significant)
        rows.append(
            (
                optimum.arm,
                numbers.rate(optimum.chosen_lr),
                "none: at an edge" if optimum.fitted_lr is None else numbers.rate(optimum.fitted_lr),
                _ends(optimum.low_lr, optimum.high_lr, numbers.rate),
                numbers.NONE if ratio is None else ratio.base,
                numbers.NONE if ratio is None or not is_enclosed else numbers.significant(ratio.fitted or ratio.chosen),
                numbers.NONE if ends is None else ends,
            )
        )
    heads = ("arm", "chosen rate", "fitted optimum", "lies between", "over the rate of", "ratio", "ratio lies between")
    return Numbers(heads, tuple(rows), frozenset({0, 4}))


def weight_numbers(explanation: Explanation) -> Numbers:
    """Return how each arm's training changed the weights, all matrices together."""
    ranks = sorted({rank for weights in explanation.weights for rank in weights.share_held})[:_AT_MOST_RANKS]
    rows = [
        (
            weights.arm,
            numbers.NONE if weights.relative_norm is None else numbers.interval(weights.relative_norm, 4),
            numbers.NONE if weights.rank_90 is None else numbers.interval(weights.rank_90, 1),
            f"{weights.num_intruders.value:.1f} of {weights.num_top:,}",
            *(
                f"{100 * weights.share_held[rank].value:.1f} %" if rank in weights.share_held else numbers.NONE
                for rank in ranks
            ),
        )
        for weights in explanation.weights
    ]
    heads = ("arm", "relative norm", "directions with 90 %", "intruders", *(f"rank {rank} holds" for rank in ranks))
    return Numbers(heads, tuple(rows))


def module_numbers(explanation: Explanation) -> Numbers:
    """Return how each arm's training changed the weights of each kind of module: means over its matrices."""
    names = kinds_of(explanation)
    rows = [
        _kind_row(weights, name, [layer for layer in weights.layers if kind_and_layer(layer.module)[0] == kind])
        for weights in explanation.weights
        for kind, name in names.items()
    ]
    heads = ("arm", "modules", "matrices", "relative norm", "effective rank", "directions with 90 %", "intruders")
    return Numbers(heads, tuple(row for row in rows if row[2] != "0"), frozenset({0, 1}))


def _kind_row(weights: Weights, name: str, layers: Sequence[LayerEstimates]) -> tuple[str, ...]:
    intruders = sum(layer.num_intruders.value for layer in layers)
    return (
        weights.arm,
        name,
        f"{len(layers):,}",
        _mean([layer.relative_norm for layer in layers], 4),
        _mean([layer.effective_rank for layer in layers], 1),
        _mean([layer.rank_90 for layer in layers], 1),
        f"{intruders:.1f} of {sum(layer.num_top for layer in layers):,}",
    )


def forgetting_numbers(summary: Summary, explanation: Explanation) -> Numbers:
    """Return what each arm forgot, how much more than the arm it is held against, and its test score."""
    rows = []
    for forgot in explanation.forgetting:
        score = score_of(summary.arm(forgot.arm), summary)
        beyond = forgot.beyond_reference
        rows.append(
            (
                forgot.arm,
                _signed(forgot.difference, 4),
                numbers.NONE if beyond is None else f"{_signed(beyond, 4)} than {forgot.reference}",
                numbers.NONE if score is None else numbers.interval(score, summary.primary.decimals),
            )
        )
    heads = ("arm", "loss gained, nats per token", "more than the reference", f"test {clean(summary.primary.label)}")
    return Numbers(heads, tuple(rows))


def capacity_numbers(summary: Summary, explanation: Explanation) -> Numbers:
    """Return what each arm can store in, and what there was to learn."""
    words = targets_word(summary)
    rows = [
        (
            one.arm,
            f"{one.trainable:,}",
            f"{one.num_target_tokens:,}",
            numbers.NONE if one.num_unique_target_tokens is None else f"{one.num_unique_target_tokens:,}",
            numbers.significant(one.trainable / tokens_of(one)) if tokens_of(one) else numbers.NONE,
        )
        for one in explanation.capacity
    ]
    heads = ("arm", "trainable parameters", words, f"{words} without repeats", "parameters for each")
    return Numbers(heads, tuple(rows))


def frontier_numbers(explanation: Explanation) -> Numbers:
    """Return the arms of each frontier, and those that may be on it."""
    rows = [
        (frontier.cost, ", ".join(frontier.arms) or numbers.NONE, ", ".join(frontier.contested) or numbers.NONE)
        for frontier in explanation.frontiers
    ]
    heads = ("cost", "on the frontier, the cheapest first", "perhaps on it: not told apart from one that is")
    return Numbers(heads, tuple(rows), frozenset({0, 1, 2}))


def _mean(values: Sequence[Estimate | None], decimals: int) -> str:
    """Return the mean of what is known of some matrices; nothing where it is not known of all."""
    known = [value.value for value in values if value is not None]
    return f"{sum(known) / len(known):.{decimals}f}" if known and len(known) == len(values) else numbers.NONE


def _signed(estimate: Estimate, decimals: int) -> str:
    """Return a difference with the ends of its interval, signs included."""
    text = f"{estimate.value:+.{decimals}f}"
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{estimate.low:+.{decimals}f}, {estimate.high:+.{decimals}f}]"


def _ends(low: float | None, high: float | None, write: Callable[[float], str]) -> str:
    """Return the two ends between which something lies; nothing where one is not known."""
    return numbers.NONE if low is None or high is None else f"{write(low)} to {write(high)}"
