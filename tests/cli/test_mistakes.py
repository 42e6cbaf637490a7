"""Mistakes that take a folder, a child or a process of its own to make; `tests/bad_input` has what is given wrong."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.cli.shell import Outcome, tuneoff
from tests.running.world import body, save_base

LORA = {"lora": {"method": "lora", "rank": 2, "lr": 1e-3}}


@dataclass
class Place:
    """A folder with a base, rows and a study file, to be spoilt."""

    folder: Path

    def write(self, **changes: Any) -> str:
        """Write the study file with changes, and return its path."""
        path = self.folder / "study.yaml"
        path.write_text(json.dumps(body("bad", changes.pop("arms", LORA), **changes)), encoding="utf-8")
        return str(path)

    def run(self, study: str, *more: str) -> Outcome:
        """Run `tuneoff run`."""
        return tuneoff("run", study, "--out", str(self.folder / "runs"), *more)


@pytest.fixture
def place(world: Path, tmp_path: Path) -> Place:
    shutil.copytree(world / "base", tmp_path / "base")
    shutil.copy(world / "rows.jsonl", tmp_path)
    return Place(tmp_path)


def spoilt_line(place: Place) -> str:
    with (place.folder / "rows.jsonl").open("a") as file:
        file.write('{"instruction": "a", "response": \n')
    return place.write()


def test_what_a_child_finds_is_said_as_what_the_command_finds(place: Place) -> None:
    """Preparing the data in a child of the fork server, as a run does; `tests/bad_input` has every kind of mistake."""
    found = place.run(spoilt_line(place))
    found.is_one_error(r"rows\.jsonl, line 41.*: .*JSON")
    assert not (place.folder / "runs").exists()


@pytest.mark.parametrize("verb", ["run", "report"])
def test_a_folder_that_cannot_be_written_to(place: Place, verb: str) -> None:
    study = place.write()
    (place.folder / "file").write_text("")
    found = tuneoff(verb, study, "--out", str(place.folder / "file" / "runs"))
    found.is_one_error(r"cannot be written")


def test_a_file_in_place_of_the_folder(place: Place) -> None:
    (place.folder / "runs").mkdir()
    (place.folder / "runs" / "bad").write_text("mine")
    place.run(place.write()).is_one_error(r"cannot be written to .*bad")
    assert (place.folder / "runs" / "bad").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(place: Place) -> None:
    (place.folder / "runs").mkdir(mode=0o500)
    place.run(place.write()).is_one_error("cannot be written to")
    assert not list((place.folder / "runs").iterdir())


@pytest.mark.slow
def test_a_tokenizer_with_eos_alone_works_and_says_so(place: Place) -> None:
    shutil.rmtree(place.folder / "base")
    save_base(place.folder / "base", eos_token="<eos>")
    found = place.run(place.write(budget={"steps": 2, "batch_size": 2}))
    assert found.code == 0, found.errors
    assert "the tokenizer has no padding token of its own; its EOS '<eos>' fills up, masked" in found.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "nothing", "x"), r"no run is called 'nothing' under"),
        (("export", "bad/nothing", "x"), r"no run is called 'bad/nothing' under"),
        (("generate", "nothing", "x"), r"no run is called 'nothing'"),
        (("modules", "nobody/nothing"), r"hub cannot be reached"),
        (("plan", "nothing"), r"no recipe is called 'nothing'"),
        (("status", "nothing"), r"no recipe is called 'nothing'"),
        (("plan", "book-gpt2", "--set", "budget"), r"--set budget: expected KEY=VALUE"),
    ],
)
def test_other_verbs(arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tuneoff(*arguments).is_one_error(message)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_as_a_process_of_its_own(place: Place) -> None:
    """What the children of the fork server say on stderr is seen here alone."""
    line = [sys.executable, "-m", "tuneoff.cli", "run", spoilt_line(place), "--out", str(place.folder / "runs")]
    found = subprocess.run(line, capture_output=True, text=True)
    Outcome(found.returncode, found.stdout, found.stderr).is_one_error(r"rows\.jsonl, line 41")
    assert not found.stdout
    assert not (place.folder / "runs").exists()


@pytest.mark.parametrize("arguments", [["nothing"], ["run"], ["run", "a", "--jobs", "0"], ["run", "a", "--wrong"]])
def test_mistakes_of_usage(arguments: list[str]) -> None:
    found = tuneoff(*arguments)
    assert found.code == 2
    assert "Usage:" in found.errors
    assert "Traceback" not in found.errors


def test_stopped_by_hand(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(study: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tuneoff.api.check", stopped)
    found = place.run(place.write())
    assert found.code == 130
    assert found.errors == "stopped; the same command goes on from what is done\n"
