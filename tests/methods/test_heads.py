"""A classifier's new head: trained under every method, counted, saved, and put back with the base."""

import pytest
import torch
from tests.methods.models import CONFIGS, make_classifier, make_ids, make_model
from torch import nn

from tuneoff.errors import MethodError
from tuneoff.methods import (
    BitFit,
    Bottleneck,
    Full,
    HeadOnly,
    LoRA,
    LoRACohort,
    Method,
    NoTraining,
    PrefixTuning,
    PromptTuning,
)
from tuneoff.methods.base import AdaptedModel
from tuneoff.methods.external import ExternalPeft
from tuneoff.methods.heads import HeadedModel, draw_head, head_names, head_parameters, is_classifier, train_head
from tuneoff.methods.surgery import match_targets

NUM_CLASSES = 3
WIDTH = 16
METHODS: dict[str, Method] = {
    "lora": LoRA(rank=2, alpha=8.0),
    "bottleneck": Bottleneck(size=4),
    "prompt": PromptTuning(5),
    "prefix": PrefixTuning(5),
}

each_architecture = pytest.mark.parametrize("architecture", CONFIGS)
each_method = pytest.mark.parametrize("name", METHODS)


def class_logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=make_ids()).logits
    return out


def adapt(name: str, architecture: str, seed: int = 5) -> AdaptedModel:
    return train_head(METHODS[name].adapt(make_classifier(architecture), torch.Generator().manual_seed(seed)))


def train(adapted: AdaptedModel) -> None:
    optimizer = torch.optim.AdamW(adapted.trainable_parameters().values(), lr=1e-2)
    labels = torch.tensor([0, 1, 2, 1])
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(adapted.module(input_ids=make_ids()).logits, labels).backward()
        optimizer.step()


@each_architecture
def test_what_the_head_is(architecture: str) -> None:
    classifier, language_model = make_classifier(architecture), make_model(architecture)
    assert is_classifier(classifier)
    (name,) = head_names(classifier)
    assert head_parameters(classifier).keys() == {f"{name}.weight"}
    assert not is_classifier(language_model)
    assert not head_names(language_model)
    assert name not in match_targets(classifier, ["all-linear"])


@each_architecture
@each_method
def test_the_head_is_trained_too_and_counts(name: str, architecture: str) -> None:
    adapted = adapt(name, architecture)
    alone = METHODS[name].adapt(make_classifier(architecture), torch.Generator().manual_seed(5))
    trained = adapted.trainable_parameters()
    assert trained.keys() - alone.trainable_parameters().keys() == head_parameters(adapted.module).keys()
    count = sum(parameter.numel() for parameter in trained.values())
    assert count - sum(p.numel() for p in alone.trainable_parameters().values()) == WIDTH * NUM_CLASSES
    assert {id(p) for p in trained.values()} == {id(p) for p in adapted.module.parameters() if p.requires_grad}


@each_architecture
@each_method
def test_saved_and_loaded_gives_the_same_bits(name: str, architecture: str) -> None:
    adapted = adapt(name, architecture)
    train(adapted)
    state = {key: tensor.clone() for key, tensor in adapted.state_dict().items()}
    other = adapt(name, architecture, seed=9)
    other.load_state_dict(state)
    assert torch.equal(class_logits(other.module), class_logits(adapted.module))


