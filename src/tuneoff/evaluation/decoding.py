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

Little of this is worked out for all tokens. The likeliest few are drawn among exactly; of the others only those whose
u_i is so near 1 that they could still win, however likely the likeliest of them, which a comparison of whole numbers
tells. A nucleus is found among the likeliest tokens, and by the sorted vocabulary only where that leaves a doubt. What
is chosen is the same (`tests/evaluation/test_decoding.py`).

Shapes: R rows, V vocabulary, K likeliest tokens.
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
NUM_LIKELIEST = 64
"""K: tokens that are drawn among without asking whether they could win."""
NUM_NUCLEUS = 512
"""Tokens among which a nucleus is looked for before the whole vocabulary is sorted."""
EDGE = 1e-5
"""Of probability: a nucleus whose edge is clearer than this is the warper's, which sums in another order."""
CPU_ROWS = 4
"""Rows at a time on a CPU, so that the words of their draws stay in its cache."""
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
        found = warpers(decoding)
        self._nucleus = found.pop() if found and isinstance(found[-1], TopPLogitsWarper) else None
        self._warpers = found

    def choose(self, logits: Tensor, rows: Sequence[Row], positions: int | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the next token of each row, int64 (R,), and whether it was a near tie, bool (R,).

        Args:
            logits: (R, V).
            rows: what each one is, R of them.
            positions: how many new tokens each has already, or one number for all.
        """
        if not self._is_sampled:
            scores = logits.float()
            best = scores.topk(2, dim=-1).values
            return scores.argmax(dim=-1), best[:, 0] - best[:, 1] < NEAR_TIE
        keys = _keys(self._seed, rows, positions, logits.device)
        size = CPU_ROWS if logits.device.type == "cpu" else len(rows)
        parts = [
            self._draw(logits[start : start + size], keys[start : start + size]) for start in range(0, len(rows), size)
        ]
        return torch.cat([tokens for tokens, _ in parts]), torch.cat([near for _, near in parts])

    def _draw(self, logits: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return the drawn token of each row, and whether it was a near tie."""
        scores = self._warpers(torch.empty(0), logits.float())  # type: ignore[arg-type]  # they look at the scores alone
        if self._nucleus is not None:
            scores = _cut_nucleus(scores, self._nucleus)
        values, tokens = scores.topk(min(NUM_LIKELIEST, scores.shape[1]), dim=-1)
        totals = values.double() + _gumbel(_fractions(keys[:, None] + (tokens + 1) * GOLDEN))
        if values.shape[1] < scores.shape[1] and bool((values[:, -1] != float("-inf")).any()):
            others, own = _others(scores, tokens, keys, totals.amax(dim=-1) - values[:, -1])
            tokens, totals = torch.cat([tokens, others], dim=1), torch.cat([totals, own], dim=1)
        best, places = totals.topk(2, dim=-1)
        return tokens.gather(1, places[:, :1])[:, 0], best[:, 0] - best[:, 1] < NEAR_TIE


def _others(scores: Tensor, likeliest: Tensor, keys: Tensor, leads: Tensor) -> tuple[Tensor, Tensor]:
    """Return tokens that could win against the likeliest, int64 (R, any), and their totals, float64; -inf fills up.

    Args:
        scores: (R, V).
        likeliest: tokens (R, K) that are drawn among already.
        keys: of the rows' draws, (R,).
        leads: of the best of them over the highest score of all others, (R,): the noise that another token needs.
    """
    counters = torch.arange(1, scores.shape[1] + 1, dtype=torch.int64, device=scores.device) * GOLDEN
    fractions = _fractions(keys[:, None] + counters)
    # u = exp(-exp(-G)); what is taken off keeps rounding, and near ties, on the safe side
    least = (-(-(leads - 2 * NEAR_TIE)).exp()).exp() - 1e-9
    fractions.scatter_(1, likeliest, -1)
    rows, tokens = (fractions > (least * (1 << _MANTISSA_BITS)).long()[:, None]).nonzero(as_tuple=True)
    totals = scores[rows, tokens].double() + _gumbel(fractions[rows, tokens])
    counts = torch.bincount(rows, minlength=len(scores))
    places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    width = int(counts.max())
    found = likeliest.new_zeros(len(scores), width)
    own = totals.new_full((len(scores), width), float("-inf"))
    found[rows, places], own[rows, places] = tokens, totals
    return found, own


def _cut_nucleus(scores: Tensor, warper: TopPLogitsWarper) -> Tensor:
    """Return what the warper leaves of scores (R, V), without sorting the vocabulary where that can be told."""
    if scores.shape[1] <= NUM_NUCLEUS:
        return _warped(warper, scores)
    values, tokens = scores.topk(NUM_NUCLEUS, dim=-1)
    probabilities = (values.double() - scores.double().logsumexp(dim=-1, keepdim=True)).exp()
    before = probabilities.cumsum(dim=-1) - probabilities  # of the likelier tokens
    kept = before < warper.top_p
    last = kept.sum(dim=-1, keepdim=True).clamp(max=NUM_NUCLEUS - 1)  # the first token that is left out
    has_edge = (~kept[:, -1]) & ((before - warper.top_p).abs() > EDGE).all(dim=-1)
    has_edge &= (values.gather(1, last) < values.gather(1, last - 1))[:, 0]  # of equals any may be left out
    cut = torch.full_like(scores, float("-inf")).scatter_(1, tokens, values.masked_fill(~kept, float("-inf")))
    if not bool(has_edge.all()):
        cut[~has_edge] = _warped(warper, scores[~has_edge])
    return cut


def _warped(warper: TopPLogitsWarper, scores: Tensor) -> Tensor:
    found: Tensor = warper(None, scores)  # it looks at the scores alone
    return found


def gumbel(seed: int, rows: Sequence[Row], positions: int | Sequence[int], like: Tensor) -> Tensor:
    """Return standard Gumbel noise, float64 (R, V), a pure function of the seed, the rows, the position and the token.

    Args:
        seed: of the stream.
        rows: prompt and sample of each row.
        positions: place of each new token, or one for all.
        like: (R, V), for the vocabulary's size and the device.
    """
    counters = torch.arange(1, like.shape[1] + 1, dtype=torch.int64, device=like.device) * GOLDEN
    return _gumbel(_fractions(_keys(seed, rows, positions, like.device)[:, None] + counters))


def _keys(seed: int, rows: Sequence[Row], positions: int | Sequence[int], device: torch.device) -> Tensor:
    """Return the hash of each row's draw, int64 (R,)."""
    own = [positions] * len(rows) if isinstance(positions, int) else positions
    places = torch.tensor([(row.prompt, row.sample, at) for row, at in zip(rows, own, strict=True)], device=device)
    keys = mix(torch.full_like(places[:, 0], seed) + GOLDEN)
    for part in places.T:
        keys = mix((keys ^ (part + 1)) + GOLDEN)
    return keys


def _fractions(counters: Tensor) -> Tensor:
    """Return the upper bits of the words of counters, int64 of the same shape, from 0 to 2^52 - 1."""
    return mix(counters).bitwise_right_shift_(64 - _MANTISSA_BITS).bitwise_and_((1 << _MANTISSA_BITS) - 1)


def _gumbel(fractions: Tensor) -> Tensor:
    uniforms = (fractions.double() + 0.5) / (1 << _MANTISSA_BITS)
    return -(-uniforms.log()).log()
