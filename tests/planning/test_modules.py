"""The architecture as a tree, and what arms adapt in it: counts against closed forms, without weights or the hub."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from transformers import GPT2Config, LlamaConfig

from tuneoff import api
from tuneoff.errors import StudyError
from tuneoff.planning.modules import Architecture, Module, model_architecture, study_architecture
from tuneoff.planning.plan import plan
from tuneoff.planning.tree import architecture_tree
from tuneoff.study.loading import study_from
from tuneoff.study.spec import Study

LAYERS, WIDTH, VOCABULARY = 3, 16, 32
ARMS: dict[str, Any] = {
    "zero-shot": {"method": "none"},
    "full": {"method": "full"},
    "lora": {"method": "lora", "rank": 2, "targets": ["c_attn"]},
    "first": {"method": "lora", "rank": 2, "targets": ["h.0.mlp.c_fc"]},
    "bottleneck": {"method": "bottleneck", "placement": "pfeiffer", "size": 4},
    "prompt": {"method": "prompt", "num_virtual_tokens": 5},
    "prefix": {"method": "prefix", "num_virtual_tokens": 5},
    "biases": {"method": "bitfit"},
    "output": {"method": "head"},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shapes")
    sizes = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}
    GPT2Config(n_layer=LAYERS, n_embd=WIDTH, n_head=2, n_positions=64, **sizes).save_pretrained(folder / "gpt2")
    LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        **sizes,
    ).save_pretrained(folder / "llama")
    return folder


def make_study(root: Path, arms: dict[str, Any], model: str = "gpt2", kind: str = "text") -> Study:
    task = {"kind": kind, "data": "no-such-file", "max_length": 32}
    return study_from({"name": "s", "model": model, "task": task, "budget": {"steps": 1}, "arms": arms}, root)


def walk(module: Module) -> Iterator[Module]:
    yield module
    for part in module.below:
        yield from walk(part)


def find(found: Architecture, names: str) -> Module:
    (module,) = (module for module in walk(found.root) if module.names == names)
    return module


def shown(found: Architecture, width: int = 1000) -> str:
    console = Console(width=width, file=io.StringIO())
    console.print(architecture_tree(found))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_repeated_blocks_are_one_and_ties_are_said(tiny: Path) -> None:
    found = model_architecture("gpt2", tiny)
    block = find(found, "h.{0-2}")
    assert (block.num_modules, block.kind) == (LAYERS, "GPT2Block")
    assert find(found, "c_attn").size == f"{WIDTH}->{3 * WIDTH}"
    assert find(found, "c_attn").num_parameters == LAYERS * (3 * WIDTH * WIDTH + 3 * WIDTH)
    assert find(found, "wte").size == f"{VOCABULARY} x {WIDTH}"
    head = find(found, "lm_head")
    assert (head.num_parameters, head.tied_to) == (0, "transformer.wte")
    assert found.root.num_parameters == found.num_parameters


@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_every_parameter_is_counted_once(model: str, tiny: Path) -> None:
    found = model_architecture(model, tiny)
    leaves = [module for module in walk(found.root) if not module.below]
    assert sum(leaf.num_parameters for leaf in leaves) == found.num_parameters


def test_marks_are_what_an_arm_trains(tiny: Path) -> None:
    """Whatever the method, its marks add up to what the plan counts."""
    study = make_study(tiny, ARMS)
    found = study_architecture(study)
    planned = {arm.name: arm.parameters for arm in plan(study).arms}
    for arm in found.arms:
        marks = [mark for module in walk(found.root) for mark in module.marks if mark.arm == arm.arm]
        assert sum(mark.added + mark.trained for mark in marks) == arm.trainable == planned[arm.arm].trainable
        assert arm.total == planned[arm.arm].total


def test_marks_stand_where_the_method_works(tiny: Path) -> None:
    found = study_architecture(make_study(tiny, ARMS))

    def marks(names: str) -> dict[str, tuple[int, int]]:
        return {mark.arm: (mark.added, mark.trained) for mark in find(found, names).marks}

    assert marks("")["full"] == (0, found.num_parameters)
    assert not any("full" in marks(module.names) for module in walk(found.root) if module.names == "wte")
    assert marks("")["prompt"] == (5 * WIDTH, 0)
    assert marks("wpe") == {}
    assert marks("ln_f") == {"biases": (0, WIDTH)}
    assert marks("lm_head") == {"output": (VOCABULARY * WIDTH, 0)}


def test_blocks_that_are_adapted_apart_are_drawn_apart(tiny: Path) -> None:
    found = study_architecture(make_study(tiny, ARMS), ["first", "lora"])
    blocks = [module for module in walk(found.root) if module.kind == "GPT2Block"]
    assert [(block.names, block.num_modules) for block in blocks] == [("h.0", 1), ("h.{1-2}", 2)]
    first = next(module for module in walk(blocks[0]) if module.names == "c_fc")
    assert [(mark.arm, mark.added) for mark in first.marks] == [("first", 2 * (WIDTH + 4 * WIDTH))]
    adapted = [mark.added for block in blocks for module in walk(block) for mark in module.marks if mark.arm == "lora"]
    assert adapted == [2 * 4 * WIDTH, 2 * 2 * 4 * WIDTH]


def test_a_new_head_is_drawn_and_trained(tiny: Path) -> None:
    arms = {name: ARMS[name] for name in ("lora", "output")}
    found = study_architecture(make_study(tiny, arms, kind="classification"))
    assert found.kind == "GPT2ForSequenceClassification"
    head = find(found, "score")
    assert {mark.arm: mark.trained for mark in head.marks} == {"lora": 2 * WIDTH, "output": 2 * WIDTH}


def test_arms_that_the_model_cannot_take_say_why(tiny: Path) -> None:
    found = study_architecture(make_study(tiny, {"biases": {"method": "bitfit"}}, model="llama"))
    assert "no bias terms" in found.arms[0].reason
    assert "not on this model" in shown(found)


def test_arms_of_one_method_are_one(tiny: Path) -> None:
    lora = ARMS["lora"]
    found = study_architecture(make_study(tiny, {"published": {**lora, "lr": 1e-4}, "tuned": lora}))
    assert [arm.arm for arm in found.arms] == ["published, tuned"]


def test_as_text(tiny: Path) -> None:
    text = shown(study_architecture(make_study(tiny, ARMS), ["lora"]))
    lines = text.splitlines()
    assert any(line.endswith(f"c_attn  3 x Conv1D 16->48  {LAYERS * 816:,}") for line in lines)
    assert any(line.endswith(f"+ LoRA r2: {LAYERS * 2 * 4 * WIDTH}") for line in lines)
    assert "lm_head  Linear 16->32  tied to transformer.wte, counted there" in text
    assert lines[-1].startswith("lora (LoRA r2): 384 of ")
    assert "\x1b" not in text
    assert all(line == line.rstrip() for line in lines)


def test_a_narrow_terminal_folds_lines_within_the_tree(tiny: Path) -> None:
    text = shown(study_architecture(make_study(tiny, ARMS), ["lora"]), width=40)
    assert max(map(len, text.splitlines())) <= 40
    assert "counted there" in text


def test_names_of_arms_and_families(tiny: Path) -> None:
    study = make_study(tiny, {"lora": {"method": "lora", "rank": [1, 2]}, "full": {"method": "full"}})
    assert [arm.arm for arm in study_architecture(study, ["lora"]).arms] == ["lora-rank1", "lora-rank2"]
    with pytest.raises(StudyError, match=r"no arm is called 'lorra'; allowed: lora-rank1, lora-rank2, full\. Did"):
        study_architecture(study, ["lorra"])


def test_from_python(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny)
    file = tmp_path / "study.yaml"
    file.write_text(
        "{name: s, model: gpt2, task: {kind: text, data: x.txt, max_length: 32}, budget: {steps: 1}, "
        "arms: {full: {method: full}}}"
    )
    assert api.modules("demo").arms == ()
    assert [arm.arm for arm in api.modules(str(file)).arms] == ["full"]
    other = api.modules("llama", file)
    assert (other.kind, [arm.arm for arm in other.arms]) == ("LlamaForCausalLM", ["full"])
    with pytest.raises(StudyError, match="'llama' is a model and has no arms; name the study with --study STUDY"):
        api.modules("llama", arms=["full"])
