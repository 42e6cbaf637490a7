"""Everything that runs need, loaded: base, tokenizer, data, and the method on the base."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file

from tuneoff.data.prepare import PreparedData, prepare
from tuneoff.data.tokens import TokenSplit
from tuneoff.errors import MethodError
from tuneoff.evaluation.likelihood import EVALUATION_TOKENS, Scores, score_split
from tuneoff.evaluation.zero_shot import score_label_words, score_majority
from tuneoff.files import on_disk, remove_folder
from tuneoff.methods import interchange
from tuneoff.methods.base import AdaptedModel
from tuneoff.running.loading import adapt, lacking, load
from tuneoff.running.place import Place as Place
from tuneoff.running.store import ADAPTER_WEIGHTS, CHECKPOINT_FOLDER, FULL_WEIGHTS, Store
from tuneoff.study.identity import Run
from tuneoff.study.methods import FullMethod, LoadMethod, LoraMethod, NoneMethod
from tuneoff.study.records import RECORD_VERSION, Halving
from tuneoff.study.shortage import MemoryPhase, Shortage
from tuneoff.training.checkpoint import save_tensors
from tuneoff.training.memory_limits import Available, close_holes
from tuneoff.training.meter import Meter
from tuneoff.training.models import fingerprint, load_config, load_tokenizer, tokenizer_notes
from tuneoff.training.runtime import Runtime, open_runtime
from tuneoff.training.steps import MIN_PACKED_TOKENS as MIN_PACKED_TOKENS
from tuneoff.training.steps import Forward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Session:
    """Everything loaded for the runs of one child."""

    runs: tuple[Run, ...]
    place: Place
    runtime: Runtime
    data: PreparedData
    tokenizer: "PreTrainedTokenizerBase"
    pad_id: int
    adapted: AdaptedModel
    meter: Meter
    setup: dict[str, Any]
    room: Available
    """What the process could have before it loaded anything."""
    model_sha256: str = ""
    """Hash of the base, of runs that are to be recorded."""
    context_length: int | None = None
    """Tokens that the base sees in all; none where it does not say."""
    notes: tuple[str, ...] = ()
    problem: str = ""
    """Why this model cannot take the method; empty where it can."""
    phase: MemoryPhase = "load"
    """What is being done now."""
    shortage: Shortage | None = None
    """What memory was lacking with the least at a time; none while there is enough."""
    halving: Halving | None = None
    """What the run is held against while it is trained; none trains it to the end."""
    along: frozenset[int] = frozenset()
    """Places of the runs that are finished: trained along for the others' bits, with nothing of them written."""
    forward: Forward = field(init=False)

    def __post_init__(self) -> None:
        self.forward = Forward(self.adapted.module)

    @property
    def first(self) -> Run:
        """The run that stands for what all of them share."""
        return self.runs[0]

    @property
    def evaluation_tokens(self) -> int:
        """Tokens of one forward of scoring."""
        return int(self.setup.get("evaluation_tokens") or EVALUATION_TOKENS)

    def at(self, phase: MemoryPhase) -> None:
        """Note, here and with the parent, what begins."""
        self.phase = phase
        self.place.doing(phase)

    def lacking(self, error: BaseException) -> Shortage:
        """Return what an error says of the memory that ran out, and what there was.

        Raises:
            BaseException: the error itself, where it is about something else.
        """
        return lacking(error, self.phase, self.room)


def open_session(
    runs: Sequence[Run],
    place: Place,
    *,
    is_trained: bool = False,
    is_afterwards: bool = False,
    along: Collection[int] = (),
) -> Session:
    """Load base, tokenizer and data, and adapt the base.

    Args:
        runs: what is worked on.
        place: where.
        is_trained: whether their training is done, so that the cohort that it had stays as it was stored.
        is_afterwards: whether all that is recorded is done, so that what its bits depended on stays as it was stored.
        along: places of the runs that are finished, and only trained along.
    """
    first = runs[0]
    setup = _settle_setup(runs, place, is_trained=is_trained or is_afterwards)
    close_holes()
    runtime = open_runtime(first.precision, setup["num_threads"])
    meter = Meter(runtime)
    tokenizer = load_tokenizer(first.model, place.root, first.revision, first.trust_remote_code)
    config = load_config(first.model, place.root, first.revision, first.trust_remote_code)
    context_length = getattr(config.get_text_config(), "max_position_embeddings", None)
    data = prepare(first.task, tokenizer, place.root, context_length, trust_remote_code=first.trust_remote_code)
    if not is_afterwards:
        _guard_checkpoint(runs, place, setup, data.sha256)
    is_over = is_trained or is_afterwards
    # Its files are checked where they are loaded: that maps them, and without room for it a run is infeasible.
    model_sha256 = "" if is_over else fingerprint(first.model, place.root, first.revision, is_checked=True)
    with meter.phase("load"):
        loaded = load(runs, place, runtime, len(data.classes))
    session = Session(
        runs=tuple(runs),
        place=place,
        runtime=runtime,
        data=data,
        pad_id=tokenizer.pad_token_id,
        tokenizer=tokenizer,
        context_length=context_length,
        adapted=loaded.adapted,
        meter=meter,
        setup=setup,
        notes=(*tokenizer_notes(tokenizer), *data.notes, *setup["notes"]),
        along=frozenset(along),
        model_sha256=model_sha256,
        problem=loaded.problem,
        room=loaded.room,
        shortage=loaded.shortage,
    )
    if not session.problem and session.shortage is None:
        try:
            _check_forward(session)
        except Exception as error:  # of another kind it is raised again
            session.shortage = session.lacking(error)
    return session


