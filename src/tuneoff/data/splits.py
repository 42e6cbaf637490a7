"""Which examples train, choose and test: units that repeat stay on one side, and the cut is the same for every seed.

A unit is the largest thing that repeats: a document with its exact copies, a message tree, all rows of one prompt, all
questions on one article. The
units are shuffled by a generator of fixed seed and test and validation take the first shares. One document alone is cut
at paragraphs: its head trains, the stretch after it validates, its tail tests.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import numpy as np

from tuneoff.data.tasks import Document
from tuneoff.errors import DataError

SPLIT_SEED = 20230914
"""Seed of the cut: a fixed number, so that the runs of all seeds share their test split."""


class _Example(Protocol):
    @property
    def item(self) -> tuple[str, ...]: ...


E = TypeVar("E", bound=_Example)


def stable_permutation(n: int, seed: Sequence[int] | int) -> np.ndarray:
    """Return a permutation of `range(n)` that is the same with every NumPy: the order of PCG64's raw draws.

    NumPy promises the draws of its bit generators for good, but not what `Generator.permutation` makes of them (NEP
    19).
    """
    draws = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(n)
    return np.argsort(draws, kind="stable")


def cut(examples: Sequence[E], shares: Mapping[str, float]) -> dict[str, list[E]]:
    """Cut the shares (by split name) off `examples`; what is left is `train`. Examples keep their order.

    A share takes its part of the units, rounded, and one unit at least.

    Raises:
        DataError: too few units to go round.
    """
    units = list(dict.fromkeys(example.item for example in examples))
    sizes = {name: max(1, round(share * len(units))) for name, share in shares.items()}
    if sum(sizes.values()) >= len(units):
        asked = " and ".join(f"{share:g} for {name}" for name, share in shares.items())
        raise DataError(
            f"the train split would be empty: the data has {len(units)} independent unit{'s' * (len(units) != 1)}"
            " (documents, conversation trees, articles, or distinct prompts or texts),"
            f" and the study asks for {asked} of them. Give more data,"
            " smaller shares,"
            " a higher task.limit if one is set, or"
            " files of their own under task.splits"
        )
    order = stable_permutation(len(units), SPLIT_SEED)
    side: dict[tuple[str, ...], str] = {}
    start = 0
    for name, size in reversed(
        sizes.items()
    ):  # test first, so that it stays the same when validation gets a file of its own
        side |= {units[place]: name for place in order[start : start + size]}
        start += size
    parts: dict[str, list[E]] = {name: [] for name in ("train", *shares)}
    for example in examples:
        parts[side.get(example.item, "train")].append(example)
    return parts


def cut_document(document: Document, shares: Mapping[str, float]) -> dict[str, list[Document]]:
    """Cut one document into its head (`train`) and, in the order of `shares`, the stretches after it.

    Cuts are made at paragraphs where there are any.

    Raises:
        DataError: the document is too short.
    """
    text = document.text
    names = ("train", *shares)
    ends = [round(len(text) * (1 - sum(list(shares.values())[place:]))) for place in range(len(shares))]
    bounds = [0, *(_paragraph_start(text, end) for end in ends), len(text)]
    parts: dict[str, list[Document]] = {}
    for name, start, end in zip(names, bounds, bounds[1:], strict=False):
        if not text[start:end].strip():
            asked = " and ".join(f"{share:g} for {split}" for split, share in shares.items())
            raise DataError(
                f"the {name} split would be empty: one document of {len(text)} characters cannot be cut into train"
                f" and {asked};"
                " give more text, or files of their own under task.splits",
                file=document.file,
            )
        piece = replace(document, text=text[start:end], item=(*document.item, name), ends=end == len(text))
        parts[name] = [piece]
    return parts


def _paragraph_start(text: str, near: int) -> int:
    """Return the nearest start of a paragraph (else line, else word) within a fiftieth of the text around `near`."""
    reach = max(1, len(text) // 50)
    for separator in ("\n\n", "\n", " "):
        before = text.rfind(separator, max(0, near - reach), near)
        after = text.find(separator, near, near + reach)
        found = [place + len(separator) for place in (before, after) if place >= 0]
        if found:
            return min(found, key=lambda place: abs(place - near))
    return near


def keep_apart(parts: Mapping[str, list[E]]) -> tuple[dict[str, list[E]], tuple[str, ...]]:
    """Take out of train what validation or test holds too, and out of validation what test holds; note how much.

    Shares of one source are apart already; files and hub splits given by name need not be.

    Raises:
        DataError: nothing is left of a split.
    """
    notes = []
    apart = dict(parts)
    for name, later in (("train", ("validation", "test")), ("validation", ("test",))):
        held = {example.item for other in later for example in parts[other]}
        apart[name] = [example for example in parts[name] if example.item not in held]
        num_taken = len(parts[name]) - len(apart[name])
        if num_taken and not apart[name]:
            raise DataError(
                f"the {name} split would be empty: all its {num_taken} examples are in {' or '.join(later)} too;"
                " give each split a source of its own under task.splits"
            )
        if num_taken:
            notes.append(
                f"{num_taken} of {len(parts[name])} {name} examples were left out, as their document, tree, prompt,"
                f" article or text is in {' or '.join(later)} too."
            )
    return apart, tuple(notes)
