"""Study files: what is read, what `--set` changes, and what each mistake is answered with."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneoff.errors import StudyError
from tuneoff.study.loading import load_study, recipe_names, study_from
from tuneoff.study.methods import LoraMethod
from tuneoff.study.spec import Study
from tuneoff.study.value import plain

GOOD = """
name: good
model: base
task: {kind: instruction, data: rows.jsonl}
budget: {steps: 10}
arms:
  zero: {method: none}
  lora: {method: lora, rank: 4, tune: {lr: [1e-4, 3e-4]}}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, *overrides: str) -> Study:
    return load_study(write(folder, GOOD), overrides)


def test_reads_a_file(tmp_path: Path) -> None:
    study = load(tmp_path)
    assert (study.name, study.root, study.budget.steps, study.seeds) == ("good", tmp_path, 10, (0, 1, 2))
    assert study.arm("lora").lr == (1e-4, 3e-4)
    with pytest.raises(KeyError):
        study.arm("nobody")


def test_a_file_goes_before_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = recipe_names()[0]
    (tmp_path / name).write_text(GOOD, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_study(name).name == "good"


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("budget.steps=3", ("budget", "steps"), 3),
        ("budget.epochs=1.5", ("budget", "steps"), None),
        ("budget.epochs=1.5", ("budget", "epochs"), 1.5),
        ("optimizer.clip=null", ("optimizer", "clip"), None),
        ("optimizer.betas=[0.8, 0.9]", ("optimizer", "betas"), (0.8, 0.9)),
        ("seeds=[7]", ("seeds",), (7,)),
        ("about=a=b: c", ("about",), None),
        ('about="a=b"', ("about",), "a=b"),
        ("arms.lora.tune.lr=[5e-5]", ("arms", 1, "lr"), (5e-5,)),
        ("arms.lora.rank=[1, 2, 3]", ("arms", 3, "name"), "lora-rank3"),
        ("arms.new.method=full", ("arms", 2, "name"), "new"),
        ("task.splits.test=0.2", ("task", "splits", "test"), 0.2),
    ],
)
def test_overrides(tmp_path: Path, override: str, path: tuple[Any, ...], value: Any) -> None:
    if override == "about=a=b: c":
        with pytest.raises(StudyError, match=r"about: .*string"):
            load(tmp_path, override)
        return
    found: Any = load(tmp_path, override)
    for part in path:
        found = found[part] if isinstance(part, int) else getattr(found, part)
    assert found == value


def test_a_path_in_an_override_starts_where_it_is_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "other.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path / "here")
    study = load(tmp_path, "task.data=other.jsonl", "about=other.jsonl")
    assert study.task.data == str(tmp_path / "here" / "other.jsonl")
    assert study.about == "other.jsonl"
    assert load(tmp_path, "model=gpt2").model == "gpt2"


MANY = """
name: many
model: base
task: {kind: instruction, data: rows.jsonl}
budget: {steps: 10}
arms:
  zero: {method: none}
  fixed: {method: lora, targets: [c_attn], lr: 1e-4}
  tuned: {method: lora, rank: [2, 4], targets: [q_proj, v_proj], tune: {lr: [1e-4, 3e-4]}}
  full: {method: full, tune: {lr: [1e-5]}}
"""


