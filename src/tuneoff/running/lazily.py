"""A mapping whose values are made when they are first asked for: of thousands of learning curves a page shows few."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeVar

Made = TypeVar("Made")


class Lazily(Mapping[str, Made]):
    """Values by name; each is made once, and kept.

    Args:
        names: of all of them, in their order.
        make: gives the value of a name.
    """

    def __init__(self, names: Collection[str], make: Callable[[str], Made]) -> None:
        self._names = dict.fromkeys(names)
        self._make = make
        self._made: dict[str, Made] = {}

    def __getitem__(self, name: str) -> Made:
        if name not in self._made:
            if name not in self._names:
                raise KeyError(name)
            self._made[name] = self._make(name)
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names  # the inherited one makes the value to see whether it is there

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
