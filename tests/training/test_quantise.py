"""Quantised bases: what is computed, what is held, what is trained, and that PEFT on bitsandbytes computes the same."""

import copy
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tests.methods.models import CONFIGS, logits, make_ids, make_model
from tests.training.helpers import Recorder, make_loop, make_split
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from tuneoff.errors import UnsupportedError
from tuneoff.methods import LoRA
from tuneoff.methods.base import num_parameters
from tuneoff.methods.surgery import adaptable_layers, is_quantised
from tuneoff.training import quantise as module
from tuneoff.training.models import load_base
from tuneoff.training.quantise import (
    INT8,
    NF4,
    Int8Linear,
    NF4Linear,
    QuantisedLinear,
    check_quantisable,
    quantisable_layers,
    quantise,
    quantised_bytes,
)

KINDS = (NF4, INT8)
BOUND = 1e-6
"""Of the largest logit: the same products; where a `Conv1D` was turned, PyTorch may sum them in another order."""
each_kind = pytest.mark.parametrize("kind", KINDS)
each_architecture = pytest.mark.parametrize("architecture", CONFIGS)


def quantised(architecture: str, kind: str) -> nn.Module:
    """Return a model on a quantised base."""
    model = make_model(architecture)
    quantise(model, kind)
    return model


def layers_of(model: nn.Module) -> dict[str, QuantisedLinear]:
    """Return the quantised layers by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantisedLinear)}


def is_tied(model: nn.Module) -> bool:
    """Return whether the head and the embeddings share their weight."""
    return bool(model.get_output_embeddings().weight is model.get_input_embeddings().weight)


def dense_twin(architecture: str, model: nn.Module) -> nn.Module:
    """Return the plain model whose weights are those that the quantised one computes with."""
    twin = make_model(architecture)
    for name, layer in layers_of(model).items():
        own = twin.get_submodule(name)
        weight = layer.dequantised(torch.float32)
        own.weight.data.copy_(weight.T if isinstance(own, Conv1D) else weight)
    return twin


def difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    return float((first - second).abs().max() / second.abs().max())


@each_architecture
@each_kind
def test_the_logits_are_those_of_the_dequantised_weights(kind: str, architecture: str) -> None:
    model, ids = quantised(architecture, kind), make_ids()
    assert difference(logits(model, ids), logits(dense_twin(architecture, model), ids)) <= BOUND
    assert not torch.equal(logits(model, ids), logits(make_model(architecture), ids))


@each_architecture
@each_kind
def test_every_linear_layer_of_the_trunk_is_held_in_few_bits_and_nothing_else(kind: str, architecture: str) -> None:
    base, model = make_model(architecture), quantised(architecture, kind)
    head = base.get_output_embeddings()
    expected = {name for name, layer in adaptable_layers(base).items() if layer is not head}
    assert set(layers_of(model)) == expected
    for name, layer in adaptable_layers(model).items():
        assert is_quantised(layer) == (name in expected)
    assert model.get_output_embeddings().weight.dtype == torch.float32
    assert is_tied(model) == is_tied(base)
    assert num_parameters(model) == num_parameters(base)


NF4_VALUES = (
    *(-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
)
"""Dettmers et al., 2023, appendix E."""
SCALE_ERROR = 0.0071
"""Half the widest gap of the 8-bit values of a scale: 64 of them between a tenth of the largest and the largest."""


@each_architecture
def test_nf4_takes_the_nearest_of_16_values_times_the_blocks_scale(architecture: str) -> None:
    base, model = make_model(architecture), quantised(architecture, NF4)
    values = torch.tensor(NF4_VALUES)
    for name, layer in layers_of(model).items():
        own = base.get_submodule(name)
        dense = (own.weight.T if isinstance(own, Conv1D) else own.weight).detach().reshape(-1)
        found = layer.dequantised(torch.float32).reshape(-1)
        largest = torch.stack([block.abs().max() for block in dense.split(64)])
        spread = (largest - largest.mean()).abs().max()
        for block, rounded, exact in zip(dense.split(64), found.split(64), largest, strict=True):
            nearest = values[(block[:, None] / exact - values).abs().argmin(dim=1)]
            scale = rounded[block.abs().argmax()].abs()  # the largest weight is rounded to the scale itself
            assert (scale - exact).abs() <= SCALE_ERROR * spread + 1e-7
            assert torch.allclose(rounded, nearest * scale, rtol=1e-5, atol=1e-8)


def test_int8_rounds_each_row_to_255_steps() -> None:
    layer = nn.Linear(40, 24)
    held = Int8Linear(layer)
    step = layer.weight.abs().amax(dim=1, keepdim=True) / 127
    assert ((held.dequantised(torch.float32) - layer.weight).abs() <= 0.5001 * step).all()
    with torch.no_grad():
        layer.weight[3] = 0.0
    assert not Int8Linear(layer).dequantised(torch.float32)[3].any()


def held_bytes(layer: QuantisedLinear) -> int:
    """Return the bytes of what a layer keeps, without its bias."""
    kept = [layer.weight, *layer.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in kept)


@each_kind
@pytest.mark.parametrize("shape", [(16, 48), (7, 33), (512, 384), (1024, 1024)])
def test_bytes_are_the_closed_formula(kind: str, shape: tuple[int, int]) -> None:
    layer = {NF4: NF4Linear, INT8: Int8Linear}[kind](nn.Linear(*shape))
    assert held_bytes(layer) == quantised_bytes(kind, *shape)


def test_bits_per_weight_of_a_large_layer() -> None:
    assert 8 * held_bytes(NF4Linear(nn.Linear(1024, 1024))) / 1024**2 == pytest.approx(
        4.127 + 8 * 1092 / 1024**2, abs=1e-3
    )
    assert 8 * held_bytes(Int8Linear(nn.Linear(1024, 1024))) / 1024**2 == pytest.approx(8 + 32 / 1024)


@each_architecture
@each_kind
def test_lora_learns_on_a_quantised_base_and_leaves_its_bits(kind: str, architecture: str) -> None:
    model = quantised(architecture, kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = LoRA(rank=3).adapt(model, torch.Generator().manual_seed(1))
    ids = make_ids()
    assert torch.equal(logits(adapted.module, ids), logits(quantised(architecture, kind), ids))
    recorder = Recorder()
    make_loop(adapted, [1], [3e-2], make_split(), recorder, num_steps=30, evaluate_every=10).run()
    assert recorder.losses(kind="validation")[-1] < recorder.losses(kind="validation")[0]
    after = adapted.remove().state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@each_architecture
@each_kind
def test_gradients_pass_through_the_quantised_base(kind: str, architecture: str) -> None:
    """The gradients of A and B are those on the plain model with the dequantised weights."""
    model = quantised(architecture, kind)
    twin = dense_twin(architecture, model)
    ids, found = make_ids(), []
    for base in (model, twin):
        adapted = LoRA(rank=3).adapt(base, torch.Generator().manual_seed(1))
        for name, parameter in adapted.trainable_parameters().items():
            if name.endswith("lora_B.weight"):
                parameter.data.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(2))
        adapted.module(input_ids=ids, labels=ids).loss.backward()
        found.append({name: parameter.grad for name, parameter in adapted.trainable_parameters().items()})
    for name, gradient in found[0].items():
        assert gradient.abs().sum() > 0, name
        assert difference(gradient, found[1][name]) <= 1e-5, name


@each_kind
def test_training_and_evaluation_compute_the_same(kind: str) -> None:
    """bitsandbytes' own layers do not, on a CPU: in evaluation they pack NF4 anew and round the inputs of int8."""
    model, ids = quantised("llama-tied", kind), make_ids()
    evaluated = logits(model.eval(), ids)
    with torch.enable_grad():
        trained = model.train()(input_ids=ids).logits.detach()
    assert torch.equal(evaluated, trained)


