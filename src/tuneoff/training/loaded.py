"""What the loading of a base found: weights that are missing, left over, or of another shape."""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tuneoff.errors import ModelError
from tuneoff.methods.heads import head_names
from tuneoff.training.model_files import CONFIG

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_logger = logging.getLogger("tuneoff.training.models")


def without_head(found: Mapping[str, Any], base: "PreTrainedModel") -> dict[str, Any]:
    """Return what was found on loading, without what concerns a classifier's head, which is drawn anew."""
    heads = tuple(f"{name}." for name in head_names(base))
    trunk = f"{base.base_model_prefix}."  # the head of the language model, outside it, has no place here
    return {
        **found,
        "missing_keys": [key for key in found["missing_keys"] if not key.startswith(heads)],
        "mismatched_keys": [key for key in found["mismatched_keys"] if not key[0].startswith(heads)],  # other classes
        "unexpected_keys": [key for key in found["unexpected_keys"] if key.startswith(trunk)],
    }


def check_loaded(base: "PreTrainedModel", found: Mapping[str, Any], model: str) -> None:
    """Refuse weights that left a part of the model at random values; tied weights are not reported as missing."""
    mismatched = sorted(found["mismatched_keys"])
    if mismatched:
        name, have, want = mismatched[0]
        raise ModelError(
            f"model {model!r}: {len(mismatched)} weights do not fit {CONFIG}; {name} has shape {tuple(have)} in the "
            f"file and {tuple(want)} by the configuration. Use the {CONFIG} that belongs to the weights."
        )
    if found["missing_keys"]:
        raise ModelError(
            f"model {model!r}: {len(found['missing_keys'])} weights are not in the files and would start at random "
            f"({_some(found['missing_keys'])}). Use the whole causal language model, with its own {CONFIG}."
        )
    if found["unexpected_keys"]:
        own = {_numberless(name) for name in base.state_dict()}
        layers = [name for name in found["unexpected_keys"] if _numberless(name) in own]
        if layers:
            raise ModelError(
                f"model {model!r}: the files hold layers that {CONFIG} does not count ({_some(layers)}), "
                f"so the model would be cut short. Use the {CONFIG} that belongs to the weights."
            )
        _logger.warning(
            "model %r: weights that the model has no place for are left out (%s)",
            model,
            _some(found["unexpected_keys"]),
        )


def _numberless(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:3]) + (", ..." if len(listed) > 3 else "")
