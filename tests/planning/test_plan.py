"""Published parameter counts to the digit, without weights, data or the hub (the tests are offline)."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import GPT2Config, GPT2LMHeadModel

from tuneoff.errors import MethodError, ModelError, StudyError
from tuneoff.methods import LoRA
from tuneoff.methods.interchange import write_peft
from tuneoff.planning.plan import ArmPlan, Plan, plan
from tuneoff.planning.render import bytes_text, render
from tuneoff.study.loading import load_study, study_from

TOP = Path(__file__).resolve().parent.parent.parent
GPT2_SMALL = 124_439_808
LLAMA3_8B = 8_030_261_248

SQUAD = {
    "lora-r4": (147_456, 124_587_264, "0.1184"),
    "lora-r8": (294_912, 124_734_720, "0.2364"),
    "lora-r16": (589_824, 125_029_632, "0.4717"),
    "lora-r8-mlp": (663_552, 125_103_360, "0.5304"),
    "lora-r32-mlp": (2_654_208, 127_094_016, "2.0884"),
}
OASST1 = {"r8-stated": 442_368, "r32-stated": 1_769_472, "r8-counted": 1_179_648, "r32-counted": 4_718_592}


def make_plan(arms: Mapping[str, Any], root: Path = TOP, **values: Any) -> Plan:
    task = {"kind": "text", "data": "no-such-file.txt"}
    return plan(
        study_from({"name": "s", "model": "gpt2", "task": task, "budget": {"steps": 10}, "arms": arms} | values, root)
    )


def by_name(found: Plan) -> dict[str, ArmPlan]:
    return {arm.name: arm for arm in found.arms}


def text(found: Plan, width: int = 160) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(render(found))
    return console.export_text()


@pytest.fixture(scope="module")
def squad() -> Plan:
    return plan(load_study("squad-gpt2"))


@pytest.fixture(scope="module")
def dolly() -> Plan:
    return plan(load_study("dolly-llama3"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a tiny base, without weights."""
    folder = tmp_path_factory.mktemp("tiny")
    GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=32, n_positions=32).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", SQUAD)
def test_squad_settings(name: str, squad: Plan) -> None:
    for arm in (name, f"{name}-published"):
        parameters = by_name(squad)[arm].parameters
        assert (parameters.trainable, parameters.total, f"{parameters.share_pct:.4f}") == SQUAD[name]


def test_squad_settings_as_text(squad: Plan) -> None:
    for width in (80, 160):
        shown = text(squad, width)
        for trainable, total, share in SQUAD.values():
            assert f"{trainable:,}" in shown
            assert f"{total:,}" in shown
            assert f"{share} %" in shown
    assert "transformer.h.{0-11}.attn.c_attn (12 x Conv1D 768->2304): 147,456 trainable" in shown
    assert squad.num_parameters == GPT2_SMALL
    # Zero-shot once, five fixed rates on three seeds, six arms with two more trials each.
    assert (squad.num_runs, squad.num_steps) == (1 + 5 * 3 + 6 * 5, 45 * 800)


def test_variants_of_lora_are_told_apart() -> None:
    arms = {
        "plain": {"method": "lora"},
        "dora": {"method": "lora", "dora": True, "lr_ratio": 16, "dropout": 0.1},
        "biases": {"method": "lora", "rslora": True, "bias": "all"},
    }
    shown = text(make_plan(arms))
    for label in (" lora r8 a16 ", " dora+ r8 a16 p0.1 ", " rslora r8 a16, all biases "):
        assert label in shown


def test_llama(dolly: Plan) -> None:
    arms = by_name(dolly)
    assert dolly.num_parameters == LLAMA3_8B
    for name in ("lora-r16-published", "lora-r16", "qlora-r16-published", "qlora-r16"):
        assert (arms[name].parameters.trainable, arms[name].parameters.total) == (13_631_488, 8_043_892_736)
        assert len(arms[name].parameters.modules) == 128
        assert f"{arms[name].parameters.share_pct:.2f}" == "0.17"
    assert arms["zero-shot"].parameters.trainable == arms["zero-shot"].optimizer_bytes == 0
    assert arms["full"].parameters.trainable == arms["full"].parameters.total == LLAMA3_8B
    assert "model.layers.{0-31}.self_attn.k_proj (32 x Linear 4096->1024): 2,621,440 trainable" in text(dolly)


