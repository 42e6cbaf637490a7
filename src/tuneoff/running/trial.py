"""What a child process does: train runs (one, or a cohort), or read the test split with weights that are there."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tuneoff.data.batching import BatchSequence, num_steps, sequence_sha256
from tuneoff.evaluation.likelihood import vocabulary_size
from tuneoff.files import file_sha256, remove_folder
from tuneoff.methods.base import num_parameters
from tuneoff.running.examine import Tell, read_test_split
from tuneoff.running.halving import reason_to_stop
from tuneoff.running.leaving import LeftOffError
from tuneoff.running.provenance import provenance
from tuneoff.running.resume import find_resume
from tuneoff.running.session import Place, Session, open_session, restore_weights, save_weights, score
from tuneoff.running.shortages import settle, settled
from tuneoff.running.store import CHECKPOINT_FOLDER, CURVE_FILE
from tuneoff.running.tracking import RunTrackers
from tuneoff.study.identity import Run
from tuneoff.study.records import Costs, Halving, Likelihood, Parameters, Record, Training
from tuneoff.study.shortage import Shortage
from tuneoff.study.testing import Testing
from tuneoff.training.checkpoint import Checkpoint, save_checkpoint
from tuneoff.training.loop import Loop, LoopPlan, Member
from tuneoff.training.optim import MemberOptimizer

TAIL_SHARE = 0.1
"""Share of the steps over which the final training loss is averaged: single steps are noisy."""


def train_runs(
    runs: Sequence[Run],
    place: Place,
    tell: Tell,
    testing: Sequence[Testing | None] = (),
    halving: Halving | None = None,
    along: Collection[int] = (),
) -> None:
    """Train runs to the end and write their records; with `testing`, read the test split too.

    Several runs are a cohort: LoRA runs of one base, task, budget and precision that share the forward.

    Args:
        runs: what is trained.
        place: where.
        tell: takes what happens.
        testing: how to read the test split with each run; none of them where it is empty.
        halving: what a run is held against after each validation, and stopped where it falls behind.
        along: places of the runs that are finished, and only trained along.

    Raises:
        TuneoffError: bad input.
        LeftOffError: the process was asked to leave off; what is not finished goes on from a checkpoint another time.
        InfeasibleError: out of memory, and less at a time may do, or nothing else beside (see
            `tuneoff.running.shortages`).
    """
    session = open_session(runs, place, along=along)
    session.halving = halving
    if session.shortage is not None:
        session.shortage = settled(session, session.shortage)
    if session.problem or session.shortage is not None:
        _record_problem(session)
    elif session.adapted.trainable_parameters():
        with place.leave.deferred():
            _train(session, tell)
    else:
        _record_untrained(session, tell)
    for index, own in enumerate(testing):
        record = place.store.record(session.runs[index].run_id)
        if own is not None and index not in session.along and record is not None and record.status == "done":
            _test(session, index, own, tell)


def score_run(run: Run, place: Place, tell: Tell, testing: Testing) -> None:
    """Read the test split with the weights that a finished run left."""
    record = place.store.record(run.run_id)
    if record is not None and record.shortage is not None:  # it was lacking another time
        place.store.write_record(record.model_copy(update={"shortage": None}))
    session = open_session((run,), place, is_trained=True)
    if session.shortage is None:
        _test(session, 0, testing, tell)
    else:
        shortage = session.shortage if place.shortage is not None else settled(session, session.shortage)
        _record_untested(session, 0, shortage.model_copy(update={"testing": testing}))


def _test(session: Session, index: int, testing: Testing, tell: Tell) -> None:
    """Read the test split with a run; where memory runs out with the least at a time, its record says so."""
    session.at("test")
    try:
        restore_weights(session, index)
        read_test_split(session, index, testing, tell)
    except Exception as error:  # what memory ran out with has many kinds; `settle` raises every other again
        shortage = settle(session, error, testing)
    else:
        return
    _record_untested(session, index, shortage)


def _record_untested(session: Session, index: int, shortage: Shortage) -> None:
    """Write down that a run is trained and its test cannot be read here: what was trained is not lost."""
    store, run_id = session.place.store, session.runs[index].run_id
    record = store.record(run_id)
    if record is not None:
        store.write_record(record.model_copy(update={"shortage": shortage}))


def _record_problem(session: Session) -> None:
    """Write down that the model cannot take the method, or not here: an infeasible row, and the study goes on."""
    shortage = session.shortage
    for run in _written(session):
        record = Record(
            run_id=run.run_id,
            run=run,
            status="infeasible",
            reason=f"unsupported: {session.problem}" if shortage is None else shortage.reason,
            shortage=shortage,
            classes=session.data.classes,
            provenance=provenance(session),
        )
        session.place.store.write_record(record)


def _record_untrained(session: Session, tell: Tell) -> None:
    tell("phase", {"what": "scoring the validation split"})
    session.at("validate")
    try:
        with session.meter.evaluating():
            likelihood = score(session, "validation").likelihood
    except Exception as error:  # what memory ran out with has many kinds; `settle` raises every other again
        session.shortage = settle(session, error)
    if session.shortage is not None:
        _record_problem(session)
        return
    run = session.first
    record = Record(
        run_id=run.run_id,
        run=run,
        status="done",
        classes=session.data.classes,
        parameters=Parameters(trainable=0, total=num_parameters(session.adapted.module)),
        validation=likelihood,
        provenance=provenance(session),
    )
    session.place.store.write_record(record)


class _Host:
    """Scores for the loop, writes down what it tells, and passes its progress to the parent."""

    def __init__(self, session: Session, num_steps: int, tell: Tell, trackers: Sequence[RunTrackers]) -> None:
        self.session = session
        self.num_steps = num_steps
        self.tell = tell
        self.trackers = trackers

    def evaluate(self, module: nn.Module) -> Likelihood:
        """Score the validation split."""
        self.session.at("validate")
        found = score(self.session, "validation").likelihood
        self.session.at("train")
        return found

    def curve(self, member: int, row: dict[str, Any]) -> None:
        """Append a point to the member's learning curve."""
        if member in self.session.along:
            return
        self.session.place.store.add_to_curve(self.session.runs[member].run_id, row)
        self.trackers[member].curve(row)
        if row["kind"] == "validation":
            self.tell("validation", {"step": row["step"], "loss_nats": row["loss_nats"]})

    def best(self, member: int) -> None:
        """Save the member's weights."""
        if self.session.runs[member].keep == "best" and member not in self.session.along:
            save_weights(self.session, member)

    def stop(self, member: int) -> str:
        """Hold the member against the trials that came before it."""
        halving, run = self.session.halving, self.session.runs[member]
        return reason_to_stop(self.session.place.store, run, halving) if halving is not None else ""

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Save the state of all members, in the first one's folder."""
        store = self.session.place.store
        store.sync_curves(run.run_id for run in _written(self.session))
        folder = store.run_folder(self.session.first.run_id)
        save_checkpoint(folder / CHECKPOINT_FOLDER, checkpoint)

    def progress(self, step: int, loss_nats: float, tokens_per_s: float) -> None:
        """Tell the parent."""
        self.tell(
            "step",
            {"step": step, "num_steps": self.num_steps, "loss_nats": loss_nats, "tokens_per_s": tokens_per_s},
        )

    def must_leave(self) -> bool:
        """Whether this process was asked to leave off."""
        return self.session.place.leave.is_asked


