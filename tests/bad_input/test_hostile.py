"""A study, data, a base and adapters from someone who means harm: what each does to who runs, prints and opens them."""

import ast
import csv
import io
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.text import Text
from tests.bad_input.case import Case as BadInput
from tests.bad_input.case import Place, fresh, run_case
from tests.bad_input.models import Malice
from tests.cli.shell import tuneoff
from tests.report.reader import Reader
from tests.running.world import body, write_rows

from tuneoff.report.console import SafeConsole
from tuneoff.report.text import spreadsheet
from tuneoff.training.models import load_tokenizer

SOURCES = sorted((Path(__file__).parents[2] / "src" / "tuneoff").rglob("*.py"))
SCRIPT = "</script><script>alert('x')</script><img src=x onerror=alert(1)>"
ESCAPE = "\x1b[2J\x1b]0;owned\x07\x9b31m\x1b]8;;http://evil\x1b\\link\u202e"
FORMULAS = ("=cmd()|' /C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "\x1b[31m=1")
SECRETS = {"HF_TOKEN": "hf_thisIsASecret", "WANDB_API_KEY": "wandbIsASecretToo", "AWS_SECRET_ACCESS_KEY": "awsSecret"}
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.mark.slow
def test_a_hostile_study_from_its_data_to_its_page(world: Path, tmp_path: Path) -> None:
    """Tags, escape codes, formulas and the environment's secrets: none comes out of a terminal, a page or a record."""
    place = fresh(world, tmp_path)
    labels = [f"=1+1 {SCRIPT}", f"yes {ESCAPE}"]
    write_rows(
        place.folder / "data.jsonl",
        [{"text": f"{SCRIPT} {ESCAPE} {index}", "label": labels[index % 2]} for index in range(24)],
    )
    study = body("hostile", {"lora": {"method": "lora", "rank": 2, "lr": 1e-2}, "zero": {"method": "none"}}) | {
        "about": f"{SCRIPT} {ESCAPE}",
        "task": {"kind": "classification", "data": "data.jsonl", "max_length": 48},
        "budget": {"steps": 2, "batch_size": 4},
    }
    path = place.file("study.yaml", json.dumps(study))
    arguments = [sys.executable, "-m", "tuneoff.cli", "run", str(path), "--out", str(place.folder / "runs")]
    found = subprocess.run(arguments, env=os.environ | SECRETS, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr
    assert not CONTROLS.search(found.stdout + found.stderr)
    written = {one: one.read_bytes() for one in (place.folder / "runs").rglob("*") if one.is_file()}
    assert len(written) > 15
    for one, content in written.items():
        assert not [name for name, secret in SECRETS.items() if secret.encode() in content], one
        assert not re.search(rb"\.(bin|pt|pth|pkl)$", one.name.encode()), one
    page = (place.folder / "runs/hostile/report.html").read_text("utf-8")
    read = Reader(page)
    assert SCRIPT in read.text, "it is shown, as text"
    assert page.lower().count("<script") == 3
    assert not [tag for tag, attributes in read.tags if tag == "img" or any(key.startswith("on") for key in attributes)]
    assert "<" not in read.scripts[0]
    assert not CONTROLS.search(page)
    for table in (place.folder / "runs/hostile").glob("*.csv"):
        cells = [cell for row in csv.reader(io.StringIO(table.read_text("utf-8"))) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "@", "\t", "\r"))]
        assert all(is_number(cell) for cell in cells if cell.startswith("-"))


def is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("cell", FORMULAS)
def test_a_spreadsheet_runs_no_cell(cell: str) -> None:
    shown = spreadsheet(cell)
    assert shown.startswith("'")
    assert shown[1] in "=+-@"


def test_nothing_but_its_own_styles_reaches_a_terminal() -> None:
    file = io.StringIO()
    console = SafeConsole(file=file, force_terminal=True, width=200, color_system="truecolor")
    console.print(Text(ESCAPE + " shown", style="bold red"))
    console.print(ESCAPE)
    console.rule(Text(ESCAPE))
    ours = re.compile(r"\x1b\[[0-9;]*m")
    assert "shown" in file.getvalue()
    assert not CONTROLS.search(ours.sub("", file.getvalue()).replace("\n", ""))


def test_code_beside_a_tokenizer_does_not_run(world: Path, tmp_path: Path) -> None:
    """Where it is not asked for, the tokenizer's files are read by Transformers' own class."""
    place = fresh(world, tmp_path)
    place.edit_json("base/tokenizer_config.json", auto_map={"AutoTokenizer": [None, "evil.Tokenizer"]})
    place.file("base/evil.py", f"open({str(tmp_path / 'owned')!r}, 'w')\nclass Tokenizer: pass\n")
    tokenizer = load_tokenizer("base", tmp_path)
    assert type(tokenizer).__module__.startswith("transformers.")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("name", ["base/training_args.bin", "base/optimizer.pt", "base/scheduler.pkl", "base/x.npy"])
def test_pickles_beside_the_weights_are_not_opened(name: str, world: Path, tmp_path: Path) -> None:
    place = fresh(world, tmp_path)
    place.file(name, pickle.dumps(Malice(tmp_path / "owned")))
    case = BadInput(name, lambda place: (*place.study(), "--only", "nothing"), "no arm")
    assert run_case(case, place).code == 2
    plan = tuneoff("plan", str(place.folder / "study.yaml"))
    assert plan.code == 0, plan.errors
    load_tokenizer("base", tmp_path)
    assert not (tmp_path / "owned").exists()


UNSAFE = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load", "np.load", "numpy.load", "joblib.load"),
    *("marshal.load", "marshal.loads", "shelve.open", "os.system", "os.popen", "eval", "exec", "compile", "__import__"),
    *("tarfile.open", "zipfile.ZipFile", "shutil.unpack_archive", "gzip.open", "yaml.unsafe_load", "yaml.full_load"),
}


def test_the_source_unpickles_and_evaluates_nothing() -> None:
    found = [f"{path.name}, line {line}: {what}" for path in SOURCES for line, what in unsafe_calls(path)]
    assert len(SOURCES) > 150
    assert not found


def unsafe_calls(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the calls in a file that could run what they read."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in UNSAFE:
            yield node.lineno, called
        keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if any(keywords.get(name, "False") != "False" for name in ("allow_pickle", "shell")):
            yield node.lineno, f"{called} with {keywords}"
        if called == "yaml.load" and keywords["Loader"] != "_Loader":
            yield node.lineno, "yaml.load"


def test_a_place_is_what_the_world_is(world: Path, tmp_path: Path) -> None:
    """The spoilt places differ from a good one by what spoils them alone: the good one's study is taken."""
    place: Place = fresh(world, tmp_path)
    found = run_case(BadInput("a good study", lambda place: ("plan", place.study()[1]), ""), place)
    assert (found.code, found.errors) == (0, "")
