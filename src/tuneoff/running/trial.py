"""What a child process does: train runs (one, or a cohort), or read the test split with weights that are there."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from tuneoff.data.batching import BatchSequence, num_steps, sequence_sha256
from tuneoff.errors import InfeasibleError
from tuneoff.files import file_sha256, remove_folder
from tuneoff.methods.base import num_parameters
from tuneoff.running.cohorts import part_stored
from tuneoff.running.examine import Tell, read_test_split
from tuneoff.running.halving import reason_to_stop
from tuneoff.running.provenance import provenance
from tuneoff.running.resume import find_resume
from tuneoff.running.session import Place, Session, open_session, restore_weights, save_weights, score
from tuneoff.running.store import CHECKPOINT_FOLDER, CURVE_FILE
from tuneoff.running.tracking import RunTrackers
from tuneoff.study.identity import Run
from tuneoff.study.records import Costs, Halving, Likelihood, Parameters, Record, Training
from tuneoff.study.testing import Testing
from tuneoff.training.checkpoint import Checkpoint, save_checkpoint
from tuneoff.training.loop import Loop, LoopPlan, Member
from tuneoff.training.optim import MemberOptimizer
from tuneoff.training.runtime import is_out_of_memory

EVALUATIONS_PER_RUN = 10
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
        InfeasibleError: out of memory in a cohort, which is then stored as smaller ones, or of one run with more than
            one sequence at a time.
    """
    session = open_session(runs, place, along=along)
    session.halving = halving
    if session.problem:
        _record_problem(session)
    elif session.adapted.trainable_parameters():
        _train(session, tell)
    else:
        _record_untrained(session, tell)
    for index, own in enumerate(testing):
        record = place.store.record(session.runs[index].run_id)
        if own is not None and index not in session.along and record is not None and record.status == "done":
            restore_weights(session, index)
            read_test_split(session, index, own, tell)


def score_run(run: Run, place: Place, tell: Tell, testing: Testing) -> None:
    """Read the test split with the weights that a finished run left."""
    session = open_session((run,), place, is_trained=True)
    restore_weights(session, 0)
    read_test_split(session, 0, testing, tell)


def _record_problem(session: Session) -> None:
    """Write down that the model cannot take the method: an infeasible row, and the study goes on."""
    for run in _written(session):
        record = Record(
            run_id=run.run_id,
            run=run,
            status="infeasible",
            reason=f"unsupported: {session.problem}",
            classes=session.data.classes,
            provenance=provenance(session),
        )
        session.place.store.write_record(record)


def _record_untrained(session: Session, tell: Tell) -> None:
    tell("phase", {"what": "scoring the validation split"})
    with session.meter.evaluating():
        likelihood = score(session, "validation").likelihood
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
        return score(self.session, "validation").likelihood

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


def _train(session: Session, tell: Tell) -> None:
    first, store = session.first, session.place.store
    steps = num_steps(first.budget, session.data.train)
    evaluate_every = first.evaluate.every or max(1, round(steps / EVALUATIONS_PER_RUN))
    plan = LoopPlan(
        num_steps=steps,
        evaluate_every=evaluate_every,
        checkpoint_every=session.place.checkpoint.every,
        checkpoint_minutes=session.place.checkpoint.minutes,
        micro_batch=session.setup["micro_batch"],
        pad_id=session.pad_id,
    )
    members = [_member(session, index, steps) for index in range(len(session.runs))]
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
    session.meter.note_peak("train")
    for index, member in enumerate(members):
        if index in session.along:
            continue
        if session.runs[index].keep == "last" and not member.is_over:
            save_weights(session, index)
        record = _trained_record(session, index, member, loop)
        store.write_record(record)
        trackers[index].record(record)
        trackers[index].finish()
    remove_folder(folder)


def _run_loop(session: Session, loop: Loop, resume: Checkpoint | None) -> None:
    """Train to the end; one run that runs out of memory with one sequence at a time is infeasible.

    Raises:
        InfeasibleError: out of memory with more than that, so that less at a time may do.
    """
    try:
        loop.run(resume)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if len(loop.members) > 1:
            raise _parted(session) from None
        if loop.plan.micro_batch > 1:
            raise InfeasibleError(str(error) or "out of memory", "out_of_memory") from None
        for member in loop.members:
            member.failure = "out of memory with one sequence at a time"


def _written(session: Session) -> list[Run]:
    """Return the runs that are not finished yet."""
    return [run for index, run in enumerate(session.runs) if index not in session.along]


def _parted(session: Session) -> InfeasibleError:
    """Store a cohort that ran out of memory as two halves, and return what to say of it.

    The cohort before the micro-batch: with fewer runs a pass, as many sequences of each fit.
    """
    num_runs = len(session.runs)
    size = (num_runs + 1) // 2
    what = f"out of memory in a cohort of {num_runs}; trained in cohorts of {size} at most"
    part_stored(session.place.store, tuple(session.setup["cohort"]), size, what)
    return InfeasibleError(what, "out_of_memory")


def _member(session: Session, index: int, steps: int) -> Member:
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


def _trained_record(session: Session, index: int, member: Member, loop: Loop) -> Record:
    run, store = session.runs[index], session.place.store
    weights = store.weights(run.run_id)
    tail = member.losses[-max(1, round(len(member.losses) * TAIL_SHARE)) :]
    training = Training(
        steps=loop.step,
        epochs=member.order.epochs(loop.step),
        num_target_tokens=member.target_tokens,
        num_input_tokens=member.input_tokens,
        batch_sequence_sha256=sequence_sha256(member.order, loop.step),
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
        return costs
    own = {"num_runs": len(session.runs), "optimizer_bytes": member.optimizer.num_bytes}
    return costs.model_copy(update=own)
