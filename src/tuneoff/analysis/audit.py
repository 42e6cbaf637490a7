"""Whether arms may be compared: every invariant of a fair comparison, checked from the records alone.

What most arms have in common is the standard (of two that are equally common, the first arm's); whoever departs from
it is named, with what was found and what the others have. The invariants are those of DESIGN's fair comparison: one
base, the same data in the same order, one budget, effective batch, optimizer, test set, template, length and
precision, as many trials of the learning rate, a best rate inside its grid, and no seed lost.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tuneoff.analysis.findings import Audit, Finding
from tuneoff.analysis.values import ArmSummary
from tuneoff.study.identity import Run, canonical_json
from tuneoff.study.options import Invariant
from tuneoff.study.records import Record, TestRecord
from tuneoff.study.spec import BudgetSpec, Study
from tuneoff.study.value import plain

SHOWN_DIGITS = 8
"""Of a hash, enough to tell two apart."""

Facts = Mapping[str, str]
"""Of each arm that an invariant applies to, what it has, in words."""


def audit(
    study: Study, arms: Sequence[ArmSummary], records: Mapping[str, Record], tests: Mapping[str, TestRecord]
) -> Audit:
    """Check every invariant over the arms' runs at their chosen rates.

    Args:
        study: the question; what it declares is marked as meant.
        arms: what is known of each arm.
        records: finished runs by `run_id`.
        tests: the current readings of the test split by `run_id`.
    """
    found = _Evidence(arms, records, tests)
    checked: list[Invariant] = []
    findings: list[Finding] = []
    for kind, facts in found.shared():
        if len(facts) > 1:
            checked.append(kind)
            findings += _departures(kind, facts)
    for kind, own in found.own():
        checked.append(kind)
        findings += own
    marked = tuple(one.model_copy(update={"is_declared": one.kind in study.declare}) for one in findings)
    return Audit(checked=tuple(checked), num_runs=found.num_runs, findings=marked)


_WORDS: Mapping[Invariant, tuple[str, str]] = {
    "base_model": ("other base", "its base model differs"),
    "data_order": ("other data order", "it saw other data, or in another order"),
    "budget": ("other budget", "its budget differs"),
    "batch_size": ("other batch", "its effective batch differs"),
    "optimizer": ("other optimizer", "its optimizer differs"),
    "evaluation_set": ("other test set", "it was tested on other items"),
    "template": ("other template", "its prompt template differs"),
    "max_length": ("other length", "its sequences are cut otherwise"),
    "precision": ("other precision", "its precision differs"),
}
"""Of each invariant that arms share: a label, and what is said of an arm that departs."""


def _departures(kind: Invariant, facts: Facts) -> Iterator[Finding]:
    """Yield a finding for each value that is not the commonest."""
    counts = Counter(facts.values())  # in the order of first sight, so that the first arm's wins a tie
    standard = counts.most_common(1)[0][0]
    label, said = _WORDS[kind]
    for value in counts:
        if value != standard:
            arms = tuple(arm for arm, own in facts.items() if own == value)
            yield Finding(kind=kind, arms=arms, label=label, message=f"{said} ({value}; the others: {standard})")


class _Evidence:
    """The runs of each arm.

    Args:
        arms: what is known of each arm.
        records: finished runs.
        tests: readings of the test split.
    """

    def __init__(
        self, arms: Sequence[ArmSummary], records: Mapping[str, Record], tests: Mapping[str, TestRecord]
    ) -> None:
        self.arms = arms
        self.records = {
            arm.name: [records[run_id] for run_id in arm.chosen_run_ids if run_id in records] for arm in arms
        }
        self.tests = {arm.name: [tests[run_id] for run_id in arm.chosen_run_ids if run_id in tests] for arm in arms}
        self.trained = {arm.name: [one for one in self.records[arm.name] if arm.is_trained] for arm in arms}

    @property
    def num_runs(self) -> int:
        """Distinct runs that are looked at."""
        return len({record.run_id for own in self.records.values() for record in own})

    def shared(self) -> Iterator[tuple[Invariant, Facts]]:
        """Yield every invariant that arms are to share, with what each arm has."""
        yield "base_model", self._of(self.records, lambda record: f"sha256 {_short(record.provenance.model_sha256)}")
        yield from (("data_order", facts) for facts in self._orders())
        yield "budget", self._of(self.trained, _budget)
        yield "batch_size", self._runs(self.trained, lambda run: f"{run.budget.batch_size}")
        yield "optimizer", self._optimizers()
        yield "evaluation_set", self._test_sets()
        yield "template", self._runs(self.records, lambda run: repr(run.task.template or "the plain one"))
        yield "max_length", self._runs(self.records, lambda run: f"{run.task.max_length} tokens, {run.task.truncation}")
        yield "precision", self._runs(self.records, lambda run: run.precision)

    def own(self) -> Iterator[tuple[Invariant, list[Finding]]]:
        """Yield every invariant that an arm breaks by itself, with what was found."""
        trained = [arm for arm in self.arms if arm.is_trained and self.records[arm.name]]
        if trained:
            yield "num_trials", list(_trials(trained))
            yield "edge", list(_edges(trained))
            yield "lost_seed", list(self._lost(trained))

    def _of(self, records: Mapping[str, Sequence[Record]], read: Callable[[Record], str]) -> Facts:
        """Return what an arm's runs have; runs of one arm that differ are said together."""
        return {arm: " and ".join(dict.fromkeys(read(record) for record in own)) for arm, own in records.items() if own}

    def _runs(self, records: Mapping[str, Sequence[Record]], read: Callable[[Run], str]) -> Facts:
        return self._of(records, lambda record: read(record.run))

    def _orders(self) -> Iterator[Facts]:
        """Yield the data orders seed by seed, of arms that saw as many examples: else they differ by that alone."""
        groups: dict[Any, dict[str, str]] = {}
        for arm, own in self.trained.items():
            for record in own:
                if record.training is not None and record.status == "done":
                    key = (record.run.seed, record.training.steps, record.run.budget.batch_size)
                    said = f"order {_short(record.training.batch_sequence_sha256)} of seed {record.run.seed}"
                    groups.setdefault(key, {})[arm] = said
        yield from groups.values()

    def _optimizers(self) -> Facts:
        """Return what in an arm's optimizer is not as in the commonest, or that nothing is."""
        bodies = {arm: plain(own[0].run.optimizer) for arm, own in self.trained.items() if own}
        if not bodies:
            return {}
        usual = Counter(canonical_json(body) for body in bodies.values()).most_common(1)[0][0]
        common = next(body for body in bodies.values() if canonical_json(body) == usual)
        keys = [key for key in common if any(body[key] != common[key] for body in bodies.values())]
        return {arm: ", ".join(f"{key} {body[key]}" for key in keys) or "the same" for arm, body in bodies.items()}

    def _test_sets(self) -> Facts:
        found = {}
        for arm, own in self.tests.items():
            seen = [
                f"{test.test.num_sequences:,} sequences"
                + (f", sha256 {_short(test.test_sha256)}" if test.test_sha256 else "")
                for test in own
            ]
            if seen:
                found[arm] = " and ".join(dict.fromkeys(seen))
        return found

    def _lost(self, arms: Sequence[ArmSummary]) -> Iterator[Finding]:
        for arm in arms:
            own = self.records[arm.name]
            lost = [record for record in own if record.status == "infeasible"]
            if lost:
                reasons = "; ".join(dict.fromkeys(record.reason or "no reason given" for record in lost))
                seeds = "1 seed" if len(lost) == 1 else f"{len(lost)} seeds"
                message = (
                    f"{len(lost)} of its {len(own)} seeds gave no result ({reasons}), and its mean leaves that out"
                )
                yield Finding(kind="lost_seed", arms=(arm.name,), label=f"{seeds} lost", message=message)


