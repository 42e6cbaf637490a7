"""Each verb through the real `main`, on a study that is finished, on one that is partly done and on none."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli import shell
from tests.cli.shell import tuneoff
from tests.running.world import THREE, body

import tuneoff as package
from tuneoff.api import Result
from tuneoff.report.text import clean_lines
from tuneoff.running.use import compare_on_prompt
from tuneoff.study.loading import recipe_names

VERBS = {
    "demo": None,
    "init": "tuneoff init train.csv --model gpt2",
    "doctor": None,
    "plan": "tuneoff plan dolly-llama3",
    "run": "tuneoff run study.yaml --set budget.steps=200 --only lora",
    "status": None,
    "report": "--figures png,svg",
    "export": "tuneoff export demo/lora-rank16 adapter",
    "generate": 'tuneoff generate demo/lora-rank16 "Tell me a story."',
    "score": "tuneoff score --predictions predictions.json --references dev-v1.1.json",
    "recipes": None,
    "modules": "tuneoff modules dolly-llama3 --arm lora-r16",
}


@pytest.fixture
def study_file(finished: Result) -> str:
    """The finished study as a file, beside the data it was made from."""
    path = finished.study.root / f"three-{os.getpid()}.yaml"
    path.write_text(json.dumps(body("three", THREE, seeds=[0, 1])), encoding="utf-8")
    return str(path)


@pytest.fixture
def partial(finished: Result, tmp_path: Path) -> Result:
    """A copy in which the second seeds and all tests are missing, and one run was begun."""
    shutil.copytree(finished.store.folder, tmp_path / "runs" / "three")
    result = Result(finished.study, type(finished.store)(tmp_path / "runs" / "three"))
    for run_id, record in finished.records()[0].items():
        folder = result.store.run_folder(run_id)
        (folder / "test.json").unlink(missing_ok=True)
        if record.run.seed == 1:
            shutil.rmtree(folder)
    return result


def test_the_list_of_verbs_is_whole() -> None:
    found = tuneoff("--help")
    assert found.code == 0
    assert all(verb in found.text for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb: str) -> None:
    found = tuneoff(verb, "--help")
    example = VERBS[verb]
    assert (found.code, found.errors) == (0, "")
    assert "Usage:" in found.text
    assert example is None or example in " ".join(found.text.split())


def test_no_argument_shows_the_help() -> None:
    found = tuneoff()
    assert "Usage:" in found.text + found.errors
    assert "Traceback" not in found.errors


def test_version() -> None:
    found = tuneoff("--version")
    assert (found.code, found.text) == (0, f"tuneoff {package.__version__}\n")


def test_importing_the_command_line_is_light() -> None:
    heavy = ("torch", "transformers", "datasets", "numpy", "accelerate")
    code = f"import sys, tuneoff.cli, tuneoff.api; print([m for m in {heavy!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_recipes_lists_every_study_of_the_package() -> None:
    found = tuneoff("recipes")
    assert found.code == 0
    assert all(name in found.text for name in recipe_names())


def test_plan(world: Path, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(body("p", THREE, model=str(world / "base"))), encoding="utf-8")
    found = tuneoff("plan", str(path))
    assert (found.code, found.errors) == (0, "")
    assert "lora-rank4" in found.text
    as_json = json.loads(tuneoff("plan", str(path), "--json").text)
    assert [arm["name"] for arm in as_json["arms"]] == ["zero-shot", "full", "lora-rank2", "lora-rank4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.yaml"]


def test_modules(world: Path) -> None:
    found = tuneoff("modules", str(world / "base"))
    assert (found.code, found.errors) == (0, "")
    assert "c_attn  2 x Conv1D 16->48" in found.text
    assert "targets: c_attn, attn.c_proj, mlp.c_proj, c_fc; all-linear is all of them" in found.text
    assert "\x1b" not in found.text


def test_modules_of_a_study(world: Path, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(body("m", THREE, model=str(world / "base"))), encoding="utf-8")
    found = tuneoff("modules", str(path), "--arm", "lora-rank2")
    assert (found.code, found.errors) == (0, "")
    assert "+ LoRA r2: " in found.text
    assert "full" not in found.text
    with_study = tuneoff("modules", str(world / "base"), "--study", str(path), "--arm", "lora-rank2")
    assert with_study.text == found.text
    tuneoff("modules", str(path), "--arm", "lora-rank3").is_one_error("no arm is called 'lora-rank3'; allowed: ")
    tuneoff("modules", "demo", "--arm", "lora").is_one_error("'demo' is a model and has no arms")


class TestFinished:
    pytestmark = pytest.mark.slow

    def test_status(self, finished: Result, study_file: str) -> None:
        found = tuneoff("status", study_file, "--out", str(finished.store.folder.parent))
        assert (found.code, found.errors) == (0, "")
        assert "lora-rank4" in found.text
        assert "missing" not in found.text

    def test_report(self, finished: Result, study_file: str, tmp_path: Path) -> None:
        shutil.copytree(finished.store.folder, tmp_path / "three")
        found = tuneoff("report", study_file, "--out", str(tmp_path))
        assert (found.code, found.errors) == (0, "")
        assert "10 of 10 runs done" in found.text
        assert "report.html" in found.text
        rows = list(csv.DictReader((tmp_path / "three" / "report.csv").read_text("utf-8").splitlines()))
        assert {row["arm"] for row in rows} == {arm.name for arm in finished.study.arms}
        assert json.loads((tmp_path / "three" / "report.json").read_text("utf-8"))
        assert (tmp_path / "three" / "report.md").stat().st_size > 500

    def test_report_with_figures(self, finished: Result, study_file: str, tmp_path: Path) -> None:
        shutil.copytree(finished.store.folder, tmp_path / "three")
        arguments = ("report", study_file, "--out", str(tmp_path), "--figures")
        tuneoff(*arguments, "png,tiff").is_one_error("figures: found 'tiff'; allowed: pdf, png, svg")
        assert not (tmp_path / "three" / "figures").exists()
        found = tuneoff(*arguments, "svg, png")
        assert (found.code, found.errors) == (0, "")
        assert "figures/learning.svg" in found.text
        figures = tmp_path / "three" / "figures"
        assert (figures / "rates.png").read_bytes().startswith(b"\x89PNG")
        again = Result(finished.study, type(finished.store)(tmp_path / "three"))
        paths = again.report(tmp_path / "elsewhere", figures=("pdf",))
        assert tmp_path / "elsewhere" / "figures" / "memory.pdf" in paths

    def test_run_again(self, finished: Result, study_file: str, tmp_path: Path) -> None:
        shutil.copytree(finished.store.folder, tmp_path / "three")  # it writes down how many processes it was given
        found = tuneoff("run", study_file, "--out", str(tmp_path))
        assert (found.code, found.errors) == (0, "")
        assert "each run: 6 steps" in found.text
        assert "10 of 10 runs done" in found.text

    def test_export_and_generate(self, finished: Result, tmp_path: Path) -> None:
        run_id = next(
            run_id
            for run_id, record in finished.records()[0].items()
            if record.run.method.method == "lora" and run_id in finished.records()[1]
        )
        out = str(finished.store.folder.parent)
        found = tuneoff("export", f"three/{run_id}", str(tmp_path / "adapter"), "--out", out)
        assert (found.code, found.errors) == (0, "")
        assert (tmp_path / "adapter" / "adapter_config.json").exists()
        again = tuneoff("export", f"three/{run_id}", str(tmp_path / "adapter"), "--out", out)
        again.is_one_error("is there already and not empty")
        found = tuneoff("generate", run_id, "Say 3", "--max-new-tokens", "4", "--out", out)
        assert (found.code, found.errors) == (0, "")
        assert "base" in found.text
        assert run_id in found.text

    def test_a_text_keeps_its_own_lines(self, finished: Result, monkeypatch: pytest.MonkeyPatch) -> None:
        run_id = next(iter(finished.records()[1]))
        out = finished.store.folder.parent
        texts = [text for _, text in compare_on_prompt(out, run_id, "Say 3", 24)]
        monkeypatch.setattr(shell, "WIDTH", "10")
        found = tuneoff("generate", run_id, "Say 3", "--max-new-tokens", "24", "--out", str(out))
        assert any(len(line) > 10 for text in texts for line in text.splitlines())
        assert all(clean_lines(text) in found.text for text in texts)

    def test_other_settings_do_not_write_over_the_page(self, finished: Result, study_file: str, tmp_path: Path) -> None:
        shutil.copytree(finished.store.folder, tmp_path / "three")
        tuneoff("report", study_file, "--out", str(tmp_path))
        page = (tmp_path / "three" / "report.html").read_bytes()
        other = ("--set", "budget.steps=7", "--out", str(tmp_path))
        tuneoff("report", study_file, *other).is_one_error("none of the 10 finished runs")
        assert (tmp_path / "three" / "report.html").read_bytes() == page
        assert "10 other finished runs" in tuneoff("status", study_file, *other).text

    def test_zero_shot_has_nothing_to_export(self, finished: Result, tmp_path: Path) -> None:
        name = next(arm.name for arm in finished.study.arms if arm.method.method == "none")
        found = tuneoff("export", f"three/{name}", str(tmp_path / "x"), "--out", str(finished.store.folder.parent))
        found.is_one_error("trained nothing")
        assert not (tmp_path / "x").exists()

    def test_status_of_a_partial_study(self, partial: Result, study_file: str) -> None:
        found = tuneoff("status", study_file, "--out", str(partial.store.folder.parent))
        assert (found.code, found.errors) == (0, "")
        assert "partly" in found.text

    def test_report_of_a_partial_study(self, partial: Result, study_file: str) -> None:
        found = tuneoff("report", study_file, "--out", str(partial.store.folder.parent))
        assert (found.code, found.errors) == (0, "")
        assert "7 of 10 runs done" in found.text
        assert (partial.store.folder / "report.html").exists()


@pytest.mark.parametrize("verb", ["status", "report"])
def test_a_study_that_was_not_run(verb: str, world: Path, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(json.dumps(body("new", THREE)), encoding="utf-8")
    found = tuneoff(verb, str(path), "--out", str(tmp_path / "runs"))
    assert (found.code, found.errors) == (0, "")
    assert "lora-rank4" in found.text
    if verb == "status":
        assert not (tmp_path / "runs").exists()
