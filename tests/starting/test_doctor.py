"""What the machine can do, found and said; no secret among it, no hang, and an exit code for what no study survives."""

import json
import os
import re
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.cli.shell import tuneoff

from tuneoff.starting import checks
from tuneoff.starting.checks import Check, HubCheck, folder_checks, optional_checks, package_checks
from tuneoff.starting.doctor import Diagnosis, examine

TOP = Path(__file__).resolve().parents[2]


def _named(found: Any, name: str) -> Check:
    return next(check for check in found if check.name == name)


def test_the_verb_prints_a_table_and_json(tmp_path: Path) -> None:
    found = tuneoff("doctor", "--out", str(tmp_path))
    assert (found.code, found.errors) == (0, "")
    assert "Studies can run here." in found.text
    as_json = tuneoff("doctor", "--out", str(tmp_path), "--json")
    told = json.loads(as_json.text)
    assert told["able"] is True
    groups = {check["group"] for check in told["checks"]}
    assert groups == {"device", "precision", "memory", "disk", "software", "optional", "hub"}


def test_the_tested_versions_are_those_of_the_constraints() -> None:
    path = TOP / "constraints.txt"
    if not path.exists():
        pytest.skip("the source distribution leaves it out")
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", path.read_text("utf-8"), re.MULTILINE))
    assert {
        name: pinned[name.replace("-", "_") if name not in pinned else name] for name in checks.TESTED
    } == checks.TESTED


@pytest.mark.parametrize(
    ("version", "state", "advice"),
    [("2.13.0", "ok", ""), ("2.13.9", "ok", ""), ("2.99.0", "note", "newer"), ("2.0.1", "broken", "too old"),
     (None, "broken", "pip install 'torch>=")],
)  # fmt: skip
def test_versions_are_held_to_the_tested_range(
    version: str | None, state: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = checks._version
    monkeypatch.setattr(checks, "_version", lambda name: version if name == "torch" else real(name))
    found = _named(package_checks(), "torch")
    assert found.state == state
    assert advice in found.advice


def test_what_is_broken_ends_with_exit_code_1(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checks, "_version", lambda name: None)
    found = tuneoff("doctor", "--out", str(tmp_path))
    assert found.code == 1
    assert "No study can run before this is mended: torch" in found.text


def test_optional_packages_say_what_they_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.util, "find_spec", lambda name: None)
    found = {check.name: check for check in optional_checks()}
    assert set(found) == {*checks.OPTIONAL, "liger-kernel"}
    assert "pip install 'tuneoff[optuna]'" in found["optuna"].advice
    assert all(check.state == "ok" for check in found.values())


def test_extras_are_those_of_the_package() -> None:
    settings = (TOP / "pyproject.toml").read_text("utf-8")
    for name, (_, extra, _) in checks.OPTIONAL.items():
        assert re.search(rf"^{extra} = \[.*{name}", settings, re.MULTILINE)


def test_folders_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = _named(folder_checks(tmp_path / "file" / "runs"), "results")
    assert found.state == "broken"
    assert "not writable" in found.found
    assert _named(folder_checks(tmp_path / "new" / "runs"), "results").state == "ok"


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: usage)
    found = {check.name: check.state for check in folder_checks(tmp_path)}
    assert found == {"results": "broken", "cache": "note", "hub cache": "note"}


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No variable that forbids the network or leads around it; the hub is what a test says."""
    for name in (*checks.OFFLINE, "HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_the_hub_answers(online: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        online.setenv("HF_ENDPOINT", f"http://user:secret-word@127.0.0.1:{server.getsockname()[1]}")
        found = list(HubCheck().checks())
    assert _named(found, "reachable").found == "yes"
    assert "secret-word" not in str(found)


def test_a_hub_that_refuses(online: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    online.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    found = _named(HubCheck().checks(), "reachable")
    assert (found.state, found.found) == ("note", "no (ConnectionRefusedError)")


def test_a_name_server_that_hangs_is_not_waited_for(online: pytest.MonkeyPatch) -> None:
    online.setattr(checks, "HUB_S", 0.05)
    end = threading.Event()

    def hang(*address: Any, **options: Any) -> Any:
        end.wait()
        raise OSError

    found = _named(HubCheck(hang).checks(), "reachable")
    end.set()
    assert (found.state, found.found) == ("note", "no answer within 0 s")


@pytest.mark.parametrize("name", checks.OFFLINE)
def test_offline_is_not_asked(online: pytest.MonkeyPatch, name: str) -> None:
    online.setenv(name, "1")

    def refuse(*address: Any, **options: Any) -> Any:
        raise AssertionError("the network was used")

    found = _named(HubCheck(refuse).checks(), "reachable")
    assert (found.state, found.found) == ("ok", f"not asked: {name} is set")


def test_a_token_is_never_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_averysecretword")
    found = examine(tmp_path)
    assert _named(found.checks, "token").found == "yes"
    assert "averysecretword" not in json.dumps(found.plain())
    monkeypatch.delenv("HF_TOKEN")
    assert _named(HubCheck().checks(), "token").found == "no"


def test_torch_that_cannot_be_imported_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail() -> None:
        raise ImportError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr("tuneoff.training.machine.look_at_machine", fail)
    found = examine(tmp_path)
    assert not found.is_able
    assert "libcudart" in _named(found.checks, "torch").found


def test_fewer_threads_than_cores_are_said(tmp_path: Path) -> None:
    found = examine(tmp_path)
    cores = _named(found.checks, "cores")
    affinity = len(os.sched_getaffinity(0))
    assert cores.found.startswith(tuple(map(str, range(1, affinity + 1))))
    assert Diagnosis((cores,)).is_able
