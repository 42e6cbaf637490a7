"""General text on which forgetting is measured: how well it is predicted after training, against before.

A model that learns a task moves away from what it was trained on before (McCloskey and Cohen, 1989, "Catastrophic
interference in connectionist networks"). It is prepared as `kind: text` is: windows in which each token of a document
is predicted once.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tuneoff.data.encoding import Encoder
from tuneoff.data.sources import DEMO, Source, find_sources
from tuneoff.data.tasks import Document, to_documents
from tuneoff.data.tokens import TokenSplit, hash_splits
from tuneoff.data.windows import build_windows
from tuneoff.errors import DataError
from tuneoff.study.spec import ColumnsSpec, TaskSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_TOKENS = 50_000
"""Target tokens that are scored at most. At a spread of 3 nats a token, the loss of so many is known to about 0.01
nats, and the difference of two models on the same text far better.
"""
MAX_CHARS = 10 * MAX_TOKENS
"""Characters that are tokenised at most; text in Latin letters has about four to a token."""


@dataclass(frozen=True)
class RetentionText:
    """General text, tokenised.

    Attributes:
        split: its windows; items are documents, of one document alone its windows.
        stride_tokens: new target tokens in each window.
        sha256: hash of the tokens.
        notes: what was read, one sentence each.
    """

    split: TokenSplit
    stride_tokens: int
    sha256: str
    notes: tuple[str, ...]


def prepare_retention(source: str, task: TaskSpec, tokenizer: "PreTrainedTokenizerBase", root: Path) -> RetentionText:
    """Read and tokenise general text.

    Args:
        source: file or folder of plain text, or rows with a column `text`; `demo` is stories in plain English.
        task: gives the length of a window and, of `kind: text`, the stride.
        tokenizer: the base model's fast tokenizer.
        root: folder that a relative path starts from.

    Raises:
        DataError: no such file, or one that holds no text; the message begins with `retention`.
    """
    try:
        found = _find(source, task.max_length, root)
        documents, num_read = _head(to_documents(found.read(), ColumnsSpec()).examples)
        stride = task.stride or task.max_length - 1
        windows = build_windows(documents, Encoder(tokenizer), task.max_length, stride)
        split = _first_windows(windows)
    except DataError as error:
        raise DataError(f"retention: {error}") from None
    items = "windows" if len(documents) == 1 else "documents"
    notes = [
        f"Forgetting is measured on {source}: {split.num_target_tokens:,} target tokens in {len(split):,} windows of at"
        f" most {task.max_length} tokens; {items} are its items."
    ]
    if len(split) < len(windows) or len(documents) < num_read or documents[-1].ends is False:
        notes.append(f"Of the retention text the first {split.num_target_tokens:,} tokens are taken, no more.")
    return RetentionText(split, stride, hash_splits([split]), tuple(notes))


def _find(source: str, max_length: int, root: Path) -> Source:
    """Return where the text is.

    Raises:
        DataError: nowhere.
    """
    if source == DEMO:
        return Source("demo", DEMO, split="test", task_kind="text")
    path = root / os.path.expanduser(source)
    if not os.path.exists(path):
        raise DataError(
            f"no such file or folder: {path}. Give a file of general text (plain text, or rows with a column"
            " `text`), demo, or leave retention out."
        )
    return find_sources(TaskSpec(kind="text", data=source, max_length=max_length), root).train


def _head(documents: list[Document]) -> tuple[list[Document], int]:
    """Return the first documents with `MAX_CHARS` characters in all, the last one cut, and how many there were."""
    taken: list[Document] = []
    room = MAX_CHARS
    for document in documents:
        if room <= 0:
            break
        is_whole = len(document.text) <= room
        text = document.text if is_whole else document.text[:room]
        taken.append(document if is_whole else Document(text, document.item, document.file, document.line, ends=False))
        room -= len(text)
    return taken, len(documents)


def _first_windows(windows: TokenSplit) -> TokenSplit:
    """Return the first windows with `MAX_TOKENS` target tokens at most, one window at least.

    Raises:
        DataError: there is none.
    """
    if not len(windows):
        raise DataError("the text has no tokens; give it more text, or leave retention out")
    number = max(1, int(np.searchsorted(np.cumsum(windows.targets_by_sequence), MAX_TOKENS, side="right")))
    end, items = windows.offsets[number], windows.items[:number]
    return TokenSplit(
        input_ids=windows.input_ids[:end],
        targets=windows.targets[:end],
        offsets=windows.offsets[: number + 1],
        target_bytes=windows.target_bytes[:number],
        items=items,
        labels=windows.labels,
        item_names=windows.item_names[: int(items.max()) + 1],
    )
