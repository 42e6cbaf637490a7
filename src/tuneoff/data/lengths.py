"""How long examples are in a model's tokens, with the templates and marks that they are trained with."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tuneoff.data import classification, qa
from tuneoff.data.encoding import Encoder
from tuneoff.data.examples import Example, text_in
from tuneoff.data.fitting import Fitter
from tuneoff.data.templates import CHAT, make_template
from tuneoff.data.tokens import TokenSplit
from tuneoff.study.testing import TaskKind
from tuneoff.study.value import Value

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_CHARS = 4_000_000
"""Characters of a split that are tokenised, some seconds; of more, evenly spread examples, and the longest ones."""
NUM_LONGEST = 20
"""Examples with the most characters, which are tokenised in any case."""
MAX_HEADS = 2000
"""Documents of which, where all are too many characters, the beginning of each is tokenised."""
UNLIMITED = 2**30
"""A length that cuts nothing."""

Tokens = NDArray[np.int64]


class Lengths(Value):
    """Tokens of each example."""

    median: int
    p95: int
    """95 % have no more."""
    p99: int
    longest: int
    total: int
    """Of all examples; an estimate where a sample was measured."""
    num_measured: int
    """Examples that were tokenised whole; 0 where only their beginnings were."""


class SplitLengths(Value):
    """How long the examples of a split are."""

    whole: Lengths
    """All of an example."""
    needed: Lengths
    """The `max_length` that keeps an example whole: of questions with room for the answer."""
    targets: Lengths
    """Tokens that carry loss; of classification one each."""
    over_context_share: float = 0.0
    """Share of the examples that are longer than the model's context."""


def measure(
    kind: TaskKind,
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    template: str | None = None,
    context: int | None = None,
) -> SplitLengths:
    """Tokenise examples as they are trained on, uncut, and return how long they are.

    Args:
        kind: of the task.
        examples: of one split.
        tokenizer: the base's.
        template: for `task.template`.
        context: tokens that the base can see, where it says so.

    Raises:
        ModelError: a tokenizer that cannot be used.
        DataError: an example that cannot be written or has no tokens.
    """
    sizes = np.array([len(text_in(example)) for example in examples])
    if kind == "text" and sizes.sum() > MAX_CHARS and len(sizes) <= MAX_HEADS:
        return _by_rate(examples, sizes, Encoder(tokenizer), context)
    evenly, extra = _sample(sizes)
    whole, targets = _tokens(kind, [examples[place] for place in (*evenly, *extra)], tokenizer, template)
    needed = _needed(kind, whole, targets)
    num_all, num_even = len(examples), len(evenly)
    return SplitLengths(
        whole=_lengths(whole, num_even, num_all),
        needed=_lengths(needed, num_even, num_all),
        targets=_lengths(targets, num_even, num_all),
        over_context_share=_share_over(whole[:num_even], context),
    )


def _by_rate(examples: Sequence[Any], sizes: Tokens, encoder: Encoder, context: int | None) -> SplitLengths:
    """Return the lengths of long documents from the tokens that a character of their beginnings takes."""
    heads = [example.text[: MAX_CHARS // len(examples)] for example in examples]
    rate = sum(map(len, encoder.encode(heads))) / sum(map(len, heads))
    tokens = np.rint(rate * sizes).astype(np.int64) + len(encoder.eos)
    found = _lengths(tokens, len(tokens), len(tokens)).model_copy(update={"num_measured": 0})
    return SplitLengths(whole=found, needed=found, targets=found, over_context_share=_share_over(tokens, context))


def _share_over(tokens: Tokens, context: int | None) -> float:
    return 0.0 if context is None else float((tokens > context).mean())


def _sample(sizes: Tokens) -> tuple[list[int], list[int]]:
    """Return the places of evenly spread examples, and of the longest of the others."""
    step = max(1, -(-int(sizes.sum()) // MAX_CHARS))
    evenly = list(range(0, len(sizes), step))
    longest = np.argsort(-sizes, kind="stable")[:NUM_LONGEST]
    return evenly, [int(place) for place in longest if place % step]  # none where all are taken


def _lengths(tokens: Tokens, num_even: int, num_all: int) -> Lengths:
    even = tokens[:num_even]
    median, p95, p99 = (int(np.ceil(np.quantile(even, share))) for share in (0.5, 0.95, 0.99))
    return Lengths(
        median=median,
        p95=p95,
        p99=p99,
        longest=int(tokens.max()),
        total=round(float(even.mean()) * num_all),
        num_measured=len(tokens),
    )


def _tokens(
    kind: TaskKind, examples: Sequence[Any], tokenizer: "PreTrainedTokenizerBase", template: str | None
) -> tuple[Tokens, Tokens]:
    """Return the tokens of each example, and those of them that carry loss, (num_examples,) each."""
    encoder = Encoder(tokenizer, parses_special=kind in ("instruction", "qa") and template == CHAT)
    if kind == "text":
        lengths = np.array([len(ids) + len(encoder.eos) for ids in encoder.encode([one.text for one in examples])])
        return lengths, lengths
    split: TokenSplit
    if kind == "instruction":
        split, _ = Fitter(encoder, make_template(template, tokenizer), UNLIMITED, "middle").build(examples)
    elif kind == "qa":
        questions = qa.QuestionTemplate(template, tokenizer)
        split, _ = qa.QuestionFitter(encoder, questions, UNLIMITED, "middle").build(examples)
    else:
        number: Mapping[Any, int] = dict.fromkeys((one.label for one in examples), 0)
        field = classification.make_field_template(template)
        split, _ = classification.TextFitter(encoder, field, UNLIMITED, "middle").build(examples, number)
    return split.lengths, split.targets_by_sequence


def _needed(kind: TaskKind, whole: Tokens, targets: Tokens) -> Tokens:
    """Return the `max_length` that cuts nothing of each example.

    A question's prompt may have `max_length` - min(32, `max_length` // 4) tokens, so one of p tokens needs
    p + min(32, (p - 1) // 3).
    """
    if kind != "qa":
        return whole
    prompts = whole - targets
    needed: Tokens = np.maximum(whole, prompts + np.minimum(qa.ANSWER_ROOM, (prompts - 1) // 3))
    return needed
