"""Writes after left-padded batches, for models whose keys and values are not all kept, and by beams.

Shapes: R rows, T positions of the longest prompt of a batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import GenerationConfig

from tuneoff.evaluation.cached_forward import CachedForward
from tuneoff.evaluation.decoding import Chooser, Row
from tuneoff.evaluation.texts import Continuation, Text


class PaddedWriter:
    """Writes one greedy or sampled strategy, a batch after the other; a row leaves as its text ends.

    Args:
        forward: way through the model.
        chooser: the strategy's.
        max_new_tokens: of a text.
        eos_id: token that ends a text; none lets every text reach the limit.
    """

    def __init__(self, forward: CachedForward, chooser: Chooser, max_new_tokens: int, eos_id: int | None) -> None:
        self._forward = forward
        self._chooser = chooser
        self._max_new_tokens = max_new_tokens
        self._eos_id = eos_id

    def write(self, prompts: Sequence[Sequence[int]], rows: Sequence[Row]) -> list[Continuation]:
        """Return what follows each row's prompt. A prompt with several samples among the rows is read once."""
        own = list(dict.fromkeys(row.prompt for row in rows))
        ids, mask = self._forward.left_padded([prompts[index] for index in own])
        cache = self._forward.new_cache()
        logits = self._forward(ids, mask, cache)
        if len(own) < len(rows):
            places = torch.tensor([own.index(row.prompt) for row in rows], device=mask.device)
            logits, mask = logits[places], mask[places]
            cache.reorder_cache(places)  # type: ignore[arg-type]  # a Tensor of int64 is what it means
        texts = [Text(0, row) for row in rows]
        alive = texts
        for position in range(self._max_new_tokens):
            chosen, near = self._chooser.choose(logits, [text.row for text in alive], position)
            pairs = zip(alive, chosen.tolist(), near.tolist(), strict=True)
            going = [text.take(token, is_near, self._eos_id, self._max_new_tokens) for text, token, is_near in pairs]
            if not any(going):
                break
            if not all(going):
                alive = [text for text, goes_on in zip(alive, going, strict=True) if goes_on]
                places = torch.tensor([place for place, goes_on in enumerate(going) if goes_on], device=mask.device)
                chosen, mask = chosen[places], mask[places]
                cache.reorder_cache(places)  # type: ignore[arg-type]
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
            logits = self._forward(chosen[:, None], mask, cache)
        return [text.continuation() for text in texts]


class BeamWriter:
    """Beam search by Transformers: no length penalty, and it stops when no running beam can still win.

    Args:
        forward: way through the model.
        beams: width of the search.
        max_new_tokens: of a text.
        pad_id: token that fills rows up.
        eos_id: token that ends a text; none lets every text reach the limit.
    """

    def __init__(
        self, forward: CachedForward, beams: int, max_new_tokens: int, pad_id: int, eos_id: int | None
    ) -> None:
        self._forward = forward
        self._eos_id = eos_id
        self._config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            num_beams=beams,
            num_return_sequences=1,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad_id,
            eos_token_id=eos_id,
            length_penalty=1.0,
            early_stopping=False,
            use_cache=True,
        )

    def write(self, prompts: Sequence[Sequence[int]], rows: Sequence[Row]) -> list[Continuation]:
        """Return the best beam after each row's prompt."""
        ids, mask = self._forward.left_padded([prompts[row.prompt] for row in rows])
        module = self._forward.module
        with _neutral(module):
            out = module.generate(  # type: ignore[operator]
                input_ids=ids, attention_mask=mask, generation_config=self._config
            )
        return [self._cut(own) for own in out[:, ids.shape[1] :].tolist()]

    def _cut(self, ids: list[int]) -> Continuation:
        ended = self._eos_id in ids
        return Continuation(tuple(ids[: ids.index(self._eos_id)] if ended else ids), ended)  # type: ignore[arg-type]


@contextmanager
def _neutral(module: nn.Module) -> Iterator[None]:
    """Within the context the base's own generation settings, which fill what a call leaves open, are the defaults."""
    own = module.generation_config
    module.generation_config = GenerationConfig()  # type: ignore[assignment, no-untyped-call]
    try:
        yield
    finally:
        module.generation_config = own
