"""What a model is asked for when it writes: the logits after the last token, as one product."""

from typing import Any

import pytest
import torch
from tests.methods.models import VOCABULARY, make_model
from torch.overrides import TorchFunctionMode

from tuneoff.evaluation.cached_forward import CachedForward


class Heads(TorchFunctionMode):
    """Keeps the strides of what is multiplied with the head's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.strides: list[tuple[int, ...]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.linear and args[1].shape[0] == VOCABULARY:
            self.strides.append(args[0].stride())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("name", ["gpt2", "llama-untied"])
def test_the_head_takes_rows_that_lie_side_by_side(name: str, rows: int) -> None:
    """Of the last of several tokens they lie apart, and PyTorch makes a copy of a bf16 head for each of them."""
    model = make_model(name).eval()
    forward, seen = CachedForward(model, 0), Heads()
    ids, mask = forward.left_padded([list(range(3, 10))] * rows)
    with torch.no_grad(), seen:
        found = forward(ids, mask, forward.new_cache())
    (strides,) = seen.strides
    assert strides[-1] == 1
    assert strides[0] == model.config.hidden_size
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits[:, -1]
    torch.testing.assert_close(found, expected)
    assert not model.get_output_embeddings()._forward_pre_hooks