def _check_forward(session: Session) -> None:
    """Find out whether logits at target positions alone, and of sequences end to end, are the model's own."""
    train = session.data.train
    places = dict.fromkeys((0, int(train.lengths.argmax()), int(train.lengths.argmin())))
    probes = [torch.from_numpy(train.sequence(place)[0].astype("int64")).to(session.runtime.device) for place in places]
    session.adapted.module.eval()
    with session.runtime.autocast(), session.adapted.member(0):
        session.forward.check(probes[0][None])
        if session.adapted.can_pack and session.forward.check_packing(probes):
            session.forward.is_packed = bool(train.lengths.mean() >= MIN_PACKED_TOKENS)


def _guard_checkpoint(runs: Sequence[Run], place: Place, setup: dict[str, Any], data_sha256: str) -> None:
    """Drop a checkpoint of other data, or of a cohort of other runs, than there are now: going on would mix the two."""
    if setup.get("data_sha256") != data_sha256 or setup["num_sittings"] == 1:
        remove_folder(place.store.run_folder(runs[0].run_id) / CHECKPOINT_FOLDER)
    setup["data_sha256"] = data_sha256
    for run in runs:
        place.store.write_setup(run.run_id, setup)


def open_weights(run: Run, place: Place, num_classes: int) -> AdaptedModel:
    """Return a finished run's model with its trained weights, without its data.

    Args:
        run: the run.
        place: where it lies.
        num_classes: of its task; 0 where text is predicted.

    Raises:
        TuneoffError: the base cannot be had, or the weights are gone.
    """
    runtime = open_runtime(run.precision)
    adapted = adapt((run,), place, runtime, num_classes)
    load_weights(adapted, run, place.store)
    adapted.module.eval()
    return adapted


def _settle_setup(runs: Sequence[Run], place: Place, *, is_trained: bool) -> dict[str, Any]:
    """Return what the bits depend on: as it was stored when the run first started, else as it is now."""
    stored = place.store.setup(runs[0].run_id)
    micro_batch = runs[0].micro_batch or runs[0].budget.batch_size
    setup = {
        "num_threads": place.num_threads or torch.get_num_threads(),
        "micro_batch": min(micro_batch, runs[0].budget.batch_size),
        "cohort": [run.run_id for run in runs],
        "root": str(place.root),
        "num_sittings": 1,
        "is_alone": place.is_alone,
        "version": RECORD_VERSION,
        "notes": [],
    }
    if stored is not None and is_trained:
        setup["cohort"] = stored.get("cohort", setup["cohort"])
    if stored is not None and all(stored.get(key) == setup[key] for key in ("cohort", "version")):
        # A cohort may have been parted before its start.
        kept = ("num_threads", "micro_batch", "evaluation_tokens", "generation_rows")
        setup |= {key: stored[key] for key in kept if key in stored}
        setup |= {"num_sittings": stored.get("num_sittings", 0) + 1, "data_sha256": stored.get("data_sha256")}
        setup["is_alone"] = place.is_alone and bool(stored.get("is_alone", place.is_alone))
        setup["notes"] = stored.get("notes", [])
    return setup


def score(session: Session, split: str) -> Scores:
    """Score a split (`train`, `validation` or `test`) with the model as it stands."""
    module, forward, data = session.adapted.module, session.forward, session.data
    rows: TokenSplit = getattr(data, split)
    if data.classes and isinstance(session.first.method, NoneMethod):
        if data.label_ids:
            return score_label_words(
                module, forward, rows, data.label_ids, session.runtime, session.pad_id, session.evaluation_tokens
            )
        return score_majority(data.train, rows, len(data.classes))
    return score_split(
        module,
        forward,
        rows,
        session.runtime,
        session.pad_id,
        max_tokens=session.evaluation_tokens,
        stride_tokens=data.stride_tokens,
    )


def _weights_name(run: Run) -> str:
    return FULL_WEIGHTS if isinstance(run.method, FullMethod) else ADAPTER_WEIGHTS


def save_weights(session: Session, index: int) -> None:
    """Write a run's trained weights into its folder."""
    run = session.runs[index]
    write_weights(session, index, session.place.store.run_folder(run.run_id) / _weights_name(run))


def write_weights(session: Session, index: int, path: Path) -> None:
    """Write a run's trained weights: LoRA under PEFT's names, full under the model's own."""
    state = session.adapted.state_dict(index)
    if isinstance(session.runs[index].method, LoraMethod):
        state = interchange.peft_state(state)
    save_tensors(path, state)


def restore_weights(session: Session, index: int) -> None:
    """Put a finished run's saved weights into the session's model (see `load_weights`)."""
    load_weights(session.adapted, session.runs[index], session.place.store, index)


def load_weights(adapted: AdaptedModel, run: Run, store: Store, member: int = 0) -> None:
    """Put a finished run's saved weights into a member.

    Raises:
        MethodError: they are not there any more, or of another model.
    """
    if not adapted.trainable_parameters(member) or isinstance(run.method, LoadMethod):
        return
    path = store.run_folder(run.run_id) / _weights_name(run)
    if not path.exists():
        raise MethodError(f"run {run.run_id}: its weights are gone ({path.name}); the study's `keep` says which stay")
    with on_disk(path):
        state = load_file(path)
    adapted.load_state_dict(interchange.from_peft_state(state), member)
