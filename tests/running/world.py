"""A tiny random GPT-2 with a byte-level tokenizer, small data, and studies of them that take seconds."""

import json
import shutil
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from tuneoff import api
from tuneoff.running.events import Event
from tuneoff.study.loading import study_from
from tuneoff.study.spec import Study

NUM_JOBS = 2
TIMED = ("elapsed_s",)
"""What of a learning curve is a clock's, and so differs each time."""


def save_base(folder: Path, num_positions: int = 96, **special: str) -> Path:
    """Save a GPT-2 of 264 tokens and 16 dimensions with a tokenizer of single bytes; `special` names its tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<eos>", "<pad>", *alphabet])}
    bytes_of = Tokenizer(models.BPE(vocabulary, []))
    bytes_of.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_of.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytes_of, **special)
    config = GPT2Config(
        vocab_size=264, n_embd=16, n_layer=2, n_head=2, n_positions=num_positions, bos_token_id=0, eos_token_id=0,
        pad_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rows(number: int = 40) -> list[dict[str, Any]]:
    """Return instruction rows, no two alike."""
    return [{"instruction": f"Say {index}", "response": f"{index} it is, {index % 7}"} for index in range(number)]


def write_rows(path: Path, values: list[Any]) -> Path:
    """Write one JSON value a line."""
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


@cache
def world(base: Path) -> Path:
    """Return a folder with the base (`base`), rows (`rows.jsonl`) and a text (`book.txt`); made once in a session."""
    folder = base / "world"
    folder.mkdir()
    save_base(folder / "base", eos_token="<eos>", pad_token="<pad>")
    write_rows(folder / "rows.jsonl", rows())
    (folder / "book.txt").write_text("\n".join(f"Line {index} of the old book." for index in range(120)), "utf-8")
    return folder


def body(name: str, arms: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a study as a plain mapping, with small steps, neither explained nor measured unless `changes` say so."""
    return {
        "name": name,
        "model": "base",
        "task": {"kind": "instruction", "data": "rows.jsonl", "max_length": 48, "template": "{instruction}:"},
        "budget": {"steps": 6, "batch_size": 4},
        "seeds": [0],
        "evaluate": {"every": 2},
        "explain": {"weights": False, "samples": 0},
        "solo_costs": False,
        "arms": dict(arms),
    } | changes


def study_of(folder: Path, name: str, arms: Mapping[str, Any], **changes: Any) -> Study:
    """Return the study whose relative paths start at `folder`."""
    return study_from(body(name, arms, **changes), folder)


THREE = {
    "zero-shot": {"method": "none"},
    "full": {"method": "full", "tune": {"lr": [1e-3, 1e-2]}},
    "lora": {"method": "lora", "rank": [2, 4], "dropout": 0.1, "tune": {"lr": [1e-3, 1e-2]}},
}
ONE_LORA = {"lora": {"method": "lora", "rank": 4, "dropout": 0.1, "lr": 1e-2}}


class Events(list[Event]):
    """A listener that keeps what it is told."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, kind: str) -> list[Event]:
        """Return the events of one kind."""
        return [event for event in self if event.kind == kind]


@cache
def finished(base: Path, shared: Path) -> api.Result:
    """Return a finished study of zero-shot, full and LoRA; run once, to be read and not to be changed.

    Args:
        base: this process's folder.
        shared: that of all processes of the session, of which the first that asks runs the study; each has a copy.
    """
    with FileLock(shared / "finished.lock"):
        if not (shared / "runs").exists():
            api.run(study_of(world(shared), "three", THREE, seeds=[0, 1]), shared / "runs", num_jobs=NUM_JOBS)
        if base != shared:
            shutil.copytree(shared / "runs", base / "runs")
    return api.open_result(study_of(shared / "world", "three", THREE, seeds=[0, 1]), base / "runs")


def scores(result: api.Result) -> dict[str, Any]:
    """Return what the bits decide: each run's likelihoods, training and learning curve but for the clock."""
    records, tests = result.records()
    return {
        run_id: (
            record.status,
            record.training,
            record.validation,
            tests[run_id].test if run_id in tests else None,
            [{key: row[key] for key in row if key not in TIMED} for row in result.store.curve(run_id)],
        )
        for run_id, record in records.items()
    }


def weights(result: api.Result) -> dict[str, bytes]:
    """Return the bytes of each run's weights."""
    paths = ((run_id, result.store.weights(run_id)) for run_id in result.store.run_ids())
    return {run_id: path.read_bytes() for run_id, path in paths if path is not None}


def stamps(folder: Path) -> dict[Path, int]:
    """Return when each file below a folder was last written, but for locks and the study's own copy."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "study.json"))
    return {path: path.stat().st_mtime_ns for path in files}
