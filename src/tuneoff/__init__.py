"""Tuneoff: a bake-off for fine-tuning methods, on your model, your data and your machine.

Importing this module loads neither torch nor transformers; the names below are found when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tuneoff.api import Study as Study
    from tuneoff.api import init as init
    from tuneoff.api import load as load
    from tuneoff.api import plan as plan
    from tuneoff.api import run as run

__version__ = "0.1.0.dev0"

_API = {"Study", "init", "load", "plan", "run"}

__all__ = [
    "Study",
    "__version__",
    "analysis",
    "data",
    "errors",
    "evaluation",
    "init",
    "load",
    "methods",
    "plan",
    "planning",
    "report",
    "run",
    "running",
    "starting",
    "study",
    "training",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for (PEP 562)."""
    if name in _API:
        value = getattr(import_module("tuneoff.api"), name)
    elif name in __all__:
        value = import_module(f"tuneoff.{name}")
    else:
        raise AttributeError(f"module 'tuneoff' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
