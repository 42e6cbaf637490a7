"""What a stretch of code would take, by the operations that it calls: tensors alive, products, bytes moved.

`Tally` is a mode around code that runs on tensors without numbers (PyTorch's `FakeTensorMode`). It follows the birth
and the death of every storage, as the allocator would, and knows what each one is. The operations are those that run
below autograd; what a kernel allocates for itself is added from `planning.kernels`.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tuneoff.planning.kernels import product_of, workspace_bytes
from tuneoff.planning.operations import Counter, tensors_in
from tuneoff.study.value import Value

WEIGHTS, GRADIENTS, OPTIMIZER = "weights", "gradients", "optimizer"
ACTIVATIONS, LOGITS, KEY_VALUES = "activations", "logits", "key_values"
PARTS = (WEIGHTS, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOGITS, KEY_VALUES)

CUDA_BLOCK_BYTES = 512
"""PyTorch's allocator hands out whole blocks of these on a GPU."""

ANSWER = 2.0
"""What a number is taken to be where the traced code asks for one (a loss, a norm above the clip)."""

_aten = torch.ops.aten
_DEVICE_OF = torch.ops.prim.device.default


class Product(Value):
    """Matrix products, or calls of attention, of one shape and type."""

    operation: str
    """Name in PyTorch, such as `addmm` or `_scaled_dot_product_flash_attention_for_cpu`."""
    shapes: tuple[tuple[int, ...], ...]
    """Of the matrices; of attention queries, keys and values."""
    dtype: str
    flop: float
    """Of one call."""
    num_calls: float
    is_causal: bool = False
    is_transposed: tuple[bool, ...] = ()
    """Whether the matrices lie in memory column by column."""


class _Storage:
    """One storage: its size, and what it is, which may be learnt later."""

    __slots__ = ("part", "size")

    def __init__(self, size: int, part: str) -> None:
        self.size = size
        self.part = part


class Peak:
    """The highest point of a stretch: bytes in all and by part."""

    def __init__(self, total: int, parts: Mapping[str, int]) -> None:
        self.total = total
        self.parts = dict(parts)


