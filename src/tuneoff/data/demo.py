"""The data of `tuneoff demo`: sentences to say in Ossal, a small invented language.

A seeded grammar makes plain English sentences, and a fixed lexicon and three rules turn each into Ossal. Nobody speaks
Ossal, so a base model knows nothing of it (zero-shot is poor); the lexicon has to be memorised (how much a method can
change matters); and unseen sentences follow from known words (test loss measures learning, not recall). Everything here
is made up for this package: no data from elsewhere.

Ossal in three rules: articles are dropped; an adjective follows its noun; the verb comes last. With x' for the Ossal
word for x:

    The old captain carried the letter yesterday.  ->  Captain' old' letter' yesterday' carried'.

English words are common ones and Ossal words have one syllable: sequences stay short, because the demo runs on a CPU.
"""

import itertools
import random
from collections.abc import Iterator
from functools import cache

from tuneoff.errors import DataError, did_you_mean

SPLIT_SIZES: dict[str, int] = {"train": 2400, "validation": 160, "test": 320}
"""Rows in each split."""

LEXICON_SEED = 1902
"""Makes the words of Ossal; the language stays the same whatever the seed of the rows."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NOUNS = _words(
    "captain doctor king mother brother sister stranger boy girl horse dog ship boat letter book table window door"
    " garden river house church tree stone story secret"
)
VERBS = _words("carried followed watched found lost loved opened passed reached left saw wanted took kept")
ADJECTIVES = _words("old young little great dark white black red green happy poor strange cold warm")
TIMES = _words("yesterday again often early late now")
_ONSETS = ("b", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "sh")
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("l", "m", "n", "r", "s", "k", "t", "sh")


@cache
def lexicon() -> dict[str, str]:
    """The Ossal word for every English word of the grammar but the article; no two share one."""
    english = [*NOUNS, *VERBS, *ADJECTIVES, *TIMES]
    syllables = ["".join(letters) for letters in itertools.product(_ONSETS, _VOWELS, _CODAS)]
    return dict(zip(english, random.Random(LEXICON_SEED).sample(syllables, len(english)), strict=True))


def _noun_phrase(rng: random.Random) -> list[str]:
    """Draw a noun with or without an adjective, in English order."""
    adjectives = [rng.choice(ADJECTIVES)] if rng.random() < 0.6 else []
    return [*adjectives, rng.choice(NOUNS)]


def _draw(rng: random.Random) -> tuple[list[str], list[str], str, list[str]]:
    """Draw a sentence's subject, object, verb and time (which it may lack)."""
    subject, thing = _noun_phrase(rng), _noun_phrase(rng)
    verb = rng.choice(VERBS)
    times = [rng.choice(TIMES)] if rng.random() < 0.4 else []
    return subject, thing, verb, times


def draw_sentence(rng: random.Random) -> str:
    """Draw one sentence of plain English."""
    subject, thing, verb, times = _draw(rng)
    return write_sentence(["the", *subject, verb, "the", *thing, *times])


def _row(rng: random.Random) -> dict[str, str]:
    """Draw one sentence, and say it in Ossal."""
    subject, thing, verb, times = _draw(rng)
    english = ["the", *subject, verb, "the", *thing, *times]
    ossal = [*reversed(subject), *reversed(thing), *times, verb]
    words = lexicon()
    return {
        "instruction": write_sentence(english),
        "context": "",
        "response": write_sentence([words[word] for word in ossal]),
    }


def write_sentence(words: list[str]) -> str:
    """Return words as a sentence."""
    return " ".join(words).capitalize() + "."


def _rows(seed: int) -> Iterator[dict[str, str]]:
    """Draw rows without end, none with an instruction seen before."""
    rng = random.Random(seed)
    seen: set[str] = set()
    while True:
        row = _row(rng)
        if row["instruction"] not in seen:
            seen.add(row["instruction"])
            yield row


def generate_demo_rows(split: str, seed: int = 0) -> list[dict[str, str]]:
    """Make the rows of one split.

    The three splits are consecutive pieces of one sequence that repeats no instruction, so with one seed they never
    overlap.

    Args:
        split: train, validation or test.
        seed: draws other sentences of the same language.

    Returns:
        Rows with `instruction`, `context` (empty) and `response`.

    Raises:
        DataError: There is no such split.
    """
    if split not in SPLIT_SIZES:
        raise DataError(
            f"The demo data has no split {split!r}; it has {', '.join(SPLIT_SIZES)}.{did_you_mean(split, SPLIT_SIZES)}"
        )
    names = list(SPLIT_SIZES)
    start = sum(SPLIT_SIZES[name] for name in names[: names.index(split)])
    return list(itertools.islice(_rows(seed), start, start + SPLIT_SIZES[split]))
