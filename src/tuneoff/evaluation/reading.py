"""Reads prompts: what several of them begin with once, and the rest of each after it, with little padding.

Questions about one paragraph, or instructions behind one long system text, begin alike. Zheng et al., 2024, "SGLang",
arXiv:2312.07104, section 3, keep a tree of all that was read; here groups of prompts share one beginning each, which
needs no store beyond the batch.

Shapes: R rows, T positions, C columns of a cache, H key-value heads, D width of a head, V virtual tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from tuneoff.evaluation.cached_forward import CachedForward

MIN_SHARED_TOKENS = 16
"""Beginnings shorter than this are read with each prompt: a forward of their own would cost more than it saves."""
READ_TOKENS = 1024
"""New tokens that are read in one go: enough to fill a processor, few enough that little waits to be written after."""

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Group:
    """Prompts that begin alike.

    Attributes:
        shared: tokens that they begin with, fewer than the shortest has; 0 for one prompt alone.
        prompts: which ones.
    """

    shared: int
    prompts: tuple[int, ...]


@dataclass(frozen=True)
class Read:
    """Keys and values of a prompt that was read, within those of its batch.

    Attributes:
        prompt: which one.
        parts: for each layer keys and values, (R, H, C, D).
        row: its row in them.
        spans: its columns in them, first and past the last, from left to right; the virtual tokens' are among them.
        num_virtual: how many those are.
    """

    prompt: int
    parts: tuple[tuple[Tensor, Tensor], ...]
    row: int
    spans: tuple[tuple[int, int], ...]
    num_virtual: int

    @property
    def length(self) -> int:
        """Its columns in all."""
        return sum(stop - start for start, stop in self.spans)


def batches(prompts: Prompts, max_rows: int) -> Iterator[list[Group]]:
    """Yield what is to be read in one go: groups that share a beginning, or prompts alone, like lengths together.

    The longest come first, where memory is tight. A batch is of one kind.

    Args:
        prompts: token ids.
        max_rows: prompts in one batch.
    """
    groups = list(_groups(prompts, max_rows))
    for wanted in (True, False):
        batch: list[Group] = []
        num_rows = num_tokens = 0
        own = [group for group in groups if (group.shared > 0) == wanted]
        for group in sorted(
            own, key=lambda group: (-max(len(prompts[index]) for index in group.prompts), group.prompts)
        ):
            if batch and (num_rows + len(group.prompts) > max_rows or num_tokens >= READ_TOKENS):
                yield batch
                batch, num_rows, num_tokens = [], 0, 0
            batch.append(group)
            num_rows += len(group.prompts)
            num_tokens += group.shared + sum(len(prompts[index]) - group.shared for index in group.prompts)
        if batch:
            yield batch


def _groups(prompts: Prompts, max_rows: int) -> Iterator[Group]:
    """Yield each prompt in one group; in the order of the alphabet, prompts that begin alike are neighbours.

    A prompt joins the group before it where that saves more tokens than the group saves without it.
    """
    order = sorted(range(len(prompts)), key=lambda index: (tuple(prompts[index]), index))
    own: list[int] = []
    shared = 0
    for index in order:
        if own:
            common = min(_num_common(prompts[own[-1]], prompts[index]), len(prompts[index]) - 1)
            common = min(common, shared if len(own) > 1 else len(prompts[own[0]]) - 1)
            saved = shared * (len(own) - 1)
            if common >= MIN_SHARED_TOKENS and common * len(own) > saved and len(own) < max_rows:
                own.append(index)
                shared = common
                continue
            yield Group(shared, tuple(own))
        own, shared = [index], 0
    if own:
        yield Group(shared, tuple(own))


def _num_common(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def read(forward: CachedForward, prompts: Prompts, batch: Sequence[Group]) -> tuple[list[Read], Tensor]:
    """Return the prompts of a batch, as they stand in its groups, and the logits (R, vocabulary) after each.

    Args:
        forward: way through the model.
        prompts: token ids.
        batch: groups of one kind (see `batches`).
    """
    cache = forward.new_cache()
    own = [(place, index) for place, group in enumerate(batch) for index in group.prompts]
    shared = [group.shared for group in batch]
    width = max(shared)
    mask = torch.zeros(len(own), 0, dtype=torch.int64, device=forward.device)
    if width:
        ids, mask = forward.left_padded([prompts[group.prompts[0]][: group.shared] for group in batch])
        forward(ids, mask, cache)
        places = torch.tensor([place for place, _ in own], device=mask.device)
        cache.reorder_cache(places)  # type: ignore[arg-type]  # a Tensor of int64 is what it means
        mask = mask[places]
    rests = [prompts[index][shared[place] :] for place, index in own]
    ids, own_mask = forward.left_padded(rests)
    logits = forward(ids, torch.cat([mask, own_mask], dim=1), cache)
    columns = width + ids.shape[1]
    num_virtual = cache.get_seq_length() - columns
    parts = tuple((layer.keys, layer.values) for layer in cache.layers)
    found = []
    for row, ((place, index), rest) in enumerate(zip(own, rests, strict=True)):
        start, stop = num_virtual + width, num_virtual + columns
        spans = ((0, num_virtual), (start - shared[place], start), (stop - len(rest), stop))
        kept = tuple(span for span in spans if span[0] < span[1])
        found.append(Read(index, parts, row, kept, num_virtual))  # type: ignore[arg-type]  # filled by now
    return found, logits


def is_plain(cache: DynamicCache) -> bool:
    """Whether every layer of a cache keeps all keys and values, and nothing else."""
    return bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)
