"""What is worked out of a finished run beside its scores: forgetting, what its weights became, and samples.

It is cheap beside training, and nothing in it can lose what training gave: what cannot be worked out becomes a note.
"""

import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch
from safetensors import safe_open

from tuneoff.analysis.weights import layer_change, low_rank_change
from tuneoff.data.items import ratio_values, sums
from tuneoff.data.retention import RetentionText, prepare_retention
from tuneoff.errors import TuneoffError
from tuneoff.evaluation.likelihood import score_split
from tuneoff.files import on_disk
from tuneoff.methods import interchange
from tuneoff.methods.changes import MatrixChange, adapter_changes, changed_layers
from tuneoff.running.examine import Tell
from tuneoff.running.samples import take_samples
from tuneoff.running.session import Place, Session, load_weights, open_session
from tuneoff.running.shortages import settled
from tuneoff.running.store import FULL_WEIGHTS
from tuneoff.study.explained import Explaining, ExplainRecord, LayerChange, Retention, Sample
from tuneoff.study.identity import Run
from tuneoff.study.methods import FullMethod, LoadMethod
from tuneoff.study.shortage import Shortage
from tuneoff.training.models import load_base
from tuneoff.training.out_of_memory import is_out_of_memory

SPECTRUM_SEED = 0
"""Of the start of the Lanczos method, which moves the last bits of large layers' values only."""
HEAD_NOTE = "Embeddings and the output head are left out of the weight changes."

Part = TypeVar("Part")


def explain_run(run: Run, place: Place, tell: Tell, explaining: Explaining) -> None:
    """Work out what is asked for of a finished run, or of the base as it is, and write its record.

    A run without a record is the base that no arm stands for; of it the retention loss alone is wanted.
    """
    tell("phase", {"what": "explaining weights"})
    start = time.perf_counter()
    session = open_session((run,), place, is_afterwards=True)
    session.at("explain")
    if session.shortage is not None:
        shortage = settled(session, session.shortage).model_copy(update={"phase": "explain"})
        _write_nothing(run, place, explaining, shortage)
        return
    notes: list[str] = []
    text = _retention_text(session, explaining, notes)
    layers: tuple[LayerChange, ...] = ()
    is_gone = run.lr is not None and place.store.weights(run.run_id) is None
    if is_gone:
        notes.append("The trained weights are gone (see the study's `keep`), so nothing was worked out of them.")
    else:
        if explaining.asked.weights:
            # The base's own weights are there until those of full fine-tuning are put in their places.
            layers = _attempt(session, lambda: _full_layers(session), notes) or ()
        load_weights(session.adapted, run, place.store)
    retention = (
        None if is_gone or text is None else _attempt(session, lambda: _score_halving(session, text, notes), notes)
    )
    samples: tuple[Sample, ...] = ()
    if explaining.asked.samples and place.store.record(run.run_id) is not None:
        tell("phase", {"what": "taking samples"})
        samples = (
            _attempt(session, lambda: take_samples(session, explaining.asked, notes, is_gone=is_gone), notes) or ()
        )
    if explaining.asked.weights and not is_gone:  # last, as PEFT's layers are merged for it
        layers = layers or _attempt(session, lambda: _worked_out(adapter_changes(session.adapted)), notes) or ()
    place.store.write_explained(
        ExplainRecord(
            run_id=run.run_id,
            asked=explaining.asked,
            model_sha256=explaining.model_sha256,
            retention_sha256=text.sha256 if text is not None else explaining.retention_sha256,
            retention=retention,
            layers=layers,
            samples=samples,
            notes=(*notes, *((HEAD_NOTE,) if layers else ())),
            shortage=session.shortage,
            explain_s=time.perf_counter() - start,
        )
    )