def test_oasst1_as_stated_and_as_counted() -> None:
    arms = by_name(plan(load_study("oasst1-gpt2")))
    for name, trainable in OASST1.items():
        for arm in (arms[f"lora-{name}"], arms[f"lora-{name}-published"]):
            assert arm.parameters.trainable == trainable
            assert arm.parameters.total == GPT2_SMALL + trainable


def test_book() -> None:
    found = plan(load_study("book-gpt2"))
    arm = by_name(found)["lora-r8-published"]
    assert (arm.parameters.trainable, arm.parameters.total) == (294_912, 124_734_720)
    assert f"{arm.reduction_pct:.2f}" == "99.76"
    assert found.num_steps is None
    assert "by data" in text(found)


def test_bytes(dolly: Plan) -> None:
    arms = by_name(dolly)  # bf16: 2 bytes for what is frozen, 4 for what is trained, and twice 4 for Adam
    lora = arms["lora-r16"]
    assert lora.saved_bytes == 4 * 13_631_488
    assert lora.optimizer_bytes == 8 * 13_631_488
    assert lora.weights_bytes == 2 * LLAMA3_8B + 4 * 13_631_488
    assert arms["full"].weights_bytes == 4 * LLAMA3_8B
    assert arms["zero-shot"].weights_bytes == 2 * LLAMA3_8B


def test_runs_and_steps(tiny: Path) -> None:
    arms = {
        "none": {"method": "none"},
        "full": {"method": "full", "lr": 1e-5},
        "lora": {"method": "lora", "rank": [1, 2]},
    }
    task = {"kind": "text", "data": "x", "max_length": 16}
    found = make_plan(arms, model=str(tiny / "config.json"), task=task, seeds=[0, 1])
    assert [(arm.name, arm.num_runs, arm.num_steps) for arm in found.arms] == [
        ("none", 1, 0),
        ("full", 2, 20),
        ("lora-rank1", 4, 40),
        ("lora-rank2", 4, 40),
    ]


def test_a_search_that_may_go_on_is_a_range_of_runs(tiny: Path) -> None:
    auto = {"tune": {"lr": "auto"}}
    arms = {"full": {"method": "full", **auto}, "lora": {"method": "lora", "rank": [1, 2], **auto}}
    task = {"kind": "text", "data": "x", "max_length": 16}
    arms = {"none": {"method": "none"}, "fixed": {"method": "lora", "lr": 1e-3}} | arms
    found = make_plan(arms, model=str(tiny / "config.json"), task=task, seeds=[0, 1], tuning={"extend": 3})
    assert [(arm.num_runs, arm.num_extra) for arm in found.arms] == [(1, 0), (2, 0), *[(4, 3)] * 3]
    assert (found.num_runs, found.num_extra, found.num_steps) == (15, 9, 140)
    shown = text(found)
    assert "15 to 24 runs (trials and seeds), 140 to 230 optimizer steps" in shown
    assert "1e-05 3e-05 0.0001 ..." in shown
    assert "4-7" in shown
    found = make_plan(arms, model=str(tiny / "config.json"), task=task, seeds=[0, 1], tuning={"extend": 0})
    assert "15 runs (trials and seeds), 140 optimizer steps" in text(found)


def test_halving_makes_the_steps_the_most_that_there_can_be(tiny: Path) -> None:
    task = {"kind": "text", "data": "x", "max_length": 16}
    arms = {"full": {"method": "full"}}
    for search, is_said in (("halving", True), ("grid", False)):
        shown = text(make_plan(arms, model=str(tiny / "config.json"), task=task, tuning={"search": search}))
        assert ("fewer steps, as trials that fall behind are stopped (successive halving)" in shown) == is_said


def test_a_pattern_that_matches_two_kinds_shows_both() -> None:
    (arm,) = make_plan({"lora": {"method": "lora", "targets": ["c_proj"]}}).arms
    (target,) = arm.targets
    assert target.num_modules == 24
    assert [group.names for group in target.groups] == [
        "transformer.h.{0-11}.attn.c_proj",
        "transformer.h.{0-11}.mlp.c_proj",
    ]
    assert sum(group.trainable for group in target.groups) == arm.parameters.trainable


def test_the_head_is_not_among_all_linear() -> None:
    (arm,) = make_plan({"lora": {"method": "lora"}}).arms
    assert len(arm.parameters.modules) == 48
    assert "lm_head" not in arm.parameters.modules


