"""The reference studies: what was published is in them to the letter, and they run on local models and data too."""

from pathlib import Path

import pytest

from tuneoff.study.loading import load_study, recipe_names
from tuneoff.study.methods import LoraMethod
from tuneoff.study.shapes import known_models, known_shape
from tuneoff.study.spec import Arm

RECIPES = ("book-gpt2", "dolly-llama3", "oasst1-gpt2")
PAGES = Path(__file__).resolve().parent.parent / "docs" / "recipes"


def lora(arm: Arm) -> LoraMethod:
    assert isinstance(arm.method, LoraMethod)
    return arm.method


def test_names() -> None:
    assert set(RECIPES) <= set(recipe_names())


@pytest.mark.parametrize("name", RECIPES)
class TestEach:
    def test_every_published_arm_has_a_tuned_twin(self, name: str) -> None:
        study = load_study(name)
        assert study.name == name
        published = [arm for arm in study.arms if arm.name.endswith("-published")]
        assert published
        for arm in published:
            twin = study.arm(arm.name.removesuffix("-published"))
            assert twin.method == arm.method
            assert not arm.is_tuned
            assert len(twin.lr) == 3

    def test_runs_on_a_local_model_and_data(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "base").mkdir()
        (tmp_path / "rows.jsonl").write_text("{}")
        monkeypatch.chdir(tmp_path)
        study = load_study(name, ["model=base", "task.data=rows.jsonl"])
        assert study.model == str(tmp_path / "base")
        assert study.task.data == str(tmp_path / "rows.jsonl")
        # A split that names one of the hub's would not be found beside a local file.
        assert isinstance(study.task.splits.validation, float)
        assert isinstance(study.task.splits.test, float)

    def test_its_base_can_be_planned_without_the_hub(self, name: str) -> None:
        assert known_shape(load_study(name).model) is not None

    def test_has_a_page(self, name: str) -> None:
        if not PAGES.is_dir():
            pytest.skip("the source distribution leaves the pages out")
        page = (PAGES / f"{name}.md").read_text("utf-8")
        for heading in ("## What was published", "## What to run", "## Which numbers cannot be compared"):
            assert heading in page


def test_oasst1_as_stated_and_as_counted() -> None:
    study = load_study("oasst1-gpt2")
    assert (study.model, study.precision, study.task.data) == ("gpt2", "fp16", "OpenAssistant/oasst1")
    stated, counted = ("c_attn", "attn.c_proj"), ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj")
    for rank in (8, 32):
        assert lora(study.arm(f"lora-r{rank}-stated-published")).targets == stated
        assert lora(study.arm(f"lora-r{rank}-counted-published")).targets == counted
    assert all("lr" in arm.assumed for arm in study.arms if arm.name.endswith("-published"))


def test_book_as_published() -> None:
    study = load_study("book-gpt2")
    assert (study.budget.epochs, study.budget.batch_size, study.optimizer.schedule) == (3, 16, "cosine")
    assert study.arm("full-published").lr == study.arm("lora-r8-published").lr == (3e-4,)
    method = lora(study.arm("lora-r8-published"))
    assert (method.rank, method.alpha, method.dropout, method.targets) == (8, 16, 0.05, ("c_attn",))


def test_dolly_as_published() -> None:
    study = load_study("dolly-llama3")
    assert study.arm("zero-shot").method.method == "none"
    method = lora(study.arm("lora-r16-published"))
    assert (method.rank, method.targets) == (16, ("q_proj", "k_proj", "v_proj", "o_proj"))
    assert "rank" in study.arm("lora-r16-published").assumed


def test_shapes() -> None:
    assert known_shape("gpt2") == known_shape("openai-community/gpt2")
    assert known_shape("someone/gpt2") is None
    assert all(known_shape(name) for name in known_models())
