"""Text to token ids.

Segments are tokenised apart and without special tokens, so that masks are exact and a prompt has the same tokens when
it is scored and when something is generated after it.
"""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tuneoff.data.templates import CHAT
from tuneoff.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_CHARS = 2_000_000
"""Characters tokenised in one call: enough for all cores, and few enough that offsets (some 200 bytes a token) fit."""


def pad_token_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return the id that fills up short rows: the tokenizer's padding, or else its end-of-sequence token.

    Padding is masked and carries no loss, so which of the two it is changes no number.

    Raises:
        ModelError: the tokenizer has neither.
    """
    for token_id in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token_id, int):
            return token_id
    raise ModelError(
        "the model's tokenizer has neither a padding nor an end-of-sequence token; name one in its"
        " tokenizer_config.json,"
        ' such as "eos_token": "<|endoftext|>"'
    )


def starts_with_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the tokenizer itself puts the beginning-of-sequence token before a text (Llama does, GPT-2 does not)."""
    if tokenizer.bos_token_id is None:
        return False
    return bool(tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id])


class Encoder:
    """A tokenizer as this package uses it.

    Args:
        tokenizer: a fast tokenizer.
        parses_special: whether special tokens written out in a text become tokens. A chat template means them; in data
            they are text, so that a row that holds `</s>` does not end there.

    Raises:
        ModelError: a tokenizer without padding and end-of-sequence token, or one without offsets.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, parses_special: bool = False) -> None:
        self.pad_id = pad_token_id(tokenizer)
        if not tokenizer.is_fast:
            raise ModelError(
                "the model's tokenizer is not a fast one (it has no tokenizer.json); convert it with transformers"
            )
        self._tokenizer = tokenizer
        self._parses_special = parses_special
        self.eos: list[int] = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.bos: list[int] = [tokenizer.bos_token_id] if starts_with_bos(tokenizer) and not parses_special else []
        """What a sequence starts with. A chat template writes its own."""
        self.document_start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        """Context of a document's first token: BOS, else EOS, else padding."""
        if self.document_start is None:
            self.document_start = self.pad_id
        # All cores for the batches below; said outright, because the library prints a warning when a process that left
        # it unsaid forks.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

    def space_before(self, text: str) -> str:
        """Return what is written between `text` and a word that is tokenised apart from it: a space, or nothing.

        Nothing where the text ends in white space, and where the tokenizer itself puts a space before whatever it is
        given (Llama 2 does, GPT-2 and Llama 3 do not). So the word has the tokens that it has in running text.
        """
        return "" if not text or text[-1].isspace() or self._puts_space else " "

    @cached_property
    def _puts_space(self) -> bool:
        first = self._tokenizer.convert_ids_to_tokens(self.encode(["a"])[0])[0]
        return bool(first[0] in "▁Ġ")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text."""
        return [ids for batch in _batches(texts) for ids in self._call(batch)["input_ids"]]

    def encode_with_ends(self, texts: Sequence[str]) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
        """Yield for each text its ids and, for each token, how many UTF-8 bytes of the text lie before its end.

        A character that is split over several tokens counts for the first of them, and what the tokenizer drops counts
        for the token after it (at the end of the text, for the last token): single tokens are approximate, their sum is
        the text's bytes exactly.
        """
        for batch in _batches(texts):
            encoded = self._call(batch, return_offsets_mapping=True)
            for text, ids, offsets in zip(batch, encoded["input_ids"], encoded["offset_mapping"], strict=True):
                yield np.array(ids, dtype=np.int32), _byte_ends(text, offsets)

    def encode_with_offsets(self, texts: Sequence[str]) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int64]]]:
        """Yield for each text its ids, and which characters each token stands for, (num_tokens, 2): start and end."""
        for batch in _batches(texts):
            encoded = self._call(batch, return_offsets_mapping=True)
            for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
                yield np.array(ids, dtype=np.int32), np.array(offsets, dtype=np.int64).reshape(-1, 2)

    def _call(self, texts: Sequence[str], **options: Any) -> Any:
        return self._tokenizer(
            list(texts),
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            split_special_tokens=not self._parses_special,
            verbose=False,
            **options,
        )


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    num_chars = 0
    for text in texts:
        if batch and num_chars + len(text) > BATCH_CHARS:
            yield batch
            batch, num_chars = [], 0
        batch.append(text)
        num_chars += len(text)
    if batch:
        yield batch


def _byte_ends(text: str, offsets: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    if not offsets:
        return np.zeros(0, np.int64)
    ends = np.maximum.accumulate(np.array(offsets, dtype=np.int64)[:, 1])  # byte fallback may point back
    ends[-1] = len(text)
    if text.isascii():
        return ends
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    num_bytes = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.concatenate([[0], np.cumsum(num_bytes)])[ends]


def encode_prompt(tokenizer: "PreTrainedTokenizerBase", prompt: str, template: str | None = None) -> list[int]:
    """Return the ids after which a reply to `prompt` is generated: the same that the reply was trained after.

    Args:
        tokenizer: the tokenizer.
        prompt: the prompt as it was written by the template (`PreparedData.samples`, `render_prompt`).
        template: the task's template; `chat` prompts hold their special tokens written out.
    """
    encoder = Encoder(tokenizer, parses_special=template == CHAT)
    return encoder.bos + encoder.encode([prompt])[0]
