"""The columns of every table: one definition, from which the terminal, the page, Markdown, CSV and JSON are written."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

from tuneoff.analysis.estimates import Estimate
from tuneoff.analysis.measures import Measure
from tuneoff.analysis.values import ArmCosts, ArmParameters, ArmSummary, Scores, Summary
from tuneoff.report import numbers, settings
from tuneoff.report.text import clean
from tuneoff.study.labels import method_label
from tuneoff.study.methods import MethodSpec
from tuneoff.study.predicted import Predicted

Raw = str | int | float | None
Group = Literal["arm", "method", "results", "costs"]
Row = TypeVar("Row")


@dataclass(frozen=True)
class Cell:
    """One value of a table.

    Args:
        raw: the value itself, for CSV and JSON.
        text: as people read it.
        title: the exact value, where `text` rounds it.
        estimate: the estimate that it comes from, where it has an interval.
    """

    raw: Raw = None
    text: str = numbers.NONE
    title: str = ""
    estimate: Estimate | None = None
    spread: str = ""
    """The value with its interval, as people read it; empty where tables give the value alone."""


@dataclass(frozen=True)
class Column(Generic[Row]):
    """A column: its key in CSV and JSON (with the unit), its heading for people, and the cell of a row."""

    key: str
    heading: str
    group: Group
    cell: Callable[[Row], Cell]
    about: str = ""
    is_number: bool = True

    def shown(self, row: Row) -> str:
        """Return the cell as people read it, with its interval where the column gives one."""
        cell = self.cell(row)
        return cell.spread or cell.text


ArmColumn = Column[ArmSummary]
SOURCES = {
    "solo": "measured alone, in a process of its own",
    "own": "of its own runs, which were alone",
    "beside": "of its own runs, beside others of the same command",
}
"""What is said of where costs are from."""


def _name(arm: ArmSummary) -> Cell:
    return Cell(arm.name, arm.name)


def _method(arm: ArmSummary) -> Cell:
    return Cell(arm.method.method, clean(method_label(arm.method)))


def _setting(read: Callable[[MethodSpec], float | None]) -> Callable[[ArmSummary], Cell]:
    def cell(arm: ArmSummary) -> Cell:
        value = read(arm.method)
        return Cell() if value is None else Cell(value, numbers.plain(value))

    return cell


def _size(arm: ArmSummary) -> Cell:
    found = settings.size(arm.method)
    return Cell() if found is None else Cell(found[0], " ".join(map(str, found)))


def _targets(arm: ArmSummary) -> Cell:
    found = settings.targets(arm.method)
    return Cell(" ".join(found), ", ".join(found)) if found else Cell()


def _rate(arm: ArmSummary) -> Cell:
    if arm.chosen_lr is None:
        return Cell()
    stopped = f" ({arm.num_pruned} stopped early)" if arm.num_pruned else ""
    title = f"chosen among {', '.join(numbers.rate(t.lr) for t in arm.trials if t.lr)}{stopped}"
    title = title if arm.is_tuned else "fixed"
    return Cell(arm.chosen_lr, numbers.rate(arm.chosen_lr), title)


def _count(read: Callable[[ArmParameters], int]) -> Callable[[ArmSummary], Cell]:
    def cell(arm: ArmSummary) -> Cell:
        if arm.parameters is None:
            return Cell()
        value = read(arm.parameters)
        return Cell(value, numbers.count(value), f"{value:,}")

    return cell


def _percent(read: Callable[[ArmParameters], float | None]) -> Callable[[ArmSummary], Cell]:
    def cell(arm: ArmSummary) -> Cell:
        value = None if arm.parameters is None else read(arm.parameters)
        return Cell() if value is None else Cell(value, numbers.percent(value), f"{value:.6f} %")

    return cell


def _score(
    split: Literal["test", "validation"],
    read: Callable[[Scores], Estimate | None],
    write: Callable[[float], str],
    spread: Callable[[Estimate], str] = lambda estimate: "",
) -> Callable[[ArmSummary], Cell]:
    def cell(arm: ArmSummary) -> Cell:
        scores = arm.test if split == "test" else arm.validation
        estimate = None if scores is None else read(scores)
        if estimate is None:
            return Cell()
        title = f"{estimate.value:.6f}; {estimate.how}"
        return Cell(estimate.value, write(estimate.value), title, estimate, spread(estimate))

    return cell


def _cost(
    read: Callable[[ArmCosts], float | None], write: Callable[[float], str], unit: str
) -> Callable[[ArmSummary], Cell]:
    def cell(arm: ArmSummary) -> Cell:
        if arm.costs is None:
            return Cell()
        value = read(arm.costs)
        if value is None:
            return Cell(None, "shared", "trained in one pass with other runs, so it has no figure of its own")
        exact = f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"
        return Cell(value, write(value), f"{exact} {unit}; {SOURCES[arm.costs.source]}")

    return cell


def _predicted(
    read: Callable[[Predicted, bool], float | None], write: Callable[[float], str], unit: str
) -> Callable[[ArmSummary], Cell]:
    """Return the cells of what the plan foretold; `read` is told whether memory is measured as the process's own."""

    def cell(arm: ArmSummary) -> Cell:
        is_resident = arm.costs is None or arm.costs.peak_kind != "allocated"
        value = None if arm.predicted is None else read(arm.predicted, is_resident)
        if value is None:
            return Cell()
        exact = f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"
        return Cell(value, write(value), f"{exact} {unit}, foretold by the plan")

    return cell


