"""Activations in one pass where a model's own are written out in several."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def fuse_activations(model: "nn.Module") -> None:
    """Put PyTorch's one-pass GELU in the place of those that are written out, in place.

    GPT-2's "gelu_new" is the same tanh approximation (Hendrycks and Gimpel, 2016, arXiv:1606.08415, section 2) in eight
    passes, each of which keeps a tensor for the backward pass, and rounds it in bf16. The results differ by rounding.
    """
    from torch import nn
    from transformers.activations import NewGELUActivation

    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
