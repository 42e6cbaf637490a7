"""The notebooks are valid, hold no outputs, and run from end to end on the demo base and data."""

import json
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager
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
    manager = AsyncKernelManager(kernel_name=kernel)
    client = NotebookClient(notebook, km=manager, timeout=300, resources={"metadata": {"path": str(work)}})
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    said = [output for cell in code for output in cell.outputs if output.get("name") == "stderr"]
    assert [output.text for output in said] == []
    charts = [output for cell in code for output in cell.outputs if "vega" in str(output.get("data", {})).lower()]
    assert charts
    assert list((work / "runs").glob("*/*/test.json"))