def _predicted_bytes(found: Predicted, is_resident: bool) -> int | None:
    """Return the memory of training: tensors, and where the process's own is measured, what it takes beside."""
    tensors = found.peak_bytes.get("train")
    return None if tensors is None else tensors + (found.process_bytes if is_resident else 0)


def _bytes(read: Callable[[ArmCosts], int | None]) -> Callable[[ArmSummary], Cell]:
    return _cost(read, lambda value: numbers.size(int(value)), "bytes")


def _progress(arm: ArmSummary) -> Cell:
    if arm.status == "infeasible":
        return Cell("infeasible", "infeasible", arm.reason)
    text = f"{arm.num_tested} of {arm.num_seeds}"
    return Cell(text, text, f"{arm.num_tested} of {arm.num_seeds} seeds tested; {arm.num_left} runs left")


def _flags(arm: ArmSummary) -> Cell:
    labels = arm.labels
    return Cell("; ".join(labels) or None, ", ".join(labels), " ".join(f"{message}." for message in labels.values()))


NAME = ArmColumn("arm", "arm", "arm", _name, is_number=False)
METHOD = ArmColumn("method", "method", "method", _method, is_number=False)
RANK = ArmColumn("rank", "rank", "method", _setting(settings.rank))
SIZE = ArmColumn("size", "size", "method", _size, "width of a bottleneck, or virtual tokens")
ALPHA = ArmColumn("alpha", "alpha", "method", _setting(settings.alpha))
DROPOUT = ArmColumn("dropout", "dropout", "method", _setting(settings.dropout))
RATE = ArmColumn("lr", "rate", "method", _rate, "learning rate, chosen on the validation split of the first seed")
TARGETS = ArmColumn("targets", "targets", "method", _targets, "modules that are adapted", is_number=False)
TRAINABLE = ArmColumn(
    "trainable_parameters", "trainable", "method", _count(lambda p: p.trainable), "trainable parameters"
)
TOTAL = ArmColumn("total_parameters", "all", "method", _count(lambda p: p.total), "all parameters, adapter included")
SHARE = ArmColumn("trainable_pct", "share", "method", _percent(lambda p: p.share_pct), "trainable in per cent of all")
REDUCTION = ArmColumn(
    "reduction_vs_full_pct",
    "vs full",
    "method",
    _percent(lambda p: p.reduction_pct),
    "how many fewer parameters are trained than by full fine-tuning",
)
SEEDS = ArmColumn("seeds_tested", "seeds", "results", _progress, "seeds whose test split was scored", is_number=False)
LOSS = ArmColumn(
    "test_loss_nats",
    "loss",
    "results",
    _score("test", lambda s: s.loss_nats, numbers.loss, numbers.loss_interval),
    "test, nats/token",
)
PERPLEXITY = ArmColumn(
    "test_perplexity",
    "perplexity",
    "results",
    _score("test", lambda s: s.perplexity, numbers.significant, numbers.perplexity_interval),
    "test; exp of the loss",
)
SEQUENCE_PERPLEXITY = ArmColumn(
    "test_mean_sequence_perplexity",
    "mean-seq. ppl",
    "results",
    _score("test", lambda s: s.mean_sequence_perplexity, numbers.significant),
    "test; every sequence counts the same, however short",
)
BITS = ArmColumn(
    "test_bits_per_byte",
    "bits/byte",
    "results",
    _score("test", lambda s: s.bits_per_byte, numbers.loss),
    "test; compares across tokenizers",
)
VALIDATION = ArmColumn(
    "validation_loss_nats",
    "val. loss",
    "results",
    _score("validation", lambda s: s.loss_nats, numbers.loss),
    "validation, nats per token; rates are chosen on it",
)
FLAGS = ArmColumn("flags", "notes", "results", _flags, is_number=False)
TIME = ArmColumn(
    "train_s", "time", "costs", _cost(lambda c: c.train_s, numbers.duration, "s"), "training time of a run"
)
STEP = ArmColumn("step_s", "step", "costs", _cost(lambda c: c.step_s, numbers.duration, "s"), "median optimizer step")
SPEED = ArmColumn(
    "target_tokens_per_s",
    "tokens/s",
    "costs",
    _cost(lambda c: c.target_tokens_per_s, numbers.significant, "target tokens per second"),
    "target tokens per second of training",
)
MEMORY = ArmColumn("peak_bytes", "memory", "costs", _bytes(lambda c: c.train_peak_bytes), "peak while training")
OPTIMIZER = ArmColumn("optimizer_bytes", "optimizer", "costs", _bytes(lambda c: c.optimizer_bytes), "optimizer state")
DISK = ArmColumn("weights_bytes", "disk", "costs", _bytes(lambda c: c.weights_bytes), "size of the saved weights")

