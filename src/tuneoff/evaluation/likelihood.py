"""Scores a split: the negative log-likelihood of its target tokens, summed over the whole split whatever the batch.

Perplexity = exp(sum of NLL over target tokens / number of target tokens). Padding never counts, nor does the mask of
the micro-batch: sums are kept per sequence, in float64 (Jelinek et al., 1977, define perplexity over the whole test
text).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuneoff.data.batching import evaluation_batches
from tuneoff.data.prepare import TokenSplit
from tuneoff.errors import NotFiniteError
from tuneoff.study.records import Likelihood
from tuneoff.training.runtime import Runtime
from tuneoff.training.steps import DeviceBatch, Forward, to_device

EVALUATION_TOKENS = 4096
"""Tokens of one forward, padding included: enough to fill a processor, few enough that hidden states stay small."""


@dataclass(frozen=True)
class Scores:
    """NLL of every sequence of a split.

    Attributes:
        nll_nats: float64 (sequences,), sum over each one's target tokens.
        likelihood: the sums over the split.
        predictions: int64 (sequences,), the likeliest class of each; none where the split has no classes.
    """

    nll_nats: np.ndarray[Any, np.dtype[np.float64]]
    likelihood: Likelihood
    predictions: np.ndarray[Any, np.dtype[np.int64]] | None = None


@torch.no_grad()
def score_split(
    module: nn.Module,
    forward: Forward,
    split: TokenSplit,
    runtime: Runtime,
    pad_id: int,
    *,
    batch_size: int | None = None,
    max_tokens: int = EVALUATION_TOKENS,
    stride_tokens: int | None = None,
) -> Scores:
    """Score every sequence of a split.

    Args:
        module: the model, in evaluation mode afterwards.
        forward: way through it.
        split: tokenised sequences.
        runtime: device and compute type.
        pad_id: token that fills rows up; it is never scored.
        batch_size: sequences in one forward; none takes as many as `max_tokens` holds.
        max_tokens: tokens of one forward, padding included; a longer sequence stands alone.
        stride_tokens: reported with the result, for text that was cut into windows.
    """
    module.eval()
    is_packed = packs(forward, runtime)
    nll = np.zeros(len(split))
    counts = np.zeros(len(split), dtype=np.int64)
    predictions = np.zeros(len(split), dtype=np.int64) if split.has_labels else None
    size = 0 if split.has_labels else vocabulary_size(module)
    for batch in evaluation_batches(split, batch_size, pad_id, max_tokens, is_packed=is_packed):
        placed = to_device([batch], runtime.device, pad_id, is_packed=is_packed)
        sequences = batch.slots[placed.sequences.cpu().numpy()]
        found, logits = score_batch(forward, placed, runtime, has_classes=predictions is not None)
        if predictions is not None and logits is not None:
            predictions[sequences] = logits.argmax(dim=-1).cpu().numpy()
            size = logits.shape[-1]
        np.add.at(nll, sequences, found.double().cpu().numpy())
        np.add.at(counts, sequences, 1)
    return Scores(nll, sum_up(nll, counts, split, size, stride_tokens), predictions)


@torch.no_grad()
def score_batch(
    forward: Forward, batch: DeviceBatch, runtime: Runtime, *, has_classes: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the NLL of each target of a batch (N,), and of classes their logits (N, classes).

    Args:
        forward: way through the model, in evaluation mode.
        batch: on the device.
        runtime: device and compute type.
        has_classes: whether the targets are classes.
    """
    with runtime.autocast(keeps_casts=False):  # one forward uses each weight once
        if not has_classes:
            return forward.target_nll(batch), None
        logits = forward.target_logits(batch)
        return F.cross_entropy(logits, batch.labels, reduction="none"), logits


def packs(forward: Forward, runtime: Runtime) -> bool:
    """Whether a split is scored end to end.

    Sorted by length, short sequences too are quickest so: equal ones are attended to as one product.
    """
    return forward.is_packed or (forward.can_pack and runtime.device.type == "cpu")


def sum_up(
    nll: np.ndarray[Any, Any],
    counts: np.ndarray[Any, Any],
    split: TokenSplit,
    vocabulary_size: int,
    stride_tokens: int | None = None,
) -> Likelihood:
    """Return the sums over a split.

    Args:
        nll: NLL of each sequence (nats), (sequences,).
        counts: targets of each sequence that were scored, (sequences,).
        split: what was scored.
        vocabulary_size: between how many tokens or classes each target was chosen.
        stride_tokens: reported with the result.

    Raises:
        NotFiniteError: the sum is not a finite number.
    """
    scored = counts > 0
    total = float(nll.sum())
    if not math.isfinite(total):
        raise NotFiniteError(f"the loss over {len(split):,} sequences was {total}")
    return Likelihood(
        nll_nats=total,
        num_target_tokens=int(counts.sum()),
        num_sequences=int(scored.sum()),
        num_target_bytes=int(split.target_bytes.sum()),
        mean_sequence_loss_nats=float((nll[scored] / counts[scored]).mean()),
        vocabulary_size=vocabulary_size,
        stride_tokens=stride_tokens,
    )


def vocabulary_size(module: nn.Module) -> int:
    """Return how many tokens a model chooses between."""
    return int(module.config.get_text_config().vocab_size)  # type: ignore[operator, union-attr]
