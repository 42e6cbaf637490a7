"""Products of bf16 numbers that are summed in fp32: against float64, and against PyTorch's own."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.methods.models import CONFIGS, make_model
from tests.training.helpers import Recorder, make_loop, make_split
from torch import Tensor

from tuneoff.methods import AdaptedModel, Bottleneck, Full, LoRA, LoRACohort, Method, PromptTuning
from tuneoff.training import products
from tuneoff.training.attention import attend_packed
from tuneoff.training.head_loss import summed_nll
from tuneoff.training.layout import packed
from tuneoff.training.products import MIN_ROWS, WideProducts, current_products
from tuneoff.training.recompute import recompute_activations

HALF_STEP = 2.0**-8
"""How far rounding to bf16 moves a number at most, relative to it: 7 bits stand behind the leading one."""
SUMMING = 2.0**-16
"""Of the sum of the terms' magnitudes: more than summing some hundred of them in fp32 loses."""
ROWS, IN, OUT = 40, 96, 64


@pytest.fixture
def no_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without products of bf16 numbers, whatever this one has."""
    monkeypatch.setattr(products, "has_bf16_products", lambda: False)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16().requires_grad_()


def is_rounded(found: Tensor, exact: Tensor, magnitude: Tensor) -> bool:
    """Whether a result is the exact one, summed in fp32 and rounded to bf16 once."""
    return bool(torch.all((found.double() - exact).abs() <= HALF_STEP * exact.abs() + SUMMING * magnitude))


CALLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": lambda x, w: F.linear(x, w.mT),
    "linear with bias": lambda x, w: F.linear(x, w.mT, torch.zeros(OUT, dtype=w.dtype)),
    "addmm": lambda x, w: torch.addmm(torch.zeros(OUT, dtype=w.dtype), x, w),
    "bmm": lambda x, w: torch.bmm(torch.stack([x, x]), torch.stack([w, w]))[1],
    "matmul": lambda x, w: x @ w,
}


@pytest.mark.parametrize("name", CALLS)
def test_results_and_gradients_are_rounded_once(name: str) -> None:
    x, w, change = drawn(ROWS, IN), drawn(IN, OUT, seed=1), drawn(ROWS, OUT, seed=2).detach()
    with WideProducts():
        y = CALLS[name](x, w)
    dx, dw = torch.autograd.grad(y, (x, w), change)
    assert {y.dtype, dx.dtype, dw.dtype} == {torch.bfloat16}
    x64, w64, g64 = x.detach().double(), w.detach().double(), change.double()
    assert is_rounded(y, x64 @ w64, x64.abs() @ w64.abs())
    assert is_rounded(dx, g64 @ w64.T, g64.abs() @ w64.T.abs())
    assert is_rounded(dw, x64.T @ g64, x64.T.abs() @ g64.abs())


def test_a_bias_is_added_before_rounding() -> None:
    x, w, b, change = drawn(ROWS, IN), drawn(IN, OUT, seed=1), drawn(OUT, seed=3), drawn(ROWS, OUT, seed=2).detach()
    with WideProducts():
        y = torch.addmm(b, x, w)
    (db,) = torch.autograd.grad(y, b, change)
    magnitude = x.detach().double().abs() @ w.detach().double().abs() + b.detach().double().abs()
    assert is_rounded(y, x.double() @ w.double() + b.double(), magnitude)
    assert is_rounded(db, change.double().sum(0), change.double().abs().sum(0))


def test_autocast_rounds_the_operands_and_leaves_gradients_in_fp32() -> None:
    x, w = (torch.randn(*shape).requires_grad_() for shape in ((ROWS, IN), (OUT, IN)))
    change = drawn(ROWS, OUT, seed=2).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16), WideProducts():
        y = F.linear(x, w)
    dx, dw = torch.autograd.grad(y, (x, w), change)
    assert y.dtype == torch.bfloat16
    assert {dx.dtype, dw.dtype} == {torch.float32}
    x64, w64 = x.detach().bfloat16().double(), w.detach().bfloat16().double()
    assert is_rounded(y, x64 @ w64.T, x64.abs() @ w64.T.abs())
    assert torch.all((dw.double() - change.double().T @ x64).abs() <= SUMMING * change.double().T.abs() @ x64.abs())


def test_attention_is_that_of_fp32_rounded() -> None:
    query, key, value = (drawn(2, 3, ROWS, 16, seed=seed) for seed in range(3))
    with WideProducts():
        found = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    wide = [one.detach().double() for one in (query, key, value)]
    wanted = F.scaled_dot_product_attention(*wide, is_causal=True)
    assert found.dtype == torch.bfloat16
    assert is_rounded(found, wanted, wide[2].abs().amax(dim=-2, keepdim=True) * ROWS)
    mask = torch.zeros(ROWS, ROWS, dtype=torch.bfloat16).masked_fill(torch.ones(ROWS, ROWS).triu(1) > 0, float("-inf"))
    with WideProducts():
        assert torch.equal(F.scaled_dot_product_attention(query, key, value, mask), found)


def test_few_rows_and_other_types_are_left_to_pytorch() -> None:
    w = drawn(OUT, IN, seed=1)
    for x, weight in ((drawn(MIN_ROWS - 1, IN), w), (drawn(ROWS, IN).float(), w.float())):
        with WideProducts():
            found = F.linear(x, weight)
        assert torch.equal(found, F.linear(x, weight))
        assert "WideProduct" not in type(found.grad_fn).__name__


METHODS: dict[str, Method] = {
    "lora": LoRA(rank=4, dropout=0.1),
    "full": Full(),
    "bottleneck": Bottleneck(size=4, dropout=0.1),
    "prompt": PromptTuning(num_virtual_tokens=3),
    "cohort": LoRACohort((LoRA(rank=4), LoRA(rank=2))),
}


def trained(name: str, architecture: str, *, recompute: bool = False) -> tuple[list[float], AdaptedModel]:
    """Return the losses of some steps in bf16, dropouts on."""
    dtype = torch.float32 if name == "full" else torch.bfloat16
    base = make_model(architecture).to(dtype)
    if recompute:
        recompute_activations(base)
    num = 2 if name == "cohort" else 1
    adapted = METHODS[name].adapt(base, [torch.Generator().manual_seed(seed) for seed in range(num)])
    recorder = Recorder()
    options = {"num_steps": 6, "batch_size": 8, "evaluate_every": 100, "precision": "bf16"}
    loop = make_loop(adapted, list(range(num)), [1e-2] * num, make_split(), recorder, **options)
    loop.run()
    return recorder.losses(), adapted


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("name", METHODS)
def test_the_loss_curve_is_that_of_bf16_products(name: str, architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    curves = []
    for has_instructions in (True, False):
        monkeypatch.setattr(products, "has_bf16_products", lambda has=has_instructions: has)
        curves.append(trained(name, architecture)[0])
    assert curves[0] != curves[1], "other sums, so other bits: the way was taken"
    assert curves[1] == pytest.approx(curves[0], rel=0.02)


@pytest.mark.usefixtures("no_instructions")
def test_recomputed_activations_take_the_same_way() -> None:
    (kept, one), (again, other) = trained("lora", "gpt2"), trained("lora", "gpt2", recompute=True)
    assert again == kept
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


@pytest.mark.usefixtures("no_instructions")
def test_the_heads_loss_sums_in_fp32() -> None:
    head = torch.nn.Linear(IN, 50, bias=False).bfloat16()
    hidden, labels = drawn(ROWS, IN), torch.arange(ROWS)
    total, nll = summed_nll(hidden, head, labels, torch.ones(ROWS))
    wanted = F.cross_entropy(hidden.double() @ head.weight.double().T, labels, reduction="none")
    assert torch.allclose(nll.double(), wanted, rtol=1e-5)  # logits are not rounded on the way
    (found,) = torch.autograd.grad(total, hidden)
    (gradient,) = torch.autograd.grad(wanted.sum(), hidden)
    assert torch.allclose(found.double(), gradient.double(), atol=2 * HALF_STEP * float(gradient.abs().max()))


def test_the_way_ends_with_the_context() -> None:
    with WideProducts():
        assert isinstance(current_products(), WideProducts)
    assert not isinstance(current_products(), WideProducts)


def test_what_it_does_not_know_is_left_to_pytorch() -> None:
    x, w, vector = drawn(ROWS, IN), drawn(IN, OUT, seed=1), drawn(IN, seed=2)
    with WideProducts():
        found = [
            F.linear(input=x, weight=w.mT),
            torch.matmul(input=x, other=w),
            vector @ w,
            x @ vector,
            vector @ vector,
        ]
        torch.autograd.grad(found[3].sum(), vector)
    for one, other in zip(found, [F.linear(x, w.mT), x @ w, vector @ w, x @ vector, vector @ vector], strict=True):
        assert torch.equal(one, other)
    exact = x.detach().double()
    with torch.autocast("cpu", dtype=torch.bfloat16), WideProducts():
        assert torch.equal(exact @ exact.T, exact.detach() @ exact.T)
        assert (exact @ exact.T).dtype == torch.float64


@pytest.mark.usefixtures("no_instructions")
def test_attention_with_dropout_is_the_same_within_autocast() -> None:
    """The backward pass makes the weights again without autocast: they must be the same ones."""
    layout = packed([[ROWS]], (0,), [[0]])
    given = [drawn(1, 2, ROWS, 16, seed=seed) for seed in range(3)]
    keep = torch.rand(2, ROWS, ROWS, generator=torch.Generator().manual_seed(4)) > 0.1
    alone = attend_packed(*given, layout, 0.25, lambda _: keep, 1 / 0.9)
    with torch.autocast("cpu", dtype=torch.bfloat16), WideProducts():
        within = attend_packed(*given, layout, 0.25, lambda _: keep, 1 / 0.9)
    assert torch.equal(within, alone)