def _budget(record: Record) -> str:
    asked = _asked(record.run.budget)
    if record.training is None or record.status != "done":
        return asked
    done = f"{record.training.steps} steps"
    return asked if asked == done else f"{asked}, {done}"


def _asked(budget: BudgetSpec) -> str:
    if budget.steps is not None:
        return f"{budget.steps} steps"
    return f"{budget.epochs:g} epochs" if budget.epochs is not None else f"{budget.target_tokens} target tokens"


def _trials(arms: Sequence[ArmSummary]) -> Iterator[Finding]:
    """Yield the arms whose rate was chosen among fewer than another's."""
    counts = {arm.name: sum(trial.status != "missing" for trial in arm.trials) for arm in arms}
    most = max(counts.values())
    for count in dict.fromkeys(counts.values()):
        if count < most:
            fewer = tuple(name for name, own in counts.items() if own == count)
            times = "at one rate alone" if count == 1 else f"at {count} rates"
            message = f"its learning rate is not tuned as the others': it was tried {times}, theirs at {most}"
            yield Finding(
                kind="num_trials", arms=fewer, label="untuned" if count == 1 else "fewer trials", message=message
            )


def _edges(arms: Sequence[ArmSummary]) -> Iterator[Finding]:
    for arm in arms:
        if arm.edge is not None and arm.chosen_lr is not None:
            message = (
                f"its best rate, {arm.chosen_lr:g}, is the {arm.edge} that was tried, so a better one may lie beyond"
            )
            yield Finding(kind="edge", arms=(arm.name,), label="rate at edge", message=message)


def _short(sha256: str) -> str:
    return sha256[:SHOWN_DIGITS]