@each_architecture
@each_method
def test_stepping_aside_and_removal_give_the_base_and_its_first_head_back(name: str, architecture: str) -> None:
    base = class_logits(make_classifier(architecture))
    adapted = adapt(name, architecture)
    train(adapted)
    trained = class_logits(adapted.module)
    assert not torch.equal(trained, base)
    with adapted.base_model() as module:
        assert torch.equal(class_logits(module), base)
    assert torch.equal(class_logits(adapted.module), trained)
    assert torch.equal(class_logits(adapted.remove()), base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each_architecture
def test_the_head_alone_is_trained_once(architecture: str, dtype: torch.dtype) -> None:
    model = make_classifier(architecture).to(dtype)
    base = class_logits(model)
    adapted = HeadOnly().adapt(model, torch.Generator())
    assert train_head(adapted) is adapted  # the method trains it already
    assert adapted.trainable_parameters().keys() == head_parameters(make_classifier(architecture)).keys()
    train(adapted)
    assert not torch.equal(class_logits(model), base)
    with adapted.base_model() as module:
        assert torch.equal(class_logits(module), base)
    assert torch.equal(class_logits(adapted.remove()), base)


@pytest.mark.parametrize("architecture", ["gpt2", "gpt-neox"])
def test_bitfit_leaves_the_heads_own_bias_to_the_head(architecture: str) -> None:
    model = make_classifier(architecture)
    (name,) = head_names(model)
    setattr(model, name, nn.Linear(WIDTH, NUM_CLASSES))
    base = class_logits(model)
    adapted = train_head(BitFit().adapt(model, torch.Generator()))
    assert isinstance(adapted, HeadedModel)
    assert f"{name}.bias" not in adapted.inner.trainable_parameters()
    assert f"{name}.bias" in adapted.trainable_parameters()
    train(adapted)
    assert torch.equal(class_logits(adapted.remove()), base)


@each_architecture
def test_virtual_tokens_are_known_through_the_head(architecture: str) -> None:
    assert adapt("prefix", architecture).num_virtual_tokens == 5
    assert adapt("lora", architecture).num_virtual_tokens == 0


@each_architecture
def test_a_merged_classifier_keeps_its_trained_head(architecture: str) -> None:
    adapted = adapt("lora", architecture)
    train(adapted)
    trained = class_logits(adapted.module)
    merged = class_logits(adapted.merge())
    assert (merged - trained).abs().max() <= 2e-6 * trained.abs().max()
    adapted.unmerge()
    assert torch.equal(class_logits(adapted.module), trained)


def test_where_the_head_is_no_matter_nothing_is_wrapped() -> None:
    generator = torch.Generator()
    for method, model in (
        (Full(), make_classifier("gpt2")),  # trains it already
        (NoTraining(), make_classifier("gpt2")),  # trains nothing
        (LoRA(rank=2), make_model("gpt2")),  # has no new head
    ):
        adapted = method.adapt(model, generator)
        assert train_head(adapted) is adapted


@pytest.mark.parametrize("name", [*METHODS, "bitfit"])
def test_a_head_in_bf16_is_trained_in_fp32_and_computes_in_bf16(name: str) -> None:
    model = make_classifier("gpt2").to(torch.bfloat16)
    base = class_logits(model)
    adapted = train_head((METHODS | {"bitfit": BitFit()})[name].adapt(model, torch.Generator().manual_seed(5)))
    train(adapted)  # without autocast, as a single text is classified
    trained = adapted.trainable_parameters()
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    assert all(parameter.grad is not None for parameter in trained.values())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert class_logits(model).dtype == torch.bfloat16
    with adapted.base_model() as module:
        assert torch.equal(class_logits(module), base)
    assert torch.equal(class_logits(adapted.remove()), base)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.state_dict().keys() == make_classifier("gpt2").state_dict().keys()


def test_a_merged_classifier_in_bf16_is_in_bf16() -> None:
    adapted = train_head(LoRA(rank=2).adapt(make_classifier("gpt2").to(torch.bfloat16), torch.Generator()))
    train(adapted)
    trained = class_logits(adapted.module)
    merged = adapted.merge()
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    assert merged.state_dict().keys() == make_classifier("gpt2").state_dict().keys()
    adapted.unmerge()
    assert torch.equal(class_logits(adapted.module), trained)


@pytest.mark.parametrize(
    "method",
    [
        LoRA(rank=2, targets=("score",)),
        LoRA(rank=2, targets=("*",)),
        ExternalPeft({"peft_type": "LORA", "target_modules": ["c_attn"], "modules_to_save": ["score"]}),
        ExternalPeft({"peft_type": "IA3", "target_modules": ["c_attn", "score"], "feedforward_modules": []}),
    ],
    ids=["lora", "lora-pattern", "peft-modules-to-save", "peft-target"],
)
def test_a_method_that_adapts_the_head_itself_is_refused(method: Method) -> None:
    adapted = method.adapt(make_classifier("gpt2"), torch.Generator())
    with pytest.raises(MethodError, match=r"head 'score' is trained whole .*Leave it out"):
        train_head(adapted)


def test_a_cohort_of_classifiers_is_refused() -> None:
    cohort = LoRACohort((LoRA(rank=2), LoRA(rank=4)))
    adapted = cohort.adapt(make_classifier("gpt2"), [torch.Generator(), torch.Generator()])
    with pytest.raises(MethodError, match="one at a time"):
        train_head(adapted)


def test_the_head_is_drawn_by_its_generator_alone() -> None:
    models = [make_classifier("llama-untied", seed=seed) for seed in (0, 1)]
    for model in models:
        torch.manual_seed(4)
        draw_head(model, torch.Generator().manual_seed(7))
    first, second = (head_parameters(model)["score.weight"] for model in models)
    assert torch.equal(first, second)
    assert first.std().item() == pytest.approx(0.02, rel=0.3)
    language_model = make_model("gpt2")
    before = [parameter.clone() for parameter in language_model.parameters()]
    draw_head(language_model, torch.Generator())
    assert all(torch.equal(*pair) for pair in zip(before, language_model.parameters(), strict=True))
