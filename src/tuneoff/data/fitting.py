"""Conversations to token sequences of at most `max_length`.

What an over-long conversation loses, by `task.truncation`:

- `middle`: a conversation with several replies to learn becomes one sequence for each reply, with all that precedes it
  as context. Then the prompt may keep max(max_length - reply, max_length // 2) tokens and loses its middle, as its two
  ends hold the instruction and the cue (LongBench; Bai et al., 2023, arXiv:2308.14508); what still does not fit is the
  reply's end, and its end-of-sequence token with it.
- `end`: the end of the sequence.
- `error`: nothing; it is refused.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tuneoff.data.conversations import Conversation
from tuneoff.data.encoding import Encoder
from tuneoff.data.problems import Problems
from tuneoff.data.templates import Segment, Template
from tuneoff.data.tokens import PromptBuilder, SplitBuilder, TokenSplit
from tuneoff.errors import DataError

CHUNK = 1024
"""Conversations whose segments are tokenised in one call."""


@dataclass
class Cuts:
    """What did not fit into `max_length`."""

    num_conversations: int = 0
    num_long: int = 0
    num_divided: int = 0
    """Conversations that became one sequence for each reply."""
    num_context_tokens: int = 0
    num_target_tokens: int = 0
    longest: int = 0
    first_long: Conversation | None = None

    def note(self, split: str, max_length: int, truncation: str) -> str | None:
        """Return a sentence on what was cut, or none where nothing was."""
        if not self.num_long:
            return None
        note = f"{split}: {self.num_long} of {self.num_conversations} examples were longer than {max_length} tokens"
        if self.num_divided:
            note += f" ({self.num_divided} of several replies became one sequence for each reply)"
        where = "from the middle of prompts" if truncation == "middle" else "of prompts"
        return (
            f"{note}; cut were {self.num_context_tokens} context tokens {where} and {self.num_target_tokens} target"
            " tokens"
            " at the ends of replies."
        )


@dataclass(frozen=True)
class _Span:
    """Where a segment's tokens lie in the sequence."""

    segment: Segment
    start: int
    end: int
    num_text_tokens: int
    """Without the end-of-sequence token."""
    reply: str
    """What the data says, without a chat template's marks."""

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the reply."""
        return len(self.segment.text.encode()) if self.segment.num_bytes is None else self.segment.num_bytes

    def is_cut(self, length: int) -> bool:
        """Whether a sequence of `length` tokens ends within the segment's text."""
        return self.start < length < self.start + self.num_text_tokens


@dataclass(frozen=True)
class _Sequence:
    ids: NDArray[np.int32]
    targets: NDArray[np.bool_]
    spans: tuple[_Span, ...]
    """The target segments."""


