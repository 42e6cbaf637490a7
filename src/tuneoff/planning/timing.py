"""How long operations take on this machine, by carrying them out: each distinct one on tensors of its own form.

The most expensive ones are timed first, until nearly all of the estimated time is timed or the budget is used up; the
rest goes by rates. Operations that would take too much memory or time are timed in a smaller form, rows and features
cut alike, and scaled by what they compute (products) or move (all others).
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves, tree_map

from tuneoff.planning.operations import RANDOM_WORDS, Operation, TensorSpec, flop_of

Clock = Callable[[], float]

MAX_BYTES = 192 << 20
"""Of an operation's tensors; larger ones are timed in a smaller form."""
MAX_FLOP = 8e9
"""Of a product, likewise: from here on its rate does not rise any more."""
SMALLEST_CUT = 64
"""Size of a tensor that is not halved any more."""
MIN_TIMED_S = 0.01
"""An operation is repeated until it has taken as long as this, and at least twice: once warm."""
MAX_REPEATS = 50
MAX_LISTED = 8
"""Tensors that an operation is given as one list and is still timed by itself."""
WARM_BYTES = 1 << 20
"""Of an operation's tensors that are likely still in the cache, as the operation before made them."""
COLD_BYTES, MAX_COPIES = 64 << 20, 8
"""Of all tensors that take turns where an operation has more: more than the caches hold."""
FLOOR_S = 0.5e-6
"""Of any operation, its start alone."""


@dataclass(frozen=True)
class Rates:
    """What is not timed goes by these.

    Attributes:
        flop_per_s: of large products, by type (`float32`, `bfloat16`, `float16`).
        bytes_per_s: read and written by elementwise operations.
        overhead_s: of an operation, beside what its kernel takes: Python, autograd and dispatch.
    """

    flop_per_s: Mapping[str, float]
    bytes_per_s: float
    overhead_s: float

    def estimate_s(self, operation: Operation) -> float:
        """Return how long an operation's kernel takes by its size alone: the longer of computing and moving."""
        rate = self.flop_per_s.get(operand_type(operation), self.flop_per_s["float32"])
        return max(operation.flop / rate, operation.moved_bytes / self.bytes_per_s, FLOOR_S)


def operand_type(operation: Operation) -> str:
    """Return the type of an operation's first floating-point tensor, such as `float32`."""
    found = (spec.dtype for spec in _specs(operation) if spec.dtype.is_floating_point)
    return str(next(found, torch.float32)).removeprefix("torch.")


def seconds(counts: Mapping[Operation, float], timed: Mapping[str, float], rates: Rates) -> float:
    """Return how long operations take one after another, without what starting them takes.

    Args:
        counts: how often each runs.
        timed: seconds of those that were timed, by signature.
        rates: for the others.
    """
    return sum(
        count * timed.get(operation.signature, rates.estimate_s(operation)) for operation, count in counts.items()
    )


def time_operations(
    counts: Mapping[Operation, float],
    known: Mapping[str, float],
    rates: Rates,
    *,
    budget_s: float,
    share: float = 0.98,
    device: torch.device | None = None,
    clock: Clock = time.perf_counter,
) -> dict[str, float]:
    """Time what is not known, the most expensive first.

    Args:
        counts: how often each operation runs.
        known: seconds of those that were timed before, by signature.
        rates: by which they are ranked.
        budget_s: seconds that timing may take.
        share: of the estimated time that is timed, if the budget allows.
        device: where; none is the CPU.
        clock: gives seconds.

    Returns:
        Seconds by signature, of what was timed now.
    """
    device = device or torch.device("cpu")
    weighed = sorted(
        ((abs(count) * known.get(one.signature, rates.estimate_s(one)), one) for one, count in counts.items()),
        key=lambda pair: (-pair[0], pair[1].signature),
    )
    left = (1 - share) * sum(cost for cost, _ in weighed)
    wanted, tail = [], 0.0
    for cost, one in reversed(weighed):
        tail += cost
        if tail > left and one.signature not in known:
            wanted.append(one)
    found: dict[str, float] = {}
    until = clock() + budget_s
    for one in reversed(wanted):
        if clock() > until:
            break
        took = time_one(one, device, clock)
        if took is not None:
            found[one.signature] = took
    return found


def time_one(operation: Operation, device: torch.device, clock: Clock = time.perf_counter) -> float | None:
    """Return the seconds of one operation; none where it cannot be carried out by itself.

    Args:
        operation: what to time.
        device: where.
        clock: gives seconds.
    """
    if operation.signature.startswith(RANDOM_WORDS):
        return _repeated(lambda: np.random.SFC64([1, 2, 3]).random_raw(operation.args[0]), device, clock)
    if operation.func is None or _has_many(operation):
        return None
    small, factor = _cut(operation)
    try:
        given = [_filled((small.args, dict(small.kwargs)), device) for _ in range(_num_copies(small))]
        turns = itertools.cycle(given)

        def work() -> None:
            args, kwargs = next(turns)
            small.func(*args, **kwargs)

        with torch.no_grad():
            return factor * _repeated(work, device, clock)
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return None  # it looks at its numbers, which are not the step's: it goes by rates


