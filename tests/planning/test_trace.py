"""What a trace says against closed formulas, against the allocator's own events, and against itself."""

import copy
import gc
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedConfig, PreTrainedModel

from tuneoff.data.batching import BatchSequence
from tuneoff.evaluation.generation import generate_each
from tuneoff.evaluation.likelihood import EVALUATION_TOKENS, score_split
from tuneoff.methods import AdaptedModel, method_from_spec
from tuneoff.planning.plan import study_shape
from tuneoff.planning.setting import PAD, synthetic_split
from tuneoff.planning.tally import PARTS
from tuneoff.planning.trace import Lengths, PhaseTrace, trace_arm
from tuneoff.study.loading import load_study, study_from
from tuneoff.study.spec import Study
from tuneoff.training.activations import fuse_activations
from tuneoff.training.loop import Loop, LoopPlan, Member
from tuneoff.training.meter import Meter
from tuneoff.training.models import shape_only
from tuneoff.training.optim import MemberOptimizer
from tuneoff.training.quantise import quantised_bytes
from tuneoff.training.runtime import open_runtime
from tuneoff.training.steps import MIN_PACKED_TOKENS, Forward

FP32, MOMENTS = 4, 2
LORA = {"method": "lora", "rank": 4, "alpha": 8, "targets": ["all-linear"], "lr": 1e-3}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full", "lr": 1e-3},
    "lora": LORA,
    "dropped": LORA | {"dropout": 0.1},
    "bottleneck": {"method": "bottleneck", "size": 8, "lr": 1e-3},
    "prompt": {"method": "prompt", "num_virtual_tokens": 5, "lr": 1e-2},
    "prefix": {"method": "prefix", "num_virtual_tokens": 5, "lr": 1e-2},
    "bitfit": {"method": "bitfit", "lr": 1e-2},
    "none": {"method": "none"},
}
LARGEST_ERROR = 0.10
LLAMA3_8B = 8_030_261_248
ROTARY_BYTES = 2 * 64 * FP32
"""Of Llama's rotation frequencies, held twice."""


NUM_LAYERS = 2
"""So few are all traced. More are reckoned from a few (`MANY_LAYERS`)."""
MANY_LAYERS = 6


def config_of(name: str, num_layers: int = NUM_LAYERS) -> PreTrainedConfig:
    """Return a configuration whose products are large enough to matter, and small enough for a test."""
    if name == "gpt2":
        return GPT2Config(
            vocab_size=512, n_embd=64, n_layer=num_layers, n_head=4, n_positions=256, bos_token_id=0, eos_token_id=0
        )
    return LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
    )


def study_of(method: str | Mapping[str, Any], **values: Any) -> Study:
    task = {"kind": "instruction", "data": "demo", "max_length": 128, "metrics": ["rouge1"]}
    arm = METHODS[method] if isinstance(method, str) else method
    raw = {"name": "s", "model": "demo", "task": task, "budget": {"steps": 3, "batch_size": 4}, "arms": {"a": arm}}
    raw["generate"] = {"max_new_tokens": 8, "batch_size": 4}
    return study_from(raw | values, Path())


def lengths_of(*train: int, prompts: tuple[int, ...] = ()) -> Lengths:
    return Lengths(train=train, targets=tuple(length - 1 for length in train), prompts=prompts)


def trace(study: Study, lengths: Lengths, base: PreTrainedModel | None = None, **options: Any) -> dict[str, PhaseTrace]:
    base = base or shape_only(config_of("gpt2"))
    return {one.phase: one for one in trace_arm(study, study.arms[0], base, lengths, **options)}


def train_trace(study: Study, lengths: Lengths, base: PreTrainedModel | None = None, **options: Any) -> PhaseTrace:
    """Return the trace of the training step alone."""
    return trace(study, lengths, base, phases=("train",), **options)["train"]


LENGTHS = lengths_of(128, 120, 110, 128)


# --- closed formulas


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_weights_gradients_and_adams_state_of_full_fine_tuning_are_the_closed_formulas(name: str) -> None:
    base = shape_only(config_of(name))
    num = sum(parameter.numel() for parameter in base.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in base.buffers())
    # with two micro-batches the gradients are all there wherever the highest point lies
    found = train_trace(study_of("full", micro_batch=2), LENGTHS, base)
    assert found.parts["weights"] == FP32 * num + buffers
    assert found.parts["gradients"] == FP32 * num
    num_tensors = len(list(base.parameters()))
    assert found.parts["optimizer"] == MOMENTS * FP32 * num + FP32 * num_tensors  # and each one's step count
    assert found.peak_bytes == sum(found.parts.values())
    assert set(found.parts) == set(PARTS)


