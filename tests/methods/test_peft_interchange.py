"""Adapters as files, both ways: trained here and loaded by PEFT, made by PEFT and loaded here; and merged models."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.methods.models import CONFIGS, logits, make_classifier, make_ids, make_model
from tests.methods.peft_helpers import BOUND, EXACT, difference, peft_warnings
from torch import nn
from transformers import AutoModelForCausalLM

from tuneoff.errors import MethodError
from tuneoff.methods import AdaptedModel, BitFit, Bottleneck, LoRA, LoRACohort, Method, PrefixTuning, PromptTuning
from tuneoff.methods.heads import train_head
from tuneoff.methods.interchange import CONFIG_FILE, WEIGHTS_FILE, load_peft, read_peft, write_peft

pytestmark = pytest.mark.reference

METHODS: dict[str, Method] = {
    "lora": LoRA(rank=3, alpha=7.0),
    "lora-globs": LoRA(rank=2, targets=("*.1.*",)),
    "rslora": LoRA(rank=3, alpha=7.0, dropout=0.1, rslora=True, lr_ratio=2.0),
    "dora": LoRA(rank=3, alpha=7.0, dora=True),
    "bias-all": LoRA(rank=3, bias="all"),
    "bias-lora-only": LoRA(rank=3, bias="lora_only", rslora=True, dora=True),
    "prompt": PromptTuning(5),
    "prefix": PrefixTuning(4),
    "prefix-projection": PrefixTuning(4, projection=7),
}
CASES = [(name, architecture) for name in METHODS for architecture in CONFIGS]
CASES = [(name, architecture) for name, architecture in CASES if "bias" not in name or "llama" not in architecture]
"""Llama has no biases."""
each_case = pytest.mark.parametrize(("name", "architecture"), CASES)
each_kind = pytest.mark.parametrize("is_classifier", [False, True], ids=["language-model", "classifier"])


def _base(architecture: str, is_classifier: bool) -> nn.Module:
    return make_classifier(architecture) if is_classifier else make_model(architecture)


def _trained(name: str, architecture: str, is_classifier: bool = False) -> AdaptedModel:
    """Return a model after a few steps, with every trained tensor away from where it started."""
    model = _base(architecture, is_classifier)
    adapted = train_head(METHODS[name].adapt(model, torch.Generator().manual_seed(7)))
    parameters = adapted.trainable_parameters()
    optimizer = torch.optim.AdamW(parameters.values(), lr=3e-2)
    for step in range(3):
        found = adapted.module(input_ids=make_ids(seed=step)).logits
        optimizer.zero_grad()
        found.logsumexp(-1).sub(found[..., 0]).mean().backward()
        optimizer.step()
    return adapted


def _text(found: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Return logits at the text's positions: PEFT's prompt tuning gives those of the virtual tokens, too."""
    return found[:, -expected.shape[1] :] if expected.ndim == 3 else found


@each_kind
@each_case
def test_what_is_trained_here_gives_equal_logits_in_peft(
    name: str, architecture: str, is_classifier: bool, tmp_path: Path
) -> None:
    from peft import PeftModel

    adapted, ids = _trained(name, architecture, is_classifier), make_ids()
    write_peft(adapted, tmp_path, "base")
    ours = logits(adapted.module, ids)
    with peft_warnings():
        theirs = PeftModel.from_pretrained(_base(architecture, is_classifier), tmp_path).eval()
        assert difference(_text(logits(theirs, ids), ours), ours) <= BOUND
    assert difference(logits(_base(architecture, is_classifier), ids), ours) > 1e-3
    again = load_peft(_base(architecture, is_classifier), tmp_path)  # and what was written here is read here
    assert torch.equal(logits(again.module, ids), ours)


@pytest.mark.parametrize("name", ["lora", "rslora", "dora"])
def test_peft_merges_to_the_logits_of_a_merge_here(name: str, tmp_path: Path) -> None:
    from peft import PeftModel

    adapted, ids = _trained(name, "gpt2"), make_ids()
    write_peft(adapted, tmp_path, "base")
    with peft_warnings():
        merged = PeftModel.from_pretrained(make_model("gpt2"), tmp_path).merge_and_unload()
    assert difference(logits(merged, ids), logits(adapted.merge(), ids)) <= BOUND


