"""Documents to windows of at most `max_length` tokens, in which each token of a document is predicted exactly once.

A document is its start token (context only), its own tokens, and the end-of-sequence token. Window k covers the tokens
from k x stride on; it predicts those that no earlier window has predicted, and the rest of it is context.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from tuneoff.data.encoding import Encoder
from tuneoff.data.tasks import Document
from tuneoff.data.tokens import SplitBuilder, TokenSplit


def window_bounds(num_tokens: int, max_length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield start, first target and end of each window over `num_tokens` tokens, the start token included.

    Args:
        num_tokens: at least 2, as the first token is context only.
        max_length: tokens in a window.
        stride: tokens by which windows move on, below `max_length`.
    """
    first_target = 1
    for start in range(0, num_tokens, stride):
        end = min(start + max_length, num_tokens)
        if end > first_target:
            yield start, first_target, end
        if end == num_tokens:
            return
        first_target = end


def build_windows(documents: Sequence[Document], encoder: Encoder, max_length: int, stride: int) -> TokenSplit:
    """Return the windows of all documents; of one document alone the windows are the items."""
    builder = SplitBuilder()
    encoded = encoder.encode_with_ends([document.text for document in documents])
    for document, (text_ids, text_ends) in zip(documents, encoded, strict=True):
        tail = encoder.eos if document.ends else []
        ids = np.concatenate([[encoder.document_start], text_ids, tail]).astype(np.int32)
        last = len(document.text.encode())
        byte_ends = np.concatenate([[0], text_ends, [last] * len(tail)]).astype(np.int64)
        byte_ends[-1] = last  # a text without a token of its own still counts
        for number, (start, first_target, end) in enumerate(window_bounds(len(ids), max_length, stride)):
            is_alone = len(documents) == 1
            builder.add(
                ids[start:end],
                np.arange(start, end) >= first_target,
                target_bytes=int(byte_ends[end - 1] - byte_ends[first_target - 1]),
                item=(number,) if is_alone else document.item,
                item_name=f"{document.file}:{document.line}" + (f" window {number + 1}" if is_alone else ""),
            )
    return builder.build()