class TestEveryArm:
    def test_a_key_is_set_where_it_is_given(self, tmp_path: Path) -> None:
        study = load_study(write(tmp_path, MANY), ["arms.*.targets=[all-linear]"])
        before = load_study(write(tmp_path, MANY))
        for arm, old in zip(study.arms, before.arms, strict=True):
            if isinstance(old.method, LoraMethod):
                assert arm.method == old.method.model_copy(update={"targets": ("all-linear",)})
            else:
                assert arm == old

    def test_a_key_within_a_key(self, tmp_path: Path) -> None:
        study = load_study(write(tmp_path, MANY), ["arms.*.tune.lr=[5e-5, 5e-4]"])
        rates = {arm.name: arm.lr for arm in study.arms}
        assert rates["tuned-rank2"] == rates["tuned-rank4"] == rates["full"] == (5e-5, 5e-4)
        assert (rates["fixed"], rates["zero"]) == ((1e-4,), ())

    def test_a_later_override_of_one_arm_leaves_the_others(self, tmp_path: Path) -> None:
        overrides = ["arms.*.tune={lr: [1e-3, 1e-2]}", "arms.full.tune.lr=[1e-6]"]
        study = load_study(write(tmp_path, MANY), overrides)
        assert study.arm("full").lr == (1e-6,)
        assert study.arm("tuned-rank2").lr == (1e-3, 1e-2)

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("arms.*.size=8", r"--set arms\.\*\.size=8: no arm gives 'size', .*write arms\.NAME\.size"),
            ("arms.*.tune.momentum=8", r"no arm gives 'tune\.momentum'"),
            ("arms.*.=8", r"expected KEY=VALUE"),
            ("arms.*.targets=[]", r"arms\.fixed\.targets: .*at least 1"),
            ("arms.*=8", r"arms\.\*: expected a mapping"),
        ],
    )
    def test_mistakes(self, tmp_path: Path, override: str, message: str) -> None:
        with pytest.raises(StudyError, match=message):
            load_study(write(tmp_path, MANY), [override])

    def test_without_arms(self, tmp_path: Path) -> None:
        with pytest.raises(StudyError, match="no arm gives 'lr'"):
            load_study(write(tmp_path, "name: none\n"), ["arms.*.lr=1"])


