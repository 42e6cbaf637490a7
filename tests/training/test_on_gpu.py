"""On an accelerator: masks that do not depend on the layout, packing that is exact, and the peaks that are measured."""

import pytest
import torch
import torch.nn.functional as F
from tests.training.helpers import Recorder, make_loop, make_split
from tests.training.test_masks import LENGTHS, end_to_end, one, together
from tests.training.test_packing import METHODS, adapted_model

from tuneoff.training.layout import Layout
from tuneoff.training.masks import masked

# In deterministic mode PyTorch warns of kernels that are not; whether bits are the same is what is tested.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]


def device() -> torch.device:
    """The accelerator; a function, as there may be none while tests are collected."""
    found = torch.accelerator.current_accelerator()
    assert found is not None
    return found


def hidden_mask(layout: Layout, step: int = 0) -> torch.Tensor:
    own = device()
    with masked(layout, step, own):
        return F.dropout(torch.ones(layout.num_rows, layout.length, 10, device=own), 0.3)


def test_masks_do_not_depend_on_the_layout() -> None:
    whole = hidden_mask(together([0, 1, 2, 3]))
    assert not torch.equal(whole, hidden_mask(together([0, 1, 2, 3]), step=1))
    for slot, length in enumerate(LENGTHS):
        assert torch.equal(hidden_mask(one(length, slot))[0], whole[slot, :length])
    row = hidden_mask(end_to_end([2, 0, 3]))
    assert torch.equal(row[0], torch.cat([whole[slot, : LENGTHS[slot]] for slot in (2, 0, 3)]))


def test_the_share_dropped_is_that_of_a_fair_coin() -> None:
    own = device()
    with masked(one(4096), 3, own):
        kept = F.dropout(torch.ones(1, 4096, 256, device=own), 0.1) != 0
    share = 1 - float(kept.double().mean())
    assert abs(share - 6554 / 65536) < 4 * (0.1 * 0.9 / kept.numel()) ** 0.5


@pytest.mark.parametrize("architecture", ["gpt2", "llama-untied"])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_packed_gradient_is_that_of_padded_rows(method: str, architecture: str) -> None:
    """In float64, dropouts on; the bounds are those of the CPU (`test_packing`)."""
    found = {}
    for may_pack, micro_batch in ((False, 8), (True, 8), (True, 3)):
        adapted = adapted_model(METHODS[method], architecture)
        loop = make_loop(
            adapted, [3], [1e-3], make_split(), Recorder(), batch_size=8, micro_batch=micro_batch, may_pack=may_pack
        )
        assert loop.forward.is_packed is may_pack
        adapted.module.train()
        loss = sum(float(loop._backward(loop._placed(batches), [50])[0]) for batches in loop._micro_batches(0))
        grown = {name: p.grad for name, p in adapted.trainable_parameters().items() if p.grad is not None}
        found[may_pack, micro_batch] = loss, grown
    loss, padded = found.pop((False, 8))
    for packed_loss, packed in found.values():
        assert packed_loss == pytest.approx(loss, rel=1e-12)
        assert packed.keys() == padded.keys()
        for name, gradient in padded.items():
            assert torch.allclose(packed[name], gradient, rtol=1e-9, atol=1e-12 * float(gradient.abs().max())), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_runs_end_in_the_same_bits(precision: str) -> None:
    ends = []
    for _ in range(2):
        adapted, recorder = adapted_model(METHODS["lora"], "gpt2"), Recorder()
        adapted.module.float()
        make_loop(adapted, [0], [1e-3], make_split(), recorder, precision=precision).run()
        ends.append((recorder.losses(), {name: p.detach().cpu() for name, p in adapted.trainable_parameters().items()}))
    assert ends[0][0] == ends[1][0]
    for name, tensor in ends[0][1].items():
        assert torch.equal(tensor, ends[1][1][name]), name


def test_peaks_are_those_of_the_device() -> None:
    adapted = adapted_model(METHODS["full"], "gpt2")
    adapted.module.float()
    loop = make_loop(adapted, [0], [1e-3], make_split(), Recorder())
    loop.run()
    assert loop.meter.peak_kind == "allocated"
    weights = sum(p.numel() * p.element_size() for p in adapted.module.parameters())
    assert loop.meter.peak_bytes["train"] > 3 * weights  # weights, and two moments in fp32
    assert loop.members[0].optimizer.num_bytes >= 2 * weights
