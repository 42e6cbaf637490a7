"""Writes on after prompts: batches with padding on the left and a cache of keys and values, a row leaving as it ends.

Greedy and sampled strategies go through a loop of our own, whose text does not depend on the batch (see
`tuneoff.evaluation.decoding`); beams go through Transformers' `generate`. Nothing comes from a base's own
`generation_config.json`: penalties, least lengths and the like are neutral, whatever the base ships with.

A model may hold virtual tokens: they are in neither masks nor positions here, the model adds them itself.

Shapes: R rows, T positions of the longest prompt of a batch.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig

from tuneoff.errors import DataError
from tuneoff.evaluation.decoding import Chooser, Row
from tuneoff.study.testing import Decoding, GenerateSpec

Autocast = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Continuation:
    """What was written after a prompt.

    Attributes:
        ids: new tokens, without the end-of-sequence token.
        ended: whether that token came; otherwise the text was cut at the limit of new tokens.
        num_near_ties: choices in it between scores within 1e-4 of each other; of beams they are not counted.
    """

    ids: tuple[int, ...]
    ended: bool
    num_near_ties: int = 0


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


@torch.no_grad()
def generate(
    module: nn.Module,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    spec: GenerateSpec,
    *,
    pad_id: int,
    eos_id: int | None,
    seed: int,
    context_length: int | None,
    autocast: Autocast = nullcontext,
    num_virtual_tokens: int = 0,
) -> list[list[Continuation]]:
    """Write on after each prompt.

    Args:
        module: a causal language model, in evaluation mode afterwards.
        prompts: token ids, beginning of sequence included.
        decoding: the strategy.
        spec: new tokens and rows at a time.
        pad_id: token that fills rows up on the left; it is never looked at.
        eos_id: token that ends a text; none lets every text reach the limit.
        seed: of the run's generation stream; greedy text and beams do not depend on it.
        context_length: tokens that the model sees in all; none is without limit.
        autocast: entered around each batch (`Runtime.autocast`).
        num_virtual_tokens: tokens of the context that the method takes up.

    Returns:
        For each prompt its samples.

    Raises:
        DataError: a prompt that is empty, or too long for the context; nothing is generated then.
    """
    check_lengths([len(prompt) for prompt in prompts], spec, context_length, num_virtual_tokens)
    module.eval()
    found: list[list[Continuation]] = [[] for _ in prompts]
    if decoding.beams is not None and decoding.beams > 1:
        writer: _Writer | _BeamWriter = _BeamWriter(module, decoding.beams, spec, pad_id, eos_id)
        num_rows = max(1, spec.batch_size // decoding.beams)
    else:
        writer = _Writer(module, Chooser(decoding, seed), spec, pad_id, eos_id)
        num_rows = spec.batch_size
    for rows in _batches(prompts, decoding.samples, num_rows):
        with autocast():
            for row, continuation in zip(rows, writer.write(prompts, rows), strict=True):
                found[row.prompt].append(continuation)
    return found


def _batches(prompts: Sequence[Sequence[int]], num_samples: int, num_rows: int) -> Iterator[list[Row]]:
    """Yield rows of like lengths together, so that there is little padding; the longest first, where memory is tight.

    A prompt's samples follow each other, in order.
    """
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    rows = [Row(prompt, sample) for prompt in order for sample in range(num_samples)]
    for start in range(0, len(rows), num_rows):
        yield rows[start : start + num_rows]


def _left_padded(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids and attention mask, int64 (R, T)."""
    length = max(map(len, prompts))
    ids = torch.full((len(prompts), length), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.int64)
        mask[row, length - len(prompt) :] = 1
    return ids.to(device), mask.to(device)


@dataclass
class _Text:
    """A text in the making."""

    ids: list[int] = field(default_factory=list)
    ended: bool = False
    num_near_ties: int = 0


