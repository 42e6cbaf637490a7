"""Dropout's masks: fair coins, and a pure function of stream, step, slot, position and place."""

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from tuneoff.training.layout import Layout, Segment, packed, padded
from tuneoff.training.masks import Masks, _at_least, masked

CPU = torch.device("cpu")
HALF = 1 << 15
LENGTHS = [7, 16, 3, 12]


def one(length: int, slot: int = 0, stream: int = 9) -> Layout:
    """The layout of one sequence alone."""
    return padded([length], [stream], [slot])


def together(slots: list[int], stream: int = 9) -> Layout:
    """The layout of some of the four sequences, padded."""
    return padded([LENGTHS[slot] for slot in slots], [stream] * len(slots), slots)


def end_to_end(slots: list[int], stream: int = 9) -> Layout:
    """The layout of some of the four sequences in one row."""
    return packed([[LENGTHS[slot] for slot in slots]], [stream], [slots])


def hidden_masks(layout: Layout, step: int = 0, places: int = 2) -> list[torch.Tensor]:
    """Return what dropout makes of ones in the shape of hidden states, at the first places of a forward."""
    with masked(layout, step, CPU):
        return [F.dropout(torch.ones(layout.num_rows, layout.length, 10), 0.3) for _ in range(places)]


def drawn(segment: Segment, place: int, *shape: int) -> torch.Tensor:
    return Masks(one(segment.length), 3, CPU).drawn(segment, place, HALF, *shape)


def test_the_share_dropped_and_its_spread_are_those_of_a_fair_coin() -> None:
    threshold = round(0.1 * 65536)
    masks = Masks(one(128), 3, CPU)
    keep = torch.stack([masks.drawn(Segment(0, 0, 128, 5, slot), 2, threshold, 128, 768) for slot in range(64)])
    n = keep.numel()
    share = 1 - float(keep.double().mean())
    assert abs(share - 6554 / 65536) < 4 * (0.1 * 0.9 / n) ** 0.5
    # Rows, positions and features each drop as often as independent draws would: chi-square over their totals.
    for dims, count in (((1, 2), 64), ((0, 2), 128), ((0, 1), 768)):
        dropped = (~keep).double().sum(dim=dims)
        mean = n / count * 6554 / 65536
        chi2 = float(((dropped - mean) ** 2 / (mean * (1 - 6554 / 65536))).sum())
        assert 1e-4 < stats.chi2.sf(chi2, count) < 1 - 1e-4


@pytest.mark.parametrize("level", [-32768, -32767, -26214, 0, 32767])
def test_flags_are_those_of_a_comparison(level: int) -> None:
    numbers = torch.arange(-32768, 32768).to(torch.int16)
    assert torch.equal(_at_least(numbers, level), numbers >= level)


def test_neighbours_are_not_correlated() -> None:
    def coins(place: int, stream: int = 5) -> torch.Tensor:
        rows = [drawn(Segment(0, 0, 64, stream, slot), place, 64, 256) for slot in range(32)]
        return torch.stack(rows).double() - 0.5

    keep = coins(0)
    n = keep.numel()
    pairs = [keep[:-1] * keep[1:], keep[:, :-1] * keep[:, 1:], keep[..., :-1] * keep[..., 1:]]
    for pair in [*pairs, keep * coins(1), keep * coins(0, stream=6)]:
        assert abs(float(pair.mean()) * 4) < 4 / n**0.5


def test_what_stays_is_scaled_so_that_the_mean_stays() -> None:
    (first,) = hidden_masks(one(4), places=1)
    kept = first[first != 0]
    assert torch.allclose(kept, torch.full_like(kept, 65536 / (65536 - round(0.3 * 65536))))


def test_masks_do_not_depend_on_the_layout() -> None:
    whole, again = hidden_masks(together([0, 1, 2, 3]))
    assert not torch.equal(whole, again)  # two places of one forward differ
    for slot, length in enumerate(LENGTHS):
        alone, _ = hidden_masks(one(length, slot))
        assert torch.equal(alone[0], whole[slot, :length])
    shuffled, _ = hidden_masks(together([3, 1]))
    assert torch.equal(shuffled[0, :12], whole[3, :12])
    assert torch.equal(shuffled[1], whole[1])
    row, row_again = hidden_masks(end_to_end([2, 0, 3]))
    parts = [whole[slot, : LENGTHS[slot]] for slot in (2, 0, 3)]
    assert torch.equal(row[0], torch.cat(parts))
    assert torch.equal(row_again[0, :3], again[2, :3])


def test_a_cohorts_rows_end_where_they_end() -> None:
    layout = packed([[3, 4], [5]], [1, 2], [[0, 1], [0]])
    (mask,) = hidden_masks(layout, places=1)
    (alone,) = hidden_masks(one(5, 0, stream=2), places=1)
    assert torch.equal(mask[1, :5], alone[0])
    (padding,) = (segment for segment in layout.segments if segment.is_padding)
    assert (padding.row, padding.start, padding.length) == (1, 5, 2)


