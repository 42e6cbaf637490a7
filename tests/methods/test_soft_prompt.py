"""Soft prompts: the same as tokens before the text, invisible to callers, and the same as PEFT's."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.methods.models import CONFIGS, VOCABULARY, logits, make_ids, make_model
from tests.training.helpers import PAD, Recorder, make_loop, make_split, runtime
from torch import nn
from transformers import AutoModelForCausalLM, DynamicCache, GemmaConfig, MambaConfig, OPTConfig, StaticCache

from tuneoff.errors import MethodError, UnsupportedError
from tuneoff.evaluation.generation import generate as write_on
from tuneoff.evaluation.likelihood import score_split
from tuneoff.methods import AdaptedModel, Method, PrefixTuning, PromptTuning
from tuneoff.methods.soft_prompt import PrefixModel, PromptModel
from tuneoff.study.testing import Decoding, GenerateSpec
from tuneoff.training.recompute import recompute_activations
from tuneoff.training.steps import Forward

VIRTUAL = 5
SEED = 7
METHODS: dict[str, Method] = {"prompt": PromptTuning(VIRTUAL), "prefix": PrefixTuning(VIRTUAL)}
ALL: dict[str, Method] = METHODS | {"prefix-projection": PrefixTuning(VIRTUAL, projection=6)}
BOUND = 1e-6
"""Of the largest value: the same products in other shapes."""

each_architecture = pytest.mark.parametrize("architecture", CONFIGS)
each_method = pytest.mark.parametrize("name", METHODS)
each_kind = pytest.mark.parametrize("name", ALL)


def adapt(name: str, model: nn.Module) -> AdaptedModel:
    return ALL[name].adapt(model, torch.Generator().manual_seed(SEED))


def first_tokens() -> torch.Tensor:
    """Return the tokens from which both methods start."""
    return torch.randint(VOCABULARY, (VIRTUAL,), generator=torch.Generator().manual_seed(SEED))


def after_tokens(ids: torch.Tensor) -> torch.Tensor:
    return torch.cat([first_tokens().expand(len(ids), -1), ids], dim=1)


def trained(name: str, architecture: str) -> AdaptedModel:
    """Return a model whose virtual tokens are no tokens any more."""
    adapted = adapt(name, make_model(architecture))
    draw = torch.Generator().manual_seed(1)
    for parameter in adapted.trainable_parameters().values():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=draw)
    return adapted


def difference(first: torch.Tensor, second: torch.Tensor) -> float:
    return float((first - second).abs().max() / second.abs().max())


def special(kind: str) -> nn.Module:
    """Return models that treat embeddings in ways of their own."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
    configs = {
        "gemma": lambda: GemmaConfig(**sizes, intermediate_size=24, num_key_value_heads=1, head_dim=8),  # scales them
        "opt": lambda: OPTConfig(**sizes, ffn_dim=24, word_embed_proj_dim=8),  # its head passes the trunk by
    }
    return AutoModelForCausalLM.from_config(configs[kind]()).eval()


@each_architecture
@each_method
def test_at_the_start_they_are_tokens_before_the_text(name: str, architecture: str) -> None:
    ids = make_ids()
    expected = logits(make_model(architecture), after_tokens(ids))[:, VIRTUAL:]
    assert difference(logits(adapt(name, make_model(architecture)).module, ids), expected) <= BOUND


@pytest.mark.parametrize("kind", ["gemma", "opt"])
@each_method
def test_models_that_scale_or_project_their_embeddings(name: str, kind: str) -> None:
    ids = make_ids()
    expected = logits(special(kind), after_tokens(ids))[:, VIRTUAL:]
    adapted = adapt(name, special(kind))
    assert difference(logits(adapted.module, ids), expected) <= BOUND
    adapted.module(input_ids=ids, labels=ids).loss.backward()
    for parameter in adapted.trainable_parameters().values():
        assert parameter.grad.abs().sum() > 0


def test_a_random_prompt_has_the_embeddings_mean_and_spread() -> None:
    model = make_model("llama-untied")
    table = model.get_input_embeddings().weight
    table.data = table.data * 3 + 0.05
    (start,) = PromptTuning(50, "random").adapt(model, torch.Generator()).state_dict().values()
    assert start.std() == pytest.approx(float(table.std()), rel=0.1)
    assert start.mean() == pytest.approx(float(table.mean()), abs=0.01)