class _Writer:
    """Greedy and sampled strategies."""

    def __init__(
        self, module: nn.Module, chooser: Chooser, spec: GenerateSpec, pad_id: int, eos_id: int | None
    ) -> None:
        self._module = module
        self._chooser = chooser
        self._max_new_tokens = spec.max_new_tokens
        self._pad_id = pad_id
        self._eos_id = eos_id
        names = inspect.signature(_plain(module).forward).parameters
        self._has_positions = "position_ids" in names
        self._options = {"logits_to_keep": 1} if "logits_to_keep" in names else {}

    def write(self, prompts: Sequence[Sequence[int]], rows: Sequence[Row]) -> list[Continuation]:
        """Return what follows each row's prompt. A prompt with several samples among the rows is read once."""
        own = list(dict.fromkeys(row.prompt for row in rows))
        ids, mask = _left_padded([prompts[index] for index in own], self._pad_id, _device(self._module))
        cache = DynamicCache(config=_plain(self._module).config)
        logits = self._forward(ids, mask, cache)
        if len(own) < len(rows):
            places = torch.tensor([own.index(row.prompt) for row in rows], device=mask.device)
            logits, mask = logits[places], mask[places]
            cache.reorder_cache(places)  # type: ignore[arg-type]  # a Tensor of int64 is what it means
        texts = [_Text() for _ in rows]
        alive = list(range(len(rows)))
        for position in range(self._max_new_tokens):
            chosen, near = self._chooser.choose(logits, [rows[index] for index in alive], position)
            going = self._take(chosen, near, [texts[index] for index in alive])
            if len(going) < len(alive):
                alive = [alive[place] for place in going]
                if not alive:
                    break
                places = torch.tensor(going, device=mask.device)
                chosen, mask = chosen[places], mask[places]
                cache.reorder_cache(places)  # type: ignore[arg-type]
            if position + 1 < self._max_new_tokens:
                mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
                logits = self._forward(chosen[:, None], mask, cache)
        return [Continuation(tuple(text.ids), text.ended, text.num_near_ties) for text in texts]

    def _take(self, chosen: Tensor, near: Tensor, texts: Sequence[_Text]) -> list[int]:
        """Add the new tokens to the texts; return the places of those that go on."""
        going = []
        for place, (token, is_near) in enumerate(zip(chosen.tolist(), near.tolist(), strict=True)):
            texts[place].num_near_ties += is_near
            if token == self._eos_id:
                texts[place].ended = True
            else:
                texts[place].ids.append(token)
                going.append(place)
        return going

    def _forward(self, ids: Tensor, mask: Tensor, cache: DynamicCache) -> Tensor:
        """Return the logits (R, V) after the last of the new ids (R, 1 or T); `mask` covers the cached ones too."""
        options: dict[str, Any] = dict(self._options)
        if self._has_positions:
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            options["position_ids"] = positions[:, -ids.shape[1] :]
        out = self._module(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **options)
        logits: Tensor = out.logits[:, -1]
        return logits


class _BeamWriter:
    """Beam search by Transformers: no length penalty, and it stops when no running beam can still win."""

    def __init__(self, module: nn.Module, beams: int, spec: GenerateSpec, pad_id: int, eos_id: int | None) -> None:
        self._module = module
        self._eos_id = eos_id
        self._pad_id = pad_id
        self._config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False,
            num_beams=beams,
            num_return_sequences=1,
            max_new_tokens=spec.max_new_tokens,
            pad_token_id=pad_id,
            eos_token_id=eos_id,
            length_penalty=1.0,
            early_stopping=False,
            use_cache=True,
        )

    def write(self, prompts: Sequence[Sequence[int]], rows: Sequence[Row]) -> list[Continuation]:
        """Return the best beam after each row's prompt."""
        ids, mask = _left_padded([prompts[row.prompt] for row in rows], self._pad_id, _device(self._module))
        with _neutral(_plain(self._module)):
            out = self._module.generate(  # type: ignore[operator]
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


def _plain(module: nn.Module) -> Any:
    """Return the model of Transformers itself; PEFT's wrappers pass everything on to it."""
    getter = getattr(module, "get_base_model", None)
    return getter() if callable(getter) else module


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
