"""Attention of gathered sequences is that of each sequence alone; no GPU is needed to hold it to that."""

import pytest
import torch
import torch.nn.functional as F

from tuneoff.training.attention import attend_packed
from tuneoff.training.gathered import attend_gathered
from tuneoff.training.layout import packed

LENGTHS = [[3, 7, 1, 5], [4, 4, 2, 1]]  # the second row is shorter, so it ends in padding


def drawn() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    width = max(map(sum, LENGTHS))
    shape = (len(LENGTHS), 2, width, 4)
    return [torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3)]


@pytest.mark.parametrize("scale", [0.5, 0.3])
def test_values_and_gradients_are_those_of_each_sequence_alone(scale: float) -> None:
    layout = packed(LENGTHS, (0, 1), [list(range(len(row))) for row in LENGTHS])
    weights = torch.randn(drawn()[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for segment in layout.segments:
        if segment.is_padding:
            weights[segment.row, :, segment.start :] = 0
    together = drawn()
    found = attend_gathered(*together, layout, scale)
    (found * weights).sum().backward()
    alone = drawn()
    for segment in layout.segments:
        end = segment.start + segment.length
        parts = [tensor[segment.row : segment.row + 1, :, segment.start : end] for tensor in alone]
        own = F.scaled_dot_product_attention(*parts, is_causal=True, scale=scale)
        assert torch.allclose(found[segment.row : segment.row + 1, :, segment.start : end], own, rtol=1e-12, atol=1e-14)
        (own * weights[segment.row : segment.row + 1, :, segment.start : end]).sum().backward()
    for one, other in zip(together, alone, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.allclose(one.grad, other.grad, rtol=1e-12, atol=1e-14)


def test_values_may_have_a_head_size_of_their_own() -> None:
    """As in DeepSeek-V3's attention, whose queries and keys are wider than its values."""
    generator = torch.Generator().manual_seed(0)
    layout = packed([[3, 3, 5]], (0,), [[0, 1, 2]])
    query, key = (torch.randn(1, 2, 11, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    value = torch.randn(1, 2, 11, 4, dtype=torch.float64, generator=generator)
    wanted = torch.cat(
        [
            F.scaled_dot_product_attention(*parts, is_causal=True, scale=0.5)
            for parts in zip(*(torch.split(one, [3, 3, 5], dim=2) for one in (query, key, value)), strict=True)
        ],
        dim=2,
    )
    everything = attend_packed(query, key, value, layout, 0.5, lambda own: torch.ones(2, own.length, own.length) > 0)
    for found in (
        attend_packed(query, key, value, layout, 0.5),
        attend_gathered(query, key, value, layout, 0.5),
        everything,
    ):
        assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12)
