"""Predictions and references made to trip a metric: articles, punctuation, Unicode, white space, nothing at all."""

import random
from collections.abc import Callable

Sets = tuple[dict[str, str], dict[str, list[str]]]

WORDS = ["a", "an", "the", "The", "AN", "A", "thea", "anthem", "cat", "dog", "cat's", "U.S.", "1,000", "3.14"]
WORDS += ["don't", "New", "York", "re-run", "of", "in", "and", "42", "Zürich"]
ODD = [
    "",
    " ",
    "the",
    "A",
    "an the a",
    "...",
    "?!",
    "«»",
    "“quoted”",
    "the-cat",
    "a.b",
    "the\u00a0cat",
    "cat\u2003dog",
    "cat\u200bdog",
    "cat\tdog\r\nmouse",
    "cat\x0bdog\x0cmouse\x1cowl\x85ant\u2028bee",
    "cafe\u0301",
    "café",
    "CAFÉ",
    "STRASSE",
    "straße",
    "İstanbul",
    "i̇stanbul",
    "ΣΊΣΥΦΟΣ",
    "σίσυφος",
    "a\u0301",
    "á the",
    "\uff41\uff4e\u3000\uff54\uff48\uff45",
    "日本語",
    "日本 語",
    "the日本",
    "😀 the 😀",
    "👩\u200d👩\u200d👧",
    "\ufeffcat",
    "e\u0301the\u0301",
    "$1,000",
    "£1,000",
    "50%",
    "٣٤",
    "½",
    "a_b",
    "the_cat",
    "the'cat",
    "_the_",
    "\u202ecat",
    "ǅ",
    "ﬁsh",
]


def generated(num: int, seed: int) -> Sets:
    """Return answers of words, and predictions that share some of them."""
    draw = random.Random(seed)

    def phrase(longest: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, longest)))

    def prediction(truths: list[str]) -> str:
        words = draw.choice(truths).split()
        kind = draw.randrange(4)
        if kind == 0:
            return " ".join(words)
        if kind == 1:
            return " ".join(words[: draw.randint(1, len(words))]) + "."
        if kind == 2:
            return phrase(3) + " " + " ".join(words)
        return phrase(6)

    return _sets(num, draw, lambda: phrase(6), prediction)


def adversarial(num: int, seed: int) -> Sets:
    """Return answers and predictions of odd pieces, put together, cut, repeated and changed in case."""
    draw = random.Random(seed)

    def piece() -> str:
        return draw.choice(ODD if draw.random() < 0.7 else WORDS)

    def text() -> str:
        joined = draw.choice(["", " ", "  ", "\t", "\u3000", "-", ", ", "\n"])
        return joined.join(piece() for _ in range(draw.randint(0, 4)))

    def prediction(truths: list[str]) -> str:
        truth = draw.choice(truths)
        ways: list[Callable[[], str]] = [
            text,
            lambda: truth,
            lambda: truth.upper(),
            lambda: truth.swapcase() + " " + truth,
            lambda: truth[: len(truth) // 2],
            lambda: "the " + truth + " !",
            lambda: "".join(draw.sample(truth, len(truth))),
            lambda: "",
        ]
        return draw.choice(ways)()

    return _sets(num, draw, text, prediction)


def _sets(num: int, draw: random.Random, answer: Callable[[], str], predict: Callable[[list[str]], str]) -> Sets:
    references = {f"q{index}": [answer() for _ in range(draw.randint(1, 4))] for index in range(num)}
    return {name: predict(truths) for name, truths in references.items()}, references
