"""Writes on after prompts, with every strategy of a study at once.

Greedy and sampled strategies share one reading of the prompts and one batch of texts (`tuneoff.evaluation.refill`);
models whose keys and values are not all kept go through left-padded batches, one strategy after the other, and beams
through Transformers' `generate` (`tuneoff.evaluation.padded`). The text depends on none of this (see
`tuneoff.evaluation.decoding`). Nothing comes from a base's own `generation_config.json`: penalties, least lengths and
the like are neutral, whatever the base ships with.

A model may hold virtual tokens: they are in neither masks nor positions here, the model adds them itself.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tuneoff.errors import DataError
from tuneoff.evaluation.cached_forward import CachedForward
from tuneoff.evaluation.decoding import Chooser, Row
from tuneoff.evaluation.padded import BeamWriter, PaddedWriter
from tuneoff.evaluation.refill import RefilledWriter, can_refill
from tuneoff.evaluation.texts import Continuation
from tuneoff.study.testing import Decoding, GenerateSpec

Autocast = Callable[[], AbstractContextManager[Any]]

Texts = list[list[Continuation]]
"""For each prompt its samples."""


@dataclass(frozen=True)
class Wrote:
    """What one strategy wrote.

    Attributes:
        texts: for each prompt its samples.
        seconds: its share of the time (see `tuneoff.study.records.Generated`).
    """

    texts: Texts
    seconds: float


def check_lengths(
    lengths: Sequence[int], spec: GenerateSpec, context_length: int | None, num_virtual_tokens: int = 0
) -> None:
    """Refuse prompts that leave no room for the new tokens.

    Args:
        lengths: tokens of each prompt.
        spec: how many new tokens there may be.
        context_length: tokens that the model sees in all; none is without limit.
        num_virtual_tokens: those of them that a method takes up.

    Raises:
        DataError: a prompt that is empty or too long.
    """
    if min(lengths, default=1) < 1:
        raise DataError(f"prompt {lengths.index(0) + 1} has no tokens; there must be one at least to go on from")
    longest = max(lengths, default=0)
    if context_length is None or longest + spec.max_new_tokens + num_virtual_tokens <= context_length:
        return
    virtual = f" and {num_virtual_tokens} virtual tokens" if num_virtual_tokens else ""
    room = context_length - spec.max_new_tokens - num_virtual_tokens
    num_long = sum(length > room for length in lengths)
    raise DataError(
        f"prompt {lengths.index(longest) + 1} has {longest} tokens; with {spec.max_new_tokens} new ones{virtual} that "
        f"is more than the {context_length} that the model sees in all ({num_long} of {len(lengths)} prompts have "
        f"above {max(room, 0)}). Lower task.max_length or generate.max_new_tokens."
    )


def generate(
    module: nn.Module, prompts: Sequence[Sequence[int]], decoding: Decoding, spec: GenerateSpec, **options: Any
) -> Texts:
    """Write on after each prompt with one strategy.

    Arguments, beside the strategy, and errors are those of `generate_each`.

    Returns:
        For each prompt its samples.
    """
    return generate_each(module, prompts, (decoding,), spec, **options)[0].texts


@torch.no_grad()
def generate_each(
    module: nn.Module,
    prompts: Sequence[Sequence[int]],
    decodings: Sequence[Decoding],
    spec: GenerateSpec,
    *,
    pad_id: int,
    eos_id: int | None,
    seed: int,
    context_length: int | None,
    autocast: Autocast = nullcontext,
    num_virtual_tokens: int = 0,
) -> list[Wrote]:
    """Write on after each prompt with each strategy.

    Args:
        module: a causal language model, in evaluation mode afterwards.
        prompts: token ids, beginning of sequence included.
        decodings: the strategies.
        spec: new tokens and rows at a time.
        pad_id: token that fills rows up on the left; it is never looked at.
        eos_id: token that ends a text; none lets every text reach the limit.
        seed: of the run's generation stream; greedy text and beams do not depend on it.
        context_length: tokens that the model sees in all; none is without limit.
        autocast: entered around each batch (`Runtime.autocast`).
        num_virtual_tokens: tokens of the context that the method takes up.

    Returns:
        One for each strategy, in their order.

    Raises:
        DataError: a prompt that is empty, or too long for the context; nothing is generated then.
    """
    check_lengths([len(prompt) for prompt in prompts], spec, context_length, num_virtual_tokens)
    module.eval()
    forward = CachedForward(module, pad_id)
    beams = [place for place, decoding in enumerate(decodings) if decoding.beams is not None and decoding.beams > 1]
    drawn = [place for place in range(len(decodings)) if place not in beams]
    found: dict[int, Wrote] = {}
    num_texts = len(prompts) * sum(decodings[place].samples for place in drawn)
    with autocast():
        refills = num_texts > 1 and can_refill(forward, prompts)
        if refills:
            found = dict(
                zip(drawn, _refilled(forward, prompts, [decodings[i] for i in drawn], spec, eos_id, seed), strict=True)
            )
    for place in beams if refills else range(len(decodings)):
        decoding = decodings[place]
        if place in beams:
            assert decoding.beams is not None
            writer: PaddedWriter | BeamWriter = BeamWriter(forward, decoding.beams, spec.max_new_tokens, pad_id, eos_id)
            num_rows = max(1, spec.batch_size // decoding.beams)
        else:
            writer = PaddedWriter(forward, Chooser(decoding, seed), spec.max_new_tokens, eos_id)
            num_rows = spec.batch_size
        start = time.perf_counter()
        texts: Texts = [[] for _ in prompts]
        for rows in _batches(prompts, decoding.samples, num_rows):
            with autocast():
                for row, continuation in zip(rows, writer.write(prompts, rows), strict=True):
                    texts[row.prompt].append(continuation)
        # tokens come to the host at every step, so the device is done
        found[place] = Wrote(texts, time.perf_counter() - start)
    return [found[place] for place in range(len(decodings))]


def _refilled(
    forward: CachedForward,
    prompts: Sequence[Sequence[int]],
    decodings: Sequence[Decoding],
    spec: GenerateSpec,
    eos_id: int | None,
    seed: int,
) -> list[Wrote]:
    """Return what strategies without beams write in one pass."""
    samples = [decoding.samples for decoding in decodings]
    choosers = [Chooser(decoding, seed) for decoding in decodings]
    writer = RefilledWriter(forward, choosers, samples, spec.batch_size, spec.max_new_tokens, eos_id)
    done = {(text.strategy, text.row): text.continuation() for text in writer.write(prompts)}
    return [
        Wrote(
            [[done[strategy, Row(prompt, sample)] for sample in range(num)] for prompt in range(len(prompts))],
            writer.seconds[strategy],
        )
        for strategy, num in enumerate(samples)
    ]


def _batches(prompts: Sequence[Sequence[int]], num_samples: int, num_rows: int) -> Iterator[list[Row]]:
    """Yield rows of like lengths together, so that there is little padding; the longest first, where memory is tight.

    A prompt's samples follow each other, in order.
    """
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    rows = [Row(prompt, sample) for prompt in order for sample in range(num_samples)]
    for start in range(0, len(rows), num_rows):
        yield rows[start : start + num_rows]
