r"""Chooses the next token of each row: the likeliest, or one drawn after temperature, top-k and top-p.

What a token may be drawn from is cut by Transformers' own warpers, in the order of `model.generate`: temperature, top-k
(Fan et al., 2018, arXiv:1805.04833, section 5.1), top-p (Holtzman et al., 2020, arXiv:1904.09751, section 3.1).

Draws are by the Gumbel-max rule (Maddison, Tarlow and Minka, 2014, arXiv:1411.0030, section 2): token i with the
largest s_i + G_i is a draw from softmax(s), with G_i = -log(-log u_i) and u_i in (0, 1) independent. u_i is
counter-based: the i-th word of SplitMix64 from a key that is a hash of (seed, prompt, sample, position), so that a draw
does not depend on what else is in the batch, and one seed gives all strategies common random numbers.

Batches of other shapes give other last bits of logits. That can tell only where the two best scores are that close;
such choices are counted (`NEAR_TIE`). Of top-k and top-p a token on the very edge of what is kept may likewise fall in
or out; that is not counted.

Shapes: R rows, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tuneoff.study.testing import Decoding
from tuneoff.training.hashing import GOLDEN, mix

NEAR_TIE = 1e-4
"""Scores this close count as a near tie."""
_MANTISSA_BITS = 52
"""Of a uniform number: one fewer than a float64 holds, for the half that keeps it off 0 and 1."""


@dataclass(frozen=True)
class Row:
    """One text that is being written: which prompt it follows, and which of its samples it is."""

    prompt: int
    sample: int


def warpers(decoding: Decoding) -> LogitsProcessorList:
    """Return what `model.generate` would cut the scores of a sampled strategy with, in its order."""
    found = LogitsProcessorList()
    if decoding.temperature != 1.0:
        found.append(TemperatureLogitsWarper(decoding.temperature))
    if decoding.top_k is not None:
        found.append(TopKLogitsWarper(decoding.top_k))
    if decoding.top_p is not None and decoding.top_p < 1.0:
        found.append(TopPLogitsWarper(decoding.top_p))
    return found


class Chooser:
    """Chooses next tokens by one strategy.

    Args:
        decoding: greedy or sampled; beams are not chosen here.
        seed: of the run's generation stream.
    """

    def __init__(self, decoding: Decoding, seed: int) -> None:
        self._seed = seed
        self._is_sampled = decoding.is_sampled
        self._warpers = warpers(decoding)

    def choose(self, logits: Tensor, rows: Sequence[Row], position: int) -> tuple[Tensor, Tensor]:
        """Return the next token of each row, int64 (R,), and whether it was a near tie, bool (R,).

        Args:
            logits: (R, V).
            rows: what each one is, R of them.
            position: how many new tokens each has already.
        """
        scores = logits.float()
        if self._is_sampled:
            scores = self._warpers(torch.empty(0), scores)  # type: ignore[arg-type]  # they look at the scores alone
            scores = scores.double() + gumbel(self._seed, rows, position, scores)
        best = scores.topk(2, dim=-1).values
        return scores.argmax(dim=-1), best[:, 0] - best[:, 1] < NEAR_TIE


def gumbel(seed: int, rows: Sequence[Row], position: int, like: Tensor) -> Tensor:
    """Return standard Gumbel noise, float64 (R, V), a pure function of the seed, the rows, the position and the token.

    Args:
        seed: of the stream.
        rows: prompt and sample of each row.
        position: place of the new token.
        like: (R, V), for the vocabulary's size and the device.
    """
    places = torch.tensor([(row.prompt, row.sample) for row in rows], dtype=torch.int64, device=like.device)
    keys = mix(torch.full_like(places[:, 0], seed) + GOLDEN)
    for part in (places[:, 0], places[:, 1], torch.full_like(keys, position)):
        keys = mix((keys ^ (part + 1)) + GOLDEN)
    counters = torch.arange(1, like.shape[1] + 1, dtype=torch.int64, device=like.device) * GOLDEN
    words = mix(keys[:, None] + counters)
    fractions = (words >> (64 - _MANTISSA_BITS)) & ((1 << _MANTISSA_BITS) - 1)
    uniforms = (fractions.double() + 0.5) / (1 << _MANTISSA_BITS)
    return -(-uniforms.log()).log()