def test_masks_differ_by_stream_step_and_slot() -> None:
    (first,) = hidden_masks(one(16), places=1)
    for other in (one(16, stream=8), one(16, slot=1)):
        assert not torch.equal(first, hidden_masks(other, places=1)[0])
    assert not torch.equal(first, hidden_masks(one(16), step=1, places=1)[0])


@pytest.mark.parametrize("causal", [True, False])
def test_attention_drops_weights_and_its_mask_does_not_depend_on_the_layout(causal: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 8, 4, generator=draw) for _ in range(3))
    mask = None if causal else torch.ones(8, 8, dtype=torch.bool).tril()
    layout = padded([8, 6], [4, 4], [0, 1])
    with masked(layout, 0, CPU):
        dropped = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.5, is_causal=causal)
    short = tuple(tensor[1:, :, :6] for tensor in (q, k, v))
    with masked(padded([6], [4], [1]), 0, CPU):
        alone = F.scaled_dot_product_attention(*short, dropout_p=0.5, is_causal=True)
    row = (torch.cat([long[:1], part], dim=2) for long, part in zip((q, k, v), short, strict=True))
    with masked(packed([[8, 6]], [4], [[0, 1]]), 0, CPU):
        end = F.scaled_dot_product_attention(*row, attn_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool), dropout_p=0.5)
    plain = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert not torch.allclose(dropped, plain)
    assert torch.allclose(alone[0], dropped[1, :, :6], atol=1e-6)
    assert torch.allclose(end[0, :, :8], dropped[0], atol=1e-6)
    assert torch.allclose(end[0, :, 8:], alone[0], atol=1e-6)
    with masked(layout, 0, CPU):
        undropped = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=1e-9, is_causal=causal)
    assert torch.allclose(undropped, plain, atol=1e-6)


def test_virtual_tokens_stand_before_the_text_and_move_no_mask_with_the_layout() -> None:
    def draw(slots: list[int]) -> tuple[torch.Tensor, ...]:
        lengths = [LENGTHS[slot] for slot in slots]
        rows, length = len(slots), max(lengths)
        with masked(padded(lengths, [9] * rows, slots, num_virtual_tokens=3), 2, CPU):
            at_input = F.dropout(torch.ones(rows, 3 + length, 10), 0.3)  # under prompt tuning
            hidden = F.dropout(torch.ones(rows, length, 10), 0.3)  # under a prefix
            weights = F.dropout(torch.ones(rows, 2, length, 3 + length), 0.3)  # the text's queries, all keys
            flat = F.dropout(torch.ones(rows * length, 10), 0.3).view(rows, length, 10)
            square = F.dropout(torch.ones(rows, 2, 3 + length, 3 + length), 0.3)
        return at_input, hidden, weights, flat, square

    whole, alone = draw([0, 1, 2, 3]), draw([3])  # another micro-batch, less padding
    assert torch.equal(alone[0][0], whole[0][3, :15])
    assert torch.equal(alone[1][0], whole[1][3, :12])
    assert torch.equal(alone[2][0], whole[2][3, :, :12, :15])
    assert torch.equal(alone[3][0], whole[3][3, :12])
    assert torch.equal(alone[4][0], whole[4][3, :, :15, :15])
    masks = Masks(one(12, 3), 2, CPU)
    kept = masks.drawn(Segment(0, 0, 12, 9, 3), 1, round(0.3 * 65536), 15, 10)
    assert torch.equal(alone[1][0] != 0, kept[3:])  # the text's positions come after the virtual ones
    kept = masks.drawn(Segment(0, 0, 12, 9, 3), 2, round(0.3 * 65536), 2, 15, 15)
    assert torch.equal(alone[2][0] != 0, kept[:, 3:])


def test_attention_with_as_many_heads_as_tokens_is_not_taken_for_hidden_states() -> None:
    with masked(padded([4, 6], [9, 9], [0, 1]), 0, CPU):
        long = F.dropout(torch.ones(2, 6, 6, 6), 0.5)
    with masked(padded([4], [9], [0]), 0, CPU):
        four = F.dropout(torch.ones(1, 6, 4, 4), 0.5)
    assert torch.equal(four[0], long[0, :, :4, :4])


def test_where_nothing_is_dropped_nothing_is_drawn() -> None:
    x = torch.ones(1, 2, 3)
    with masked(one(2), 0, CPU):
        assert F.dropout(x, 0.5, training=False) is x
    with Masks(one(2), None, CPU):
        assert F.dropout(x, 0.5) is x


def test_a_shape_without_rows_and_positions_is_refused_and_not_guessed() -> None:
    with masked(one(2), 0, CPU), pytest.raises(NotImplementedError, match="dropout of a tensor of shape"):
        F.dropout(torch.ones(5, 7), 0.5)