@pytest.mark.parametrize(("precision", "size"), [("fp32", 4), ("bf16", 2)])
def test_lora_holds_a_frozen_base_in_the_compute_type_and_what_it_trains_in_fp32(precision: str, size: int) -> None:
    base = shape_only(config_of("gpt2"))
    num, width = sum(parameter.numel() for parameter in base.parameters()), 64
    trained = NUM_LAYERS * 4 * sum((width + 3 * width, width + width, width + 4 * width, 4 * width + width))
    found = train_trace(study_of("lora", precision=precision, micro_batch=2), LENGTHS, base)
    assert found.parts["weights"] == size * num + FP32 * trained
    assert found.parts["gradients"] == FP32 * trained
    assert found.parts["optimizer"] == MOMENTS * FP32 * trained + FP32 * 2 * 4 * NUM_LAYERS


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_base_takes_its_few_bits(kind: str) -> None:
    base = shape_only(config_of("gpt2"))
    width = 64
    layers = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
    dense = NUM_LAYERS * sum(one * other for one, other in layers)
    num = sum(parameter.numel() for parameter in base.parameters())
    trained = NUM_LAYERS * 4 * sum(one + other for one, other in layers)
    held = NUM_LAYERS * sum(quantised_bytes(kind, *layer) for layer in layers)
    study = study_of(LORA | {"quantize": kind}, precision="bf16", micro_batch=2)
    found = train_trace(study, LENGTHS, base)
    assert found.parts["weights"] == 2 * (num - dense) + held + FP32 * trained


def test_llama_3_8b_is_its_closed_formulas() -> None:
    study = load_study("dolly-llama3")
    base = study_shape(study)
    lengths = Lengths(train=(512,) * 16, targets=(511,) * 16)
    rank, width, key_width, num_layers = 16, 4096, 1024, 32
    trained = num_layers * rank * 2 * (2 * width + width + key_width)
    assert trained == 13_631_488
    (lora,) = trace_arm(study, study.arm("lora-r16"), base, lengths, phases=("train",))
    assert lora.parts["weights"] == 2 * LLAMA3_8B + FP32 * trained + ROTARY_BYTES
    assert lora.parts["gradients"] == FP32 * trained
    assert lora.parts["optimizer"] == MOMENTS * FP32 * trained + FP32 * num_layers * 4 * 2
    (full,) = trace_arm(study, study.arm("full"), base, lengths, phases=("train",))
    assert full.parts["weights"] == FP32 * LLAMA3_8B + ROTARY_BYTES
    assert full.parts["gradients"] == FP32 * LLAMA3_8B
    # forward 2, backward 4 for each weight of a product and token, but for the embeddings; attention comes on top
    products = LLAMA3_8B - 128_256 * width - (2 * num_layers + 1) * width
    attention = 3.5 * 2 * num_layers * width * 16 * 512 * 512  # half of 512 x 512 pairs, forward 2 and backward 5
    tokens = 16 * 512
    head = 6 * 128_256 * width * 16  # of the first token of each sequence nothing is predicted
    assert full.flop == pytest.approx(6 * products * tokens + attention - head, rel=1e-6)


# --- a few layers and all of them


@pytest.mark.parametrize(
    ("name", "method"),
    [("gpt2", "bottleneck"), ("gpt2", "dropped"), ("gpt2", "prefix"), ("llama", "full"), ("llama", "none")],
)
def test_reckoned_from_a_few_layers_a_trace_is_that_of_all(method: str, name: str) -> None:
    base = shape_only(config_of(name, MANY_LAYERS))
    study = study_of(method, micro_batch=2, generate={"max_new_tokens": 3, "batch_size": 4})
    lengths = LENGTHS if method != "prefix" else lengths_of(64, 60, 50, 64)
    lengths = lengths.model_copy(update={"prompts": (30, 20, 20)})
    few = trace(study, lengths, base, num_layers=(3, 4))
    whole = trace(study, lengths, base, num_layers=())
    assert set(few) == set(whole) == {"evaluate", "generate"} | ({"train"} if method != "none" else set())
    for phase in few:
        assert few[phase].peak_bytes == whole[phase].peak_bytes
        assert few[phase].parts == whole[phase].parts
        assert few[phase].num_operations == whole[phase].num_operations
        assert few[phase].flop == pytest.approx(whole[phase].flop, rel=1e-12)
        assert few[phase].moved_bytes == pytest.approx(whole[phase].moved_bytes, rel=1e-12)