def _train(session: Session, tell: Tell) -> None:
    first, store = session.first, session.place.store
    steps = num_steps(first.budget, session.data.train)
    evaluate_every = first.evaluate.steps_between(steps)
    plan = LoopPlan(
        num_steps=steps,
        evaluate_every=evaluate_every,
        checkpoint_every=session.place.checkpoint.every,
        checkpoint_minutes=session.place.checkpoint.minutes,
        micro_batch=session.setup["micro_batch"],
        pad_id=session.pad_id,
        num_choices=len(session.data.classes) or vocabulary_size(session.adapted.module),
    )
    members = [make_member(session, index, steps) for index in range(len(session.runs))]
    folder = store.run_folder(first.run_id) / CHECKPOINT_FOLDER
    resume = find_resume(store, folder, session.runs, session.along, tell)
    if resume is not None:
        tell("resumed", {"step": resume.step, "num_steps": steps})
    first_step, sitting = (resume.step + 1 if resume else 0), session.setup["num_sittings"]
    trackers = [
        RunTrackers(
            None if index in session.along else session.place.tracking,
            run,
            tell,
            first_step=first_step,
            sitting=sitting,
        )
        for index, run in enumerate(session.runs)
    ]
    loop = Loop(
        session.adapted,
        session.forward,
        members,
        session.data.train,
        plan,
        _Host(session, steps, tell, trackers),
        session.meter,
    )
    _run_loop(session, loop, resume)
    if not loop.is_over:
        for tracker in trackers:
            tracker.finish()
        raise LeftOffError({"step": loop.step, "num_steps": steps})
    session.meter.note_peak("train")
    for index, member in enumerate(members):
        if index in session.along:
            continue
        if session.runs[index].keep == "last" and not member.is_over:
            save_weights(session, index)
        record = _trained_record(session, index, member)
        store.write_record(record)
        trackers[index].record(record)
        trackers[index].finish()
    remove_folder(folder)


