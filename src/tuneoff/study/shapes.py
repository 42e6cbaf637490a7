"""Shapes of well-known bases: their `config.json`, so that a study can be planned without hub and weights."""

import json
from importlib import resources
from typing import Any

SHAPES = resources.files("tuneoff.study") / "recipes" / "shapes"
_FILES = {
    "gpt2": "gpt2.json",
    "openai-community/gpt2": "gpt2.json",
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama-3-8b-instruct.json",
}


def known_shape(model_id: str) -> dict[str, Any] | None:
    """Return the configuration of a hub model whose shape ships with the package, or none.

    Args:
        model_id: the id on the hub, such as `gpt2`.
    """
    name = _FILES.get(model_id)
    if name is None:
        return None
    shape: dict[str, Any] = json.loads((SHAPES / name).read_text(encoding="utf-8"))
    return shape


def known_models() -> tuple[str, ...]:
    """Return the hub ids whose shapes ship with the package."""
    return tuple(_FILES)