def test_layers_that_differ_are_all_traced() -> None:
    study = study_of(LORA | {"targets": ["h.5.attn.c_attn"]})
    found = train_trace(study, LENGTHS, shape_only(config_of("gpt2", MANY_LAYERS)))
    assert found.parts["optimizer"] == MOMENTS * FP32 * 4 * (64 + 192) + 2 * FP32


def test_the_base_is_left_as_it_was() -> None:
    base = shape_only(config_of("gpt2"))
    before = copy.deepcopy(base)
    trace(study_of("lora"), LENGTHS, base)
    assert [type(one) for one in base.modules()] == [type(one) for one in before.modules()]
    assert all(one.is_meta for one in base.parameters())
    assert base.config.to_dict() == before.config.to_dict()


# --- the allocator's events


class Quiet:
    """A host that does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def make_loop(study: Study, name: str, lengths: Lengths) -> Loop:
    """Return a loop over random weights that has made a step."""
    runtime = open_runtime(study.precision, 1)
    method = method_from_spec(study.arms[0].method)
    dtype = torch.float32 if method.trains_base else runtime.compute_dtype
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(name, MANY_LAYERS), dtype=dtype).eval()
    fuse_activations(model)
    adapted: AdaptedModel = method.adapt(model, torch.Generator().manual_seed(0))
    split = synthetic_split(lengths.train, lengths.targets)
    forward = Forward(adapted.module)
    with runtime.autocast():
        forward.check(torch.zeros(1, 5, dtype=torch.int64))
        if adapted.can_pack and forward.check_packing([torch.zeros(one, dtype=torch.int64) for one in (5, 7, 6)]):
            forward.is_packed = bool(split.lengths.mean() >= MIN_PACKED_TOKENS)
    optimizer = MemberOptimizer(adapted.trainable_parameters(), 1e-3, study.optimizer, 3, False, {})
    member = Member(0, BatchSequence(len(split), len(split), 0), optimizer)
    size = min(study.micro_batch or len(split), len(split))
    loop = Loop(adapted, forward, [member], split, LoopPlan(3, 3, 3, size, PAD), Quiet(), Meter(runtime))
    loop.train_step()
    loop.step = 1
    return loop


def measured_peak(phase: Callable[[], Any]) -> int:
    """Return the most bytes of tensors alive, by the allocator's own events."""
    gc.collect()
    storages: dict[int, int] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
    for one in own:
        if one.device.type == "cpu" and type(one) in (torch.Tensor, torch.nn.Parameter):
            storages[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        phase()
    assert found.profiler is not None
    assert found.profiler.kineto_results is not None
    running = highest = 0
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        running += event.nbytes()
        highest = max(highest, running)
    return sum(storages.values()) + highest


@pytest.mark.parametrize(
    ("name", "method", "precision"), [("gpt2", "full", "fp32"), ("gpt2", "dropped", "bf16"), ("llama", "lora", "bf16")]
)
def test_the_highest_point_is_the_allocators(name: str, method: str, precision: str) -> None:
    study = study_of(method, precision=precision, micro_batch=2, decoding=["greedy", {"top_p": 0.9}])
    lengths = LENGTHS.model_copy(update={"prompts": (30, 30, 30)})
    predicted = trace(study, lengths, shape_only(config_of(name, MANY_LAYERS)))
    loop = make_loop(study, name, lengths)
    module = loop.adapted.module
    assert predicted["train"].peak_bytes == pytest.approx(measured_peak(loop.train_step), rel=LARGEST_ERROR)

    times = EVALUATION_TOKENS // sum(lengths.train) + 1
    split = synthetic_split(lengths.train * times, lengths.targets * times)
    scored = measured_peak(lambda: score_split(module, loop.forward, split, loop.runtime, PAD))
    assert predicted["evaluate"].peak_bytes == pytest.approx(scored, rel=LARGEST_ERROR)

    loop.members.clear()  # a test is read without the optimizer
    prompts = [[1 + index] + [0] * 29 for index in range(3)]
    options = {"pad_id": PAD, "eos_id": None, "seed": 0, "context_length": None, "autocast": loop.runtime.autocast}
    written = measured_peak(lambda: generate_each(module, prompts, study.decoding, study.generate, **options))
    assert predicted["generate"].peak_bytes == pytest.approx(written, rel=LARGEST_ERROR)


def test_fewer_tokens_scored_and_fewer_texts_written_take_what_the_allocator_says() -> None:
    study = study_of("lora")
    lengths = lengths_of(128, 120, 110, 128, prompts=(30, 30))
    less = lengths.model_copy(update={"evaluation_tokens": 512, "generation_rows": 1, "prompts": (30,)})
    base = shape_only(config_of("gpt2", MANY_LAYERS))
    usual, predicted = trace(study, lengths, base), trace(study, less, base)
    loop = make_loop(study, "gpt2", lengths)
    split = synthetic_split(lengths.train * 9, lengths.targets * 9)
    module, runtime = loop.adapted.module, loop.runtime
    scored = measured_peak(lambda: score_split(module, loop.forward, split, runtime, PAD, max_tokens=512))
    assert predicted["evaluate"].peak_bytes == pytest.approx(scored, rel=LARGEST_ERROR)
    assert predicted["evaluate"].peak_bytes < 0.8 * usual["evaluate"].peak_bytes
    assert predicted["generate"].peak_bytes < usual["generate"].peak_bytes
    assert predicted["train"] == usual["train"]


# --- what moves the parts


def test_a_smaller_micro_batch_takes_less_and_computes_the_same() -> None:
    whole = train_trace(study_of("full"), lengths_of(128, 128, 128, 128))
    halved = train_trace(study_of("full", micro_batch=2), lengths_of(128, 128, 128, 128))
    assert halved.parts["activations"] < 0.7 * whole.parts["activations"]
    assert halved.flop == pytest.approx(whole.flop, rel=1e-9)
    assert halved.num_operations > whole.num_operations


def test_checkpointing_takes_less_and_computes_a_forward_more() -> None:
    base = shape_only(config_of("gpt2", MANY_LAYERS))
    kept = train_trace(study_of("lora"), LENGTHS, base)
    again = train_trace(study_of("lora", gradient_checkpointing=True), LENGTHS, base)
    assert again.parts["activations"] < 0.5 * kept.parts["activations"]
    assert again.flop > 1.2 * kept.flop
    assert again.parts["weights"] == kept.parts["weights"]


def test_bf16_halves_what_is_frozen_and_most_of_what_is_kept() -> None:
    wide = train_trace(study_of("lora"), LENGTHS)
    narrow = train_trace(study_of("lora", precision="bf16"), LENGTHS, device="cuda")
    assert narrow.parts["activations"] < 0.75 * wide.parts["activations"]
    assert narrow.parts["weights"] < 0.7 * wide.parts["weights"]


def test_casts_of_trained_weights_go_with_their_layer_where_no_way_back_needs_them() -> None:
    """Of a base that is trained whole, on a device with bf16 products: 2 bytes for each weight of a layer."""
    layer = 2 * 12 * 64 * 64

    def grown(phase: str, **values: Any) -> float:
        """Return by how much activations grow with each layer."""
        study, short = study_of("full", precision="bf16", **values), lengths_of(16, 16, 16, 16)
        six, nine = (trace(study, short, shape_only(config_of("gpt2", depth)), device="cuda") for depth in (6, 9))
        return (nine[phase].parts["activations"] - six[phase].parts["activations"]) / 3

    assert grown("train") > layer
    assert grown("train", gradient_checkpointing=True) < layer / 2  # its input alone
    assert grown("evaluate") < layer / 2


def test_keys_and_values_are_the_slots() -> None:
    study = study_of("none", generate={"max_new_tokens": 100, "batch_size": 4})
    found = trace(study, lengths_of(128, prompts=(30, 30, 30, 30)))["generate"]
    slots = 2 * NUM_LAYERS * 4 * (30 + 100) * 64 * FP32  # keys and values, layers, slots, columns, width
    assert slots <= found.parts["key_values"] <= slots + 2 * NUM_LAYERS * 4 * 30 * 64 * FP32
    assert found.num_targets == 4 * 100


def test_nothing_is_traced_of_what_is_not_done() -> None:
    assert set(trace(study_of("none"), LENGTHS)) == {"evaluate"}
    study = study_of("lora", task={"kind": "text", "data": "demo", "max_length": 128})
    assert set(trace(study, lengths_of(128, prompts=(30,)))) == {"train", "evaluate"}


def test_products_are_the_flop() -> None:
    found = train_trace(study_of("lora"), LENGTHS)
    assert found.flop == pytest.approx(sum(one.flop * one.num_calls for one in found.products))
    assert {one.dtype for one in found.products} == {"float32"}
    names = {one.operation for one in found.products}
    assert {"mm", "addmm", "bmm"} & names
