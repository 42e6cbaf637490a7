"""What a child process does: train runs (one, or a cohort), or read the test split with weights that are there."""

import datetime
import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import tuneoff
from tuneoff.data.batching import BatchSequence, num_steps
from tuneoff.data.prepare import PreparedData, prepare
from tuneoff.errors import InfeasibleError, MethodError
from tuneoff.evaluation.likelihood import Scores, score_split
from tuneoff.methods import cohort_from_specs, interchange
from tuneoff.methods.base import AdaptedModel, num_parameters
from tuneoff.methods.selective import NoTraining
from tuneoff.running.store import ADAPTER_WEIGHTS, CURVE_FILE, FULL_WEIGHTS, PREDICTIONS_FILE, Store
from tuneoff.study.identity import Run
from tuneoff.study.records import Likelihood, Parameters, Provenance, Record, TestRecord, Training
from tuneoff.study.spec import FullMethod, LoadMethod, LoraMethod
from tuneoff.study.streams import INIT, stream_seed
from tuneoff.training.checkpoint import (
    Checkpoint,
    file_sha256,
    load_checkpoint,
    save_checkpoint,
    save_tensors,
    write_synced,
)
from tuneoff.training.loop import Loop, LoopPlan, Member
from tuneoff.training.meter import Meter
from tuneoff.training.models import fingerprint, load_base, load_config, load_tokenizer, tokenizer_notes
from tuneoff.training.optim import MemberOptimizer
from tuneoff.training.runtime import Runtime, open_runtime
from tuneoff.training.steps import Forward

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHECKPOINT_FOLDER = "checkpoint"
RECORDED_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "peft", "safetensors", "numpy")
EVALUATIONS_PER_RUN = 10
TAIL_SHARE = 0.1
"""Share of the steps over which the final training loss is averaged: single steps are noisy."""

Tell = Callable[[str, dict[str, Any]], None]
"""Passes an event to the parent."""


@dataclass(frozen=True)
class Place:
    """Where a child works and on what."""

    store: Store
    root: Path
    """Where the study's relative paths start."""
    checkpoint_every: int | None = None
    num_threads: int | None = None
    micro_batch: int | None = None
    """A smaller micro-batch than the study's, after an out-of-memory."""


@dataclass
class Session:
    """Everything loaded for the runs of one child."""

    runs: tuple[Run, ...]
    place: Place
    runtime: Runtime
    data: PreparedData
    pad_id: int
    adapted: AdaptedModel
    meter: Meter
    setup: dict[str, Any]
    notes: tuple[str, ...] = ()
    forward: Forward = field(init=False)

    def __post_init__(self) -> None:
        self.forward = Forward(self.adapted.module)

    @property
    def first(self) -> Run:
        """The run that stands for what all of them share."""
        return self.runs[0]


def train_runs(runs: Sequence[Run], place: Place, tell: Tell, *, with_test: bool = False) -> None:
    """Train runs to the end and write their records; with `with_test`, read the test split too.

    Several runs are a cohort: LoRA runs of one base, task, budget and precision that share the forward.

    Raises:
        TuneoffError: bad input.
        InfeasibleError: out of memory at a micro-batch of one.
    """
    session = open_session(runs, place)
    if session.adapted.trainable_parameters():
        _train(session, tell)
    else:
        _record_untrained(session, tell)
    if with_test:
        for index in range(len(session.runs)):
            if place.store.record(session.runs[index].run_id).status == "done":  # type: ignore[union-attr]
                restore_weights(session, index)
                _test(session, index, tell)


def score_run(run: Run, place: Place, tell: Tell) -> None:
    """Read the test split with the weights that a finished run left."""
    session = open_session((run,), place)
    restore_weights(session, 0)
    _test(session, 0, tell)


def open_session(runs: Sequence[Run], place: Place) -> Session:
    """Load base, tokenizer and data, and adapt the base."""
    first = runs[0]
    setup = _settle_setup(runs, place)
    runtime = open_runtime(first.precision, setup["num_threads"])
    meter = Meter(runtime)
    tokenizer = load_tokenizer(first.model, place.root, first.revision, first.trust_remote_code)
    config = load_config(first.model, place.root, first.revision, first.trust_remote_code)
    data = prepare(
        first.task,
        tokenizer,
        place.root,
        getattr(config.get_text_config(), "max_position_embeddings", None),
        trust_remote_code=first.trust_remote_code,
    )
    with meter.phase("load"):
        adapted = _adapt(runs, place, runtime)
    pad_id = tokenizer.pad_token_id
    notes = (*tokenizer_notes(tokenizer), *data.notes)
    return Session(tuple(runs), place, runtime, data, pad_id, adapted, meter, setup, notes)