def _peft_model(name: str, architecture: str, is_classifier: bool = False, **options: object) -> nn.Module:
    """Return PEFT's own model for a method, every trained tensor drawn at random."""
    from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

    task = "SEQ_CLS" if is_classifier else "CAUSAL_LM"
    if name == "prompt":
        config = PromptTuningConfig(task_type=task, num_virtual_tokens=5, **options)
    elif name.startswith("prefix"):
        projected = {"prefix_projection": True, "encoder_hidden_size": 7} if name == "prefix-projection" else {}
        config = PrefixTuningConfig(task_type=task, num_virtual_tokens=4, **projected, **options)
    else:
        method = METHODS[name]
        assert isinstance(method, LoRA)
        known = {"use_rslora": method.rslora, "use_dora": method.dora, "bias": method.bias}
        config = LoraConfig(
            r=4, lora_alpha=12, target_modules="all-linear", task_type=task, lora_dropout=0.1, **known | options
        )
    with peft_warnings():
        model: nn.Module = get_peft_model(_base(architecture, is_classifier), config)
    draw = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=draw) * 0.1)
    return model.eval()


@each_kind
@each_case
def test_what_peft_made_gives_equal_logits_here(
    name: str, architecture: str, is_classifier: bool, tmp_path: Path
) -> None:
    theirs, ids = _peft_model(name, architecture, is_classifier), make_ids()
    with peft_warnings():
        theirs.save_pretrained(tmp_path)
    ours = load_peft(_base(architecture, is_classifier), tmp_path)
    base = _base(architecture, is_classifier).double()
    # in float64: these adapters are drawn far larger than trained ones, and fp32 rounds them to some 1e-5
    expected, found = logits(theirs.double(), ids), logits(ours.module.double(), ids)
    # of a projected prefix the file holds what the MLP gave, rounded to fp32
    bound = BOUND if name == "prefix-projection" else EXACT
    assert difference(found, _text(expected, found)) <= bound
    assert difference(logits(base, ids), found) > 1e-3


@pytest.mark.parametrize(("option", "value"), [("use_rslora", True), ("use_dora", True), ("bias", "all")])
def test_options_are_written_under_pefts_names(option: str, value: object, tmp_path: Path) -> None:
    lora = LoRA(rank=3, alpha=7.0, rslora=True, dora=True, bias="all")
    write_peft(lora.adapt(make_model("gpt2"), torch.Generator()), tmp_path, "base")
    config = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert config[option] == value
    assert (config["r"], config["lora_alpha"]) == (3, 7.0)
    assert read_peft(tmp_path)[0].alpha == 7.0


def test_a_member_of_a_cohort_is_written_as_it_is(tmp_path: Path) -> None:
    members = (LoRA(rank=2, alpha=3.0, dora=True), LoRA(rank=4, alpha=9.0, rslora=True, dora=True))
    draws = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    adapted, ids = LoRACohort(members).adapt(make_model("gpt2"), draws), make_ids()
    for parameter in adapted.module.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1)
    write_peft(adapted, tmp_path, "base", member=1)
    again = load_peft(make_model("gpt2"), tmp_path)
    with adapted.member(1) as module:
        assert torch.equal(logits(again.module, ids), logits(module, ids))


@pytest.mark.parametrize(
    ("name", "architecture"), [case for case in CASES if case[0] in ("lora", "rslora", "dora", "bias-all")]
)
def test_a_merged_model_writes_the_same_text_in_plain_transformers(
    name: str, architecture: str, tmp_path: Path
) -> None:
    adapted = METHODS[name].adapt(make_model(architecture), torch.Generator().manual_seed(7))
    ids = make_ids(rows=1)
    optimizer = torch.optim.AdamW(adapted.trainable_parameters().values(), lr=1e-2)
    for _ in range(60):  # until it knows the text by heart, so that what it writes is not one token over and over
        optimizer.zero_grad()
        adapted.module(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    prompt = ids[:, :4]
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(prompt)}
    expected = adapted.module.generate(prompt, **options)
    assert len(set(expected[0, 4:].tolist())) > 3
    adapted.merge().save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(plain.generate(prompt, **options), expected)