PREDICTED_TIME = ArmColumn(
    "predicted_run_s",
    "time, predicted",
    "costs",
    _predicted(lambda found, _: found.run_s, numbers.duration, "s"),
    "of a run, with its scorings of the validation split, as the plan foretold it",
)
PREDICTED_STEP = ArmColumn(
    "predicted_step_s",
    "step, predicted",
    "costs",
    _predicted(lambda found, _: found.step_s, numbers.duration, "s"),
    "optimizer step, as the plan foretold it",
)
PREDICTED_MEMORY = ArmColumn(
    "predicted_peak_bytes",
    "memory, predicted",
    "costs",
    _predicted(_predicted_bytes, lambda value: numbers.size(int(value)), "bytes"),
    "peak while training, as the plan foretold it",
)
PREDICTED = {"train_s": PREDICTED_TIME, "step_s": PREDICTED_STEP, "peak_bytes": PREDICTED_MEMORY}
"""By the key of the column of what was measured, which it stands behind."""

COUNT_COLUMNS = (TRAINABLE, TOTAL, SHARE, REDUCTION)
COST_COLUMNS = (TIME, STEP, SPEED, MEMORY, OPTIMIZER, DISK)


@dataclass(frozen=True)
class Columns:
    """The columns of one study, by what they are about."""

    method: tuple[ArmColumn, ...]
    scores: tuple[ArmColumn, ...]
    """Of the test split, what ranks the arms first."""
    metric_keys: frozenset[str]
    """Keys of those scores that are not losses."""
    validation: ArmColumn
    costs: tuple[ArmColumn, ...]

    @property
    def results(self) -> tuple[ArmColumn, ...]:
        """How many seeds there are, and all scores."""
        return (SEEDS, *self.scores, self.validation)

    @property
    def all(self) -> tuple[ArmColumn, ...]:
        """Every column, as a wide table has them."""
        return (NAME, *self.method, *self.results, FLAGS, *self.costs)


def columns_of(summary: Summary) -> Columns:
    """Return the columns that a study has a use for: its own metrics, and no perplexity of classes.

    Args:
        summary: what is known of the study.
    """
    is_classified = summary.kind == "classification"
    loss = (replace(LOSS, about=f"test, {summary.loss_unit}") if is_classified else LOSS,)
    losses = loss if is_classified else (*loss, PERPLEXITY, SEQUENCE_PERPLEXITY, BITS)
    speed = replace(SPEED, heading="examples/s", about="examples per second of training") if is_classified else SPEED
    metrics = tuple(metric_column(measure) for measure in summary.measures)
    has_size = any(settings.size(arm.method) is not None for arm in summary.arms)
    return Columns(
        method=(METHOD, RANK, *((SIZE,) if has_size else ()), *(ALPHA, DROPOUT, RATE, TARGETS), *COUNT_COLUMNS),
        metric_keys=frozenset(column.key for column in metrics),
        scores=(*losses, *metrics) if summary.primary.is_loss else (*metrics, *losses),
        validation=replace(VALIDATION, about=VALIDATION.about.replace("nats per token", summary.loss_unit)),
        costs=tuple(_with_predicted(summary, [speed if column is SPEED else column for column in COST_COLUMNS])),
    )


def costs_title(summary: Summary) -> str:
    """Return the heading of the costs, which says how they were measured."""
    sources = {arm.costs.source for arm in summary.arms if arm.costs is not None}
    return "Costs (medians over seeds)" if "beside" in sources or not sources else "Costs (measured alone)"


def _with_predicted(summary: Summary, measured: Sequence[ArmColumn]) -> Iterator[ArmColumn]:
    """Yield the columns of costs, and behind them what was foretold, where it was."""
    is_predicted = any(arm.predicted is not None for arm in summary.arms)
    for column in measured:
        yield column
        if is_predicted and column.key in PREDICTED:
            yield PREDICTED[column.key]


def metric_column(measure: Measure) -> ArmColumn:
    """Return the column of a metric on the test split."""
    unit = f", {measure.unit} of 100" if measure.unit else ""
    return ArmColumn(
        f"test_{clean(measure.name)}",
        clean(measure.label),
        "results",
        _score(
            "test",
            lambda s: s.of(measure),
            measure.write,
            lambda estimate: numbers.interval(estimate, measure.decimals),
        ),
        f"test{unit}; higher is better",
    )


def shown_columns(columns: Sequence[Column[Row]], rows: Sequence[Row]) -> tuple[Column[Row], ...]:
    """Return the columns in which a row has a value."""
    return tuple(column for column in columns if any(column.cell(row).raw is not None for row in rows))