@each_architecture
@each_kind
def test_hidden_states_are_those_of_the_text_alone(name: str, architecture: str) -> None:
    adapted, ids = trained(name, architecture), make_ids()
    adapted.module.set_attn_implementation("eager")
    trunk = getattr(adapted.module, adapted.module.base_model_prefix)
    with torch.no_grad():
        out = trunk(input_ids=ids, use_cache=False, output_hidden_states=True, output_attentions=True)
    assert out.past_key_values is None
    assert {tuple(hidden.shape) for hidden in (out.last_hidden_state, *out.hidden_states)} == {(*ids.shape, 16)}
    assert {tuple(weights.shape[2:]) for weights in out.attentions} == {(12, VIRTUAL + 12)}
    assert Forward(adapted.module).check(ids)


@each_architecture
@each_kind
def test_padding_on_the_right_reaches_no_score(name: str, architecture: str) -> None:
    adapted, split = trained(name, architecture), make_split()
    forward = Forward(adapted.module)
    scores = [score_split(adapted.module, forward, split, runtime(), PAD, batch_size=rows).nll_nats for rows in (1, 8)]
    assert abs(scores[0] - scores[1]).max() <= 1e-5 * scores[0].max()


@each_architecture
@each_kind
def test_the_gradient_does_not_depend_on_the_micro_batch(name: str, architecture: str) -> None:
    split = make_split(num_sequences=40)

    def gradient(micro_batch: int) -> dict[str, torch.Tensor]:
        adapted = adapt(name, make_model(architecture).double())
        adapted.module.double()
        loop = make_loop(adapted, [0], [1e-3], split, Recorder(), micro_batch=micro_batch, batch_size=16)
        adapted.module.train()  # the dropouts of GPT-2 and GPT-NeoX are on
        for batches in loop._micro_batches(0):
            loop._backward(loop._placed(batches), [100])
        return {key: parameter.grad for key, parameter in adapted.trainable_parameters().items()}

    whole = gradient(16)
    for micro_batch in (1, 5):
        for key, part in gradient(micro_batch).items():
            assert (part - whole[key]).norm() <= 1e-12 * whole[key].norm(), (micro_batch, key)


def texts() -> list[torch.Tensor]:
    return [make_ids(1, seed)[0, :length] for seed, length in ((1, 12), (2, 3), (3, 7))]


