"""The demo data of every kind of task, from the grammar of `tuneoff.data.demo`: made up for this package, and small.

- text: stories of plain sentences, one document each.
- qa: articles of three short stories, with questions that one sentence answers (who, what, when), in SQuAD's columns.
- classification: sentences whose adjectives all come from one of two lists; which list is the class. The lists are
  invented, so the classes have to be learnt.
- instruction: sentences to say in Ossal.
"""

import itertools
import random
from collections.abc import Callable, Iterator
from typing import Any

from tuneoff.data import demo
from tuneoff.errors import DataError, did_you_mean
from tuneoff.study.testing import TaskKind

TEXT_SIZES = {"train": 120, "validation": 12, "test": 24}
"""Documents."""
QA_SIZES = {"train": 240, "validation": 16, "test": 32}
"""Articles, of `NUM_STORIES` x `NUM_QUESTIONS` questions."""
CLASS_SIZES = {"train": 1200, "validation": 120, "test": 240}
"""Sentences, half of them of each class."""

NUM_SENTENCES = 12
"""Sentences of a document."""
NUM_STORIES = 3
NUM_QUESTIONS = 2

_PEOPLE = ("captain", "doctor", "king", "mother", "brother", "sister", "stranger", "boy", "girl")
_STEMS = {
    "carried": "carry",
    "followed": "follow",
    "watched": "watch",
    "found": "find",
    "lost": "lose",
    "loved": "love",
    "opened": "open",
    "passed": "pass",
    "reached": "reach",
    "left": "leave",
    "saw": "see",
    "wanted": "want",
    "took": "take",
    "kept": "keep",
}
"""The verbs of the grammar as they follow `did`."""
_WHEN = ("yesterday", "early", "late")

CLASS_WORDS = {
    "negative": ("old", "dark", "black", "poor", "strange", "cold", "red"),
    "positive": ("young", "great", "happy", "warm", "white", "green", "little"),
}


def generate_rows(kind: TaskKind, split: str, seed: int = 0) -> list[dict[str, Any]]:
    """Make the rows of one split; splits of one seed are consecutive pieces of one sequence without repeats.

    Args:
        kind: the kind of task.
        split: train, validation or test.
        seed: draws other sentences of the same grammar.

    Returns:
        Rows with `text`; with `instruction`, `context` and `response`; with `id`, `title`, `context`, `question` and
        `answers` (`text` and `answer_start`); or with `text` and `label`.

    Raises:
        DataError: there is no such split.
    """
    if kind == "instruction":
        return [dict(row) for row in demo.generate_demo_rows(split, seed)]
    makers: dict[str, tuple[dict[str, int], Callable[[random.Random], Iterator[list[dict[str, Any]]]]]] = {
        "text": (TEXT_SIZES, _documents),
        "qa": (QA_SIZES, _articles),
        "classification": (CLASS_SIZES, _labelled),
    }
    sizes, make = makers[kind]
    if split not in sizes:
        hint = did_you_mean(split, sizes)
        raise DataError(f"The demo data has no split {split!r}; it has {', '.join(sizes)}.{hint}")
    names = list(sizes)
    start = sum(sizes[name] for name in names[: names.index(split)])
    groups = itertools.islice(make(random.Random(f"{kind} {seed}")), start, start + sizes[split])
    return [row for group in groups for row in group]


def _documents(rng: random.Random) -> Iterator[list[dict[str, Any]]]:
    while True:
        yield [{"text": " ".join(demo.draw_sentence(rng) for _ in range(NUM_SENTENCES)) + "\n"}]


def _labelled(rng: random.Random) -> Iterator[list[dict[str, Any]]]:
    """Draw sentences of the two classes in turn, none twice."""
    seen: set[str] = set()
    for label in itertools.cycle(CLASS_WORDS):
        text = _with_adjectives(rng, CLASS_WORDS[label])
        while text in seen:
            text = _with_adjectives(rng, CLASS_WORDS[label])
        seen.add(text)
        yield [{"text": text, "label": label}]


def _with_adjectives(rng: random.Random, adjectives: tuple[str, ...]) -> str:
    """Draw a sentence with one adjective of the list or two."""
    subject, thing = rng.choice(demo.NOUNS), rng.choice(demo.NOUNS)
    places = rng.choice(((True, False), (False, True), (True, True)))
    phrases = [
        ["the", *([rng.choice(adjectives)] if has_adjective else []), noun]
        for noun, has_adjective in zip((subject, thing), places, strict=True)
    ]
    return demo.write_sentence([*phrases[0], rng.choice(demo.VERBS), *phrases[1]])


def _articles(rng: random.Random) -> Iterator[list[dict[str, Any]]]:
    """Draw articles, whose titles are numbers, as questions on their stories."""
    for number in itertools.count(1):
        rows = []
        for story in range(1, NUM_STORIES + 1):
            context, asked = _story(rng)
            for place, (question, answers) in enumerate(rng.sample(asked, NUM_QUESTIONS), start=1):
                rows.append(
                    {
                        "id": f"demo-{number:03}-{story}-{place}",
                        "title": f"Article {number}",
                        "context": context,
                        "question": question,
                        "answers": {"text": answers, "answer_start": [context.index(answer) for answer in answers]},
                    }
                )
        yield rows


def _story(rng: random.Random) -> tuple[str, list[tuple[str, list[str]]]]:
    """Draw two or three sentences that share no noun and no verb, and what can be asked about them."""
    num_sentences = rng.choice((2, 3))
    people = rng.sample(_PEOPLE, num_sentences)
    things = rng.sample([noun for noun in demo.NOUNS if noun not in _PEOPLE], num_sentences)
    verbs = rng.sample(demo.VERBS, num_sentences)
    sentences = []
    asked: list[tuple[str, list[str]]] = []
    for person, thing, verb in zip(people, things, verbs, strict=True):
        subject = [*([rng.choice(demo.ADJECTIVES)] if rng.random() < 0.5 else []), person]
        what = [*([rng.choice(demo.ADJECTIVES)] if rng.random() < 0.5 else []), thing]
        when = [rng.choice(_WHEN)] if rng.random() < 0.5 else []
        sentences.append(demo.write_sentence(["the", *subject, verb, "the", *what, *when]))
        asked.append((f"Who {verb} the {thing}?", [f"The {' '.join(subject)}", person]))
        asked.append((f"What did the {person} {_STEMS[verb]}?", [f"the {' '.join(what)}", thing]))
        if when:
            asked.append((f"When did the {person} {_STEMS[verb]} the {thing}?", when))
    return " ".join(sentences), asked
