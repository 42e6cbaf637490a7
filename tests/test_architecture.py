"""The shape of the house: short files and functions, named floors, and no torch where none is needed."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import tuneoff

TOP = Path(__file__).resolve().parent.parent
PACKAGE = TOP / "src" / "tuneoff"
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
SOURCES = sorted(path for folder in ("src", "scripts", "benchmarks") for path in (TOP / folder).rglob("*.py"))


def _long_functions(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            num_lines = node.end_lineno - node.lineno + 1
            if num_lines >= MAX_FUNCTION_LINES:
                yield f"{path.relative_to(TOP)}:{node.lineno} {node.name} has {num_lines} lines"


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(TOP)): len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    assert {path: num for path, num in lengths.items() if num >= MAX_FILE_LINES} == {}


def test_functions_are_short() -> None:
    assert [line for path in SOURCES for line in _long_functions(path)] == []


def test_every_floor_is_in_the_contract() -> None:
    settings = tomllib.loads((TOP / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]
    floors = next(contract for contract in settings["contracts"] if contract["type"] == "layers")["layers"]
    named = {name for floor in floors for name in re.findall(r"tuneoff\.(\w+)", floor)}
    found = {path.stem for path in PACKAGE.glob("*.py") if not path.stem.startswith("__")}
    found |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert found == named


def test_every_folder_with_code_is_a_package() -> None:
    """Without `__init__.py` a folder is left out of the import contracts, silently."""
    folders = {path.parent for path in PACKAGE.rglob("*.py")}
    assert [str(folder.relative_to(TOP)) for folder in folders if not (folder / "__init__.py").exists()] == []


@pytest.mark.parametrize("module", ["tuneoff", "tuneoff.errors", "tuneoff.study", "tuneoff.cli"])
def test_import_leaves_torch_unloaded(module: str) -> None:
    code = f"import sys, {module}; print(*{{'torch', 'transformers', 'datasets'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == []


HEAVY = ("torch", "transformers", "datasets", "peft", "numpy", "scipy", "pandas", "sklearn", "altair", "pydantic")
HELP = "from tuneoff.cli import main; sys.argv = ['tuneoff', '--help']; main()"
STATUS = "import tuneoff.api, tuneoff.running.reading, tuneoff.report.status"


@pytest.mark.parametrize(("code", "allowed"), [(HELP, ()), (STATUS, ("pydantic",))], ids=["help", "status"])
def test_a_command_that_should_start_at_once_imports_nothing_heavy(code: str, allowed: tuple[str, ...]) -> None:
    """What starting takes is what it imports: seen in a process of its own, by what is there at its end."""
    end = f"print('imported:', *(name for name in {HEAVY!r} if name in sys.modules))"
    whole = f"import atexit, sys; atexit.register(lambda: {end}); {code}"
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines()[-1].split() == ["imported:", *allowed]
    assert "Usage" in done.stdout or code != HELP


@pytest.mark.parametrize(
    "words",
    [
        ("plan", "demo", "--device-memory", "much"),
        ("plan", "demo", "--device", "abacus"),
        ("plan", "demo", "--fit=sorcery"),
        ("plan", "demo", "-o", "small.yaml"),
        ("run", "demo", "--fit=sorcery"),
        ("run", "demo", "--only", "nonesuch"),
        ("run", "demo", "--cohort", "many"),
        ("run", "demo", "--time", "soon"),
    ],
    ids=" ".join,
)
def test_wrong_words_are_refused_before_anything_heavy_is_imported(words: tuple[str, ...], tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'transformers', 'numpy')));"
        f"from tuneoff.cli import main; sys.argv = ['tuneoff', *{words!r}]; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path
    )
    assert (done.returncode, done.stdout, done.stderr.count("error: ")) == (2, "", 1), done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_lazy_names_are_found() -> None:
    assert tuneoff.errors.TuneoffError.exit_code == 2
    assert set(tuneoff.__all__) <= set(dir(tuneoff))
    assert all(hasattr(tuneoff, name) for name in tuneoff.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonesuch'"):
        _ = tuneoff.nonesuch
