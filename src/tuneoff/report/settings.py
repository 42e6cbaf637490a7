"""The hyperparameters of any method as cells of a table, and in a line; PEFT's own configurations by its names."""

from collections.abc import Iterator
from typing import Any

from tuneoff.report import numbers
from tuneoff.study.labels import bias_label, lora_name, method_label
from tuneoff.study.methods import (
    BottleneckMethod,
    LoadMethod,
    LoraMethod,
    MethodSpec,
    PeftMethod,
    PrefixMethod,
    PromptMethod,
    rank_of,
)


def rank(spec: MethodSpec) -> int | None:
    """Return the rank of a low-rank method."""
    return rank_of(spec)


def alpha(spec: MethodSpec) -> float | None:
    """Return the numerator of a low-rank method's scaling."""
    return spec.alpha if isinstance(spec, LoraMethod) else _number(_peft(spec, "lora_alpha", "alpha"))


def dropout(spec: MethodSpec) -> float | None:
    """Return the dropout within what a method adds."""
    if isinstance(spec, LoraMethod | BottleneckMethod):
        return spec.dropout
    return _number(_peft(spec, "lora_dropout", "vera_dropout", "module_dropout"))


def size(spec: MethodSpec) -> tuple[int, str] | None:
    """Return how much a method without a rank adds, and of what: a bottleneck's width, or virtual tokens."""
    if isinstance(spec, BottleneckMethod):
        return spec.size, "wide"
    if isinstance(spec, PromptMethod | PrefixMethod):
        return spec.num_virtual_tokens, "tokens"
    tokens = _whole(_peft(spec, "num_virtual_tokens"))
    return None if tokens is None else (tokens, "tokens")


def targets(spec: MethodSpec) -> tuple[str, ...]:
    """Return the patterns of the modules that are adapted; empty where the method needs none or PEFT chooses."""
    if isinstance(spec, LoraMethod):
        return spec.targets
    given = _peft(spec, "target_modules")
    if isinstance(given, str):
        return (given,)
    return tuple(map(str, given)) if isinstance(given, list | tuple) else ()


def describe(spec: MethodSpec) -> str:
    """Return the method and its scientific hyperparameters in a line."""
    if isinstance(spec, LoadMethod):
        return f"loaded from {spec.path}"
    return ", ".join(_parts(spec))


def _parts(spec: MethodSpec) -> Iterator[str]:
    found, width, p = rank(spec), size(spec), dropout(spec)
    if isinstance(spec, LoraMethod | PeftMethod):
        name = lora_name(spec) if isinstance(spec, LoraMethod) else method_label(spec)
        yield name + (f" rank {found}" if found is not None else "")
    else:
        yield _WORDS[spec.method]
    scaling = alpha(spec)
    if scaling is not None:
        yield f"alpha {numbers.plain(scaling)}"
    if width is not None:
        yield f"{width[0]} wide" if width[1] == "wide" else f"{width[0]} virtual tokens"
    yield from _extras(spec)
    if p:
        yield f"dropout {numbers.plain(p)}"
    if targets(spec):
        yield " ".join(targets(spec))


_WORDS = {
    "none": "nothing is trained",
    "full": "all weights are trained",
    "bottleneck": "bottleneck adapter",
    "prompt": "prompt tuning",
    "prefix": "prefix tuning",
    "bitfit": "biases alone are trained",
    "head": "the output head alone is trained",
}


def _extras(spec: MethodSpec) -> Iterator[str]:
    """Yield what else sets an arm apart from another of its method."""
    match spec:
        case LoraMethod():
            yield from (f"B's rate {numbers.plain(spec.lr_ratio)} x A's",) if spec.lr_ratio != 1 else ()
            yield from filter(None, (bias_label(spec),))
        case BottleneckMethod():
            yield f"{'after attention and MLP' if spec.placement == 'houlsby' else 'after the MLP'}, {spec.activation}"
        case PromptMethod(init="random"):
            yield "drawn at random"
        case PrefixMethod(projection=int(width)):
            yield f"projected through {width}"


def _peft(spec: MethodSpec, *keys: str) -> Any:
    """Return the first of some options that a PEFT configuration gives."""
    given = spec.peft if isinstance(spec, PeftMethod) else {}
    return next((given[key] for key in keys if key in given), None)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
