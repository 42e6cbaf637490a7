"""PyTorch's mode in which tensors have no numbers, with a shorter way for what was asked before.

Most of `FakeTensorMode`'s time goes into a key of all that it can serve: symbolic shapes, sparse tensors, graphs. A
decoder asks for the same few hundred operations over and over, of dense tensors alone, so shapes, strides and types
tell what comes out. Once PyTorch's own way has given an answer, the like is given at once; what is not of this plain
kind always goes PyTorch's way.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

from tuneoff.planning.operations import TensorSpec, tensors_in

_OF_NUMBERS = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view})
"""Marks of operations that give what depends on numbers, or change the form of what they are given."""
_PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format})
_MODULES = ("aten", "prims")
MOST_ANSWERS = 20_000
"""Kept at a time, a few megabytes: those of some dozen models."""


@dataclass(frozen=True, slots=True)
class _Form:
    """A dense tensor that an operation gives.

    Attributes:
        shape, strides, offset: in elements.
        dtype: of the elements.
        device: where it claims to lie.
        viewed: which argument's storage it looks into; none has a storage of its own.
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device
    viewed: int | None


@dataclass(frozen=True, slots=True)
class _Answer:
    """What an operation gives: one of its arguments, or these tensors.

    Attributes:
        argument: which one; none gives tensors.
        forms: of the tensors; None in the place of None.
        kind: list or tuple; none is a single tensor.
    """

    argument: int | None
    forms: tuple[_Form | None, ...] = ()
    kind: type | None = None


class _StrangeError(Exception):
    """What is not of the plain kind."""


class ShapesMode(FakeTensorMode):  # type: ignore[no-untyped-call]
    """A `FakeTensorMode` that remembers what operations give; all of a process share what they know."""

    _answers: ClassVar[dict[Any, _Answer | None]] = {}

    def dispatch(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Return what an operation gives: as before where that is known, else what `FakeTensorMode` says."""
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # its tensors are of a kind of their own
            return super().dispatch(func, types, args, kwargs)
        key: list[Any] = [func, torch.get_default_dtype()]
        try:
            self._describe(args, key)
            if kwargs:
                key += kwargs
                self._describe(kwargs.values(), key)
        except _StrangeError:
            return super().dispatch(func, types, args, kwargs)
        whole = tuple(key)
        if whole not in self._answers:
            out = super().dispatch(func, types, args, kwargs)
            if len(self._answers) >= MOST_ANSWERS:
                self._answers.clear()
            self._answers[whole] = _answer(func, args, kwargs, out)
            return out
        answer = self._answers[whole]
        if answer is None:
            return super().dispatch(func, types, args, kwargs)
        if answer.argument is not None:
            return args[answer.argument]
        with in_kernel_invocation_manager(self):
            made = [None if form is None else _shape(form, args) for form in answer.forms]
        found = [
            None if one is None or form is None else FakeTensor(self, one, form.device)
            for one, form in zip(made, answer.forms, strict=True)
        ]
        return found[0] if answer.kind is None else answer.kind(found)

    def _describe(self, values: Iterable[Any], key: list[Any]) -> None:
        """Add to a key what tells the values from others.

        Raises:
            _StrangeError: it has to be looked at more closely than a key does.
        """
        for value in values:
            kind = type(value)
            if kind in _PLAIN:
                key += (kind, value)
            elif isinstance(value, FakeTensor):
                dtype = value.dtype
                if value.constant is not None or value.layout != torch.strided or dtype.is_complex:
                    raise _StrangeError
                key += (value.shape, value.stride(), value.storage_offset(), dtype, value.fake_device)
            elif kind is list or kind is tuple:
                key += (kind, len(value))
                self._describe(value, key)
            else:
                raise _StrangeError


def _shape(form: _Form, args: Sequence[Any]) -> Tensor:
    """Return a tensor of a form on the meta device; a view of what the argument looks into."""
    if form.viewed is None:
        return torch.empty_strided(form.shape, form.strides, dtype=form.dtype, device="meta")
    made = torch.empty(0, dtype=form.dtype, device="meta")
    made.set_(args[form.viewed].untyped_storage(), form.offset, form.shape, form.strides)
    return made


def _answer(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> _Answer | None:
    """Return what the like call will give; none where that has to be asked again."""
    if getattr(func, "namespace", "") not in _MODULES or _OF_NUMBERS.intersection(func.tags):
        return None
    for number, one in enumerate(args):
        if one is out and out is not None:
            return _Answer(number)
    kind = next((one for one in (list, tuple) if isinstance(out, one)), None)  # a named tuple is a tuple to PyTorch
    parts = [out] if kind is None else list(out)
    if any(one is not None and not isinstance(one, FakeTensor) for one in parts):
        return None
    storages = {one.untyped_storage()._cdata: number for number, one in enumerate(args) if isinstance(one, Tensor)}
    given = {one.untyped_storage()._cdata for one in tensors_in((*args, *kwargs.values()))}
    forms = [None if one is None else _form(one, storages, given) for one in parts]
    if any(form is None and one is not None for form, one in zip(forms, parts, strict=True)):
        return None
    return _Answer(None, tuple(forms), kind)


def _form(tensor: FakeTensor, storages: Mapping[int, int], given: Collection[int]) -> _Form | None:
    """Return the form of a tensor; none of what is not dense, has numbers, or lies in a storage larger than it needs.

    Args:
        tensor: what an operation gave.
        storages: of the arguments that are tensors, and which argument has it.
        given: the same, with those that stand in lists or have names.
    """
    if tensor.constant is not None or tensor.layout != torch.strided or tensor.dtype.is_complex:
        return None
    storage = tensor.untyped_storage()
    viewed = storages.get(storage._cdata)
    if viewed is None and storage._cdata in given:
        return None
    shape, strides = tuple(tensor.shape), tensor.stride()
    if viewed is None:
        spanned = TensorSpec(tensor.dtype, shape, strides).num_spanned
        if tensor.storage_offset() or storage.nbytes() != spanned * tensor.dtype.itemsize:
            return None
    return _Form(shape, strides, int(tensor.storage_offset()), tensor.dtype, tensor.fake_device, viewed)