OTHERS: dict[str, tuple[dict[str, Any], int, str]] = {
    # 12 blocks x 2 or 1 places x (2 D m + m + D)
    "houlsby": (
        {"method": "bottleneck", "placement": "houlsby", "size": 64},
        12 * 2 * (2 * 768 * 64 + 64 + 768),
        "bottleneck houlsby m64 relu",
    ),
    "pfeiffer": (
        {"method": "bottleneck", "size": 48, "activation": "gelu", "dropout": 0.1},
        12 * (2 * 768 * 48 + 48 + 768),
        "bottleneck pfeiffer m48 gelu p0.1",
    ),
    "prompt": ({"method": "prompt", "num_virtual_tokens": 20}, 20 * 768, "prompt 20 tokens"),
    "prefix": ({"method": "prefix", "num_virtual_tokens": 10}, 10 * 12 * 2 * 768, "prefix 10 tokens"),
    "projected": (
        {"method": "prefix", "num_virtual_tokens": 10, "projection": 512},
        10 * 768 + 769 * 512 + 513 * 12 * 2 * 768,
        "prefix 10 tokens mlp512",
    ),
    "bitfit": ({"method": "bitfit"}, 12 * 11 * 768 + 768, "bitfit"),
    "head": ({"method": "head"}, 50257 * 768, "head"),
}


def test_every_method_on_gpt2_small() -> None:
    found = make_plan({name: spec for name, (spec, _, _) in OTHERS.items()})
    shown = text(found)
    for name, arm in by_name(found).items():
        _, trainable, label = OTHERS[name]
        assert (arm.parameters.trainable, arm.problem) == (trainable, "")
        assert arm.parameters.total == GPT2_SMALL + (0 if name == "bitfit" else trainable)  # a tied head gets a copy
        assert label in shown
    per_place = 2 * 768 * 64 + 64 + 768
    assert f"transformer.h.{{0-11}}.attn (12 x GPT2Attention 768->768): {12 * per_place:,} trainable" in shown
    assert f"lm_head (1 x Linear 768->50257): {50257 * 768:,} trainable" in shown


def test_an_arm_that_the_model_cannot_take_is_said_so_and_the_others_are_planned() -> None:
    arms = {
        "biases": {"method": "bitfit"},
        "prefix": {"method": "prefix"},
        "prompt": {"method": "prompt"},
        "zero-shot": {"method": "none"},
    }
    found = make_plan(arms, model="meta-llama/Meta-Llama-3-8B-Instruct", gradient_checkpointing=True)
    planned = by_name(found)
    assert "no bias terms" in planned["biases"].problem
    assert "gradient checkpointing" in planned["prefix"].problem
    for name in ("biases", "prefix"):
        arm = planned[name]
        assert (arm.parameters.trainable, arm.num_steps, arm.saved_bytes, arm.optimizer_bytes) == (0, 0, 0, 0)
    assert (planned["prompt"].problem, planned["zero-shot"].problem) == ("", "")
    shown = text(found, 300)
    assert "cannot be trained here: biases: LlamaForCausalLM has no bias terms" in shown
    assert "cannot be trained here: prefix: prefix tuning cannot be trained with gradient checkpointing" in shown


def test_grouped_query_prefixes_are_counted_by_key_value_heads() -> None:
    found = make_plan({"prefix": {"method": "prefix"}}, model="meta-llama/Meta-Llama-3-8B-Instruct")
    assert found.arms[0].parameters.trainable == 20 * 32 * 2 * 8 * 128


def test_virtual_tokens_count_against_the_context() -> None:
    task = {"kind": "text", "data": "x", "max_length": 1010}
    for method in ("prompt", "prefix"):
        (arm,) = make_plan({"soft": {"method": method, "num_virtual_tokens": 14}}, task=task).arms
        assert arm.parameters.trainable > 0
        with pytest.raises(StudyError, match=r"arms\.soft: task\.max_length: 1010 with 15 virtual tokens before it"):
            make_plan({"soft": {"method": method, "num_virtual_tokens": 15}}, task=task)


def test_is_json(squad: Plan) -> None:
    back = json.loads(squad.model_dump_json())
    assert Plan.model_validate(back) == squad
    assert back["arms"][1]["parameters"]["trainable"] == 147_456


def test_a_target_that_matches_nothing_names_the_arm() -> None:
    with pytest.raises(MethodError, match=r"arms\.lora: target 'q_prj' matches no module"):
        make_plan({"lora": {"method": "lora", "targets": ["q_prj"]}})


def test_a_rank_above_the_layers_size() -> None:
    with pytest.raises(MethodError, match=r"arms\.lora: rank 769 is above the size"):
        make_plan({"lora": {"method": "lora", "rank": 769, "targets": ["c_attn"]}})


