"""The columns of every table: one definition, from which the terminal, the page, Markdown, CSV and JSON are written."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tuneoff.analysis.estimates import Estimate
from tuneoff.analysis.values import ArmCosts, ArmParameters, ArmSummary, Scores
from tuneoff.report import numbers
from tuneoff.study.methods import LoraMethod

Raw = str | int | float | None
Group = Literal["arm", "method", "results", "costs"]


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


@dataclass(frozen=True)
class Column:
    """A column: its key in CSV and JSON (with the unit), its heading for people, and the cell of an arm."""

    key: str
    heading: str
    group: Group
    cell: Callable[[ArmSummary], Cell]
    about: str = ""
    is_number: bool = True


def _name(arm: ArmSummary) -> Cell:
    return Cell(arm.name, arm.name)


def _method(arm: ArmSummary) -> Cell:
    shown = {"none": "zero-shot", "full": "full", "lora": "LoRA", "load": "loaded"}
    return Cell(arm.method.method, shown[arm.method.method])


def _lora(read: Callable[[LoraMethod], Cell]) -> Callable[[ArmSummary], Cell]:
    return lambda arm: read(arm.method) if isinstance(arm.method, LoraMethod) else Cell()


def _rate(arm: ArmSummary) -> Cell:
    if arm.chosen_lr is None:
        return Cell()
    title = "fixed" if not arm.is_tuned else f"chosen among {', '.join(numbers.rate(t.lr) for t in arm.trials if t.lr)}"
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
    split: Literal["test", "validation"], read: Callable[[Scores], Estimate | None], write: Callable[[float], str]
) -> Callable[[ArmSummary], Cell]:
    def cell(arm: ArmSummary) -> Cell:
        scores = arm.test if split == "test" else arm.validation
        estimate = None if scores is None else read(scores)
        if estimate is None:
            return Cell()
        return Cell(estimate.value, write(estimate.value), f"{estimate.value:.6f}; {estimate.how}", estimate)

    return cell


def _cost(read: Callable[[ArmCosts], float], write: Callable[[float], str], unit: str) -> Callable[[ArmSummary], Cell]:
    def cell(arm: ArmSummary) -> Cell:
        if arm.costs is None:
            return Cell()
        value = read(arm.costs)
        exact = f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"
        return Cell(value, write(value), f"{exact} {unit}")

    return cell


def _bytes(read: Callable[[ArmCosts], int]) -> Callable[[ArmSummary], Cell]:
    return _cost(read, lambda value: numbers.size(int(value)), "bytes")


def _progress(arm: ArmSummary) -> Cell:
    if arm.status == "infeasible":
        return Cell("infeasible", "infeasible", arm.reason)
    text = f"{arm.num_tested} of {arm.num_seeds}"
    return Cell(text, text, f"{arm.num_tested} of {arm.num_seeds} seeds tested; {arm.num_left} runs left")


def _flags(arm: ArmSummary) -> Cell:
    labels = [flag.label for flag in arm.flags]
    return Cell("; ".join(labels) or None, ", ".join(labels), " ".join(f"{flag.message}." for flag in arm.flags))


NAME = Column("arm", "arm", "arm", _name, is_number=False)
METHOD = Column("method", "method", "method", _method, is_number=False)
RANK = Column("rank", "rank", "method", _lora(lambda m: Cell(m.rank, str(m.rank))))
ALPHA = Column("alpha", "alpha", "method", _lora(lambda m: Cell(m.alpha, numbers.plain(m.alpha))))
DROPOUT = Column("dropout", "dropout", "method", _lora(lambda m: Cell(m.dropout, numbers.plain(m.dropout))))
RATE = Column("lr", "rate", "method", _rate, "learning rate, chosen on the validation split of the first seed")
TARGETS = Column(
    "targets",
    "targets",
    "method",
    _lora(lambda m: Cell(" ".join(m.targets), ", ".join(m.targets))),
    "modules that are adapted",
    is_number=False,
)
TRAINABLE = Column("trainable_parameters", "trainable", "method", _count(lambda p: p.trainable), "trainable parameters")
TOTAL = Column("total_parameters", "all", "method", _count(lambda p: p.total), "all parameters, adapter included")
SHARE = Column("trainable_pct", "share", "method", _percent(lambda p: p.share_pct), "trainable in per cent of all")
REDUCTION = Column(
    "reduction_vs_full_pct",
    "vs full",
    "method",
    _percent(lambda p: p.reduction_pct),
    "how many fewer parameters are trained than by full fine-tuning",
)
SEEDS = Column("seeds_tested", "seeds", "results", _progress, "seeds whose test split was scored", is_number=False)
LOSS = Column(
    "test_loss_nats", "loss", "results", _score("test", lambda s: s.loss_nats, numbers.loss), "test, nats/token"
)
PERPLEXITY = Column(
    "test_perplexity",
    "perplexity",
    "results",
    _score("test", lambda s: s.perplexity, numbers.significant),
    "test; exp of the loss",
)
SEQUENCE_PERPLEXITY = Column(
    "test_mean_sequence_perplexity",
    "mean-seq. ppl",
    "results",
    _score("test", lambda s: s.mean_sequence_perplexity, numbers.significant),
    "test; every sequence counts the same, however short",
)
BITS = Column(
    "test_bits_per_byte",
    "bits/byte",
    "results",
    _score("test", lambda s: s.bits_per_byte, numbers.loss),
    "test; compares across tokenizers",
)
VALIDATION = Column(
    "validation_loss_nats",
    "val. loss",
    "results",
    _score("validation", lambda s: s.loss_nats, numbers.loss),
    "validation, nats per token; rates are chosen on it",
)
FLAGS = Column("flags", "notes", "results", _flags, is_number=False)
TIME = Column("train_s", "time", "costs", _cost(lambda c: c.train_s, numbers.duration, "s"), "training time of a run")
STEP = Column("step_s", "step", "costs", _cost(lambda c: c.step_s, numbers.duration, "s"), "median optimizer step")
SPEED = Column(
    "target_tokens_per_s",
    "tokens/s",
    "costs",
    _cost(lambda c: c.target_tokens_per_s, numbers.significant, "target tokens per second"),
    "target tokens per second of training",
)
MEMORY = Column("peak_bytes", "memory", "costs", _bytes(lambda c: c.train_peak_bytes), "peak while training")
OPTIMIZER = Column("optimizer_bytes", "optimizer", "costs", _bytes(lambda c: c.optimizer_bytes), "optimizer state")
DISK = Column("weights_bytes", "disk", "costs", _bytes(lambda c: c.weights_bytes), "size of the saved weights")

METHOD_COLUMNS = (METHOD, RANK, ALPHA, DROPOUT, RATE, TARGETS, TRAINABLE, TOTAL, SHARE, REDUCTION)
RESULT_COLUMNS = (SEEDS, LOSS, PERPLEXITY, SEQUENCE_PERPLEXITY, BITS, VALIDATION)
COST_COLUMNS = (TIME, STEP, SPEED, MEMORY, OPTIMIZER, DISK)
COLUMNS = (NAME, *METHOD_COLUMNS, *RESULT_COLUMNS, FLAGS, *COST_COLUMNS)
