"""Prompts around one field that may be cut (the context of a question, a text to classify); the rest stays whole.

A prompt is tokenised in one piece, as it is when something is generated after it. Of one that is too long the tokens of
its field go: from the field's middle, as its two ends hold most (LongBench; Bai et al., 2023, arXiv:2308.14508), or
from its end. A cut never splits a character, so it may take a few tokens more than it has to.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuneoff.data.encoding import Encoder
from tuneoff.data.templates import check_placeholders
from tuneoff.errors import StudyError


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as text, and where its field stands in it."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class FittedPrompt:
    """A prompt as tokens."""

    ids: NDArray[np.int32]
    kept: tuple[str, ...]
    """The pieces of the field that are left: one, or two where its middle was cut."""
    num_cut: int
    """Tokens that were cut."""


class FieldTemplate:
    """A prompt with placeholders.

    Args:
        text: the template. Placeholders are replaced, never formatted, so that braces in the data are text.
        field: the placeholder of what may be cut; it stands in the template once.
        others: placeholders that are there too.

    Raises:
        StudyError: an unknown placeholder, or not those that are asked for.
    """

    def __init__(self, text: str, field: str, others: Sequence[str] = ()) -> None:
        found = check_placeholders(text, (field, *others))
        for name in (field, *others):
            if name not in found:
                raise StudyError(f"task.template: expected the placeholder {{{name}}}, found {text!r}")
        if found.count(field) > 1:
            raise StudyError(
                f"task.template: expected the placeholder {{{field}}} once, found it {found.count(field)}x"
            )
        self.text = text
        self._before, self._after = text.split(f"{{{field}}}")
        self._field = field
        self._pattern = re.compile(r"\{(" + "|".join(others) + r")\}") if others else None

    def write(self, values: Mapping[str, str]) -> Prompt:
        """Return the prompt with `values`, by placeholder, in it."""
        before, after = (self._filled(piece, values) for piece in (self._before, self._after))
        field = values[self._field]
        return Prompt(before + field + after, len(before), len(before) + len(field))

    def _filled(self, piece: str, values: Mapping[str, str]) -> str:
        return piece if self._pattern is None else self._pattern.sub(lambda match: values[match[1]], piece)


def fit_prompts(
    encoder: Encoder, prompts: Sequence[Prompt], room: int, truncation: str
) -> Iterator[FittedPrompt | int]:
    """Yield each prompt as tokens, beginning of sequence included; or, where it cannot be cut to fit, how many it has.

    Args:
        encoder: the tokenizer.
        prompts: the prompts.
        room: tokens that a prompt may have.
        truncation: `middle` and `end` say where the field is cut; `error` cuts nothing.
    """
    encoded = encoder.encode([prompt.text for prompt in prompts])
    room -= len(encoder.bos)
    long = [prompt for prompt, ids in zip(prompts, encoded, strict=True) if len(ids) > room]
    with_offsets = encoder.encode_with_offsets([prompt.text for prompt in long] if truncation != "error" else [])
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) <= room:
            whole = (prompt.text[prompt.start : prompt.end],)
            yield FittedPrompt(np.array(encoder.bos + ids, dtype=np.int32), whole, 0)
        elif truncation == "error":
            yield len(encoder.bos) + len(ids)
        else:
            _, offsets = next(with_offsets)
            cut = _cut(prompt, offsets, len(ids) - room, truncation)
            if cut is None:
                yield len(encoder.bos) + len(ids)
                continue
            start, end = cut
            kept = _kept(prompt, offsets, start, end)
            shorter = encoder.bos + ids[:start] + ids[end:]
            yield FittedPrompt(np.array(shorter, dtype=np.int32), kept, end - start)


def _field_tokens(prompt: Prompt, offsets: NDArray[np.int64]) -> tuple[int, int]:
    """Return the first token of the field and the one after its last."""
    inside = (offsets[:, 0] >= prompt.start) & (offsets[:, 1] <= prompt.end) & (offsets[:, 1] > offsets[:, 0])
    places = np.flatnonzero(inside)
    return (int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)


def _cut(prompt: Prompt, offsets: NDArray[np.int64], excess: int, truncation: str) -> tuple[int, int] | None:
    """Return which tokens go, or none where the field has no more than these."""
    first, last = _field_tokens(prompt, offsets)
    num_kept = last - first - excess
    start = first + ((num_kept + 1) // 2 if truncation == "middle" else num_kept)
    end = start + excess
    while first < start < last and offsets[start - 1, 1] > offsets[start, 0]:
        start -= 1  # the character before the cut has tokens within it
    while first < end < last and offsets[end, 0] < offsets[end - 1, 1]:
        end += 1
    return (start, end) if num_kept > 0 and end - start < last - first else None


def _kept(prompt: Prompt, offsets: NDArray[np.int64], start: int, end: int) -> tuple[str, ...]:
    first, last = _field_tokens(prompt, offsets)
    pieces = []
    if start > first:
        pieces.append(prompt.text[prompt.start : offsets[start - 1, 1]])
    if end < last:
        pieces.append(prompt.text[offsets[end, 0] : prompt.end])
    return tuple(pieces)
