"""Bad input: one clear error on stderr, exit code 2, no traceback, nothing trained, nothing half-written."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.cli.shell import Outcome, tuneoff
from tests.running.world import body, rows, save_base, write_rows
from transformers import BertConfig

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

    def write_task(self, **changes: Any) -> str:
        """Write the study file with changes to its task, and return its path."""
        return self.write(task=body("bad", LORA)["task"] | changes)

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


def rows_of(*values: Any) -> Callable[[Place], str]:
    def write(place: Place) -> str:
        write_rows(place.folder / "rows.jsonl", [*rows(20), *values])
        return place.write()

    return write


def few_rows(place: Place) -> str:
    write_rows(place.folder / "rows.jsonl", rows(1))
    return place.write()


def no_rows(place: Place) -> str:
    write_rows(place.folder / "rows.jsonl", [])
    return place.write()


def other_columns(place: Place) -> str:
    write_rows(place.folder / "rows.jsonl", [{"wish": "a", "reply": str(index)} for index in range(20)])
    return place.write()


def no_special_tokens(place: Place) -> str:
    shutil.rmtree(place.folder / "base")
    save_base(place.folder / "base")
    return place.write()


def bert(place: Place) -> str:
    shutil.rmtree(place.folder / "base")
    BertConfig(vocab_size=264, hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(
        place.folder / "base"
    )
    return place.write()


def torn_weights(place: Place) -> str:
    path = place.folder / "base" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    return place.write()


def with_lora(**changes: Any) -> Callable[[Place], str]:
    return lambda place: place.write(arms={"lora": LORA["lora"] | changes})


MISTAKES: dict[str, tuple[Callable[[Place], str], str]] = {
    "missing data": (lambda place: place.write_task(data="rowz.jsonl"), r"no such file.*Did you mean rows\.jsonl"),
    "unknown key": (lambda place: place.write(bugdet={"steps": 1}), r"bugdet: unknown key; .*Did you mean budget"),
    "malformed line": (spoilt_line, r"rows\.jsonl, line 41.*: .*JSON"),
    "missing column": (other_columns, r"rows\.jsonl.*wish.*reply"),
    "empty data": (no_rows, r"rows\.jsonl: "),
    "empty split": (few_rows, r"rows\.jsonl|split"),
    "empty response": (rows_of({"instruction": "a", "response": ""}), r"rows\.jsonl, line 21"),
    "not a row": (rows_of([1, 2]), r"rows\.jsonl, line 21.*object"),
    "a number for a text": (rows_of({"instruction": "a", "response": 5}), r"rows\.jsonl, line 21, column response"),
    "unmatched target": (with_lora(targets=["c_atn"]), r"arms\.lora: .*c_atn.*c_attn"),
    "rank above the layer": (with_lora(rank=17), r"arms\.lora: .*rank 17.*16"),
    "longer than the context": (lambda place: place.write_task(max_length=97), r"task\.max_length: 97 .*96"),
    "no special tokens": (no_special_tokens, r"neither a padding nor an end-of-sequence token"),
    "not causal": (bert, r"not a causal language model .*bert"),
    "torn base": (torn_weights, r"model\.safetensors is torn"),
    "missing base": (lambda place: place.write(model="./bass"), r"no such folder .*Did you mean base"),
    "no network": (lambda place: place.write(model="nobody/nothing"), r"'nobody/nothing': the hub cannot be reached"),
    "fp16 without a GPU": (lambda place: place.write(precision="fp16"), r"precision fp16 .*--set precision=bf16"),
    "no pattern": (lambda place: place.write_task(metrics=["regex:("]), r"'regex:\(' is not a regular expression"),
    "missing function": (
        lambda place: place.write_task(metrics=["mine:f"]),
        r"'mine' cannot be imported .*put it",
    ),
    "missing adapter": (
        lambda place: place.write(arms={"old": {"method": "load", "path": "nowhere"}}),
        r"arms\.old: path: no such folder",
    ),
    "unknown recipe": (lambda place: "book-gtp2", r"no recipe is called 'book-gtp2'.*Did you mean book-gpt2"),
    "not YAML": (lambda place: str(place.folder / "rows.jsonl"), r"not valid YAML|expected a mapping"),
    "a folder": (lambda place: str(place.folder), r"is a folder; expected a study file"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake(place: Place, what: str) -> None:
    if what == "fp16 without a GPU":
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("there is a GPU")
    spoil, message = MISTAKES[what]
    found = place.run(spoil(place))
    found.is_one_error(message)
    assert not (place.folder / "runs").exists()


def test_an_unknown_arm(place: Place) -> None:
    place.run(place.write(), "--only", "lroa").is_one_error(r"--only lroa: no arm .*Did you mean lora\? Arms: lora")
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
    assert found.errors == "stopped; the same command goes on from the last checkpoints\n"
