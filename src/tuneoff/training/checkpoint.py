"""State of a run on disk: safetensors and JSON only, written aside, synced, and renamed into place.

A folder holds `state.json` and `tensors.safetensors`; the JSON holds the tensors' sha256, so a torn pair is found out.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from tuneoff.files import aside_of, file_sha256, sync, write_synced

STATE_FILE = "state.json"
TENSORS_FILE = "tensors.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on."""

    step: int
    """Optimizer steps done."""
    state: dict[str, Any]
    tensors: dict[str, Tensor]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write `folder/step-N`, then remove older ones; at every instant one whole checkpoint is there."""
    final = folder / f"step-{checkpoint.step:09d}"
    aside = aside_of(final)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        save_tensors(aside / TENSORS_FILE, checkpoint.tensors)
        body = {"step": checkpoint.step, "state": checkpoint.state, "sha256": file_sha256(aside / TENSORS_FILE)}
        write_synced(aside / STATE_FILE, json.dumps(body).encode())
        if final.exists():
            shutil.rmtree(final)
        aside.rename(final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)  # what did not fit is not to fill the disk
    sync(folder)
    for other in folder.iterdir():
        if other != final and other.name.lstrip(".").startswith("step-"):
            shutil.rmtree(other, ignore_errors=True)


def load_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest whole checkpoint under `folder`, or none."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            body = json.loads((path / STATE_FILE).read_text())
            if body["sha256"] == file_sha256(path / TENSORS_FILE):
                return Checkpoint(int(body["step"]), dict(body["state"]), load_file(path / TENSORS_FILE))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, synced and renamed into place."""
    aside = aside_of(path)
    on_cpu = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    try:
        save_file(on_cpu, aside, metadata={"format": "pt"})
        sync(aside)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)  # what did not fit is not to fill the disk
    sync(path.parent)