def _has_many(operation: Operation) -> bool:
    """Whether it takes any number of tensors at once, as an optimizer does: such go by what they move."""
    lists = [given for given in operation.args if isinstance(given, list | tuple)]
    return any(len([one for one in given if isinstance(one, TensorSpec)]) > MAX_LISTED for given in lists)


def _num_copies(operation: Operation) -> int:
    """Return how many sets of tensors take turns, so that a layer's weights are not found in the cache."""
    num_bytes = sum(spec.num_spanned * spec.dtype.itemsize for spec in _specs(operation))
    return 1 if num_bytes < WARM_BYTES else max(1, min(MAX_COPIES, -(-COLD_BYTES // num_bytes)))


def _repeated(work: Callable[[], Any], device: torch.device, clock: Clock) -> float:
    """Return the median of some repeats, the first left out."""
    work()
    _wait(device)
    taken: list[float] = []
    while len(taken) < 2 or (sum(taken) < MIN_TIMED_S and len(taken) < MAX_REPEATS):
        start = clock()
        work()
        _wait(device)
        taken.append(clock() - start)
    return float(np.median(taken)) if len(taken) > 2 else min(taken)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _filled(given: Any, device: torch.device) -> Any:
    """Return tensors in the place of their forms: zeros of whole numbers and truth values, else a half everywhere."""

    def filled(spec: Any) -> Any:
        if isinstance(spec, torch.device):
            return device
        if not isinstance(spec, TensorSpec):
            return spec
        flat = torch.empty(max(1, spec.num_spanned), dtype=spec.dtype, device=device)
        flat.fill_(0.5 if spec.dtype.is_floating_point else 0)
        return flat.as_strided(spec.shape, spec.strides)

    return tree_map(filled, given)


def _specs(operation: Operation) -> Iterator[TensorSpec]:
    return (leaf for leaf in tree_leaves((operation.args, dict(operation.kwargs))) if isinstance(leaf, TensorSpec))


def _cut(operation: Operation) -> tuple[Operation, float]:
    """Return an operation that is small enough to be timed, and how many times as long the whole one takes.

    One size after another, the largest first, is halved wherever it stands: in all tensors, and in the sizes that
    the operator is given.
    """
    cut, factor = operation, 1.0
    while _is_large(cut):
        size = max((size for spec in _specs(cut) for size in spec.shape if size % 2 == 0), default=0)
        if size < SMALLEST_CUT or size in _options(cut):
            break
        cut = replace(cut, args=_halved(cut.args, size), kwargs=_halved(dict(cut.kwargs), size))
        shrunk = _share(cut, operation)
        factor = 1 / shrunk
        cut = replace(cut, flop=operation.flop * shrunk, moved_bytes=round(operation.moved_bytes * shrunk))
    return cut, factor


def _options(operation: Operation) -> list[int]:
    """Return the whole numbers that an operator is given beside tensors."""
    leaves = tree_leaves((operation.args, dict(operation.kwargs)))
    return [leaf for leaf in leaves if isinstance(leaf, int) and not isinstance(leaf, bool)]


def _is_large(operation: Operation) -> bool:
    return operation.flop > MAX_FLOP or sum(spec.num_spanned * spec.dtype.itemsize for spec in _specs(operation)) > (
        MAX_BYTES
    )


def _share(cut: Operation, whole: Operation) -> float:
    """Return what share of the work is left: of its floating-point operations, else of its largest tensor."""
    if whole.flop:
        args, kwargs = _filled((cut.args, dict(cut.kwargs)), torch.device("meta"))
        return flop_of(cut.func, args, kwargs, None) / whole.flop
    largest = [max((_numel(spec) for spec in _specs(one)), default=1) for one in (cut, whole)]
    return largest[0] / largest[1]


def _numel(spec: TensorSpec) -> int:
    return int(np.prod(spec.shape, dtype=np.int64))


def _halved(given: Any, size: int) -> Any:
    def halved(value: Any) -> Any:
        if not isinstance(value, TensorSpec) or size not in value.shape:
            return value
        shape = tuple(own // 2 if own == size else own for own in value.shape)
        order = sorted(range(len(shape)), key=lambda place: (value.strides[place], -place))
        strides, step = [0] * len(shape), 1
        for place in order:  # the same order of dimensions in memory, without gaps; what is repeated stays so
            if value.strides[place]:
                strides[place] = step
                step *= shape[place]
        return TensorSpec(value.dtype, shape, tuple(strides))

    return tree_map(halved, given)


def product_operations(precisions: Iterable[str]) -> dict[str, Operation]:
    """Return one large product of each type, by the type's name, from which the rates are taken."""
    from tuneoff.training.runtime import COMPUTE_TYPES

    found = {}
    for precision in precisions:
        kind = COMPUTE_TYPES[precision]
        side = TensorSpec(kind, (1024, 1024), (1024, 1))
        name = str(kind).removeprefix("torch.")
        found[name] = Operation(f"mm {side}", 2.0 * 1024**3, 0, "aten::mm", (side, side))
    return found


def copied(num_bytes: int) -> Operation:
    """Return the operation of adding two tensors of so many bytes into a third."""
    spec = TensorSpec(torch.float32, (num_bytes // 4,), (1,))
    return Operation(f"add {spec}", 0.0, 3 * num_bytes, "aten::add.Tensor", (spec, spec))
