"""What one arm may have otherwise than its study: merged deeply, so that a key that is not given stays the study's."""

from collections.abc import Mapping
from typing import Any

from tuneoff.errors import StudyError, did_you_mean

ALLOWED: Mapping[str, tuple[str, ...]] = {
    "budget": ("steps", "epochs", "target_tokens", "batch_size"),
    "optimizer": ("schedule", "warmup", "weight_decay", "betas", "eps", "clip"),
    "evaluate": ("every",),
    "task": ("template", "max_length", "truncation"),
    "precision": (),
    "micro_batch": (),
    "gradient_checkpointing": (),
}
"""Keys of a study that an arm may override, with the keys below them."""
LENGTHS = ("steps", "epochs", "target_tokens")
"""Of a budget, of which exactly one is given."""


def check_override(path: str, override: Any) -> None:
    """Refuse what an arm may not override.

    Args:
        path: of the arm in the study file.
        override: as the file gives it.

    Raises:
        StudyError: no mapping, or a key that is not allowed; the message names the nearest that is.
    """
    if not isinstance(override, Mapping) or not override:
        raise StudyError(f"{path}.override: expected a mapping such as {{budget: {{steps: 100}}}}, found {override!r}")
    for key, value in override.items():
        _check_key(f"{path}.override.{key}", str(key), tuple(ALLOWED))
        if not ALLOWED[key]:
            continue
        if not isinstance(value, Mapping) or not value:
            below = ", ".join(ALLOWED[key])
            raise StudyError(f"{path}.override.{key}: expected a mapping of {below}; found {value!r}")
        for inner in value:
            _check_key(f"{path}.override.{key}.{inner}", str(inner), ALLOWED[key])


def _check_key(path: str, key: str, allowed: tuple[str, ...]) -> None:
    if key not in allowed:
        hint = did_you_mean(key, allowed)
        raise StudyError(
            f"{path}: an arm cannot have this otherwise than its study; allowed: {', '.join(allowed)}.{hint}"
        )


def merged(study: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study's body with what an arm has otherwise.

    Args:
        study: as JSON types.
        override: checked by `check_override`.
    """
    found = dict(study)
    for key, value in override.items():
        if not isinstance(value, Mapping):
            found[key] = value
            continue
        own = dict(found[key])
        if key == "budget" and any(name in value for name in LENGTHS):
            own |= dict.fromkeys(LENGTHS)  # they exclude one another; the arm's is the one that is meant
        found[key] = own | dict(value)
    return found