class TestSmoke:
    def test_is_a_study_of_its_own(self) -> None:
        study = load_study("demo", smoke=True)
        assert study.name == "demo-smoke"
        assert study.budget.steps is not None
        assert study.budget.steps < (load_study("demo").budget.steps or 0)

    def test_goes_before_overrides(self) -> None:
        study = load_study("demo", ["budget.steps=3", "name=mine"], smoke=True)
        assert (study.name, study.budget.steps) == ("mine", 3)

    def test_a_folder_called_demo_is_not_meant(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "demo").mkdir()
        monkeypatch.chdir(tmp_path)
        study = load_study("squad-gpt2", smoke=True)
        assert (study.model, study.task.data) == ("demo", "demo")

    def test_a_file_has_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write(tmp_path, GOOD)
        with pytest.raises(StudyError, match=r"a small form \(--smoke\) was asked for; only recipes have one: book-"):
            load_study(path, smoke=True)
        (tmp_path / "demo").write_text(GOOD, encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(StudyError, match="only recipes have one"):
            load_study("demo", smoke=True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("budget", "--set budget: expected KEY=VALUE"),
        ("=3", "--set =3: expected KEY=VALUE"),
        ("budget.stpes=3", r"budget\.stpes: unknown key; .*Did you mean steps"),
        ("name.first=x", r"--set name.first=x: name is 'good', which has no keys"),
        ("budget.steps=[", "--set .*not valid YAML"),
        ("budget.steps=many", r"budget\.steps: .*found 'many'"),
        ("budget.steps=" + "[" * 2000, "--set .*(not valid YAML|too deeply)"),
        ("seeds=[2021-13-45]", "--set .*not valid YAML"),
        ("arms.lora=null", r"arms\.lora: expected a mapping .* found None"),
        ("arms.lora.tune.lr=outo", r"arms\.lora\.tune\.lr: .*, or auto; found 'outo'\. Did you mean auto"),
        ("tuning.extnd=2", r"tuning\.extnd: unknown key; allowed: extend, search, reduction\. Did you mean extend"),
        ("tuning.extend=21", r"tuning\.extend: .*less than or equal to 20; found 21"),
        ("tuning.search=halvng", r"tuning\.search: .*'grid' or 'halving'; found 'halvng'\. Did you mean halving"),
        ("tuning.reduction=1", r"tuning\.reduction: .*greater than or equal to 2; found 1"),
        ("arms.lora.rnak=3", r"arms\.lora\.rnak: unknown key.*Did you mean rank"),
        ("model=" + "x" * 5000, r"$"),
        ("root=/", "root: unknown key"),
    ],
)
def test_bad_overrides(tmp_path: Path, override: str, message: str) -> None:
    if override.startswith("model="):
        assert (
            len(load(tmp_path, override).model) == 5000
        )  # no traceback of the file system; the model is refused later
        return
    with pytest.raises(StudyError, match=message):
        load(tmp_path, override)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps: 10", "stpes: 10", r"study\.yaml: budget\.stpes: unknown key; allowed: steps.*Did you mean steps\?"),
        ("steps: 10", "steps: 0", r"budget\.steps: .*greater than 0; found 0"),
        ("steps: 10", "steps: 1.5", r"budget\.steps: .*found 1\.5"),
        ("steps: 10", "steps: 10, epochs: 1", "budget: give exactly one of .*; found steps and epochs"),
        ("{steps: 10}", "{batch_size: 4}", "budget: give exactly one of .*; found none of them"),
        ("{steps: 10}", "10", r"budget: .*found 10"),
        ("model: base", "modle: base", r"model: missing(.|\n)*modle: unknown key; .*Did you mean model\?"),
        ("model: base", "model: ''", r"model: .*at least 1 character"),
        ("name: good", "name: ../good", r"name: .*pattern.*found '\.\./good'"),
        ("name: good", "name: .good", r"name: .*pattern"),
        ("name: good", "name: good\nname: again", r"study\.yaml, line 3, column 1: .*'name' is given twice"),
        ("rank: 4", "rank: 4, rank: 8", r"study\.yaml, line 8, column 33: .*'rank' is given twice"),
        (
            "kind: instruction",
            "kind: prose",
            r"task\.kind: .*'text', 'instruction', 'qa' or 'classification'.*found 'prose'",
        ),
        ("rows.jsonl", "rows.jsonl, max_length: 1", "task: max_length must be at least 2"),
        ("rows.jsonl", "rows.jsonl, max_length: 8, stride: 8", "task: stride 8 must be below max_length 8"),
        ("rows.jsonl", "rows.jsonl, splits: {test: 1.5}", r"task\.splits\.test.*less than 1; found 1\.5"),
        ("rows.jsonl", "rows.jsonl, columns: {promt: a}", r"task\.columns\.promt: unknown key.*Did you mean prompt"),
        ("arms:\n", "armz:\n", "arms: missing"),
        ("name: good", "name: good\nseeds: [1, 1]", r"seeds: seeds must differ; found \[1, 1\]"),
        ("name: good", "name: good\nseeds: []", r"seeds: .*at least 1"),
        ("name: good", "name: good\nseeds: [-1]", r"seeds\.0: .*greater than or equal to 0; found -1"),
        ("name: good", "name: good\noptimizer: {warmup: .inf}", r"optimizer\.warmup: .*finite"),
        ("name: good", "name: good\noptimizer: {clip: 0}", r"optimizer\.clip: .*greater than 0"),
        ("name: good", "name: good\nprecision: fp8", r"precision: .*'fp32', 'bf16' or 'fp16'.*found 'fp8'"),
        ("name: good", "name: good\n1: 2", r"study\.yaml: 1: "),
        ("name: good", "name: good\nabout: 2021-13-45", r"study\.yaml, line 3, column 8: not valid YAML: month"),
        ("name: good", "name: good\n? [a, b]\n: 2", r"study\.yaml.*not valid YAML"),
        ("name: good", "name: good\nabout: !!python/object:os.system x", r"study\.yaml.*not valid YAML"),
        ("name: good", "name: [good", r"study\.yaml, line \d+, column \d+: not valid YAML"),
        ("name: good", "name: good\nabout: &a [*a]", r"line 3, column 8: .*an alias stands for what it is in"),
        ("name: good", "name: \x07", r"study\.yaml, line 2, column 7: not valid YAML"),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(StudyError, match=message) as caught:
        load_study(write(tmp_path, GOOD.replace(old, new)))
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize(("text", "found"), [("", "NoneType"), ("[1, 2]", "list"), ("just words", "str")])
def test_not_a_mapping(tmp_path: Path, text: str, found: str) -> None:
    with pytest.raises(StudyError, match=f"expected a mapping with the keys name, .*found {found}"):
        load_study(write(tmp_path, text))


@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_deep_nesting(tmp_path: Path, depth: int) -> None:
    with pytest.raises(StudyError, match=r"nested too deeply|not valid YAML"):
        load_study(write(tmp_path, "a: " + "[" * depth + "]" * depth))


@pytest.mark.parametrize(
    "ending", ["arms: *a8", "arms: {a: *a8}", "arms: {a: {method: *a8}}", "arms: {a: {method: none}}"]
)
def test_aliases_that_multiply(tmp_path: Path, ending: str) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    with pytest.raises(StudyError) as caught:
        load_study(write(tmp_path, "\n".join([*lines, ending])))
    assert len(str(caught.value)) < 10_000


