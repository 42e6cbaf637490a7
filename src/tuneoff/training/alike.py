"""Parts of a loop that all do the same: where shapes alone matter, the first of a size stands for the others."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from itertools import groupby

_STANDS_FOR: ContextVar[Callable[[int], AbstractContextManager[None]] | None] = ContextVar("stands_for", default=None)


@contextmanager
def one_for_all(stands_for: Callable[[int], AbstractContextManager[None]]) -> Iterator[None]:
    """Within the context `alike` yields one part of those that have a size in common.

    Args:
        stands_for: of how many parts the one is, entered while it is at work.
    """
    token = _STANDS_FOR.set(stands_for)
    try:
        yield
    finally:
        _STANDS_FOR.reset(token)


def alike(parts: Iterable[slice]) -> Iterator[slice]:
    """Yield the parts of a loop of which those of one size do the same, with results that only their place tells apart.

    What is alive after a part must not depend on how many were before it.
    """
    stands_for = _STANDS_FOR.get()
    if stands_for is None:
        yield from parts
        return
    for _, group in groupby(parts, key=lambda part: part.stop - part.start):
        first, *others = group
        with stands_for(1 + len(others)):
            yield first
