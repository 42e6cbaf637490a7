"""What a step is made of: each distinct operation of PyTorch with the shapes that it is given, and how often it runs.

Of two calls with the same operator, types, shapes and strides one stands for both, so the hundreds of operations of a
deep model are a few dozen distinct ones, each of which can be timed once (`tuneoff.planning.timing`).
"""

import importlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from tuneoff.training.masks import LANES

NOT_WORK = frozenset(
    {"detach", "alias", "lift_fresh", "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
    | {"_local_scalar_dense", "is_same_size", "set_", "resize_", "_unsafe_view", "_reshape_alias", "record_stream"}
)
"""Operators that touch no elements beside those that are views."""
RANDOM_WORDS = "random words"
"""Name of the draws of dropout's masks, which are NumPy's on a CPU and so no operation of PyTorch."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's form, without its numbers."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def num_spanned(self) -> int:
        """Elements of memory between the first and the last, these included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))

    @property
    def num_bytes(self) -> int:
        """Bytes of the elements, those that are repeated (stride 0) counted once."""
        sizes = [size for size, stride in zip(self.shape, self.strides, strict=True) if stride or size == 0]
        return math.prod(sizes) * self.dtype.itemsize

    def __str__(self) -> str:
        dense = _dense_strides(self.shape)
        strides = "" if self.strides == dense else "/" + ",".join(map(str, self.strides))
        return f"{str(self.dtype).removeprefix('torch.')}[{','.join(map(str, self.shape))}{strides}]"


def _dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides = [1] * len(shape)
    for place in range(len(shape) - 2, -1, -1):
        strides[place] = strides[place + 1] * max(1, shape[place + 1])
    return tuple(strides)


@dataclass(frozen=True)
class Operation:
    """One distinct operation.

    Attributes:
        signature: operator, tensors and options as text; two of the same take the same time.
        flop: of matrix products; 0 of all others.
        moved_bytes: that are read and written.
        operator: its name in PyTorch, as PyTorch's own objects cannot go from one process to another.
        args, kwargs: what it is given, with a `TensorSpec` in the place of each tensor.
    """

    signature: str
    flop: float
    moved_bytes: int
    operator: str = field(compare=False, repr=False, default="")
    args: tuple[Any, ...] = field(compare=False, repr=False, default=())
    kwargs: Mapping[str, Any] = field(compare=False, repr=False, default_factory=dict)

    @property
    def func(self) -> Any:
        """The operator; none of what is no operation of PyTorch."""
        if not self.operator:
            return None
        packet, _, overload = self.operator.partition(".")
        namespace, _, name = packet.partition("::")
        if not hasattr(getattr(torch.ops, namespace), name):
            importlib.import_module(namespace)  # a library's own, traced in another process
        return getattr(getattr(getattr(torch.ops, namespace), name), overload or "default")


@dataclass(frozen=True)
class Work:
    """Operations and how often each runs, of a step or of several.

    Attributes:
        counts: by operation.
        num_operations: calls in all.
    """

    counts: Mapping[Operation, float]
    num_operations: float

    @property
    def flop(self) -> float:
        """Of matrix products."""
        return sum(operation.flop * count for operation, count in self.counts.items())

    @property
    def moved_bytes(self) -> float:
        """That all operations read and write."""
        return sum(operation.moved_bytes * count for operation, count in self.counts.items())

    def times(self, factor: float, num_calls: float | None = None) -> "Work":
        """Return it so many times; `num_calls` times as many calls where larger ones do more at once."""
        calls = factor if num_calls is None else num_calls
        return Work({one: factor * count for one, count in self.counts.items()}, calls * self.num_operations)

    def beyond(self, other: "Work", share: float) -> "Work":
        """Return what there would be `share` times as far from this as `other` is."""
        names = dict.fromkeys((*self.counts, *other.counts))
        counts = {one: self.counts.get(one, 0) for one in names}
        return Work(
            {one: count + share * (other.counts.get(one, 0) - count) for one, count in counts.items()},
            self.num_operations + share * (other.num_operations - self.num_operations),
        )


NO_WORK = Work({}, 0.0)


def total(works: Iterable[Work]) -> Work:
    """Return several pieces of work as one."""
    counts: dict[Operation, float] = {}
    num_operations = 0.0
    for work in works:
        num_operations += work.num_operations
        for operation, count in work.counts.items():
            counts[operation] = counts.get(operation, 0) + count
    return Work(counts, num_operations)


