"""The reference studies: what was published is in them to the letter, and they run on local models and data too."""

from pathlib import Path

import pytest
import yaml

import tuneoff
from tuneoff.errors import StudyError
from tuneoff.planning.plan import plan
from tuneoff.study.loading import RECIPES, SMOKE, load_study, recipe_names
from tuneoff.study.methods import BottleneckMethod, LoraMethod, PromptMethod
from tuneoff.study.shapes import known_models, known_shape
from tuneoff.study.spec import Arm, Study

NAMES = ("book-gpt2", "dolly-llama3", "oasst1-gpt2", "squad-gpt2", "sst2-gpt2")
OFFICIAL = ("squad-gpt2", "sst2-gpt2")
"""Recipes whose test is the hub's own labelled dev split."""
PAGES = Path(__file__).resolve().parent.parent / "docs" / "recipes"
FOUR_KINDS = ("c_attn", "attn.c_proj", "mlp.c_proj", "c_fc")
GPT2_SMALL = 124_439_808


def lora(arm: Arm) -> LoraMethod:
    assert isinstance(arm.method, LoraMethod)
    return arm.method


def published(study: Study) -> list[Arm]:
    return [arm for arm in study.arms if arm.name.endswith("-published")]


def test_names() -> None:
    assert {*NAMES, "demo"} == set(recipe_names())


@pytest.mark.parametrize("name", NAMES)
class TestEach:
    def test_every_published_arm_has_a_tuned_twin(self, name: str) -> None:
        study = load_study(name)
        assert study.name == name
        assert published(study)
        for arm in published(study):
            assert study.arm(arm.name.removesuffix("-published")).method == arm.method
            assert not arm.is_tuned

    def test_every_tuned_arm_has_as_many_rates(self, name: str) -> None:
        tuned = [arm for arm in load_study(name).arms if arm.is_trained and not arm.name.endswith("-published")]
        assert {len(arm.lr) for arm in tuned} == {3}

    def test_assumed_names_are_keys_that_exist(self, name: str) -> None:
        for arm in load_study(name).arms:
            known = {"lr", "template", "max_length", "steps", "epochs", "batch_size", *type(arm.method).model_fields}
            assert set(arm.assumed) <= known

    def test_runs_on_a_local_model_and_data(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "base").mkdir()
        (tmp_path / "rows.jsonl").write_text("{}")
        (tmp_path / "dev.jsonl").write_text("{}")
        monkeypatch.chdir(tmp_path)
        # A split that names one of the hub's would not be found beside a local file, so it is given one, too.
        beside = ["task.splits.test=dev.jsonl"] if name in OFFICIAL else []
        study = load_study(name, ["model=base", "task.data=rows.jsonl", *beside])
        assert study.model == str(tmp_path / "base")
        assert study.task.data == str(tmp_path / "rows.jsonl")
        assert isinstance(study.task.splits.validation, float)
        test = study.task.splits.test
        assert test == str(tmp_path / "dev.jsonl") if beside else isinstance(test, float)

    def test_runs_on_a_base_with_other_module_names(self, name: str) -> None:
        study = load_study(name, ["arms.*.targets=[all-linear]"])
        loras = [arm for arm in study.arms if isinstance(arm.method, LoraMethod)]
        assert {lora(arm).targets for arm in loras} == {("all-linear",)}

    def test_its_base_can_be_planned_without_the_hub(self, name: str) -> None:
        assert known_shape(load_study(name).model) is not None

    def test_has_a_page(self, name: str) -> None:
        if not PAGES.is_dir():
            pytest.skip("the source distribution leaves the pages out")
        page = (PAGES / f"{name}.md").read_text("utf-8")
        for heading in ("## What was published", "## What to run", "## Which numbers cannot be compared"):
            assert heading in page
        for command in (f"tuneoff plan {name}", f"tuneoff run {name} --smoke", "--set task.data=", "--set model="):
            assert command in page


@pytest.mark.parametrize("name", recipe_names())
class TestSmoke:
    def test_has_the_arms_of_the_recipe(self, name: str) -> None:
        study, small = load_study(name), load_study(name, smoke=True)
        assert small.name == f"{name}-smoke"
        assert (small.model, small.task.data, small.precision, len(small.seeds)) == ("demo", "demo", "fp32", 1)
        assert {arm.family for arm in small.arms} == {arm.family for arm in study.arms}
        assert all(len(arm.lr) <= 2 for arm in small.arms)
        assert small.task.kind == study.task.kind

    @pytest.mark.slow
    def test_runs_from_end_to_end(self, name: str, tmp_path: Path) -> None:
        study = tuneoff.load(name, smoke=True)
        result = tuneoff.run(study, tmp_path)
        assert result.failed == {}
        summary = result.summary()
        assert {arm.name for arm in summary.arms if arm.test is None} == set()
        _, tests = result.records()
        for arm in summary.arms:
            read = [tests[run_id] for run_id in arm.chosen_run_ids]
            assert [len(test.generated) for test in read] == [len(study.testing.decoding)] * len(read), arm.name
            assert all(set(test.metrics) == set(study.task.metric_names) for test in read), arm.name
        assert {path.suffix for path in result.report(tmp_path / "report")} >= {".html", ".md", ".csv", ".json"}


