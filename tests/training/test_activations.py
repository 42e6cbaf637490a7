"""The one-pass GELU is the written-out one, to rounding."""

import torch
from tests.methods.models import make_ids, make_model
from torch import nn
from transformers.activations import NewGELUActivation

from tuneoff.training.activations import fuse_activations


def test_a_models_logits_stay_and_no_written_out_gelu_is_left() -> None:
    model, ids = make_model("gpt2").double(), make_ids()
    before = model(input_ids=ids).logits
    assert any(isinstance(module, NewGELUActivation) for module in model.modules())
    fuse_activations(model)
    assert not any(isinstance(module, NewGELUActivation) for module in model.modules())
    assert any(isinstance(module, nn.GELU) for module in model.modules())
    assert torch.allclose(model(input_ids=ids).logits, before, rtol=1e-12, atol=1e-14)


def test_another_models_activations_stay() -> None:
    model = make_model("llama-tied")
    kinds = [type(module) for module in model.modules()]
    fuse_activations(model)
    assert [type(module) for module in model.modules()] == kinds
