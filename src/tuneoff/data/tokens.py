"""Tokenised splits as flat arrays."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenSplit:
    """The sequences of one split, end to end in flat arrays."""

    input_ids: NDArray[np.int32]
    """(num_tokens,)"""
    targets: NDArray[np.bool_]
    """(num_tokens,), true where the token carries loss; never the first of a sequence. Of classification the one target
    of a sequence is its class, and its flag stands at the last token, whose logits are pooled.
    """
    offsets: NDArray[np.int64]
    """(num_sequences + 1,): sequence i is `input_ids[offsets[i]:offsets[i + 1]]`."""
    target_bytes: NDArray[np.int64]
    """(num_sequences,), UTF-8 bytes of the text that its target tokens stand for; end of sequence stands for none."""
    items: NDArray[np.int32]
    """(num_sequences,), index of the smallest independent unit in `item_names`."""
    labels: NDArray[np.int32]
    """(num_sequences,), class of each sequence; empty where the task has no classes."""
    item_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def has_labels(self) -> bool:
        """Whether sequences have a class."""
        return len(self.labels) > 0

    def sequence(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Return the ids of one sequence, and which of them carry loss."""
        start, end = self.offsets[index], self.offsets[index + 1]
        return self.input_ids[start:end], self.targets[start:end]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, (num_sequences,)."""
        return np.diff(self.offsets)

    @property
    def targets_by_sequence(self) -> NDArray[np.int64]:
        """Target tokens of each sequence, (num_sequences,)."""
        running = np.concatenate([[0], np.cumsum(self.targets)])
        return np.asarray(running[self.offsets[1:]] - running[self.offsets[:-1]], dtype=np.int64)

    @property
    def num_target_tokens(self) -> int:
        """Tokens that carry loss."""
        return int(np.count_nonzero(self.targets))

    @property
    def num_input_tokens(self) -> int:
        """All tokens; there is no padding."""
        return len(self.input_ids)

    @property
    def num_target_bytes(self) -> int:
        """UTF-8 bytes of the text that all target tokens stand for."""
        return int(self.target_bytes.sum())

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays by name."""
        return {name: getattr(self, name) for name in ARRAYS}


ARRAYS = tuple(field.name for field in fields(TokenSplit) if field.name != "item_names")


