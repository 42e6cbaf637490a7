"""Prints time, memory and error of the weight analysis on the shapes of Llama 3 8B, against numpy.linalg.svd.

Run from the repository's root: `.venv/bin/python -m benchmarks.weights`. Each row is worked out in a process of its
own, so that its peak of resident memory is its own; the peak holds W and D, in float32. The reference decomposes D
(values) and W and W + D (vectors) in float64. Ratios above 1 are in favour of this package.
"""

import os
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tuneoff.analysis.weights import layer_change, low_rank_change

SHAPES = ((1024, 4096), (4096, 4096), (14336, 4096), (4096, 14336))
"""Keys and values; queries and output; gate and up; down."""
REFERENCE = ((1024, 4096),)
"""Where numpy's decomposition takes seconds."""
RANK = 16
BETTER = "{:.1f} x"

Matrices = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]


def matrices(shape: tuple[int, int]) -> Matrices:
    """Return W of the size of a trained one's elements, and B and A that plant directions above its own."""
    generator = np.random.default_rng(0)
    base = generator.standard_normal(shape, dtype=np.float32) * np.float32(0.02)
    b = generator.standard_normal((shape[0], RANK), dtype=np.float32)
    a = generator.standard_normal((RANK, shape[1]), dtype=np.float32)
    return base, b, a


def peak_gb() -> float:
    """Return the peak of this process's resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def ours(shape: tuple[int, int], kind: str) -> dict[str, Any]:
    """Work one layer out."""
    base, b, a = matrices(shape)
    generator = np.random.default_rng(1)
    change = generator.standard_normal(shape, dtype=np.float32) * np.float32(1e-4)
    start = time.perf_counter()
    if kind == "full":
        found = layer_change("layer", base, change, generator=generator)
    else:
        found = low_rank_change("layer", base, b, a, 2e-3, generator=generator)
    values = {"values": found.singular_values, "cosines": found.max_cosines, "intruders": found.num_intruders}
    return values | {"seconds": time.perf_counter() - start, "gb": peak_gb()}


def reference(shape: tuple[int, int], kind: str) -> dict[str, Any]:
    """Work the same out by full decompositions in float64."""
    base, b, a = (matrix.astype(np.float64) for matrix in matrices(shape))
    change = np.random.default_rng(1).standard_normal(shape, dtype=np.float32) * np.float32(1e-4)
    start = time.perf_counter()
    full = change.astype(np.float64) if kind == "full" else 2e-3 * b @ a
    values = np.linalg.svd(full, compute_uv=False)
    left = np.linalg.svd(base, full_matrices=False)[0]
    tuned = np.linalg.svd(base + full, full_matrices=False)[0][:, :10]
    cosines = np.abs(left.T @ tuned).max(axis=0)
    return {"values": values, "cosines": cosines, "seconds": time.perf_counter() - start, "gb": peak_gb()}


def alone(work: Any, shape: tuple[int, int], kind: str) -> dict[str, Any]:
    """Run in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        result: dict[str, Any] = pool.submit(work, shape, kind).result()
    return result


def row(shape: tuple[int, int], kind: str) -> list[str]:
    """Return a table's row: one layer, one kind of change."""
    found = alone(ours, shape, kind)
    cells = [f"{shape[0]} x {shape[1]}", kind, str(found["intruders"]), f"{found['seconds']:.1f}", f"{found['gb']:.2f}"]
    if shape not in REFERENCE:
        return [*cells, "", "", "", ""]
    expected = alone(reference, shape, kind)
    wanted = np.asarray(expected["values"])[: len(found["values"])]
    off = np.abs(np.asarray(found["values"]) / wanted - 1).max()
    apart = np.abs(np.asarray(found["cosines"]) - expected["cosines"]).max()
    times, memory = expected["seconds"] / found["seconds"], expected["gb"] / found["gb"]
    return [*cells, BETTER.format(times), BETTER.format(memory), f"{off:.1e}", f"{apart:.1e}"]


def main() -> None:
    """Measure and print."""
    load = os.getloadavg()[0]
    names = ("out x in", "change", "intruders", "s", "peak GB", "time", "memory", "values (rel.)", "cosines (abs.)")
    table = Table(*names, title=f"Weight analysis; {os.cpu_count()} cores, load {load:.1f} at the start")
    for shape in SHAPES:
        for kind in ("full", f"LoRA r {RANK}"):
            cells = row(shape, kind)
            print(*cells, flush=True)  # each takes up to a minute
            table.add_row(*cells)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