class Tally(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows storages and sums up operations; use it within a `FakeTensorMode`.

    Args:
        vocabulary_size: last dimension by which logits are known.
        is_cuda: whether sizes are rounded up to the GPU allocator's blocks.

    Attributes:
        moved_bytes, num_operations: of all operations that are no views.
        products: number of calls by what is multiplied.
        answer: what a bool is taken to be where the traced code asks for one.
        has_cache: whether keys and values are kept, so that what they are kept in can be told.
        place: name of the stretch that is under way.
        passes, once: the operations themselves, of forward and backward, and of the optimizer.
    """

    def __init__(self, vocabulary_size: int, *, is_cuda: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._vocabulary_size = vocabulary_size
        self._is_cuda = is_cuda
        self._alive: dict[int, tuple[weakref.ref[Any], _Storage]] = {}
        self._events: list[tuple[str, int, _Storage]] = []
        self.is_logging = True
        self.answer = True
        self.has_cache = False
        self.place = ""
        self._gradient_shapes: set[torch.Size] = set()
        self.moved_bytes = 0.0
        self.num_operations = 0
        self.products: dict[Product, int] = {}
        self.passes, self.once = Counter(), Counter()
        self._times = 1

    def hold(self, tensor: Tensor, part: str) -> None:
        """Say what a tensor's storage is; one that was not seen yet is alive from now on."""
        self._storage(tensor, part).part = part

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: nothing is compiled, and the wrapper that would see to it is a third of a call."""
        return False

    @contextmanager
    def holding_gradients(self, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """Within the context the gradients of parameters are known as such when they are there."""
        self._gradient_shapes = {one.shape for one in parameters.values()}
        handles: list[Any] = []
        for one in parameters.values():
            handles.append(one.register_post_accumulate_grad_hook(self._hold_gradient))  # type: ignore[no-untyped-call]
        try:
            yield
        finally:
            self._gradient_shapes = set()
            for handle in handles:
                handle.remove()

    def _hold_gradient(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self.hold(parameter.grad, GRADIENTS)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operation, and take what it gives and takes into account."""
        if func is _DEVICE_OF:  # by far the most frequent
            return args[0].fake_device
        kwargs = kwargs or {}
        if func is _aten.add.Tensor and self._is_second_gradient(args):
            func = _aten.add_.Tensor
        answer = _ANSWERS.get(func)
        out = func(*args, **kwargs) if answer is None else answer(self.answer, *args, **kwargs)
        if not self.is_logging or getattr(func, "is_view", False):
            return out
        given = [*tensors_in(args), *tensors_in(kwargs.values())]
        made = list(tensors_in((out,)))
        if not made and not given:
            return out
        extra = workspace_bytes(func, args)
        if extra:
            passing = _Storage(extra, LOGITS if self._is_logits(made) else ACTIVATIONS)
            self._events += [(self.place, extra, passing), (self.place, -extra, passing)]
        for tensor in made:
            self._storage(tensor, self._part(func, args, kwargs, tensor))
        self.num_operations += self._times
        (self.once if self.place == "optimizer" else self.passes).note(func, args, kwargs, out, self._times)
        self.moved_bytes += self._times * sum(one.numel() * one.element_size() for one in (*given, *made))
        found = product_of(func, args, kwargs)
        if found is not None:
            product = Product(**found, num_calls=0)
            self.products[product] = self.products.get(product, 0) + self._times
        return out

    def _is_second_gradient(self, args: tuple[Any, ...]) -> bool:
        """Whether a weight's second gradient (of tied ones) is being added to its first.

        Autograd does it in place, but not with tensors of a kind of their own, as those without numbers are.
        """
        if not self._gradient_shapes or "/backward" not in self.place or not isinstance(args[1], Tensor):
            return False
        return args[0].shape in self._gradient_shapes and args[0].shape == args[1].shape

    def _part(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], tensor: Tensor) -> str:
        if self._is_logits([tensor]):
            return LOGITS
        if self.has_cache and tensor.dim() == 4:  # keys and values (R, H, C, D)
            grows = func is _aten.cat.default and (args[1] if len(args) > 1 else 0) in (2, -2)
            if grows or func in (_aten.new_zeros.default, _aten.index_select.default):
                return KEY_VALUES
        return ACTIVATIONS

    def _is_logits(self, tensors: list[Tensor]) -> bool:
        return any(one.dim() > 1 and one.shape[-1] == self._vocabulary_size for one in tensors)

    def _storage(self, tensor: Tensor, part: str) -> _Storage:
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self._alive.get(key)
        if known is not None and known[0]() is not None:
            return known[1]
        size = storage.nbytes()
        if self._is_cuda:
            size = -(-size // CUDA_BLOCK_BYTES) * CUDA_BLOCK_BYTES
        found = _Storage(size, part)

        def forget(_: object, key: int = key, found: _Storage = found) -> None:
            self._events.append((self.place, -found.size, found))
            if self._alive.get(key, (None, None))[1] is found:
                del self._alive[key]

        self._alive[key] = (weakref.ref(storage, forget), found)
        self._events.append((self.place, size, found))
        return found

    def peaks(self) -> dict[str, Peak]:
        """Return the highest point of each stretch, in the order in which they came."""
        running = dict.fromkeys(PARTS, 0)
        total = 0
        found: dict[str, Peak] = {}
        for place, change, storage in self._events:
            total += change
            running[storage.part] += change
            best = found.get(place)
            if best is None:
                found[place] = Peak(total, running)
            elif total > best.total:
                best.total = total
                best.parts = dict(running)
        return found

    @contextmanager
    def standing_for(self, number: int) -> Iterator[None]:
        """Within the context every operation is counted so many times."""
        before, self._times = self._times, number
        try:
            yield
        finally:
            self._times = before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within the context operations are not summed up."""
        before, self.is_logging = self.is_logging, False
        try:
            yield
        finally:
            self.is_logging = before


def _scalar(answer: bool, tensor: Tensor) -> float | int | bool:
    if tensor.dtype == torch.bool:
        return answer
    return ANSWER if tensor.dtype.is_floating_point else 0


def _nonzero(_answer: bool, tensor: Tensor) -> Tensor:
    return torch.empty(1, tensor.dim(), dtype=torch.int64, device=tensor.device)


def _bincount(_answer: bool, tensor: Tensor, _weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    return torch.empty(max(1, minlength), dtype=torch.int64, device=tensor.device)


_ANSWERS: dict[Any, Callable[..., Any]] = {
    _aten._local_scalar_dense.default: _scalar,
    _aten.nonzero.default: _nonzero,
    _aten.bincount.default: _bincount,
}
"""What depends on numbers, which are not there: one element is found."""