class Counter:
    """Counts operations: `counts` is by operation, `num_operations` is calls in all that are no views."""

    def __init__(self) -> None:
        self.counts: dict[Operation, float] = {}
        self.num_operations = 0.0
        self._known: dict[Any, Operation] = {}

    def note(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any, times: int = 1) -> None:
        """Count a call, whose tensors may have no numbers, so many times."""
        if func.is_view:
            return
        self.num_operations += times
        if func.overloadpacket.__name__ in NOT_WORK:
            return
        form: list[Any] = [func, *kwargs]
        _add_forms(form, args)
        _add_forms(form, kwargs.values())
        key = tuple(form)
        operation = self._known.get(key)
        if operation is None:
            operation = self._known[key] = _operation(func, args, kwargs, out)
        self._add(operation, times)
        if func is torch.ops.aten.ge.Scalar and args[0].dtype == torch.int16:
            # which elements dropout keeps: the words are drawn by NumPy, unseen (`tuneoff.training.masks`)
            self._add(random_words(-(-args[0].numel() // LANES)), times)

    def _add(self, operation: Operation, times: int) -> None:
        self.counts[operation] = self.counts.get(operation, 0) + times

    def work(self) -> "Work":
        """Return what was counted."""
        return Work(dict(self.counts), self.num_operations)

    def take(self) -> "Work":
        """Return what was counted, and begin anew."""
        found = self.work()
        self.counts, self.num_operations = {}, 0.0
        return found


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within the context every operation of PyTorch is counted."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counter = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Pass on, and count."""
        out = func(*args, **(kwargs or {}))
        self.counter.note(func, args, kwargs or {}, out)
        return out


def random_words(num_words: int) -> Operation:
    """Return the operation of drawing so many words of 64 bits."""
    return Operation(f"{RANDOM_WORDS} {num_words}", 0.0, 8 * num_words, "", (num_words,))


def _spec(value: Any) -> Any:
    if isinstance(value, Tensor):
        strides = tuple(value.stride()) if value.layout == torch.strided else _dense_strides(tuple(value.shape))
        return TensorSpec(value.dtype, tuple(map(int, value.shape)), tuple(map(int, strides)))
    return value


def tensors_in(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among arguments and in their lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors_in(value)


def _add_forms(form: list[Any], values: Iterable[Any]) -> None:
    """Add to a list what tells a call with these arguments from others."""
    for value in values:
        if isinstance(value, Tensor):
            form += (value.dtype, value.shape, value.stride() if value.layout == torch.strided else None)
        elif isinstance(value, list | tuple):
            form.append(len(value))
            _add_forms(form, value)
        else:
            form.append(str(value))  # 1, 1.0 and True are one key to Python


def _operation(func: Any, args: Any, kwargs: Any, out: Any) -> Operation:
    specs = tree_map(_spec, (args, dict(kwargs)))
    tensors = [leaf for leaf in tree_leaves(specs) if isinstance(leaf, TensorSpec)]
    made = [leaf for leaf in tree_leaves(tree_map(_spec, out)) if isinstance(leaf, TensorSpec)]
    return Operation(
        signature=_signature(func, specs),
        flop=flop_of(func, args, kwargs, out),
        moved_bytes=sum(spec.num_bytes for spec in (*_touched(func, tensors, made), *_written(func, specs[0], out))),
        operator=func.name(),
        args=specs[0],
        kwargs=specs[1],
    )


def _touched(func: Any, given: list[TensorSpec], made: list[TensorSpec]) -> Iterator[TensorSpec]:
    """Yield what an operator reads and writes; of a lookup as much of the table as it takes out."""
    name = func.overloadpacket.__name__
    if name in ("embedding", "index", "index_select", "gather") and given:
        yield from given[1:]
        yield from made
    elif name in ("zeros", "zeros_like", "new_zeros", "ones", "full", "fill_", "zero_"):
        yield from made
    else:
        yield from given
        yield from made


def _written(func: Any, specs: tuple[Any, ...], out: Any) -> Iterator[TensorSpec]:
    """Yield what an operator changes in place and does not give back."""
    if out is not None:
        return
    for argument, value in zip(func._schema.arguments, specs, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, TensorSpec))


def _signature(func: Any, specs: Any) -> str:
    def shown(value: Any) -> str:
        if isinstance(value, list | tuple):
            return f"({','.join(map(shown, value))})"
        if isinstance(value, Mapping):
            return ",".join(f"{key}={shown(item)}" for key, item in value.items())
        return str(value) if isinstance(value, TensorSpec | bool | int | torch.dtype) or value is None else "_"

    return f"{func.name().removeprefix('aten::')}{shown(specs[0])}{shown(specs[1])}"


def flop_of(func: Any, args: Any, kwargs: Any, out: Any) -> float:
    """Return the floating-point operations of a matrix product or of attention; 0 of everything else."""
    count: Callable[..., Any] | None = flop_registry.get(func.overloadpacket)
    return 0.0 if count is None else float(count(*args, **kwargs, out_val=out))