@dataclass(frozen=True)
class Prompts:
    """What text is generated after when the test split is read, and what it is compared with."""

    input_ids: NDArray[np.int32]
    """(num_tokens,), all prompts end to end, beginning of sequence included."""
    offsets: NDArray[np.int64]
    """(num_prompts + 1,): prompt i is `input_ids[offsets[i]:offsets[i + 1]]`."""
    ids: tuple[str, ...]
    """Name of each prompt, no two alike: SQuAD's question id, else FILE:LINE."""
    references: tuple[tuple[str, ...], ...]
    """Right answers of each prompt, one at least."""
    items: NDArray[np.int32]
    """(num_prompts,), index of the smallest independent unit in the test split's `item_names`."""

    def __len__(self) -> int:
        return len(self.ids)

    def prompt(self, index: int) -> NDArray[np.int32]:
        """Return the ids of one prompt."""
        return self.input_ids[self.offsets[index] : self.offsets[index + 1]]

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays by name."""
        return {name: getattr(self, name) for name in PROMPT_ARRAYS}


PROMPT_ARRAYS = tuple(field.name for field in fields(Prompts) if field.name not in ("ids", "references"))


@dataclass(frozen=True)
class PreparedData:
    """The three splits of a task, tokenised."""

    train: TokenSplit
    validation: TokenSplit
    test: TokenSplit
    sha256: str
    """Hash over all arrays, and over the prompts with their references."""
    notes: tuple[str, ...] = ()
    """What a reader of the numbers should know, one plain sentence each."""
    cautions: tuple[str, ...] = ()
    """Those of the notes that can change what the test's numbers mean; they are said beside the verdict."""
    stride_tokens: int | None = None
    """New target tokens per window of text that is scored; none where nothing is windowed."""
    samples: tuple[tuple[str, str], ...] = ()
    """A few prompts of the validation split with their references, to show what is generated."""
    prompts: Prompts | None = None
    """Of the test split; none where the task has nothing to generate (text, classification)."""
    classes: tuple[str, ...] = ()
    """Names of the classes 0, 1, ...; none where the task has no classes."""
    label_ids: tuple[tuple[int, ...], ...] = ()
    """Tokens of each class's word as they follow a prompt, for zero-shot; none where the study gives no words."""

    def splits(self) -> dict[str, TokenSplit]:
        """Return the splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


def hash_splits(splits: Sequence[TokenSplit], prompts: Prompts | None = None) -> str:
    """Return the sha256 (hex) over the arrays, their types, lengths and bytes in order, and over ids and references."""
    digest = hashlib.sha256()
    holders: list[TokenSplit | Prompts] = [*splits] if prompts is None else [*splits, prompts]
    for holder in holders:
        for name, array in holder.arrays().items():
            digest.update(f"{name} {array.dtype.str} {len(array)};".encode())
            digest.update(np.ascontiguousarray(array).data)
    if prompts is not None:
        digest.update(json.dumps([prompts.ids, prompts.references]).encode())
    return digest.hexdigest()


def hash_targets(split: TokenSplit) -> str:
    """Return the sha256 (hex) of what a split asks to be predicted: its items, and their target tokens or classes.

    Prompts are not in it, so that two templates of the same questions and answers have the same hash.
    """
    asked = split.labels if split.has_labels else split.input_ids[split.targets]
    digest = hashlib.sha256(json.dumps(split.item_names).encode())
    for array in (split.items, split.targets_by_sequence, asked):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


class SplitBuilder:
    """Gathers sequences into a `TokenSplit`."""

    def __init__(self) -> None:
        self._ids: list[NDArray[np.int32]] = []
        self._targets: list[NDArray[np.bool_]] = []
        self._target_bytes: list[int] = []
        self._items: list[int] = []
        self._labels: list[int] = []
        self._index_of: dict[tuple[object, ...], int] = {}
        self._names: list[str] = []

    def __len__(self) -> int:
        return len(self._ids)

    def add(
        self,
        ids: NDArray[np.int32],
        targets: NDArray[np.bool_],
        *,
        target_bytes: int,
        item: tuple[object, ...],
        item_name: str,
        label: int | None = None,
    ) -> int:
        """Add one sequence and return the index of its item.

        `item_name` counts where `item` is new; `label` is the sequence's class, given for all or for none.
        """
        assert len(ids) == len(targets), "one flag for each token"
        assert targets.any(), "a sequence without a target teaches nothing and scores nothing"
        assert label is not None or not targets[0], "the first token of a sequence has nothing to be predicted from"
        if item not in self._index_of:
            self._index_of[item] = len(self._names)
            self._names.append(item_name)
        self._ids.append(ids)
        self._targets.append(targets)
        self._target_bytes.append(target_bytes)
        self._items.append(self._index_of[item])
        if label is not None:
            self._labels.append(label)
        return self._index_of[item]

    def build(self) -> TokenSplit:
        """Return what was added, as flat arrays."""
        assert len(self._labels) in (0, len(self._ids)), "a class for every sequence, or for none"
        return TokenSplit(
            input_ids=np.concatenate([np.zeros(0, np.int32), *self._ids]),
            targets=np.concatenate([np.zeros(0, np.bool_), *self._targets]),
            offsets=_offsets(self._ids),
            target_bytes=np.array(self._target_bytes, dtype=np.int64),
            items=np.array(self._items, dtype=np.int32),
            labels=np.array(self._labels, dtype=np.int32),
            item_names=tuple(self._names),
        )


class PromptBuilder:
    """Gathers prompts into `Prompts`."""

    def __init__(self) -> None:
        self._ids: list[NDArray[np.int32]] = []
        self._names: dict[str, None] = {}
        self._references: list[tuple[str, ...]] = []
        self._items: list[int] = []
        self._num_named: dict[str, int] = {}

    def add(self, ids: NDArray[np.int32], *, name: str, references: Sequence[str], item: int) -> None:
        """Add one prompt; a name that is taken (replies of one row, an id given twice) gets a number."""
        assert references, "a text that is compared with nothing says nothing"
        unique = name
        while unique in self._names:
            self._num_named[name] = self._num_named.get(name, 1) + 1
            unique = f"{name} #{self._num_named[name]}"
        self._names[unique] = None
        self._ids.append(ids)
        self._references.append(tuple(dict.fromkeys(references)))
        self._items.append(item)

    def build(self) -> Prompts:
        """Return what was added."""
        return Prompts(
            input_ids=np.concatenate([np.zeros(0, np.int32), *self._ids]),
            offsets=_offsets(self._ids),
            ids=tuple(self._names),
            references=tuple(self._references),
            items=np.array(self._items, dtype=np.int32),
        )


def _offsets(pieces: Sequence[NDArray[np.int32]]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum([len(ids) for ids in pieces], dtype=np.int64)]).astype(np.int64)
