"""What a run writes, or chooses, for the first items of the test split, so that arms can be read side by side.

Where testing generates text, these are texts that it wrote; else the model goes on from a prompt, greedily.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tuneoff.errors import DataError
from tuneoff.evaluation.generated import text_of
from tuneoff.evaluation.generation import generate
from tuneoff.running.session import Session
from tuneoff.running.store import GENERATIONS_FILE, PREDICTIONS_FILE
from tuneoff.study.explained import Sample
from tuneoff.study.options import ExplainSpec
from tuneoff.study.testing import Decoding, GenerateSpec

MAX_CHARS = 2_000
"""Of each text of a sample; more than a screen is not read."""
GAP = " [...] "


def take_samples(session: Session, asked: ExplainSpec, notes: list[str], *, is_gone: bool) -> tuple[Sample, ...]:
    """Return the samples of a run.

    Args:
        session: with the run's weights in place.
        asked: how many, and how long a text that is written for them.
        notes: gets a line where a text could not be written.
        is_gone: whether the weights are gone, so that only what testing wrote can be shown.

    Raises:
        DataError: what testing wrote cannot be read.
    """
    if session.data.classes:
        return tuple(_chosen(session, asked.samples))
    written = _rows(session, GENERATIONS_FILE)
    if written:
        return tuple(_generated(session, asked.samples, written))
    if is_gone:
        return ()
    return _write(session, asked, notes)


def _rows(session: Session, name: str) -> list[dict[str, Any]]:
    """Return the lines of a file that testing wrote; none where there is no such file."""
    path = session.place.store.run_folder(session.first.run_id) / name
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read ({error}); no samples were taken", file=str(path)) from None


def _first_of_items(items: NDArray[np.int32], number: int) -> list[int]:
    """Return the places of the first sequence of each of the first items."""
    _, places = np.unique(items, return_index=True)
    return sorted(places.tolist())[:number]


def _chosen(session: Session, number: int) -> Iterator[Sample]:
    """Yield texts with their class and the predicted one."""
    split, classes = session.data.test, session.data.classes
    rows = {row["sequence"]: row for row in _rows(session, PREDICTIONS_FILE)}
    for index in _first_of_items(split.items, number):
        if index in rows:
            yield Sample(
                item=split.item_names[split.items[index]],
                prompt=_text(session, split.sequence(index)[0].tolist()),
                reference=classes[rows[index]["label"]],
                text=classes[rows[index]["prediction"]],
            )


def _generated(session: Session, number: int, written: Sequence[dict[str, Any]]) -> Iterator[Sample]:
    """Yield what testing wrote: greedily if that is among its strategies, else the first of them."""
    names = [row["decoding"] for row in written]
    name = Decoding().name if Decoding().name in names else names[0]
    rows = {row["id"]: row for row in written if row["decoding"] == name}
    prompts = session.data.prompts
    if prompts is None:
        return
    for index in _first_of_items(prompts.items, number):
        row = rows.get(prompts.ids[index])
        if row is not None:  # beyond `generate.limit` nothing was written
            yield Sample(
                item=session.data.test.item_names[prompts.items[index]],
                prompt=_text(session, prompts.prompt(index).tolist()),
                reference=shortened(row["references"][0]),
                text=shortened(row["texts"][0]),
            )


def _write(session: Session, asked: ExplainSpec, notes: list[str]) -> tuple[Sample, ...]:
    """Go on from prompts, or from the first half of windows of text, greedily."""
    split, prompts = session.data.test, session.data.prompts
    if prompts is not None:
        places = _first_of_items(prompts.items, asked.samples)
        starts = [prompts.prompt(index).tolist() for index in places]
        references = [prompts.references[index][0] for index in places]
        items = [split.item_names[prompts.items[index]] for index in places]
    else:
        places = _first_of_items(split.items, asked.samples)
        windows = [split.sequence(index)[0].tolist() for index in places]
        starts = [ids[: max(1, len(ids) // 2)] for ids in windows]
        references = [_decoded(session, ids[len(start) :]) for ids, start in zip(windows, starts, strict=True)]
        items = [split.item_names[split.items[index]] for index in places]
    texts = [_continuation(session, ids, asked.max_new_tokens) for ids in starts]
    if None in texts:
        notes.append(
            f"{texts.count(None)} of {len(texts)} samples have a prompt that leaves no room to write after it."
        )
    return tuple(
        Sample(item=item, prompt=_text(session, ids), reference=shortened(reference), text=shortened(text))
        for item, ids, reference, text in zip(items, starts, references, texts, strict=True)
        if text is not None
    )


def _continuation(session: Session, ids: list[int], max_new_tokens: int) -> str | None:
    """Return what the model goes on with; none where its context has no room."""
    num_virtual = session.adapted.num_virtual_tokens
    if session.context_length is not None:
        max_new_tokens = min(max_new_tokens, session.context_length - num_virtual - len(ids))
    if max_new_tokens < 1:
        return None
    with session.adapted.member(0) as module:
        found = generate(
            module,
            [ids],
            Decoding(),
            GenerateSpec(max_new_tokens=max_new_tokens),
            pad_id=session.pad_id,
            eos_id=session.tokenizer.eos_token_id,
            seed=0,
            context_length=session.context_length,
            autocast=session.runtime.autocast,
            num_virtual_tokens=num_virtual,
        )
    return text_of(found[0][0], session.tokenizer)


def _text(session: Session, ids: list[int]) -> str:
    return shortened(_decoded(session, ids))


def _decoded(session: Session, ids: list[int]) -> str:
    decoded = session.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(decoded)


def shortened(text: str) -> str:
    """Return a text of at most `MAX_CHARS` characters: the middle goes, as a question often stands at the end."""
    if len(text) <= MAX_CHARS:
        return text
    tail = (MAX_CHARS - len(GAP)) // 2
    return text[: MAX_CHARS - len(GAP) - tail] + GAP + text[-tail:]