def _settle_setup(runs: Sequence[Run], place: Place) -> dict[str, Any]:
    """Return what the bits depend on: as it was stored when the run first started, else as it is now, stored."""
    stored = place.store.setup(runs[0].run_id)
    micro_batch = place.micro_batch or runs[0].micro_batch or runs[0].budget.batch_size
    setup = {
        "num_threads": place.num_threads or torch.get_num_threads(),
        "micro_batch": min(micro_batch, runs[0].budget.batch_size),
        "cohort": [run.run_id for run in runs],
        "num_sittings": 1,
    }
    if stored is not None and stored.get("cohort") == setup["cohort"]:
        has_shrunk = place.micro_batch is not None
        setup |= {key: stored[key] for key in ("num_threads", *(() if has_shrunk else ("micro_batch",)))}
        setup["num_sittings"] = stored["num_sittings"] + 1
    for run in runs:
        place.store.write_setup(run.run_id, setup)
    return setup


def _adapt(runs: Sequence[Run], place: Place, runtime: Runtime) -> AdaptedModel:
    first = runs[0]
    if isinstance(first.method, LoadMethod):
        adapted = _load_existing(first, first.method, place, runtime)
    else:
        method = cohort_from_specs([run.method for run in runs])
        base = _base(first, place, torch.float32 if method.trains_base else runtime.compute_dtype)
        generators = [torch.Generator().manual_seed(stream_seed(run.seed or 0, INIT)) for run in runs]
        adapted = method.adapt(base, generators)
    adapted.module.to(runtime.device)
    return adapted


def _base(run: Run, place: Place, dtype: torch.dtype) -> "PreTrainedModel":
    return load_base(run.model, place.root, run.revision, run.trust_remote_code, dtype)


def _load_existing(run: Run, method: LoadMethod, place: Place, runtime: Runtime) -> AdaptedModel:
    folder = place.root / method.path
    if interchange.is_adapter_folder(folder):
        return interchange.load_peft(_base(run, place, runtime.compute_dtype), folder)
    if not folder.is_dir():
        raise MethodError(
            f"load: {method.path!r} is no folder. Give a PEFT adapter folder or a Transformers checkpoint."
        )
    model = load_base(str(folder), place.root, None, run.trust_remote_code, runtime.compute_dtype)
    return NoTraining().adapt(model, torch.Generator())


def _score_validation(session: Session) -> Likelihood:
    return _score(session, "validation").likelihood


def _score(session: Session, split: str) -> Scores:
    return score_split(
        session.adapted.module,
        session.forward,
        getattr(session.data, split),
        session.runtime,
        session.pad_id,
        stride_tokens=session.data.stride_tokens,
    )


def _record_untrained(session: Session, tell: Tell) -> None:
    tell("phase", {"what": "scoring the validation split"})
    with session.meter.evaluating():
        likelihood = _score_validation(session)
    run = session.first
    record = Record(
        run_id=run.run_id,
        run=run,
        status="done",
        parameters=Parameters(trainable=0, total=num_parameters(session.adapted.module)),
        validation=likelihood,
        provenance=_provenance(session),
    )
    session.place.store.write_record(record)


class _Observer:
    """Writes down what the loop tells and passes its progress to the parent."""

    def __init__(self, session: Session, num_steps: int, tell: Tell) -> None:
        self.session = session
        self.num_steps = num_steps
        self.tell = tell

    def curve(self, member: int, row: dict[str, Any]) -> None:
        """Append a point to the member's learning curve."""
        path = self.session.place.store.run_folder(self.session.runs[member].run_id) / CURVE_FILE
        with path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")
        if row["kind"] == "validation":
            self.tell("validation", {"step": row["step"], "loss_nats": row["loss_nats"]})

    def best(self, member: int) -> None:
        """Save the member's weights."""
        if self.session.runs[member].keep == "best":
            save_weights(self.session, member)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Save the state of all members, in the first one's folder."""
        folder = self.session.place.store.run_folder(self.session.first.run_id)
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
        checkpoint_every=session.place.checkpoint_every or evaluate_every,
        micro_batch=session.setup["micro_batch"],
        pad_id=session.pad_id,
    )
    members = [_member(session, index, steps) for index in range(len(session.runs))]
    folder = store.run_folder(first.run_id) / CHECKPOINT_FOLDER
    resume = load_checkpoint(folder)
    for run in session.runs:
        store.cut_curve(run.run_id, resume.step if resume else 0)
    if resume is not None:
        tell("resumed", {"step": resume.step, "num_steps": steps})
    loop = Loop(
        session.adapted,
        members,
        session.data.train,
        plan,
        lambda module, forward: (
            score_split(
                module,
                forward,
                session.data.validation,
                session.runtime,
                session.pad_id,
                stride_tokens=session.data.stride_tokens,
            ).likelihood
        ),
        _Observer(session, steps, tell),
        session.meter,
    )
    session.forward = loop.forward
    try:
        loop.run(resume)
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise InfeasibleError(str(error) or "out of memory", "out_of_memory") from None
    session.meter.note_peak("train")
    for index, member in enumerate(members):
        if session.runs[index].keep == "last" and not member.failure:
            save_weights(session, index)
        store.write_record(_trained_record(session, index, member, loop))
    remove_folder(folder)


