"""What of a model can be a target, without its weights."""

from collections.abc import Iterator
from pathlib import Path

from tuneoff.methods.surgery import adaptable_layers, features
from tuneoff.planning.groups import group_modules
from tuneoff.training.models import load_config, shape_only


def list_modules(model: str, root: Path) -> Iterator[str]:
    """Yield one line for each kind of linear layer: `transformer.h.{0-11}.attn.c_attn  12 x Conv1D 768->2304`.

    Args:
        model: hub id, folder, `config.json`, or `demo`.
        root: folder that relative paths start from.

    Raises:
        ModelError: not found, or not a causal language model.
    """
    layers = adaptable_layers(shape_only(load_config(model, root, allow_shape=True)))
    described = {name: (type(layer).__name__, *features(layer), layer.weight.numel()) for name, layer in layers.items()}
    for group in group_modules(described):
        size = f"{group.num_modules} x {group.kind} {group.in_features}->{group.out_features}"
        yield f"{group.names}  {size}"
