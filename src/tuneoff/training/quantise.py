r"""Frozen linear layers held in 4 or 8 bits: the base of QLoRA.

Source: Dettmers et al., 2023, "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv:2305.14314, section 3: NF4, the
double quantisation of its block scales, and products in the compute type with the dequantised weight.

- `nf4`, through bitsandbytes: each 64 weights share a scale; each takes the nearest of 16 values that are equally
  likely under a normal. The scales are held in 8 bits, each 256 of them with an fp32 scale of their own.
- `int8`: $W_{ij} \approx q_{ij}\,s_i / 127$ with $s_i = \max_j |W_{ij}|$, one fp32 scale for each output.

Departures from the paper: none in `nf4`. `int8` rounds the weights alone, as its rows in LLM.int8() (Dettmers et al.,
2022, arXiv:2208.07339), and never the inputs: bitsandbytes' own 8-bit layer trains on a CPU with the dequantised
weight and evaluates with rounded inputs, so what is validated would not be what was trained.

Shapes: O outputs, I inputs, both of one layer; weights are O x I also where the layer was GPT-2's `Conv1D`.
"""

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tuneoff.errors import UnsupportedError
from tuneoff.methods.surgery import AdaptableLayer, adaptable_layers, features, is_quantised, swap

if TYPE_CHECKING:
    from bitsandbytes.functional import QuantState

NF4, INT8 = "nf4", "int8"
BLOCK = 64
"""Weights that share a scale in NF4."""
SCALE_BLOCK = 256
"""Scales that share a scale of their own."""
NF4_TABLES_BYTES = 4 * (16 + 256 + 1)
"""Held once for each layer: the 16 values of a weight, the 256 of a scale, and the scales' mean."""
INT8_LARGEST = 127


class QuantisedLinear(nn.Linear):
    """A frozen linear layer whose weight is held in few bits; the bias stays as it was.

    Args:
        layer: the layer to hold; it is not changed.
    """

    def __init__(self, layer: AdaptableLayer) -> None:
        nn.Module.__init__(self)  # `nn.Linear` would make a weight of full size
        self.in_features, self.out_features = features(layer)
        self.bias = layer.bias

    @staticmethod
    def _dense(layer: AdaptableLayer) -> Tensor:
        """Return the layer's weight as O x I."""
        weight = layer.weight.detach()
        return (weight.T if isinstance(layer, Conv1D) else weight).contiguous()

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """Return the weight that the layer computes with (O, I)."""
        raise NotImplementedError

    def _product(self, x: Tensor) -> Tensor:
        """Return x W^T, with a gradient for x alone."""
        y: Tensor = _FrozenProduct.apply(x, self)  # type: ignore[no-untyped-call]
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., I) to (..., O), in autocast's type where it is on."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        y = self._product(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def extra_repr(self) -> str:
        """Return the sizes, for printing."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def _held(values: Tensor) -> Tensor:
    """Return fp32 values as integers of the same bits, so that no `.to(dtype)` of the model rounds them."""
    return values.detach().to(torch.float32).contiguous().view(torch.int32)


class NF4Linear(QuantisedLinear):
    """A frozen linear layer in NF4 with double quantisation, read by bitsandbytes.

    The weight is one row of blocks, filled up with zeros to whole ones: on a CPU bitsandbytes 0.50 takes the wrong
    scales for a matrix whose rows are not whole blocks.
    """

    scales: Tensor
    scale_scales: Tensor
    scale_mean: Tensor
    weight_values: Tensor
    scale_values: Tensor

    def __init__(self, layer: AdaptableLayer) -> None:
        super().__init__(layer)
        flat = self._dense(layer).reshape(1, -1)
        whole = F.pad(flat, (0, -flat.numel() % BLOCK))
        packed, state = _bitsandbytes().functional.quantize_4bit(
            whole, blocksize=BLOCK, compress_statistics=True, quant_type=NF4
        )
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.register_buffer("scales", state.absmax)
        self.register_buffer("scale_scales", _held(state.state2.absmax))
        self.register_buffer("scale_mean", _held(state.offset))
        self.register_buffer("weight_values", _held(state.code))
        self.register_buffer("scale_values", _held(state.state2.code))

    def _state(self, dtype: torch.dtype, *shape: int) -> "QuantState":
        """Return what bitsandbytes needs to read the packed weight as a matrix of a shape; nothing is copied."""
        functional = _bitsandbytes().functional
        scale_state = functional.QuantState(
            absmax=self.scale_scales.view(torch.float32),
            code=self.scale_values.view(torch.float32),
            blocksize=SCALE_BLOCK,
            dtype=torch.float32,
        )
        state: QuantState = functional.QuantState(
            absmax=self.scales,
            shape=torch.Size(shape),
            code=self.weight_values.view(torch.float32),
            blocksize=BLOCK,
            quant_type=NF4,
            dtype=dtype,
            offset=self.scale_mean.view(torch.float32),
            state2=scale_state,
        )
        return state

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """Return the weight that the layer computes with (O, I)."""
        state = self._state(dtype, 1, 2 * self.weight.numel())
        whole: Tensor = _bitsandbytes().functional.dequantize_4bit(self.weight, state)
        num_weights = self.out_features * self.in_features
        return whole.view(-1)[:num_weights].view(self.out_features, self.in_features)

    def _product(self, x: Tensor) -> Tensor:
        if x.is_cuda and self.in_features % BLOCK == 0:  # in one kernel, where there is one
            state = self._state(x.dtype, self.out_features, self.in_features)
            fused: Tensor = _bitsandbytes().matmul_4bit(x, self.weight, quant_state=state)
            return fused
        return super()._product(x)


class Int8Linear(QuantisedLinear):
    """A frozen linear layer in 8 bits, one scale for each output."""

    scale: Tensor

    def __init__(self, layer: AdaptableLayer) -> None:
        super().__init__(layer)
        dense = self._dense(layer).float()
        scale = dense.abs().amax(dim=1, keepdim=True)  # (O, 1)
        rounded = (dense * (INT8_LARGEST / scale.clamp(min=torch.finfo(torch.float32).tiny))).round()
        self.weight = nn.Parameter(rounded.to(torch.int8), requires_grad=False)
        self.register_buffer("scale", _held(scale))

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """Return the weight that the layer computes with (O, I)."""
        return (self.weight * (self.scale.view(torch.float32) / INT8_LARGEST)).to(dtype)


class _FrozenProduct(torch.autograd.Function):
    """x W^T, with W dequantised again for the backward pass: kept, it would take what the 8 bits save."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantisedLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dequantised(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.layer.dequantised(gradient.dtype), None