@each_kind
def test_autocast_computes_in_its_type_and_a_change_of_type_leaves_the_bits(kind: str) -> None:
    layer = quantised("gpt2", kind).get_submodule("transformer.h.0.mlp.c_fc")
    x = torch.randn(2, 5, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    assert layer(x).dtype == torch.float32
    moved = copy.deepcopy(layer).to(torch.bfloat16)
    assert torch.equal(moved.dequantised(torch.float32), layer.dequantised(torch.float32))


@each_kind
def test_a_base_is_quantised_from_the_type_it_is_loaded_in(kind: str, world: Path) -> None:
    model = load_base("base", world, dtype=torch.bfloat16, quantize=kind)
    plain = load_base("base", world, dtype=torch.bfloat16)
    quantise(plain, kind)
    assert layers_of(model)
    ours, theirs = model.state_dict(), plain.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_head_of_a_classifier_stays_dense() -> None:
    from transformers import AutoModelForSequenceClassification

    config = CONFIGS["llama-tied"]()
    config.num_labels = 3
    model = AutoModelForSequenceClassification.from_config(config)
    assert "score" not in quantisable_layers(model)
    assert len(quantisable_layers(model)) == 14


def test_without_bitsandbytes_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    module._bitsandbytes.cache_clear()
    try:
        with pytest.raises(UnsupportedError, match=r"pip install 'tuneoff\[qlora\]'"):
            quantise(make_model("gpt2"), NF4)
        quantise(make_model("gpt2"), INT8)
    finally:
        module._bitsandbytes.cache_clear()


IMPORT = """
import sys
import torch
from tuneoff.training.quantise import _bitsandbytes

marked = torch.compile
functional = _bitsandbytes().functional
assert torch.compile is marked
x = torch.randn(1, 128)
packed, state = functional.quantize_4bit(x, blocksize=64, quant_type="nf4")
assert (functional.dequantize_4bit(packed, state) - x).abs().max() < 0.5
print("torch._inductor.compile_fx" in sys.modules)
"""


def test_bitsandbytes_is_used_without_pytorchs_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


def test_what_is_marked_meanwhile_is_compiled_when_it_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_now(function: Callable[..., int], **options: object) -> Callable[..., int]:
        compiled.append(options)
        return lambda *numbers: -function(*numbers)

    monkeypatch.setattr(torch, "compile", compile_now)
    with module._compiling_when_called():

        @torch.compile
        def plain(number: int) -> int:
            return number

        @torch.compile(dynamic=False)
        def total(first: int, second: int) -> int:
            return first + second

    assert torch.compile is compile_now
    assert not compiled
    assert [total(1, 2), total(3, 4), plain(5)] == [-3, -7, -5]
    assert compiled == [{"dynamic": False}, {}]


def test_a_plan_looks_for_bitsandbytes_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_bitsandbytes", lambda: pytest.fail("imported"))
    assert check_quantisable(make_model("gpt2"), NF4).keys() == quantisable_layers(make_model("gpt2")).keys()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'tuneoff\[qlora\]'"):
        check_quantisable(make_model("gpt2"), NF4)


@pytest.fixture
def no_warnings() -> Iterator[None]:
    """PEFT warns of Conv1D; that is not what is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def wide_model(architecture: str) -> nn.Module:
    """Return a model whose layers are whole blocks wide; bitsandbytes' CPU kernel misreads others."""
    config = CONFIGS[architecture]()
    size = {"n_embd": 64} if architecture == "gpt2" else {"hidden_size": 64, "intermediate_size": 128}
    if architecture.startswith("llama"):
        size["head_dim"] = 16
    size["attention_dropout"] = 0  # in GPT-NeoX it is no module
    for key, value in size.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(config)
    return model.eval()


def on_bitsandbytes(model: nn.Module, kind: str, folder: Path) -> nn.Module:
    """Return a model as Transformers quantises it, its weights and layers those of bitsandbytes."""
    from transformers import BitsAndBytesConfig

    model.save_pretrained(folder)
    if kind == NF4:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    else:
        config = BitsAndBytesConfig(load_in_8bit=True)
    loaded: nn.Module = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=config, dtype=torch.float32, device_map="cpu"
    )
    return loaded


