"""Measures what saving a run's state costs on this disk, beside the same by safetensors' own writer.

    python -m benchmarks.checkpoints [--folder runs] [--rounds 3]

The tensors have the shapes of GPT-2 small's training: weights and Adam's two moments in fp32, of LoRA (rank 8 on
`c_attn`, 294,912 parameters) and of full fine-tuning (124,439,808). Both ways end in a synced file whose sha256 is
known and a synced folder; rounds alternate. The share is that of a run's time where the study does not say how often to
save.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tuneoff.files import file_sha256, remove_folder, sync
from tuneoff.training.checkpoint import MAX_COST_SHARE, MIN_INTERVAL_S, Checkpoint, load_checkpoint, save_checkpoint

LAYERS, WIDTH, VOCABULARY, POSITIONS, RANK = 12, 768, 50257, 1024, 8
NUM_STEPS = 1000
"""Steps whose losses and times the state holds."""


def shapes(is_full: bool) -> dict[str, tuple[int, ...]]:
    """Return the trained tensors' shapes by name."""
    found: dict[str, tuple[int, ...]] = {}
    for layer in range(LAYERS):
        if not is_full:
            found |= {f"{layer}.lora_A": (RANK, WIDTH), f"{layer}.lora_B": (3 * WIDTH, RANK)}
            continue
        found |= {f"{layer}.ln_1.{part}": (WIDTH,) for part in ("weight", "bias")}
        found |= {f"{layer}.ln_2.{part}": (WIDTH,) for part in ("weight", "bias")}
        for name, rows, columns in (("attn", WIDTH, 3 * WIDTH), ("proj", WIDTH, WIDTH), ("fc", WIDTH, 4 * WIDTH)):
            found |= {f"{layer}.{name}.weight": (rows, columns), f"{layer}.{name}.bias": (columns,)}
        found |= {f"{layer}.mlp_proj.weight": (4 * WIDTH, WIDTH), f"{layer}.mlp_proj.bias": (WIDTH,)}
    if is_full:
        found |= {"wte": (VOCABULARY, WIDTH), "wpe": (POSITIONS, WIDTH), "ln_f.weight": (WIDTH,), "ln_f.bias": (WIDTH,)}
    return found


def state_of(is_full: bool) -> Checkpoint:
    """Return a state of the size that a run's has."""
    tensors: dict[str, Tensor] = {
        f"0/{part}/{name}": torch.rand(shape)
        for part in ("weights", "first", "second")
        for name, shape in shapes(is_full).items()
    }
    times = [1.0 / (step + 3) for step in range(NUM_STEPS)]
    return Checkpoint(1, {"losses": times, "meter": {"step_s": times}}, tensors)


def theirs(folder: Path, checkpoint: Checkpoint) -> None:
    """Save the tensors with safetensors' own writer, and read them once more for the checksum."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tensors.safetensors"
    save_file(checkpoint.tensors, path, metadata={"format": "pt"})
    sync(path)
    sync(folder)
    file_sha256(path)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("."), help="on the disk that is measured")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for label, is_full in (("LoRA of rank 8", False), ("full", True)):
            checkpoint = state_of(is_full)
            ways: dict[str, Callable[[Path, Checkpoint], None]] = {"ours": save_checkpoint, "theirs": theirs}
            taken: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(options.rounds):
                for way, save in ways.items():
                    remove_folder(folder / way)
                    start = time.perf_counter()
                    save(folder / way, checkpoint)
                    taken[way].append(time.perf_counter() - start)
            start = time.perf_counter()
            found = load_checkpoint(folder / "ours")
            load_s = time.perf_counter() - start
            assert found is not None
            assert all(torch.equal(found.tensors[name], tensor) for name, tensor in checkpoint.tensors.items())
            num_bytes = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
            own_s, their_s = (statistics.median(taken[way]) for way in ("ours", "theirs"))
            share = own_s / (max(MIN_INTERVAL_S, own_s / MAX_COST_SHARE) + own_s)
            print(
                f"{label}: {num_bytes / 1e6:,.1f} MB; saved in {own_s:.3f} s ({min(taken['ours']):.3f} to "
                f"{max(taken['ours']):.3f}), {own_s / their_s:.2f} of safetensors' writer and a second reading; "
                f"read and checked in {load_s:.3f} s; {share:.2%} of a run's time by default, "
                f"{own_s / 600:.2%} every 10 minutes",
                flush=True,
            )
            remove_folder(folder / "ours")
            remove_folder(folder / "theirs")


if __name__ == "__main__":
    main()
