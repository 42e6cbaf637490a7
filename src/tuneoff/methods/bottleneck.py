r"""Bottleneck adapters: a narrow two-layer network on the output of the frozen sub-layers of every block.

Sources: Houlsby et al., 2019, "Parameter-Efficient Transfer Learning for NLP", arXiv:1902.00751, section 2.1; Pfeiffer
et al., 2021, "AdapterFusion", arXiv:2005.00247, section 3.

Departures from the papers: W_up starts at zero, where Houlsby draws it so small (standard deviation 0.01) that the
block is nearly the identity: here it is the identity, bit for bit. Layer norms stay frozen, where Houlsby trains them.
Pfeiffer's placement, found for models with the norm after the residual, is taken over as "after the feed-forward,
before the residual", as AdapterHub does for decoders. Where a block drops its sub-layer's output out after the
sub-layer (GPT-NeoX), the bottleneck stands before that dropout.

Shapes: R rows, T positions, D width of the model, m size of the bottleneck.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tuneoff.methods.base import AdaptedModel, empty_linear, one_generator
from tuneoff.methods.structure import ATTENTION, FEED_FORWARD, find_sublayers, text_config

CHILD = "bottleneck"
"""Name under which a sub-layer holds its bottleneck: `transformer.h.0.mlp.bottleneck.down.weight`."""
DOWN_STD = 1e-2
"""Standard deviation of W_down at the start, cut off at two of them (Houlsby et al., section 3.6)."""
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
PLACEMENTS = {"houlsby": (ATTENTION, FEED_FORWARD), "pfeiffer": (FEED_FORWARD,)}


class BottleneckLayer(nn.Module):
    r"""Computes $h + \mathrm{dropout}(W_{up}\,\phi(W_{down} h + b_{down}) + b_{up})$, (R, T, D) to (R, T, D).

    Args:
        width: D.
        method: size m, activation and dropout.
        generator: draws W_down, from a normal of standard deviation 0.01 cut off at two of them; all else starts at
            zero, so that the layer starts as the identity.
        device: where the weights go; on the meta device they have shapes alone.
    """

    def __init__(self, width: int, method: "Bottleneck", generator: torch.Generator, device: torch.device) -> None:
        super().__init__()
        self.down = empty_linear(width, method.size, device)
        self.up = empty_linear(method.size, width, device)
        self.activation = ACTIVATIONS[method.activation]
        self.dropout = nn.Dropout(method.dropout)
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)
        if device.type != "meta":
            start = torch.empty(method.size, width)  # on the CPU, so equal on every device
            nn.init.trunc_normal_(start, std=DOWN_STD, a=-2 * DOWN_STD, b=2 * DOWN_STD, generator=generator)
            self.down.weight.data.copy_(start)

    def forward(self, h: Tensor) -> Tensor:
        """Return h with the bottleneck's answer to it added."""
        narrow = self.activation(_linear(self.down, h))
        update: Tensor = self.dropout(_linear(self.up, narrow))
        return h + update.to(h.dtype)


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a layer that is held in fp32 in the type of its input."""
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))


@dataclass
class _Switch:
    enabled: bool = True


class BottleneckModel(AdaptedModel):
    """A model whose sub-layers hold bottlenecks, which hooks put on their outputs; no module is replaced.

    Args:
        module: the base.
        layers: each bottleneck by the name of its sub-layer.
    """

    can_pack = True

    def __init__(self, module: nn.Module, layers: Mapping[str, BottleneckLayer]) -> None:
        super().__init__(module)
        self.layers = dict(layers)
        self.matched = tuple(layers)
        self._switch = _Switch()
        self._handles = [self._attach(module.get_submodule(name), layer) for name, layer in layers.items()]

    def _attach(self, sublayer: nn.Module, layer: BottleneckLayer) -> RemovableHandle:
        switch = self._switch

        def adapt_output(_module: nn.Module, _args: Any, output: Any) -> Any:
            if not switch.enabled:
                return output
            if isinstance(output, tuple):  # attention gives its weights, too
                return layer(output[0]), *output[1:]
            return layer(output)

        sublayer.add_module(CHILD, layer)
        return sublayer.register_forward_hook(adapt_output)

    def trainable_parameters(self, member: int = 0) -> Mapping[str, nn.Parameter]:
        """Return W_down, b_down, W_up and b_up of every sub-layer."""
        return {
            f"{name}.{CHILD}.{key}": parameter
            for name, layer in self.layers.items()
            for key, parameter in layer.named_parameters()
        }

    @contextmanager
    def base_model(self) -> Iterator[nn.Module]:
        """Within the context the bottlenecks are passed by."""
        before, self._switch.enabled = self._switch.enabled, False
        try:
            yield self.module
        finally:
            self._switch.enabled = before

    def remove(self) -> nn.Module:
        """Take the bottlenecks and their hooks out and return the base."""
        for handle in self._handles:
            handle.remove()
        for name in self.layers:
            delattr(self.module.get_submodule(name), CHILD)
        return self.module


@dataclass(frozen=True)
class Bottleneck:
    """Bottleneck adapters with their hyperparameters fixed.

    Args:
        placement: `houlsby`, after attention and after the feed-forward of each block, or `pfeiffer`, after the
            feed-forward alone.
        size: width m of the bottleneck.
        activation: relu, gelu, silu or tanh.
        dropout: share of each bottleneck's answer that is zeroed while training.
    """

    placement: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    size: int = 64
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    dropout: float = 0.0
    trains_base = False

    def adapt(self, model: nn.Module, generator: torch.Generator | Sequence[torch.Generator]) -> BottleneckModel:
        """Put bottlenecks on `model`, which is frozen and changed in place.

        Raises:
            UnsupportedError: the model's blocks cannot be made out.
        """
        draw = one_generator(generator)
        names = [block[kind] for block in find_sublayers(model) for kind in PLACEMENTS[self.placement]]
        width = int(text_config(model).hidden_size)
        device = next(model.parameters()).device
        model.requires_grad_(False)
        layers = {name: BottleneckLayer(width, self, draw, device).train(model.training) for name in names}
        return BottleneckModel(model, layers)
