"""The shorter way to what an operation gives against PyTorch's own, operation by operation."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from tuneoff.planning.shapes_mode import ShapesMode


class Diary(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down what every operation gives, and which storages are one."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: list[Any] = []
        self._storages: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no storage's number is given out again

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is not torch.ops.prim.device.default:
            self.rows.append((func, [self._form(one) for one in tree_iter(out)]))
        return out

    def _form(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return type(value)
        storage = value.untyped_storage()
        self._kept.append(storage)
        number = self._storages.setdefault(storage._cdata, len(self._storages))
        shape = (tuple(value.shape), value.stride(), value.storage_offset(), value.dtype, value.device)
        return (*shape, number, storage.nbytes(), value.requires_grad)


def small(kind: str) -> PreTrainedModel:
    shape = {"vocab_size": 40, "bos_token_id": 0, "eos_token_id": 0}
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, **shape))
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    return LlamaForCausalLM(
        LlamaConfig(hidden_size=16, intermediate_size=24, max_position_embeddings=32, **heads, **shape)
    )


def steps(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Two optimizer steps with autocast and texts, so that nearly all is asked for twice."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.zeros(3, 12, dtype=torch.int64)
    for _ in range(2):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    with torch.inference_mode():
        cache = model(ids[:, :6], use_cache=True).past_key_values
        model(ids[:, 6:7], past_key_values=cache, use_cache=True)


def written(mode: FakeTensorMode, work: Callable[[], None]) -> list[Any]:
    with mode, Diary() as diary:
        work()
    return diary.rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_model_takes_the_same_operations_to_the_same_ends(kind: str, dtype: torch.dtype) -> None:
    rows = []
    for mode in (ShapesMode(), FakeTensorMode()):
        with mode:
            model = small(kind)
        rows.append(written(mode, lambda model=model: steps(model, dtype)))  # type: ignore[misc]
    ours, theirs = rows
    assert len(ours) > 500
    for number, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        assert own == other, number


def test_what_was_asked_before_is_not_asked_of_pytorch_again(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, own = [], FakeTensorMode.dispatch

    def counted(self: FakeTensorMode, func: Any, *rest: Any) -> Any:
        if func is not torch.ops.prim.device.default:
            asked.append(func)
        return own(self, func, *rest)

    mode = ShapesMode()
    with mode:
        model = small("gpt2")
    written(mode, lambda: steps(model, torch.float32))
    monkeypatch.setattr(FakeTensorMode, "dispatch", counted)
    rows = written(mode, lambda: steps(model, torch.float32))
    assert len(asked) < 0.5 * len(rows)


def twice(work: Callable[[], Any]) -> tuple[Any, Any]:
    with ShapesMode():
        return work(), work()


def test_numbers_of_other_types_are_other_questions() -> None:
    with ShapesMode():
        assert [torch.full((2,), value).dtype for value in (1, 1.0, True, 1)] == [
            *(torch.int64, torch.float32, torch.bool, torch.int64)
        ]
        ones = torch.ones(2, dtype=torch.int32)
        assert [(ones * value).dtype for value in (2, 2.0, 2)] == [torch.int32, torch.float32, torch.int32]


def test_what_is_changed_in_place_is_the_very_tensor() -> None:
    with ShapesMode():
        for _ in range(2):
            one, other = torch.ones(3), torch.ones(3)
            assert one.add_(other) is one


def test_a_view_looks_into_its_own_tensor() -> None:
    first, second = twice(lambda: (one := torch.empty(4, 6), one.t(), one[1:3, ::2], one.split(2), one.reshape(24)))
    for one, *views in (first, second):
        storage = one.untyped_storage()._cdata
        for view in tree_iter(views):
            assert view.untyped_storage()._cdata == storage
    assert first[0].untyped_storage()._cdata != second[0].untyped_storage()._cdata
    assert second[2].storage_offset() == 6
    assert second[2].stride() == (6, 2)


def test_numbers_that_are_known_stay_known() -> None:
    first, second = twice(lambda: (torch.tensor(3) + 1).item())
    assert (first, second) == (4, 4)


def test_what_depends_on_numbers_is_not_answered() -> None:
    with ShapesMode():
        for _ in range(2):
            with pytest.raises(DynamicOutputShapeException):
                torch.ones(3).nonzero()


def test_the_device_and_the_default_type_are_part_of_the_question() -> None:
    with ShapesMode(allow_non_fake_inputs=True):
        assert torch.empty(2).dtype == torch.float32
        torch.set_default_dtype(torch.float64)
        try:
            assert torch.empty(2).dtype == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)
        assert torch.empty(2, device="cpu").device.type == "cpu"