def _run_loop(session: Session, loop: Loop, resume: Checkpoint | None) -> None:
    """Train to the end; where memory runs out with the least at a time, the run is infeasible.

    Raises:
        InfeasibleError: out of memory with more than that, so that less at a time may do.
    """
    session.at("train")
    try:
        loop.run(resume)
    except Exception as error:  # what memory ran out with has many kinds; `settle` raises every other again
        session.shortage = settle(session, error)
    if session.shortage is not None:
        for member in loop.members:
            member.failure = member.failure or session.shortage.reason


def _written(session: Session) -> list[Run]:
    """Return the runs that are not finished yet."""
    return [run for index, run in enumerate(session.runs) if index not in session.along]


def make_member(session: Session, index: int, steps: int) -> Member:
    """Return one of a session's runs as the loop trains it, with an optimizer for so many steps."""
    run = session.runs[index]
    seed = run.seed or 0
    order = BatchSequence(len(session.data.train), run.budget.batch_size, seed)
    optimizer = MemberOptimizer(
        session.adapted.trainable_parameters(index),
        run.lr or 0.0,
        run.optimizer,
        steps,
        run.precision == "fp16",
        session.adapted.rate_factors(index),
    )
    return Member(seed=seed, order=order, optimizer=optimizer)


def _trained_record(session: Session, index: int, member: Member) -> Record:
    run, store = session.runs[index], session.place.store
    weights = store.weights(run.run_id)
    tail = member.losses[-max(1, round(len(member.losses) * TAIL_SHARE)) :]
    training = Training(
        steps=member.steps,
        epochs=member.order.epochs(member.steps),
        num_target_tokens=member.target_tokens,
        num_input_tokens=member.input_tokens,
        batch_sequence_sha256=sequence_sha256(member.order, member.steps),
        best_step=member.best_step,
        final_loss_nats=sum(tail) / len(tail) if tail else None,
    )
    parameters = session.adapted.trainable_parameters(index)
    trainable = sum(parameter.numel() for parameter in parameters.values())
    others = sum(
        parameter.numel()
        for other in range(len(session.runs))
        if other != index
        for parameter in session.adapted.trainable_parameters(other).values()
    )
    files = {CURVE_FILE: file_sha256(store.run_folder(run.run_id) / CURVE_FILE)}
    if weights is not None and not member.failure:
        files[weights.name] = file_sha256(weights)
    return Record(
        run_id=run.run_id,
        run=run,
        status="infeasible" if member.failure else "pruned" if member.stopped else "done",
        reason=member.failure or member.stopped,
        shortage=session.shortage,
        halving=session.halving if member.stopped and not member.failure else None,
        classes=session.data.classes,
        parameters=Parameters(
            trainable=trainable,
            total=num_parameters(session.adapted.module) - others,
            modules=session.adapted.matched,
        ),
        training=training,
        validation=member.validation if run.keep == "best" else member.last_validation,
        costs=_costs(session, member, weights) if session.meter.step_s else None,
        provenance=provenance(session),
        files=files,
    )


def _costs(session: Session, member: Member, weights: Path | None) -> Costs:
    """Return what the pass cost; of a cohort the bytes of the optimizer are the member's own."""
    costs = session.meter.costs(weights.stat().st_size if weights else 0)
    if len(session.runs) == 1:
        return costs.model_copy(update={"is_alone": bool(session.setup["is_alone"])})
    own = {"num_runs": len(session.runs), "optimizer_bytes": member.optimizer.num_bytes}
    return costs.model_copy(update=own)
