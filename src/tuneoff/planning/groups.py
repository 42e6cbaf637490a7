"""Modules that differ in numbers alone, written as one: `transformer.h.{0-11}.attn.c_attn`."""

import re
from collections.abc import Iterable, Mapping, Sequence

from tuneoff.study.value import Value

_NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")
"""A whole part of a dotted name that is a number."""


class ModuleGroup(Value):
    """Modules of one kind and size whose names differ in numbers alone."""

    names: str
    """The names as one text, the numbers as ranges."""
    num_modules: int
    kind: str
    """Class of the layer (`Linear`, `Conv1D`)."""
    in_features: int
    out_features: int
    trainable: int
    """Trainable parameters of all of them."""


def group_modules(modules: Mapping[str, tuple[str, int, int, int]]) -> tuple[ModuleGroup, ...]:
    """Group modules, in the order in which each group first appears.

    Args:
        modules: name to (kind, in_features, out_features, trainable parameters).
    """
    found: dict[tuple[str, str, int, int], list[str]] = {}
    for name, (kind, num_in, num_out, _) in modules.items():
        found.setdefault((_NUMBER.sub("#", name), kind, num_in, num_out), []).append(name)
    return tuple(
        ModuleGroup(
            names=collapse(names),
            num_modules=len(names),
            kind=kind,
            in_features=num_in,
            out_features=num_out,
            trainable=sum(modules[name][3] for name in names),
        )
        for (_, kind, num_in, num_out), names in found.items()
    )


def collapse(names: Sequence[str]) -> str:
    """Return names that differ in numbers alone as one text, each number that varies as ranges: `h.{0-3,7}.c_attn`."""
    positions = list(zip(*([int(number) for number in _NUMBER.findall(name)] for name in names), strict=True))
    texts = iter([str(values[0]) if len(set(values)) == 1 else f"{{{ranges(values)}}}" for values in positions])
    return _NUMBER.sub(lambda _: next(texts), names[0])


def ranges(numbers: Iterable[int]) -> str:
    """Return whole numbers as rising ranges: 0, 1, 2, 5 gives `0-2,5`."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