def test_sequences_longer_than_the_context() -> None:
    with pytest.raises(StudyError, match=r"task\.max_length: 2048 is above the model's context of 1024"):
        make_plan({"none": {"method": "none"}}, task={"kind": "text", "data": "x", "max_length": 2048})


def test_a_base_that_is_not_there() -> None:
    with pytest.raises(ModelError, match="no such folder"):
        make_plan({"none": {"method": "none"}}, model="./nowhere")


def test_a_loaded_adapter(tiny: Path, tmp_path: Path) -> None:
    model = GPT2LMHeadModel(GPT2Config.from_pretrained(tiny))
    adapted = LoRA(rank=2, targets=("c_attn",)).adapt(model, torch.Generator())
    write_peft(adapted, tmp_path / "adapter", "tiny")
    arms = {"theirs": {"method": "load", "path": "adapter"}}
    task = {"kind": "text", "data": "x", "max_length": 16}
    found = make_plan(arms, tmp_path, model=str(tiny), task=task)
    (arm,) = found.arms
    assert arm.parameters.trainable == 2 * 2 * (16 + 48)
    assert (arm.optimizer_bytes, arm.saved_bytes, arm.num_runs, arm.num_steps) == (0, 0, 1, 0)
    assert "training not verified" in text(found)
    with pytest.raises(MethodError, match=r"arms\.theirs: path: no such folder"):
        make_plan(arms, tmp_path / "adapter", model=str(tiny), task=task)


def test_bytes_text() -> None:
    assert [bytes_text(num) for num in (0, 999, 1000, 589_824, 999_999, 16_060_522_496)] == [
        *("-", "999 B", "1 kB", "590 kB", "1 MB", "16.1 GB")
    ]


NUM_QUANTISED_LLAMA3 = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
"""Weights of the linear layers of the 32 blocks: the embeddings and the head stay dense."""


def test_a_quantised_base_is_counted_by_its_closed_formula_without_weights() -> None:
    arms = {
        "qlora": {"method": "lora", "rank": 16, "alpha": 32, "targets": ["q_proj"], "quantize": "nf4"},
        "int8": {"method": "lora", "rank": 16, "alpha": 32, "targets": ["q_proj"], "quantize": "int8"},
    }
    found = make_plan(arms, model="meta-llama/Meta-Llama-3-8B-Instruct", precision="bf16")
    nf4, int8 = by_name(found)["qlora"], by_name(found)["int8"]
    trained = 32 * 16 * (4096 + 4096)
    assert nf4.parameters.trainable == trained
    assert nf4.parameters.total == LLAMA3_8B + trained
    dense = 2 * (LLAMA3_8B - NUM_QUANTISED_LLAMA3) + 4 * trained
    num_scales = NUM_QUANTISED_LLAMA3 // 64
    assert nf4.weights_bytes == dense + NUM_QUANTISED_LLAMA3 // 2 + num_scales + 4 * num_scales // 256 + 32 * 7 * 1092
    num_outputs = 32 * (2 * 4096 + 2 * 1024 + 2 * 14336 + 4096)
    assert int8.weights_bytes == dense + NUM_QUANTISED_LLAMA3 + 4 * num_outputs
    assert "qlora nf4 r16 a32" in text(found)
    assert "qlora int8 r16 a32" in text(found)


def test_methods_of_peft_are_planned_and_what_the_model_cannot_take_is_said() -> None:
    arms = {
        "ia3": {"method": "peft", "peft": {"peft_type": "IA3"}},
        "vera": {"method": "peft", "peft": {"peft_type": "VERA", "r": 16}},
        "loha": {"method": "peft", "peft": {"peft_type": "LOHA", "target_modules": ["c_attn"]}},
    }
    found = make_plan(arms)
    plans = by_name(found)
    assert plans["ia3"].parameters.trainable == 12 * (2304 + 3072)
    vera = plans["vera"]
    assert vera.parameters.trainable == 12 * (2304 + 16)
    assert vera.saved_bytes == 4 * (vera.parameters.trainable + 16 * (768 + 2304))  # with its random projections
    assert "Conv1D" in plans["loha"].problem
    assert plans["loha"].num_steps == 0
    shown = text(found)
    assert "peft VERA" in shown
    assert "cannot be trained here: loha: peft_type LOHA" in shown


def test_a_slip_in_a_peft_configuration_names_the_arm() -> None:
    with pytest.raises(MethodError, match=r"arms\.ia3: peft\.target: IA3 has no such option"):
        make_plan({"ia3": {"method": "peft", "peft": {"peft_type": "IA3", "target": ["c_attn"]}}})