def _write_nothing(run: Run, place: Place, explaining: Explaining, shortage: Shortage) -> None:
    """Write down that there is not the memory to work anything out; where there is more, it is tried again."""
    record = ExplainRecord(
        run_id=run.run_id,
        asked=explaining.asked,
        model_sha256=explaining.model_sha256,
        retention_sha256=explaining.retention_sha256,
        notes=(shortage.reason,),
        shortage=shortage,
        explain_s=0.0,
    )
    place.store.write_explained(record)


def _attempt(session: Session, work: Callable[[], Part], notes: list[str]) -> Part | None:
    """Return what `work` gives, or none with a note where it cannot be had."""
    try:
        return work()
    except (TuneoffError, ValueError) as error:
        notes.append(str(error))
    except Exception as error:  # what memory ran out with has many kinds; every other is raised again
        session.shortage = session.lacking(error)
        notes.append(session.shortage.reason)
    return None


def _retention_text(session: Session, explaining: Explaining, notes: list[str]) -> RetentionText | None:
    source = explaining.retention
    if source is None:
        return None
    task, tokenizer, root = session.first.task, session.tokenizer, session.place.root
    return _attempt(session, lambda: prepare_retention(source, task, tokenizer, root), notes)


def _score_halving(session: Session, text: RetentionText, notes: list[str]) -> Retention:
    """Score the retention text, with fewer tokens at a time where memory runs out."""
    while True:
        before = session.evaluation_tokens
        try:
            return _score(session, text)
        except Exception as error:
            if before <= session.first.task.max_length or not is_out_of_memory(error):
                raise
        half = max(session.first.task.max_length, before // 2)
        session.setup["evaluation_tokens"] = half  # of this session alone: nothing of training hangs on it
        notes.append(f"Out of memory on the retention text: scored {half:,} tokens at a time instead of {before:,}.")


def _score(session: Session, text: RetentionText) -> Retention:
    """Score the retention text with the model as it is used, virtual tokens in their places."""
    split = text.split
    with session.adapted.member(0) as module:
        scores = score_split(
            module,
            session.forward,
            split,
            session.runtime,
            session.pad_id,
            max_tokens=session.evaluation_tokens,
            stride_tokens=text.stride_tokens,
        )
    num_items, counts = len(split.item_names), split.targets_by_sequence.astype(np.float64)
    values = ratio_values(sums(split.items, scores.nll_nats, num_items), sums(split.items, counts, num_items))
    return Retention(likelihood=scores.likelihood, values=tuple(values.tolist()))


def _full_layers(session: Session) -> tuple[LayerChange, ...]:
    """Return how every linear layer changed where all weights were trained; nothing of other methods.

    One trained matrix at a time is read beside the base: a second copy of the model is never in memory.
    """
    run, place = session.first, session.place
    if isinstance(run.method, FullMethod):
        path = place.store.run_folder(run.run_id) / FULL_WEIGHTS
        with on_disk(path), safe_open(path, "pt") as file:
            names = set(file.keys())
            return _worked_out(
                changed_layers(session.adapted.module, lambda name: file.get_tensor(name) if name in names else None)
            )
    if isinstance(run.method, LoadMethod) and not interchange.is_adapter_folder(place.root / run.method.path):
        base = load_base(run.model, place.root, run.revision, run.trust_remote_code, torch.float32)
        weights = dict(session.adapted.module.named_parameters())
        return _worked_out(changed_layers(base, weights.get))
    return ()


def _worked_out(changes: Iterator[MatrixChange]) -> tuple[LayerChange, ...]:
    generator = np.random.default_rng(SPECTRUM_SEED)
    return tuple(_layer(change, generator) for change in changes)


def _layer(change: MatrixChange, generator: np.random.Generator) -> LayerChange:
    base = change.base.numpy()
    if change.factors is not None:
        b, a = (factor.numpy() for factor in change.factors)
        return low_rank_change(change.module, base, b, a, change.scaling, generator=generator)
    if change.change is None:
        raise ValueError(f"{change.module}: neither a change nor its factors were given")
    return layer_change(change.module, base, change.change.numpy(), generator=generator)