def take_over_int8(ours: dict[str, QuantisedLinear], theirs: nn.Module) -> None:
    """Hold our layers to one step of bitsandbytes' weights, and take its weights."""
    for name, layer in ours.items():
        assert isinstance(layer, Int8Linear)
        weight = theirs.get_submodule(f"base_model.model.{name.removesuffix('.base')}.base_layer").weight
        steps = (layer.weight.int() - weight.data.int()).abs()
        assert steps.max() <= 1
        assert steps.float().mean() < 0.1
        scale = weight.SCB.float().view(-1, 1)
        assert torch.allclose(scale, layer.scale.view(torch.float32), rtol=2**-10)
        layer.weight.data.copy_(weight.data)
        layer.scale.copy_(scale.view(torch.int32))


@pytest.mark.reference
@pytest.mark.usefixtures("no_warnings")
@each_architecture
@each_kind
def test_peft_on_bitsandbytes_computes_the_same(kind: str, architecture: str, tmp_path: Path) -> None:
    """The same A and B on the same base, quantised there by Transformers; in training mode, without dropout.

    bitsandbytes rounds int8 from fp16 weights, so a few differ by one step of 255; then the logits are compared on its
    weights.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=3, lora_alpha=6, target_modules="all-linear", task_type="CAUSAL_LM")
    base = wide_model(architecture)
    theirs = get_peft_model(on_bitsandbytes(base, kind, tmp_path), config)
    quantise(base, kind)
    ours = LoRA(rank=3, alpha=6.0).adapt(base, torch.Generator())
    own = ours.trainable_parameters()
    draw = torch.Generator().manual_seed(5)
    for name, parameter in theirs.named_parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=draw) * 0.1
            own[name.removeprefix("base_model.model.").replace(".default", "")].data.copy_(parameter.data)
    if kind == INT8:
        take_over_int8(layers_of(ours.module), theirs)
    for layer in (*theirs.modules(), *ours.module.modules()):
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    theirs.train()
    ours.module.train()
    ids = make_ids()
    assert difference(ours.module(input_ids=ids).logits, theirs(input_ids=ids).logits) <= BOUND