LAYERS: dict[str, type[QuantisedLinear]] = {NF4: NF4Linear, INT8: Int8Linear}


def quantise(model: nn.Module, kind: str) -> None:
    """Hold the linear layers of a model's trunk in few bits, in place; each dense weight is let go as it is done.

    Args:
        model: a causal language model or classifier on the CPU, so that the bits are the same for every device.
        kind: `nf4` or `int8`.

    Raises:
        UnsupportedError: bitsandbytes is not there, or the model has no linear layer that could be held so.
    """
    found = check_quantisable(model, kind)
    if kind == NF4:
        _bitsandbytes()
    for name in list(found):
        layer = model.get_submodule(name)
        assert isinstance(layer, (nn.Linear, Conv1D)), name
        held = LAYERS[kind](layer)
        held.train(layer.training)
        swap(model, {name: held})


def check_quantisable(model: nn.Module, kind: str) -> dict[str, AdaptableLayer]:
    """Return the layers that would be held in few bits, by name; on the meta device, too.

    Raises:
        UnsupportedError: bitsandbytes is not there, or the model has no such layer.
    """
    if kind == NF4 and find_spec("bitsandbytes") is None:  # a plan looks for it alone
        raise _missing("it is not installed")
    found = quantisable_layers(model)
    if not found:
        raise UnsupportedError(f"{type(model).__name__} has no linear layer that can be held in {kind}")
    return found


def quantisable_layers(model: nn.Module) -> dict[str, AdaptableLayer]:
    """Return the linear layers of the trunk by name: not the head, not the embeddings, nothing that is shared."""
    owners: dict[int, int] = {}
    for _, parameter in model.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    trunk = str(getattr(model, "base_model_prefix", ""))
    is_inside = f"{trunk}." if isinstance(getattr(model, trunk or " ", None), nn.Module) else ""
    return {
        name: layer
        for name, layer in adaptable_layers(model).items()
        if name.startswith(is_inside) and owners[id(layer.weight)] == 1 and not is_quantised(layer)
    }


def quantised_bytes(kind: str, num_in: int, num_out: int) -> int:
    """Return the bytes of one layer's weight: what is held, without the bias.

    NF4, in whole blocks: half a byte for each weight, a byte for each 64, 4 for each 256 of those, and the tables.
    int8: a byte for each weight and 4 for each output.
    """
    num_weights = num_in * num_out
    if kind == INT8:
        return num_weights + 4 * num_out
    num_scales = math.ceil(num_weights / BLOCK)
    return num_scales * BLOCK // 2 + num_scales + 4 * math.ceil(num_scales / SCALE_BLOCK) + NF4_TABLES_BYTES


@cache
def _bitsandbytes() -> Any:
    """Return the bitsandbytes package.

    Raises:
        UnsupportedError: it is not installed.
    """
    # of kernels that it looks for on the hub and does without
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), _compiling_when_called():
            warnings.simplefilter("ignore")  # of what it uses of PyTorch
            import bitsandbytes  # here, because only QLoRA needs it
    except ImportError as error:
        raise _missing(str(error)) from None
    return bitsandbytes


@contextmanager
def _compiling_when_called() -> Iterator[None]:
    """Let what is marked with `torch.compile` meanwhile import PyTorch's compiler when it is first called.

    bitsandbytes marks functions as it is imported, and runs have kernels in place of them: without the compiler its
    import takes a twentieth of the time (docs/performance.md, "bitsandbytes without the compiler").
    """
    compile_now = torch.compile

    def compile_later(function: Callable[..., Any] | None = None, **options: Any) -> Callable[..., Any]:
        if function is None:
            return partial(compile_later, **options)
        compiled = cache(lambda: compile_now(function, **options))
        return lambda *args, **kwargs: compiled()(*args, **kwargs)

    torch.compile = compile_later  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_now


def _missing(why: str) -> UnsupportedError:
    return UnsupportedError(
        f"quantize: nf4 needs bitsandbytes, which cannot be imported ({why}). "
        "Run `pip install 'tuneoff[qlora]'`, or use quantize: int8, which needs nothing more."
    )
