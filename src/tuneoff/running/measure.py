"""Measures what an arm costs alone: load, a few steps, a few scorings and texts, and what is saved, in one process.

Nothing of the run is touched: its weights start anew, and what is saved goes into a folder that is removed again.
"""

import datetime
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from tuneoff.data.tokens import TokenSplit
from tuneoff.errors import DeviceError
from tuneoff.evaluation.generated import Written
from tuneoff.files import remove_folder
from tuneoff.running.examine import Tell, write_texts
from tuneoff.running.session import Place, Session, open_session, score, write_weights
from tuneoff.running.store import COSTS_FOLDER
from tuneoff.running.trial import make_member
from tuneoff.study.identity import Run
from tuneoff.study.records import Costs, Likelihood
from tuneoff.study.solo import SoloCosts, solo_key
from tuneoff.study.testing import Testing
from tuneoff.training.checkpoint import Checkpoint, save_checkpoint
from tuneoff.training.loop import Loop, LoopPlan
from tuneoff.training.meter import NUM_WARMUP_STEPS, give_back

MIN_STEPS, MAX_STEPS = 3, 20
"""Steps that the median is over."""
NUM_FORWARDS = 2
"""Of scoring, as long as they are when a whole split is scored."""


def measure_run(run: Run, place: Place, tell: Tell, testing: Testing, limit_s: float) -> None:
    """Measure a finished run's method alone and write down what it costs.

    Args:
        run: the run.
        place: where.
        tell: is told what is going on.
        testing: how its test split is read.
        limit_s: about how long the steps may take; three of them are taken after the warm-up in any case.

    Raises:
        DeviceError: there is not the memory for it now.
    """
    record = place.store.record(run.run_id)
    if record is None:
        return
    tell("phase", {"what": "measuring time and memory alone"})
    start = time.perf_counter()
    session = open_session((run,), place, is_afterwards=True)
    if session.problem or session.shortage is not None:
        reason = session.problem if session.shortage is None else session.shortage.reason
        raise DeviceError(f"its costs could not be measured alone ({reason})")
    step_s = record.costs.step_s if record.costs is not None else 0.0
    num_steps = min(MAX_STEPS, max(MIN_STEPS, int(limit_s / step_s) if step_s else 0))
    key = solo_key(record, testing)
    with _folder(place.store.folder / COSTS_FOLDER / f".{key}") as folder:
        session.meter.gives_back = True
        session.data = replace(session.data, validation=longest(session, session.data.validation))
        costs, checkpoint_bytes = _train(session, folder, num_steps)
        evaluated = _evaluate(session)
        generated = _generate(session, testing, tell)
    place.store.write_solo(
        key,
        SoloCosts(
            run_id=run.run_id,
            measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            device=session.runtime.device_name,
            platform=platform.platform(),
            num_threads=session.runtime.num_threads,
            micro_batch=session.setup["micro_batch"],
            num_steps=num_steps if costs is not None else 0,
            step_s=None if costs is None else costs.step_s,
            input_tokens_per_s=None if costs is None else costs.input_tokens_per_s,
            target_tokens_per_s=None if costs is None else costs.target_tokens_per_s,
            evaluate_tokens_per_s=evaluated,
            generate_tokens_per_s=generated,
            peak_bytes=dict(session.meter.peak_bytes),
            peak_kind=session.meter.peak_kind,
            optimizer_bytes=0 if costs is None else costs.optimizer_bytes,
            weights_bytes=0 if costs is None else costs.weights_bytes,
            checkpoint_bytes=checkpoint_bytes,
            measure_s=time.perf_counter() - start,
        ),
    )


@contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """Yield a new folder that is gone afterwards; one that a kill left is emptied first."""
    remove_folder(path)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        remove_folder(path)


