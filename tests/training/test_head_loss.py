"""The loss of a head whose logits never stand whole is that of cross-entropy, its gradients too."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tuneoff.training import head_loss, products

WIDTH, VOCABULARY = 6, 11


@pytest.fixture(params=[1, 4, 1000])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets at a time."""
    monkeypatch.setattr(head_loss, "CHUNK_BYTES", 4 * VOCABULARY * request.param)


def case(
    dtype: torch.dtype, num_targets: int = 9, *, bias: bool = True
) -> tuple[torch.Tensor, nn.Linear, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    head = nn.Linear(WIDTH, VOCABULARY, bias=bias).to(dtype)
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=draw, dtype=torch.float64).to(dtype)
    hidden = torch.randn(num_targets, WIDTH, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()
    labels = torch.randint(VOCABULARY, (num_targets,), generator=draw)
    return hidden, head, labels, torch.rand(num_targets, generator=draw, dtype=torch.float64)


@pytest.mark.usefixtures("chunk")
@pytest.mark.parametrize("bias", [True, False])
def test_loss_and_gradients_are_those_of_cross_entropy(bias: bool) -> None:
    hidden, head, labels, weights = case(torch.float64, bias=bias)
    nll = F.cross_entropy(head(hidden), labels, reduction="none")
    wanted = torch.autograd.grad(3.0 * (nll * weights).sum(), [hidden, *head.parameters()])
    total, found = head_loss.summed_nll(hidden, head, labels, weights)
    assert torch.allclose(found, nll, atol=1e-12)
    assert torch.allclose(total, (nll * weights).sum(), atol=1e-12)
    grown = torch.autograd.grad(3.0 * total, [hidden, *head.parameters()])
    for one, other in zip(grown, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-12)
    assert torch.allclose(head_loss.target_nll(hidden, head, labels), nll, atol=1e-12)


def test_a_frozen_head_has_no_gradient() -> None:
    hidden, head, labels, weights = case(torch.float64)
    head.requires_grad_(False)
    total, _ = head_loss.summed_nll(hidden, head, labels, weights)
    total.backward()
    assert hidden.grad is not None
    assert head.weight.grad is None


@pytest.mark.parametrize("has_instructions", [True, False])
def test_in_bf16_it_is_as_near_the_truth_as_cross_entropy_of_bf16_logits(
    has_instructions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "has_bf16_products", lambda: has_instructions)
    hidden, head, labels, weights = case(torch.float32, num_targets=200)
    with torch.no_grad():
        exact = F.cross_entropy(head.double()(hidden.double()), labels, reduction="none")
        head.float()
        with torch.autocast("cpu", torch.bfloat16):
            _, found = head_loss.summed_nll(hidden, head, labels, weights)
            plain = F.cross_entropy(head(hidden), labels, reduction="none")
    assert found.dtype == torch.float32
    if has_instructions:
        assert torch.allclose(found, plain, atol=1e-5)
    assert float((found - exact).abs().max()) <= float((plain - exact).abs().max()) + 1e-5 < 0.1


def test_trained_weights_in_fp32_get_their_gradient_in_fp32_under_autocast() -> None:
    hidden, head, labels, weights = case(torch.float32)
    wanted = torch.autograd.grad(
        (F.cross_entropy(head(hidden), labels, reduction="none") * weights).sum(), [hidden, *head.parameters()]
    )
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = head_loss.summed_nll(hidden, head, labels, weights)
    grown = torch.autograd.grad(total, [hidden, *head.parameters()])
    for one, other in zip(grown, wanted, strict=True):
        assert one.dtype == torch.float32
        assert torch.allclose(one, other, atol=0.03 * float(other.abs().max()))


def test_no_targets_cost_nothing() -> None:
    hidden, head, labels, weights = case(torch.float64, num_targets=0)
    total, nll = head_loss.summed_nll(hidden, head, labels, weights)
    assert float(total.detach()) == 0.0
    assert nll.shape == (0,)
