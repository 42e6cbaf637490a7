"""The notebooks are valid, hold no outputs, and run from end to end on the demo base and data."""

import ast
import json
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NAMES = ("first_look", "lora_on_squad", "methods_on_sst2")
MAX_BYTES = 10_000
KERNEL = "tuneoff-tests"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the source distribution leaves the notebooks out")


def test_names() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_is_small_and_holds_no_outputs(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    assert path.stat().st_size < MAX_BYTES
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    # What a user changes stands at the top.
    assert 'MODEL = "demo"' in code[0].source
    assert 'DATA = "demo"' in code[0].source


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Run a cell and return what it would show: the value of its last line, where that is an expression."""
    *lines, last = ast.parse(source).body
    lines += [] if isinstance(last, ast.Expr) else [last]
    exec(compile(ast.Module(lines, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if isinstance(last, ast.Expr) else None


@pytest.mark.slow
def test_the_first_runs_cell_by_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which has the libraries; each has a kernel of its own in `make test-long`."""
    monkeypatch.chdir(tmp_path)
    notebook, names = nbformat.read(FOLDER / "first_look.ipynb", as_version=4), {"__name__": "notebook"}
    shown = [run_cell(cell.source, names) for cell in notebook.cells if cell.cell_type == "code"]
    charts = [one for one in shown if hasattr(one, "_repr_mimebundle_") and "vega" in str(one._repr_mimebundle_())]
    assert charts
    assert isinstance(shown[-1], str)  # the verdict
    assert list(tmp_path.glob("runs/*/*/test.json"))


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a kernel that is this interpreter, whatever kernels the machine has, with no settings of its own."""
    own = tmp_path / "jupyter"
    spec = own / "kernels" / KERNEL
    spec.mkdir(parents=True)
    # It would warn that its connection, on this machine alone, is not encrypted.
    command = [sys.executable, "-m", "ipykernel_launcher", "--log-level=ERROR", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": command, "display_name": KERNEL, "language": "python"}))
    for variable in ("JUPYTER_PATH", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(own))
    # What Transformers imports says that it could draw nicer progress bars; a kernel has no widgets unless asked for.
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")
    return KERNEL


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_runs(name: str, kernel: str, tmp_path: Path) -> None:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    work = tmp_path / "work"
    work.mkdir()
    NotebookClient(notebook, kernel_name=kernel, timeout=300, resources={"metadata": {"path": str(work)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    said = [output for cell in code for output in cell.outputs if output.get("name") == "stderr"]
    assert [output.text for output in said] == []
    charts = [output for cell in code for output in cell.outputs if "vega" in str(output.get("data", {})).lower()]
    assert charts
    assert list((work / "runs").glob("*/*/test.json"))
