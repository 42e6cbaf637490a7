"""Dropout's masks: fair coins, and a pure function of stream, step, slot, position and place."""

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from tuneoff.training.masks import keep_mask, masked, token_keys


def _masks(streams: list[int], slots: list[int], length: int, step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    with masked(streams, step, torch.tensor(slots), length):
        first = F.dropout(torch.ones(len(slots), length, 10), 0.3)
        second = F.dropout(torch.ones(len(slots), length, 10), 0.3)
    return first, second


def test_the_share_dropped_and_its_spread_are_those_of_a_fair_coin() -> None:
    keys = token_keys([5] * 64, 3, torch.arange(64), 128)
    keep = keep_mask(keys, place=2, num_features=768, threshold=round(0.1 * 65536))
    n = keep.numel()
    share = 1 - float(keep.double().mean())
    assert abs(share - 6554 / 65536) < 4 * (0.1 * 0.9 / n) ** 0.5
    # Rows, positions and features each drop as often as independent draws would: chi-square over their totals.
    for dims, count in (((1, 2), 64), ((0, 2), 128), ((0, 1), 768)):
        dropped = (~keep).double().sum(dim=dims)
        mean = n / count * 6554 / 65536
        chi2 = float(((dropped - mean) ** 2 / (mean * (1 - 6554 / 65536))).sum())
        assert 1e-4 < stats.chi2.sf(chi2, count) < 1 - 1e-4


def test_neighbours_are_not_correlated() -> None:
    keys = token_keys([5] * 32, 0, torch.arange(32), 64)
    keep = keep_mask(keys, 0, 256, 1 << 15).double() - 0.5
    other = keep_mask(keys, 1, 256, 1 << 15).double() - 0.5
    n = keep.numel()
    pairs = [keep[:-1] * keep[1:], keep[:, :-1] * keep[:, 1:], keep[..., :-1] * keep[..., 1:], keep * other]
    for pair in pairs:
        assert abs(float(pair.mean()) * 4) < 4 / n**0.5


def test_what_stays_is_scaled_so_that_the_mean_stays() -> None:
    first, _ = _masks([1], [0], 4)
    kept = first[first != 0]
    assert torch.allclose(kept, torch.full_like(kept, 65536 / (65536 - round(0.3 * 65536))))


def test_masks_do_not_depend_on_the_layout() -> None:
    whole, again = _masks([9, 9, 9, 9], [0, 1, 2, 3], 16)
    assert not torch.equal(whole, again)  # two places of one forward differ
    for slot in range(4):
        alone, _ = _masks([9], [slot], 12)
        assert torch.equal(alone[0], whole[slot, :12])
    shuffled, _ = _masks([9, 9], [3, 1], 16)
    assert torch.equal(shuffled, whole[[3, 1]])


def test_masks_differ_by_stream_and_step() -> None:
    first, _ = _masks([1, 2], [0, 0], 16)
    later, _ = _masks([1, 2], [0, 0], 16, step=1)
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, later)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_drops_weights_and_its_mask_does_not_depend_on_padding(causal: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 8, 4, generator=draw) for _ in range(3))
    mask = None if causal else torch.ones(8, 8, dtype=torch.bool).tril()
    with masked([4, 4], 0, torch.tensor([0, 1]), 8):
        dropped = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=0.5, is_causal=causal)
    with masked([4], 0, torch.tensor([1]), 6):
        short = F.scaled_dot_product_attention(q[1:, :, :6], k[1:, :, :6], v[1:, :, :6], dropout_p=0.5, is_causal=True)
    plain = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    assert not torch.allclose(dropped, plain)
    assert torch.allclose(short[0], dropped[1, :, :6], atol=1e-6)
    with masked([4, 4], 0, torch.tensor([0, 1]), 8):
        undropped = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=1e-9, is_causal=causal)
    assert torch.allclose(undropped, plain, atol=1e-6)


def test_virtual_tokens_stand_before_the_text_and_move_no_mask_with_the_layout() -> None:
    def draw(slots: list[int], length: int) -> tuple[torch.Tensor, ...]:
        rows = len(slots)
        with masked([9] * rows, 2, torch.tensor(slots), length, num_virtual_tokens=3):
            at_input = F.dropout(torch.ones(rows, 3 + length, 10), 0.3)  # under prompt tuning
            hidden = F.dropout(torch.ones(rows, length, 10), 0.3)  # under a prefix
            weights = F.dropout(torch.ones(rows, 2, length, 3 + length), 0.3)  # the text's queries, all keys
            flat = F.dropout(torch.ones(rows * length, 10), 0.3).view(rows, length, 10)
        return at_input, hidden, weights, flat

    whole = draw([0, 1, 2, 3], 16)
    alone = draw([2], 12)  # another micro-batch, less padding
    assert torch.equal(alone[0][0], whole[0][2, :15])
    assert torch.equal(alone[1][0], whole[1][2, :12])
    assert torch.equal(alone[2][0], whole[2][2, :, :12, :15])
    assert torch.equal(alone[3][0], whole[3][2, :12])
    keys = token_keys([9] * 4, 2, torch.arange(4), 3 + 16)
    kept = keep_mask(keys[:, 3:], place=1, num_features=10, threshold=round(0.3 * 65536))
    assert torch.equal(whole[1] != 0, kept)  # the text's positions come after the virtual ones


def test_attention_with_as_many_heads_as_tokens_is_not_taken_for_hidden_states() -> None:
    with masked([9], 0, torch.tensor([0]), 4):
        four = F.dropout(torch.ones(1, 4, 4, 4), 0.5)
    with masked([9], 0, torch.tensor([0]), 6):
        six = F.dropout(torch.ones(1, 4, 6, 6), 0.5)
    assert torch.equal(four, six[:, :, :4, :4])


def test_evaluation_mode_draws_nothing() -> None:
    x = torch.ones(1, 2, 3)
    with masked([1], 0, torch.tensor([0]), 2):
        assert F.dropout(x, 0.5, training=False) is x


def test_a_shape_without_rows_and_positions_is_refused_and_not_guessed() -> None:
    with masked([1], 0, torch.tensor([0]), 2), pytest.raises(NotImplementedError, match="dropout of a tensor of shape"):
        F.dropout(torch.ones(5, 7), 0.5)