def test_a_missing_file_names_the_recipes(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"no study file and no recipe is called 'dolly-llama'.*Did you mean dolly-ll"):
        load_study("dolly-llama")
    with pytest.raises(StudyError, match="no study file and no recipe"):
        load_study(tmp_path / "none.yaml")
    with pytest.raises(StudyError, match="no study file and no recipe"):
        load_study("x" * 5000)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="is a folder; expected a study file"):
        load_study(tmp_path)


@pytest.mark.parametrize("content", [b"name: \xff\xfe", b"\xff\xfen\x00a\x00"])
def test_not_utf8(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "study.yaml").write_bytes(content)
    with pytest.raises(StudyError, match=r"study\.yaml, line 1, column \d: expected UTF-8 text"):
        load_study(tmp_path / "study.yaml")


RATES = st.lists(st.floats(1e-8, 10, allow_nan=False), min_size=1, max_size=3)
WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20)
ARMS = st.one_of(
    st.just({"method": "none"}),
    st.builds(lambda lr: {"method": "full", "tune": {"lr": lr}}, RATES),
    st.builds(
        lambda rank, alpha, dropout, targets, lr: {
            "method": "lora",
            "rank": rank,
            "alpha": alpha,
            "dropout": dropout,
            "targets": targets,
            "lr": lr,
        },
        st.integers(1, 512),
        st.floats(0.01, 1e3),
        st.floats(0, 0.99),
        st.lists(st.from_regex(r"[a-z_.*]{1,8}", fullmatch=True), min_size=1, max_size=3),
        st.floats(1e-8, 10),
    ),
)
STUDIES = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        "about": WORDS,
        "model": st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=12),
        "task": st.fixed_dictionaries(
            {"kind": st.sampled_from(["text", "instruction"]), "data": WORDS, "max_length": st.integers(2, 4096)}
        ),
        "budget": st.one_of(
            st.builds(lambda n: {"steps": n}, st.integers(1, 10**6)),
            st.builds(lambda n: {"epochs": n}, st.floats(0.01, 100)),
        ),
        "seeds": st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4, unique=True),
        "arms": st.dictionaries(st.from_regex(r"[a-z][a-z0-9]{0,6}", fullmatch=True), ARMS, min_size=1, max_size=3),
    }
)


@given(STUDIES)
def test_a_study_comes_back_from_its_json(body: dict[str, Any]) -> None:
    study = study_from(body, Path())
    assert Study.model_validate(plain(study)) == study
    assert Study.model_validate_json(study.model_dump_json()) == study


@settings(max_examples=30)
@given(STUDIES)
def test_json_is_yaml(tmp_path_factory: pytest.TempPathFactory, body: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    path.write_text(json.dumps(body, ensure_ascii=False), encoding="utf-8")
    assert load_study(path) == study_from(body, path.parent)


@given(st.dictionaries(st.text(max_size=8), st.recursive(st.integers() | st.text(), st.lists, max_leaves=5)))
def test_no_mapping_brings_it_down(body: dict[str, Any]) -> None:
    with pytest.raises(StudyError):
        study_from(body, Path())


def test_an_unknown_key_of_a_decoding_strategy_is_answered_with_its_own_keys(tmp_path: Path) -> None:
    override = "decoding=[greedy, {temprature: 0.7}]"
    with pytest.raises(
        StudyError, match=r"decoding\.1\.temprature: unknown key; allowed: temperature, top_k, .*"
    ) as error:
        load(tmp_path, override)
    assert "Did you mean temperature?" in str(error.value)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        (
            "classification",
            "acuracy",
            r"metrics of classification are accuracy, f1, macro_f1; .*Did you mean accuracy\?",
        ),
        ("instruction", "rouge", r"allowed: bleu, exact_match, f1, rouge1, .*Did you mean"),
        ("text", "bleu", r"kind: text has no reply to generate"),
        ("qa", "accuracy", r"found 'accuracy'; allowed: bleu, exact_match"),
    ],
)
def test_metrics_are_those_of_the_kind(tmp_path: Path, kind: str, name: str, message: str) -> None:
    with pytest.raises(StudyError, match=rf"task\.metrics: .*{message}"):
        load(tmp_path, f"task.kind={kind}", f"task.metrics=[{name}]")