class _Host:
    """Keeps nothing of what the loop tells, and measures its checkpoint."""

    def __init__(self, session: Session, folder: Path) -> None:
        self.session = session
        self.folder = folder
        self.checkpoint_bytes = 0

    def evaluate(self, module: nn.Module) -> Likelihood:
        """Score the sequences that are measured with; the first time is warm-up."""
        return score(self.session, "validation").likelihood

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Save it as a run does."""
        self.session.meter.note_peak("train")
        with self.session.meter.phase("save"):
            save_checkpoint(self.folder, checkpoint)
        self.checkpoint_bytes = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def curve(self, member: int, row: dict[str, Any]) -> None:
        """Nothing is kept."""

    def best(self, member: int) -> None:
        """Nothing is kept."""

    def stop(self, member: int) -> str:
        """No step is left out."""
        return ""

    def progress(self, step: int, loss_nats: float, tokens_per_s: float) -> None:
        """Nothing is shown."""

    def must_leave(self) -> bool:
        """A process that measures leaves at once when it is asked to."""
        return False


def _train(session: Session, folder: Path, num_steps: int) -> tuple[Costs | None, int]:
    """Return what steps cost, and the bytes of a checkpoint; none where nothing is trained."""
    if not session.adapted.trainable_parameters():
        return None, 0
    total = NUM_WARMUP_STEPS + num_steps
    plan = LoopPlan(
        num_steps=total,
        evaluate_every=total,
        checkpoint_every=total - 1,
        micro_batch=session.setup["micro_batch"],
        pad_id=session.pad_id,
    )
    host = _Host(session, folder)
    member = make_member(session, 0, total)
    Loop(session.adapted, session.forward, [member], session.data.train, plan, host, session.meter).run()
    path = folder / "weights.safetensors"
    with session.meter.phase("save"):
        write_weights(session, 0, path)
    return session.meter.costs(path.stat().st_size), host.checkpoint_bytes


def _evaluate(session: Session) -> float:
    """Return input tokens per second of scoring."""
    with session.adapted.member(0), session.meter.phase("evaluate"):
        if not session.adapted.trainable_parameters():
            score(session, "validation")  # warm-up, which training has behind it
        start = time.perf_counter()
        score(session, "validation")  # its losses come to the host, so the device is done
        taken = time.perf_counter() - start
    return session.data.validation.num_input_tokens / taken


def _generate(session: Session, testing: Testing, tell: Tell) -> float | None:
    """Return new tokens per second, as many texts in the making as in the test; none where none are written."""
    rows = min(testing.generate.batch_size, int(session.setup.get("generation_rows") or testing.generate.batch_size))
    limit = min(rows, testing.generate.limit or rows)
    few = testing.model_copy(
        update={
            "metrics": (),
            "decoding": testing.decoding[:1],
            "generate": testing.generate.model_copy(update={"limit": limit}),
        }
    )
    give_back()
    with session.meter.phase("generate") if testing.decoding else _nothing():
        written: tuple[Written, ...] = write_texts(session, 0, few, rows, tell)
    if not written:
        return None
    found = written[0].generated
    return found.mean_new_tokens * found.num_items * found.num_samples / found.generate_s


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def longest(session: Session, split: TokenSplit) -> TokenSplit:
    """Return the longest sequences of a split, as many as a few forwards of scoring hold."""
    order: NDArray[np.int64] = np.argsort(-split.lengths, kind="stable")
    tokens = np.cumsum(split.lengths[order])
    number = max(1, int(np.searchsorted(tokens, NUM_FORWARDS * session.evaluation_tokens, side="right")))
    return part(split, np.sort(order[:number]))


def part(split: TokenSplit, indices: NDArray[np.int64]) -> TokenSplit:
    """Return some sequences of a split as one of their own; its items keep their numbers."""
    sequences = [split.sequence(int(index)) for index in indices]
    return TokenSplit(
        input_ids=np.concatenate([ids for ids, _ in sequences]),
        targets=np.concatenate([targets for _, targets in sequences]),
        offsets=np.concatenate([[0], np.cumsum(split.lengths[indices])]).astype(np.int64),
        target_bytes=split.target_bytes[indices],
        items=split.items[indices],
        labels=split.labels[indices] if split.has_labels else split.labels,
        item_names=split.item_names,
    )