class Fitter:
    """Turns conversations into sequences.

    Args:
        encoder: the tokenizer.
        template: how conversations are written.
        max_length: tokens that one sequence may hold.
        truncation: `middle`, `end` or `error`.
    """

    def __init__(self, encoder: Encoder, template: Template, max_length: int, truncation: str) -> None:
        self._encoder = encoder
        self._template = template
        self._max_length = max_length
        self._truncation = truncation

    def build(
        self, conversations: Sequence[Conversation], prompts: PromptBuilder | None = None
    ) -> tuple[TokenSplit, Cuts]:
        """Return the split's sequences and what had to be cut.

        Args:
            conversations: the split's conversations.
            prompts: takes what stands before each reply that is learnt, as its sequence holds it (cut where that is
                cut), with the reply as it stands in the data.

        Raises:
            DataError: a conversation that is too long where none may be cut, or one without a target token.
        """
        builder = SplitBuilder()
        problems = Problems()
        cuts = Cuts(num_conversations=len(conversations))
        for start in range(0, len(conversations), CHUNK):
            chunk = conversations[start : start + CHUNK]
            fitted = [
                (conversation, sequence)
                for conversation, whole in zip(chunk, self._encoded(chunk), strict=True)
                for sequence in self._fitted(conversation, whole, cuts, problems)
            ]
            num_bytes = self._num_bytes([sequence for _, sequence in fitted])
            for (conversation, sequence), target_bytes in zip(fitted, num_bytes, strict=True):
                name = f"{conversation.file}:{conversation.line}"
                item = builder.add(
                    sequence.ids, sequence.targets, target_bytes=target_bytes, item=conversation.item, item_name=name
                )
                if prompts is not None:
                    for span in sequence.spans:
                        if span.start < len(sequence.ids):
                            ids = sequence.ids[: span.start]
                            prompts.add(ids, name=name, references=(span.reply,), item=item)
        problems.check()
        if self._truncation == "error" and cuts.first_long is not None:
            raise DataError(
                f"{cuts.num_long} of {cuts.num_conversations} examples are longer than max_length {self._max_length}"
                f" tokens (the longest has {cuts.longest}), and task.truncation is error; raise task.max_length, or cut"
                " them with truncation: middle",
                file=cuts.first_long.file,
                line=cuts.first_long.line,
            )
        return builder.build(), cuts

    def _encoded(self, conversations: Sequence[Conversation]) -> Iterator[_Sequence]:
        written = [self._template.segments(conversation) for conversation in conversations]
        encoded = iter(self._encoder.encode([segment.text for segments in written for segment in segments]))
        for conversation, segments in zip(conversations, written, strict=True):
            ids = list(self._encoder.bos)
            spans = []
            replies = iter([turn.text for turn in conversation.turns if turn.is_target])
            for segment in segments:
                piece = next(encoded)
                start = len(ids)
                ids += piece + (self._encoder.eos if segment.ends else [])
                if segment.is_target:
                    spans.append(_Span(segment, start, len(ids), len(piece), next(replies)))
            yield _marked(np.array(ids, dtype=np.int32), spans)

    def _fitted(
        self, conversation: Conversation, whole: _Sequence, cuts: Cuts, problems: Problems
    ) -> Iterator[_Sequence]:
        """Yield what a conversation becomes, each at most `max_length` long; nothing where it is a bad row."""
        complaint = _complaint(whole)
        sequences = [whole]
        if len(whole.ids) > self._max_length:
            cuts.num_long += 1
            cuts.longest = max(cuts.longest, len(whole.ids))
            cuts.first_long = cuts.first_long or conversation
            if self._truncation == "error":
                return
            if self._truncation == "middle" and len(whole.spans) > 1:
                cuts.num_divided += 1
                sequences = [_up_to(whole, span) for span in whole.spans]
        for sequence in sequences:
            fitted = self._fit(sequence, cuts)
            if complaint is None and not fitted.targets.any():
                complaint = (
                    f"expected a target token within max_length {self._max_length}, but the prompt alone has"
                    f" {int(np.argmax(sequence.targets))} tokens; raise task.max_length, or keep the reply with"
                    " truncation: middle"
                )
            if complaint is not None:
                problems.add(complaint, file=conversation.file, line=conversation.line)
                return
            yield fitted

    def _fit(self, sequence: _Sequence, cuts: Cuts) -> _Sequence:
        excess = len(sequence.ids) - self._max_length
        if excess <= 0:
            return sequence
        num_targets = np.count_nonzero(sequence.targets)
        fitted = sequence
        if self._truncation == "middle" and sequence.spans:
            num_prompt = sequence.spans[0].start
            num_reply = len(sequence.ids) - num_prompt
            keep = max(self._max_length - num_reply, self._max_length // 2)
            fitted = _without_middle(sequence, num_prompt, max(0, num_prompt - keep))
        fitted = _Sequence(fitted.ids[: self._max_length], fitted.targets[: self._max_length], fitted.spans)
        lost_targets = int(num_targets - np.count_nonzero(fitted.targets))
        cuts.num_target_tokens += lost_targets
        cuts.num_context_tokens += excess - lost_targets
        return fitted

    def _num_bytes(self, sequences: Sequence[_Sequence]) -> list[int]:
        """Return for each sequence the bytes of its replies' texts, as far as their tokens lie within it."""
        cut = [span for sequence in sequences for span in sequence.spans if span.is_cut(len(sequence.ids))]
        ends_of_cut = self._encoder.encode_with_ends([span.segment.text for span in cut])
        sums = []
        for sequence in sequences:
            length = len(sequence.ids)
            num_bytes = 0
            for span in sequence.spans:
                if span.is_cut(length):
                    _, ends = next(ends_of_cut)
                    num_bytes += min(int(ends[length - span.start - 1]), span.num_bytes)
                elif span.start < length:
                    num_bytes += span.num_bytes
            sums.append(num_bytes)
        return sums


def _complaint(sequence: _Sequence) -> str | None:
    if not sequence.targets.any():
        return "expected a reply that carries loss, found one without a token; remove the row"
    if sequence.targets[0]:
        return "expected a prompt before the reply, found one without a token; add words to task.template"
    return None


def _marked(ids: NDArray[np.int32], spans: Sequence[_Span]) -> _Sequence:
    targets = np.zeros(len(ids), dtype=np.bool_)
    for span in spans:
        targets[span.start : span.end] = True
    return _Sequence(ids, targets, tuple(spans))


def _up_to(sequence: _Sequence, span: _Span) -> _Sequence:
    """Return the sequence up to the end of one reply, which alone carries loss."""
    return _marked(sequence.ids[: span.end], [span])


def _without_middle(sequence: _Sequence, num_prompt: int, num_dropped: int) -> _Sequence:
    """Return the sequence without `num_dropped` tokens from the middle of its first `num_prompt` ones."""
    head = (num_prompt - num_dropped + 1) // 2
    kept = np.r_[0:head, head + num_dropped : len(sequence.ids)]
    spans = tuple(replace(span, start=span.start - num_dropped, end=span.end - num_dropped) for span in sequence.spans)
    return _Sequence(sequence.ids[kept], sequence.targets[kept], spans)