REFUSED = {
    "target_parameters": ["mlp.weight"],
    "lora_bias": True,
    "rank_pattern": {"c_attn": 2},
    "alpha_pattern": {"c_attn": 2},
    "init_lora_weights": "pissa",
    "alora_invocation_tokens": [1, 2],
    "an_option_of_a_later_version": "on",
    "bias": "boft_only",
}


@pytest.mark.parametrize("option", REFUSED)
def test_an_option_that_is_not_known_here_is_refused_by_name(option: str, tmp_path: Path) -> None:
    write_peft(LoRA(rank=3).adapt(make_model("gpt2"), torch.Generator()), tmp_path, "base")
    path = tmp_path / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {option: REFUSED[option]}))
    with pytest.raises(MethodError, match=f"the option {option}=.* cannot be loaded"):
        load_peft(make_model("gpt2"), tmp_path)


def test_a_kind_of_adapter_that_is_not_known_here_is_refused_by_name(tmp_path: Path) -> None:
    from peft import IA3Config, get_peft_model

    with peft_warnings():
        config = IA3Config(task_type="CAUSAL_LM", target_modules=["c_attn"], feedforward_modules=[])
        get_peft_model(make_model("gpt2"), config).save_pretrained(tmp_path)
    with pytest.raises(MethodError, match="type 'IA3'; LORA, PROMPT_TUNING, PREFIX_TUNING can be loaded"):
        load_peft(make_model("gpt2"), tmp_path)


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    write_peft(LoRA(rank=3).adapt(make_model("llama-tied"), torch.Generator()), tmp_path, "base")
    with pytest.raises(MethodError, match=r"does not fit this base model: .*matches no module"):
        load_peft(make_model("gpt2"), tmp_path)


def test_weights_beside_the_adapter_are_refused_of_a_language_model(tmp_path: Path) -> None:
    theirs = _peft_model("lora", "llama-untied", modules_to_save=["lm_head"])
    with peft_warnings():
        theirs.save_pretrained(tmp_path)
    with pytest.raises(MethodError, match=r"lm_head\.weight beside the adapter"):
        load_peft(make_model("llama-untied"), tmp_path)


def test_a_classifier_wants_an_adapter_with_a_head(tmp_path: Path) -> None:
    write_peft(_trained("lora", "gpt2"), tmp_path / "model", "base")
    with pytest.raises(MethodError, match="saved without a head"):
        load_peft(make_classifier("gpt2"), tmp_path / "model")
    write_peft(_trained("lora", "gpt2", is_classifier=True), tmp_path / "classifier", "base")
    with pytest.raises(MethodError, match=r"unknown 1 tensors \(score\.weight\)"):
        load_peft(make_model("gpt2"), tmp_path / "classifier")


@pytest.mark.parametrize(
    ("method", "way_out"),
    [(Bottleneck(size=4), "Nor does it fold into the base"), (BitFit(), "Export with --merge")],
    ids=["bottleneck", "bitfit"],
)
def test_a_method_that_peft_does_not_have_is_not_written(method: Method, way_out: str, tmp_path: Path) -> None:
    adapted = method.adapt(make_model("gpt2"), torch.Generator())
    with pytest.raises(MethodError, match=f"PEFT has no class for this method.*{way_out}"):
        write_peft(adapted, tmp_path / "out", "base")
    assert not (tmp_path / "out").exists()


def test_torn_prompts_are_refused(tmp_path: Path) -> None:
    write_peft(_trained("prompt", "gpt2"), tmp_path, "base")
    state = load_file(tmp_path / WEIGHTS_FILE)
    save_file({name: tensor[:3].contiguous() for name, tensor in state.items()}, tmp_path / WEIGHTS_FILE)
    with pytest.raises(MethodError, match=r"expected prompt_embeddings of 5 virtual tokens; found shape \(3, 16\)"):
        load_peft(make_model("gpt2"), tmp_path)