def _member(session: Session, index: int, steps: int) -> Member:
    run = session.runs[index]
    seed = run.seed or 0
    order = BatchSequence(len(session.data.train), run.budget.batch_size, seed)
    optimizer = MemberOptimizer(
        session.adapted.trainable_parameters(index), run.lr or 0.0, run.optimizer, steps, run.precision == "fp16"
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
        batch_sequence_sha256=member.order.sha256(loop.step),
        best_step=member.best_step,
        final_loss_nats=sum(tail) / len(tail) if tail else 0.0,
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
        status="infeasible" if member.failure else "done",
        reason=member.failure,
        parameters=Parameters(
            trainable=trainable,
            total=num_parameters(session.adapted.module) - others,
            modules=session.adapted.matched,
        ),
        training=training,
        validation=member.validation if run.keep == "best" else member.last_validation,
        costs=session.meter.costs(weights.stat().st_size if weights else 0),
        provenance=_provenance(session),
        files=files,
    )


def _weights_name(run: Run) -> str:
    return FULL_WEIGHTS if isinstance(run.method, FullMethod) else ADAPTER_WEIGHTS


def save_weights(session: Session, index: int) -> None:
    """Write a run's trained weights into its folder: LoRA under PEFT's names, full under the model's own."""
    run = session.runs[index]
    state = session.adapted.state_dict(index)
    if isinstance(run.method, LoraMethod):
        state = interchange.peft_state(state)
    save_tensors(session.place.store.run_folder(run.run_id) / _weights_name(run), state)


def restore_weights(session: Session, index: int) -> None:
    """Put a finished run's saved weights into the model.

    Raises:
        MethodError: they are not there any more, or of another model.
    """
    run = session.runs[index]
    if not session.adapted.trainable_parameters(index):
        return
    path = session.place.store.run_folder(run.run_id) / _weights_name(run)
    if not path.exists():
        raise MethodError(f"run {run.run_id}: its weights are gone ({path.name}); the study's `keep` says which stay")
    from safetensors.torch import load_file

    session.adapted.load_state_dict(interchange.from_peft_state(load_file(path)), index)


def _test(session: Session, index: int, tell: Tell) -> None:
    tell("phase", {"what": "scoring the test split"})
    run, store = session.runs[index], session.place.store
    start = time.perf_counter()
    with session.adapted.member(index):
        scores = _score(session, "test")
    taken = time.perf_counter() - start
    split = session.data.test
    lines = [
        {
            "item": split.item_names[split.items[sequence]],
            "sequence": sequence,
            "nll_nats": float(scores.nll_nats[sequence]),
            "num_target_tokens": int(split.sequence(sequence)[1].sum()),
            "num_target_bytes": int(split.target_bytes[sequence]),
        }
        for sequence in range(len(split))
    ]
    path = store.run_folder(run.run_id) / PREDICTIONS_FILE
    write_synced(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    test = TestRecord(
        run_id=run.run_id, test=scores.likelihood, score_s=taken, files={PREDICTIONS_FILE: file_sha256(path)}
    )
    store.write_test(test)


def _provenance(session: Session) -> Provenance:
    run = session.first
    return Provenance(
        created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        tuneoff_version=tuneoff.__version__,
        versions={name: version(name) for name in RECORDED_PACKAGES},
        python=platform.python_version(),
        platform=platform.platform(),
        device=session.runtime.device_name,
        num_threads=session.runtime.num_threads,
        micro_batch=session.setup["micro_batch"],
        num_sittings=session.setup["num_sittings"],
        model_sha256=fingerprint(run.model, session.place.root, run.revision),
        data_sha256=session.data.sha256,
        notes=session.notes,
    )


def remove_folder(path: Path) -> None:
    """Remove a folder and what is in it; it is no error if it is not there."""
    import shutil

    shutil.rmtree(path, ignore_errors=True)
