"""What training changed in a model's weight matrices, layer by layer, from W, (out, in), to W + D.

Of linear layers alone: embeddings and the output head, which often is the embeddings' own weight, are left out.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tuneoff.errors import MethodError
from tuneoff.methods.base import AdaptedModel
from tuneoff.methods.external import ExternalModel
from tuneoff.methods.heads import HeadedModel
from tuneoff.methods.lora import LoRAModel
from tuneoff.methods.lora_layer import LoRALayer
from tuneoff.methods.surgery import AdaptableLayer, dense_weight, match_targets
from tuneoff.study.methods import ALL_LINEAR


@dataclass(frozen=True)
class MatrixChange:
    """How training changed one weight matrix; all tensors are in fp32 at least, on the CPU.

    Attributes:
        module: name of the layer.
        base: W, (out, in).
        change: D, (out, in); none where it is given by its factors.
        factors: B (out, r) and A (r, in) of D = s B A; none where D is not of that form.
        scaling: s.
    """

    module: str
    base: Tensor
    change: Tensor | None = None
    factors: tuple[Tensor, Tensor] | None = None
    scaling: float = 1.0


def changed_layers(base: nn.Module, trained: Callable[[str], Tensor | None]) -> Iterator[MatrixChange]:
    """Yield the change of every linear layer but the output head, in the model's order.

    Args:
        base: the model before training.
        trained: returns the trained weight of a name such as `transformer.h.0.attn.c_attn.weight`, laid out as the
            layer stores it; asked for one layer at a time. None is a weight that is not there.

    Raises:
        MethodError: the base has no linear layer beside its head, or a trained weight is missing or of another shape.
    """
    for name, layer in match_targets(base, (ALL_LINEAR,)).items():
        before, after = _oriented(layer, dense_weight(layer)), trained(f"{name}.weight")
        if after is None or after.shape != layer.weight.shape:
            found = "missing" if after is None else f"of shape {tuple(after.shape)}"
            raise MethodError(
                f"{name}: the trained weight is {found}; the base's has shape {tuple(layer.weight.shape)}"
            )
        yield MatrixChange(name, before, _oriented(layer, after) - before)


def adapter_changes(adapted: AdaptedModel) -> Iterator[MatrixChange]:
    """Yield the change of every matrix that an adapter changes, in the model's order; nothing where it changes none.

    LoRA's is given by its factors. With DoRA it is D = g (W + s B A) - W, where g scales each output (see
    `tuneoff.methods.lora_layer`); what PEFT puts in is merged and unmerged again for it, in fp32.

    Raises:
        MethodError: PEFT cannot merge the method.
    """
    inner = adapted.inner if isinstance(adapted, HeadedModel) else adapted
    if isinstance(inner, LoRAModel):
        for name, layer in inner.layers.items():
            yield _low_rank(name, layer)
    elif isinstance(inner, ExternalModel):
        yield from _merged(inner)


@torch.no_grad()
def _low_rank(name: str, layer: LoRALayer) -> MatrixChange:
    base = _oriented(layer.base, dense_weight(layer.base))
    a, b = (part[0].detach().cpu() for part in (layer.lora_A, layer.lora_B))
    if not layer.magnitude:
        return MatrixChange(name, base, factors=(b, a), scaling=layer.scalings[0])
    # In float64: where little changed, D is a small difference of large numbers.
    summed = base.double() + layer.scalings[0] * (b.double() @ a.double())
    gain = layer.magnitude[0].detach().cpu().double() / torch.linalg.vector_norm(summed, dim=1)
    return MatrixChange(name, base, gain[:, None] * summed - base.double())


@torch.no_grad()
def _merged(adapted: ExternalModel) -> Iterator[MatrixChange]:
    adapted.module.float()  # rounding a merged weight to the compute type would be taken for a change
    module = adapted.merge()
    layers = ((name, module.get_submodule(name)) for name in adapted.matched)
    after = {name: layer.weight.detach().clone() for name, layer in layers if isinstance(layer, nn.Linear | Conv1D)}
    adapted.unmerge()
    for name, weight in after.items():
        layer = module.get_submodule(name).get_base_layer()  # type: ignore[operator]  # a layer of PEFT's
        base = _oriented(layer, layer.weight.detach())
        yield MatrixChange(name, base, _oriented(layer, weight) - base)


def _oriented(layer: AdaptableLayer, weight: Tensor) -> Tensor:
    """Return a weight as (out, in), in fp32 at least, on the CPU."""
    wide = weight.detach().to("cpu", torch.promote_types(weight.dtype, torch.float32))
    return wide.T if isinstance(layer, Conv1D) else wide