def left_padded(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and attention mask (R, T)."""
    longest = max(map(len, rows))
    ids = torch.stack([nn.functional.pad(row, (longest - len(row), 0), value=PAD) for row in rows])
    mask = torch.stack([nn.functional.pad(torch.ones_like(row), (longest - len(row), 0)) for row in rows])
    return ids, mask


@torch.no_grad()
def decode(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode greedily with a cache, counting the text's own tokens alone; return new tokens and their logits."""
    cache, tokens, found = DynamicCache(), [], []
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    for _ in range(steps):
        out = model(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        ).logits[:, -1]
        ids = out.argmax(-1, keepdim=True)
        tokens.append(ids)
        found.append(out)
        mask = nn.functional.pad(mask, (0, 1), value=1)
        positions = positions[:, -1:] + 1
    return torch.cat(tokens, 1), torch.stack(found, 1)


@torch.no_grad()
def decode_anew(model: nn.Module, ids: torch.Tensor, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode one text greedily without cache, mask or positions: the whole text goes in again for each token."""
    found, ids = [], ids[None]
    for _ in range(steps):
        out = model(input_ids=ids, use_cache=False).logits[:, -1]
        ids = torch.cat([ids, out.argmax(-1, keepdim=True)], 1)
        found.append(out[0])
    return ids[0, -steps:], torch.stack(found)


@each_architecture
@each_kind
def test_left_padded_decoding_with_a_cache_is_that_of_each_text_alone(name: str, architecture: str) -> None:
    model, rows = trained(name, architecture).module, texts()
    tokens, found = decode(model, *left_padded(rows), steps=8)
    for index, row in enumerate(rows):
        expected_tokens, expected = decode_anew(model, row, 8)
        assert difference(found[index], expected) <= 1e-5
        assert torch.equal(tokens[index], expected_tokens)


STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampled": {"do_sample": True, "temperature": 0.7, "top_p": 0.9},
    "beams": {"do_sample": False, "num_beams": 3},
    "uncached": {"do_sample": False, "use_cache": False},
}


def generate(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
    torch.manual_seed(0)
    new: torch.Tensor = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, pad_token_id=PAD, **options
    )
    return new[:, ids.shape[1] :]


@each_architecture
@each_method
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_generate_goes_on_as_the_base_after_the_same_tokens(name: str, architecture: str, strategy: str) -> None:
    ids, options = make_ids(3), STRATEGIES[strategy]
    expected = generate(
        make_model(architecture), after_tokens(ids), torch.ones(3, VIRTUAL + ids.shape[1]).long(), **options
    )
    adapted = adapt(name, make_model(architecture))
    assert torch.equal(generate(adapted.module, ids, torch.ones_like(ids), **options), expected)


@each_architecture
@each_kind
def test_generate_with_left_padding_is_that_of_each_text_alone(name: str, architecture: str) -> None:
    model, rows = trained(name, architecture).module, texts()
    together = generate(model, *left_padded(rows), do_sample=False)
    for index, row in enumerate(rows):
        alone = generate(model, row[None], torch.ones_like(row)[None], do_sample=False)
        assert torch.equal(together[index], alone[0])


DECODINGS = {"greedy": Decoding(), "sampled": Decoding(temperature=0.8, samples=2), "beams": Decoding(beams=3)}


@each_architecture
@each_method
@pytest.mark.parametrize("decoding", DECODINGS)
def test_the_projects_own_decoding_goes_on_as_the_base_after_the_same_tokens(
    name: str, architecture: str, decoding: str
) -> None:
    def write(model: nn.Module, prompts: list[list[int]], batch_size: int) -> list[Any]:
        spec = GenerateSpec(max_new_tokens=8, batch_size=batch_size)
        return write_on(model, prompts, DECODINGS[decoding], spec, pad_id=PAD, eos_id=2, seed=3, context_length=64)

    rows = [row.tolist() for row in texts()]
    expected = write(make_model(architecture), [first_tokens().tolist() + row for row in rows], 1)
    adapted = adapt(name, make_model(architecture))
    for batch_size in (1, 6):
        found = write(adapted.module, rows, batch_size)
        assert [[text.ids for text in texts] for texts in found] == [[text.ids for text in texts] for texts in expected]


@each_method
def test_prefill_in_chunks_has_one_set_of_virtual_tokens(name: str) -> None:
    model, ids = trained(name, "llama-untied").module, make_ids()
    whole = logits(model, ids)
    cache = DynamicCache()
    with torch.no_grad():
        parts = [model(input_ids=part, past_key_values=cache, use_cache=True).logits for part in ids.split(5, dim=1)]
    assert difference(torch.cat(parts, 1), whole) <= BOUND


@each_method
def test_what_has_no_room_for_them_is_refused(name: str) -> None:
    model, ids = trained(name, "llama-untied").module, make_ids()
    with pytest.raises(UnsupportedError, match="found StaticCache"):
        model(input_ids=ids, past_key_values=StaticCache(config=model.config, max_cache_len=40))
    with pytest.raises(UnsupportedError, match=r"attention mask of shape \(rows, positions\); found \(4, 1, 12, 12\)"):
        model(input_ids=ids, attention_mask=torch.ones(4, 1, 12, 12))
    with pytest.raises(MethodError, match="64 leave nothing of the model's context of 64"):
        type(METHODS[name])(64).adapt(make_model("llama-untied"), torch.Generator())
    stateful = MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2)
    with pytest.raises(UnsupportedError, match="keeps a state"):
        METHODS[name].adapt(AutoModelForCausalLM.from_config(stateful), torch.Generator())


def test_a_prompt_knows_no_token_types() -> None:
    ids = make_ids()
    with pytest.raises(UnsupportedError, match="token_type_ids"):
        trained("prompt", "gpt2").module(input_ids=ids, token_type_ids=torch.zeros_like(ids))


@each_architecture
@pytest.mark.parametrize("name", ["prefix", "prefix-projection"])
def test_a_prefix_and_gradient_checkpointing_are_refused_whichever_comes_first(name: str, architecture: str) -> None:
    model = make_model(architecture)
    recompute_activations(model)
    with pytest.raises(UnsupportedError, match="gradient checkpointing"):
        adapt(name, model)
    adapted, ids = adapt(name, make_model(architecture)), make_ids()
    scored = logits(adapted.module, ids)
    recompute_activations(adapted.module)
    assert torch.equal(logits(adapted.module, ids), scored)  # nothing is checkpointed in scoring
    adapted.module.train()
    with pytest.raises(UnsupportedError, match="Turn gradient checkpointing off"):
        adapted.module(input_ids=ids)


@each_architecture
def test_the_projected_prefix_is_all_that_has_to_be_kept(architecture: str) -> None:
    projected, ids = trained("prefix-projection", architecture), make_ids()
    direct = adapt("prefix", make_model(architecture))
    assert isinstance(projected, PrefixModel)
    direct.load_state_dict({"prefix.weight": projected.prefix()})
    assert torch.equal(logits(direct.module, ids), logits(projected.module, ids))


@contextmanager
def quiet() -> Iterator[None]:
    """PEFT warns of position ids and of tied weights; neither is about what is tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def theirs(name: str, ours: AdaptedModel, architecture: str) -> nn.Module:
    """Return PEFT's model with our weights."""
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model

    kind = PromptTuningConfig if isinstance(ours, PromptModel) else PrefixTuningConfig
    extra = {"prefix_projection": True, "encoder_hidden_size": 6} if name == "prefix-projection" else {}
    config = kind(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL, **extra)
    with quiet():
        model: nn.Module = get_peft_model(make_model(architecture), config)
    encoder = model.prompt_encoder["default"]
    state = {key.partition(".")[2]: tensor for key, tensor in ours.state_dict().items()}
    named = {"weight": "embedding.weight", "embedding": "embedding.weight"}
    encoder.load_state_dict({named.get(key, key): tensor for key, tensor in state.items()})
    return model.eval()


@pytest.mark.reference
@each_architecture
@each_kind
def test_logits_and_gradients_are_pefts(name: str, architecture: str) -> None:
    ours, ids = trained(name, architecture), make_ids()
    other = theirs(name, ours, architecture)
    labels = ids.clone()
    labels[:, 0] = -100  # PEFT predicts the first token, too, from the last virtual one; no other method can
    with quiet():
        expected = other(input_ids=ids, labels=labels)
    found = ours.module(input_ids=ids, labels=labels)
    skipped = VIRTUAL if name == "prompt" else 0
    assert difference(found.logits.detach(), expected.logits.detach()[:, skipped:]) <= BOUND
    found.loss.backward()
    expected.loss.backward()
    grown = {parameter.shape: parameter.grad for parameter in other.prompt_encoder.parameters()}
    for key, parameter in ours.trainable_parameters().items():
        assert difference(parameter.grad, grown[parameter.shape]) <= 1e-5, key
    assert sum(p.numel() for p in ours.trainable_parameters().values()) == sum(
        p.numel() for p in other.parameters() if p.requires_grad
    )


@pytest.mark.reference
@each_architecture
@each_kind
def test_a_left_padded_batch_has_pefts_logits(name: str, architecture: str) -> None:
    ours = trained(name, architecture)
    other = theirs(name, ours, architecture)
    ids, mask = left_padded(texts())
    with torch.no_grad(), quiet():  # PEFT keeps given positions under a prefix alone; a prompt counts the padding
        positions = {} if name == "prompt" else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
        expected = other(input_ids=ids, attention_mask=mask, **positions).logits[
            :, VIRTUAL if name == "prompt" else 0 :
        ]
        found = ours.module(input_ids=ids, attention_mask=mask, **positions).logits
    is_text = mask.bool()
    assert difference(found[is_text], expected[is_text]) <= BOUND
