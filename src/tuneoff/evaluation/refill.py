"""Writes greedy and sampled texts of all strategies in one batch: each prompt is read once, finished texts make room.

The prompts of a batch are read (`tuneoff.evaluation.reading`), every strategy chooses the first tokens of its samples
from the same logits, and the texts that go on wait for a slot (`tuneoff.evaluation.slots`). As a text ends, the next
one takes its slot over; more prompts are read when none waits. This is the continuous batching of Yu et al., 2022,
"Orca", OSDI 22, section 3.2, without a scheduler, as all prompts are there from the start.

What is written depends on neither, but where two scores are nearly tied (`tuneoff.evaluation.decoding`).
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tuneoff.evaluation.cached_forward import CachedForward
from tuneoff.evaluation.decoding import Chooser, Row
from tuneoff.evaluation.reading import Group, Prompts, Read, batches, is_plain, read
from tuneoff.evaluation.slots import SlotCache
from tuneoff.evaluation.texts import Text
from tuneoff.training.steps import LARGEST_SHARE, looks_everywhere

READ_SHARE, MIN_READ = 4, 8
"""Prompts that are read at a time: a quarter of the texts in the making, as what waits takes memory; 8 at least."""
MIN_PROBE_TOKENS, MAX_PROBE_TOKENS = 4, 12
"""Of the prompt that slots are tried out on."""


class RefilledWriter:
    """Writes after prompts with several strategies at once.

    Args:
        forward: way through the model.
        choosers: the strategies'.
        samples: texts that each strategy writes after a prompt.
        num_slots: texts in the making at a time.
        max_new_tokens: of a text.
        eos_id: token that ends a text; none lets every text reach the limit.
    """

    def __init__(
        self,
        forward: CachedForward,
        choosers: Sequence[Chooser],
        samples: Sequence[int],
        num_slots: int,
        max_new_tokens: int,
        eos_id: int | None,
    ) -> None:
        self._forward = forward
        self._choosers = choosers
        self._samples = samples
        self._num_slots = num_slots
        self._max_new_tokens = max_new_tokens
        self._eos_id = eos_id
        self.seconds = [0.0] * len(choosers)
        """That each strategy took (see `tuneoff.study.records.Generated`)."""
        self.live: list[Text] = []
        """Texts in the making, in the order of their slots."""
        self.lengths: list[int] = []
        """Columns that each of them has in its slot."""

    def write(self, prompts: Prompts) -> list[Text]:
        """Return the texts of all strategies, in any order."""
        self.begin(prompts)
        while self.live:
            self.step()
        return self._done

    def begin(self, prompts: Prompts) -> None:
        """Read as many prompts as fill the slots."""
        self._prompts = prompts
        self._done: list[Text] = []
        self._waiting: deque[tuple[Text, Read]] = deque()
        num_prompts = min(self._num_slots, max(MIN_READ, self._num_slots // READ_SHARE))
        self._unread: Iterator[list[Group]] = batches(prompts, num_prompts)
        self.live = []
        self.lengths = []
        self._slots: SlotCache | None = None
        with self._shared_equally():
            self._fill()

    @contextmanager
    def _shared_equally(self) -> Iterator[None]:
        """Share out the time within the context equally, but for what strategies are charged for themselves in it."""
        start, charged = time.perf_counter(), sum(self.seconds)
        yield
        taken = time.perf_counter() - start - (sum(self.seconds) - charged)
        self.seconds = [own + taken / len(self.seconds) for own in self.seconds]

    def step(self) -> None:
        """Write one more token of each live text; what ends makes room."""
        start = time.perf_counter()
        assert self._slots is not None
        logits = decode(self._forward, self._slots, [text.ids[-1] for text in self.live], self.lengths)
        self._synchronize(logits)
        by_text = (time.perf_counter() - start) / len(self.live)
        for text in self.live:
            self.seconds[text.strategy] += by_text
        going = self._choose(logits, self.live)
        self.lengths = [length + 1 for length in self.lengths]
        with self._shared_equally():
            for place in reversed([place for place, goes_on in enumerate(going) if not goes_on]):
                self._done.append(self.live[place])
                self._leave(place)

    def _choose(self, logits: Tensor, texts: Sequence[Text]) -> list[bool]:
        """Add the next token (of logits (R, V)) to each of the texts; return which of them go on."""
        going = [False] * len(texts)
        for strategy, chooser in enumerate(self._choosers):
            start = time.perf_counter()
            own = [place for place, text in enumerate(texts) if text.strategy == strategy]
            if not own:
                continue
            part = logits if len(own) == len(texts) else logits[torch.tensor(own, device=logits.device)]
            positions = [len(texts[place].ids) for place in own]
            chosen, near = chooser.choose(part, [texts[place].row for place in own], positions)
            for place, token, is_near in zip(own, chosen.tolist(), near.tolist(), strict=True):
                going[place] = texts[place].take(token, is_near, self._eos_id, self._max_new_tokens)
            self.seconds[strategy] += time.perf_counter() - start
        return going

    def _fill(self) -> None:
        """Let waiting texts into the slots that no text has had yet."""
        while len(self.live) < self._num_slots and (found := self._next()):
            self.live.append(found[0])
            self.lengths.append(0)
            self._enter(len(self.live) - 1, *found)

    def _leave(self, place: int) -> None:
        """Give a slot to the next text; where none is left, to the last live one."""
        found = self._next()
        if found:
            self._enter(place, *found)
            return
        last, length = self.live.pop(), self.lengths.pop()
        if place < len(self.live):
            assert self._slots is not None
            self._slots.move(len(self.live), place, length)
            self.live[place], self.lengths[place] = last, length

    def _enter(self, place: int, text: Text, own: Read) -> None:
        if self._slots is None:
            longest = max(map(len, self._prompts))
            num_texts = len(self._prompts) * sum(self._samples)
            capacity = own.num_virtual + longest + self._max_new_tokens
            self._slots = SlotCache(own, min(self._num_slots, num_texts), capacity)
        self._slots.enter(place, own)
        self.live[place], self.lengths[place] = text, own.length

    def _next(self) -> tuple[Text, Read] | None:
        """Return a text that waits for a slot, reading more prompts if need be; none where all are done or live."""
        while not self._waiting:
            batch = next(self._unread, None)
            if batch is None:
                return None
            found, logits = read(self._forward, self._prompts, batch)
            self._begin(found, logits)
        return self._waiting.popleft()

    def _begin(self, found: Sequence[Read], logits: Tensor) -> None:
        """Choose the first token of every text after some prompts; those that go on wait."""
        texts = [
            (Text(strategy, Row(own.prompt, sample)), place)
            for place, own in enumerate(found)
            for strategy, num_samples in enumerate(self._samples)
            for sample in range(num_samples)
        ]
        places = torch.tensor([place for _, place in texts], device=logits.device)
        going = self._choose(logits[places], [text for text, _ in texts])
        for (text, place), goes_on in zip(texts, going, strict=True):
            if goes_on:
                self._waiting.append((text, found[place]))
            else:
                self._done.append(text)

    def _synchronize(self, logits: Tensor) -> None:
        if logits.device.type == "cuda":  # so that the choosing that follows is not charged for the model
            torch.cuda.synchronize(logits.device)


def decode(forward: CachedForward, slots: SlotCache, tokens: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """Return the logits (R, V) after one more token of each text.

    Args:
        forward: way through the model.
        slots: of the texts, which get the tokens' keys and values.
        tokens: one for each text, R of them.
        lengths: columns that the texts have, virtual tokens' among them.
    """
    slots.expect(lengths)
    num_virtual = slots.num_virtual
    own = slots.lengths[:, None] - num_virtual
    columns = torch.arange(slots.width - num_virtual, device=own.device)
    ids = torch.tensor(tokens, dtype=torch.int64, device=own.device)[:, None]
    return forward(ids, (columns <= own).to(torch.int64), slots, own)


@torch.no_grad()
def can_refill(forward: CachedForward, prompts: Prompts) -> bool:
    """Whether a model writes in slots, after prompts read in two pieces, what it would write after a prompt alone.

    It must take positions, attend by PyTorch's own means (other kernels read padding from the mask's shape), and keep
    all keys and values. Whether that suffices is tried out: by the logits of the beginnings of a prompt.

    Args:
        forward: way through the model.
        prompts: token ids; where all are very short there is nothing to win.
    """
    longest = max(range(len(prompts)), key=lambda index: len(prompts[index]))
    ids = list(prompts[longest][:MAX_PROBE_TOKENS])
    config: Any = forward.module.config
    implementation = getattr(config, "_attn_implementation", None)
    if not forward.has_positions or implementation not in ("sdpa", "eager") or len(ids) < MIN_PROBE_TOKENS:
        return False
    # A window may be counted in columns, which in slots are not those of the text alone.
    if not is_plain(forward.new_cache()) or not looks_everywhere(config.get_text_config()):
        return False
    half = len(ids) // 2
    probes, nexts = [ids[:-1], ids[:half]], [ids[-1], ids[half]]
    found, _ = read(forward, probes, [Group(half, (0,)), Group(1, (1,))])  # unlike in all lengths
    if any(part is None for parts in found[0].parts for part in parts):
        return False
    slots = SlotCache(found[0], len(found), found[0].length + 1)
    for place, own in enumerate(found):
        slots.enter(place, own)
    stepped = decode(forward, slots, nexts, [own.length for own in found])
    for own_logits, probe, token in zip(stepped, probes, nexts, strict=True):
        wanted = forward(*forward.left_padded([[*probe, token]]), forward.new_cache())[0]
        largest = LARGEST_SHARE[wanted.dtype] * wanted.abs().max()
        if not bool(((own_logits - wanted).abs() <= largest).all()):
            return False
    return True