def test_small_forms_are_those_of_the_recipes() -> None:
    forms = yaml.safe_load((RECIPES / SMOKE).read_text("utf-8"))
    assert set(forms) == set(recipe_names())
    with pytest.raises(StudyError, match="no recipe is called 'smoke'"):
        load_study("smoke")


def test_oasst1_as_stated_and_as_counted() -> None:
    study = load_study("oasst1-gpt2")
    assert (study.model, study.precision, study.task.data) == ("gpt2", "fp16", "OpenAssistant/oasst1")
    stated, counted = ("c_attn", "attn.c_proj"), ("c_attn", "attn.c_proj", "c_fc", "mlp.c_proj")
    for rank in (8, 32):
        assert lora(study.arm(f"lora-r{rank}-stated-published")).targets == stated
        assert lora(study.arm(f"lora-r{rank}-counted-published")).targets == counted
    assert all("lr" in arm.assumed for arm in published(study))


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
    # QLoRA is the same LoRA on a base that is held in NF4, and nothing else.
    for name in ("lora-r16", "lora-r16-published"):
        quantised = lora(study.arm(f"q{name}"))
        assert quantised == lora(study.arm(name)).model_copy(update={"quantize": "nf4"})
        assert study.arm(f"q{name}").lr == study.arm(name).lr


@pytest.mark.parametrize(
    ("name", "rank", "alpha", "targets", "lr"),
    [
        ("lora-r4", 4, 16, ("c_attn",), 1e-4),
        ("lora-r8", 8, 16, ("c_attn",), 2e-4),
        ("lora-r16", 16, 16, ("c_attn",), 5e-4),
        ("lora-r8-mlp", 8, 16, ("c_attn", "mlp.c_proj"), 2e-4),
        ("lora-r32-mlp", 32, 32, ("c_attn", "mlp.c_proj"), 2e-4),
    ],
)
def test_squad_as_published(name: str, rank: int, alpha: float, targets: tuple[str, ...], lr: float) -> None:
    arm = load_study("squad-gpt2").arm(f"{name}-published")
    method = lora(arm)
    assert (method.rank, method.alpha, method.dropout, method.targets) == (rank, alpha, 0.1, targets)
    assert arm.lr == (lr,)
    assert "lr" not in arm.assumed


def test_squad_decodes_in_four_ways() -> None:
    study = load_study("squad-gpt2")
    names = [one.name for one in study.testing.decoding]
    assert names == ["greedy", "t-0.7", "top-k-50", "top-p-0.9"]
    assert [one.samples for one in study.decoding] == [1, 5, 5, 5]
    assert (study.primary_metric, study.task.splits.test) == ("f1", "validation")
    # A setting that trains nothing and one that trains everything stand beside the five.
    assert {"zero-shot", "full"} <= {arm.name for arm in study.arms}


def test_sst2_as_published() -> None:
    study = load_study("sst2-gpt2")
    assert (study.budget.steps, study.budget.batch_size) == (800, 16)
    assert (study.task.labels, study.task.splits.test) == (("negative", "positive"), "validation")
    method = lora(study.arm("lora-r8-published"))
    assert (method.rank, method.alpha, method.dropout, method.targets) == (8, 16, 0.05, FOUR_KINDS)
    assert isinstance(study.arm("bottleneck-published").method, BottleneckMethod)
    assert isinstance(study.arm("prompt-published").method, PromptMethod)
    assert {arm.method.method for arm in study.arms} == {
        *("none", "lora", "full", "bottleneck", "prompt", "prefix", "bitfit", "head")
    }
    assert all("lr" in arm.assumed for arm in published(study))


def test_sst2_counts() -> None:
    """On GPT-2 small's shape, against closed formulas; every trained arm trains the new head of 2 x 768 as well."""
    layers, width, head = 12, 768, 2 * 768
    counts = {arm.name: arm.parameters.trainable for arm in plan(load_study("sst2-gpt2")).arms}
    # c_attn, attn.c_proj, c_fc, mlp.c_proj: rank x (in + out) each.
    assert counts["lora-r8"] == layers * 8 * (4 * width + 2 * width + 5 * width + 5 * width) + head == 1_181_184
    assert counts["full"] == GPT2_SMALL + head
    assert counts["bottleneck"] == layers * (2 * width * 64 + 64 + width) + head
    assert counts["prompt"] == 20 * width + head
    assert counts["prefix"] == layers * 2 * 20 * width + head
    # Per layer: two normalisations, c_attn, attn.c_proj, c_fc, mlp.c_proj; and the last normalisation.
    assert counts["bitfit"] == layers * (2 * width + 3 * width + width + 4 * width + width) + width + head
    assert counts["head"] == head
    assert counts["zero-shot"] == 0


def test_shapes() -> None:
    assert known_shape("gpt2") == known_shape("openai-community/gpt2")
    assert known_shape("someone/gpt2") is None
    assert all(known_shape(name) for name in known_models())
