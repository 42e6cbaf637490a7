"""One training measurement in a process of its own, described by values: what the other benchmarks are made of.

`python -m benchmarks.measuring REQUEST` trains as the request (JSON of `Request`) says, and prints JSON on its last
line. A GPU is used where one is to be seen; `measure` hides it for `device="cpu"`.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.speed.cases import Case

ROOT = Path(__file__).resolve().parent.parent
OURS = "ours"
TRAINER = "trainer-longest"
NAMES = {OURS: "Tuneoff", TRAINER: "Trainer + PEFT", "bare": "PEFT in a bare loop"}
OUT_OF_MEMORY = 77
"""What a measurement that ran out of memory ends with."""


@dataclass(frozen=True)
class Request:
    """What is measured.

    Attributes:
        case: lengths, batch, method, dropout.
        contender: a key of `benchmarks.speed.worker.CONTENDERS`.
        model: a shape that `Case.shape` knows.
        steps: optimizer steps, warm-up among them.
        warmup: steps that are left out of the median.
        threads: of the CPU.
        precision: bf16 or fp32.
        device: cpu or cuda.
        off: speed-ups of ours that are switched off (`benchmarks.switches`).
        micro_batch: sequences of ours in one forward; none takes the whole batch.
        recompute: gradient checkpointing, of ours.
        has_rate: whether the device's rate of matrix products is measured before.
    """

    case: Case
    contender: str = OURS
    model: str = "gpt2"
    steps: int = 6
    warmup: int = 2
    threads: int = 2
    precision: str = "bf16"
    device: str = "cpu"
    off: tuple[str, ...] = ()
    micro_batch: int | None = None
    recompute: bool = False
    has_rate: bool = False


@dataclass(frozen=True)
class Found:
    """What came out.

    Attributes:
        step_s: median of the steps after the warm-up.
        first_step_s: the first step.
        tokens_per_s: input tokens that are no padding, over the same steps.
        peak_bytes: resident memory since the model was loaded; on a GPU what is allocated.
        losses: of every step.
        flop_per_s: of the matrix products that the method needs (`needed_flop`).
        product_flop_per_s: the device's own rate; none where it was not asked for.
    """

    step_s: float
    first_step_s: float
    tokens_per_s: float
    peak_bytes: int
    losses: tuple[float, ...]
    flop_per_s: float
    product_flop_per_s: float | None = None


class OutOfMemory(Exception):  # noqa: N818  # what it is called everywhere
    """A measurement ran out of memory."""


def command_json(command: list[str], environment: dict[str, str], timeout_s: float | None = None) -> Any:
    """Run a command from the repository's root and return the JSON on its last line of output.

    Raises:
        OutOfMemory: it ended with `OUT_OF_MEMORY`.
        RuntimeError: it failed otherwise; with the end of what it said.
        TimeoutExpired: it ran longer than `timeout_s`, and was killed.
    """
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=False, cwd=ROOT, timeout=timeout_s
    )
    if done.returncode == OUT_OF_MEMORY:
        raise OutOfMemory
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def environment_of(device: str, threads: int) -> dict[str, str]:
    """Return the environment of a measurement: its threads, and the GPU hidden where the CPU is meant."""
    found = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    if device == "cpu":
        return found | {"CUDA_VISIBLE_DEVICES": ""}
    # One GPU, or the Trainer would spread over all; the workspace is set before cuBLAS is first used, for everyone.
    return {"CUDA_VISIBLE_DEVICES": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"} | found


def measure(request: Request, timeout_s: float | None = None) -> Found:
    """Train in a process of its own (see `command_json` for what it raises)."""
    command = [sys.executable, "-m", "benchmarks.measuring", json.dumps(asdict(request))]
    return Found(**command_json(command, environment_of(request.device, request.threads), timeout_s))


def median(values: list[float]) -> float:
    """Return the median."""
    return float(statistics.median(values))


def train(request: Request) -> Found:
    """Train here and now."""
    import torch
    from benchmarks.speed.cases import base, block_weights, drawn_split, needed_flop
    from benchmarks.speed.worker import CONTENDERS, device, num_targets, ours, product_rate
    from benchmarks.switches import without

    from tuneoff.data.batching import BatchSequence
    from tuneoff.training.recompute import recompute_activations

    if request.device == "cuda" and device().type != "cuda":
        raise RuntimeError("a GPU was asked for and none was found. Leave --device out, or give --device cpu.")
    torch.set_num_threads(request.threads)
    case, dtype = request.case, torch.bfloat16 if request.precision == "bf16" else torch.float32
    rate = product_rate() if request.has_rate else None
    split = drawn_split(case, request.steps * case.batch_size)
    model = base(case, request.model, dtype if case.has_lora else torch.float32)
    num_block_weights, num_head_weights = block_weights(model), model.get_output_embeddings().weight.numel()
    if request.recompute:
        recompute_activations(model)
    with without(*request.off):
        if request.contender == OURS:
            took = ours(case, split, request.steps, model, dtype, request.micro_batch)
        else:
            took = CONTENDERS[request.contender](case, split, request.steps, model, dtype)
    kept = slice(min(request.warmup, request.steps - 1), None)
    order = BatchSequence(len(split), case.batch_size, 0)
    tokens = [int(split.lengths[order.indices(step)].sum()) for step in range(request.steps)]
    targets = [num_targets(split, order.indices(step)) for step in range(request.steps)]
    taken = sum(took["step_s"][kept])
    flop = needed_flop(case, num_block_weights, num_head_weights, sum(tokens[kept]), sum(targets[kept]))
    return Found(
        step_s=median(took["step_s"][kept]),
        first_step_s=took["step_s"][0],
        tokens_per_s=sum(tokens[kept]) / taken,
        peak_bytes=took["peak_bytes"],
        losses=tuple(took["losses"]),
        flop_per_s=flop / taken,
        product_flop_per_s=rate,
    )


def parsed(text: str) -> Request:
    """Return the request that `measure` wrote."""
    body = json.loads(text)
    case = Case(**(body["case"] | {"targets": tuple(body["case"]["targets"])}))
    return Request(**(body | {"case": case, "off": tuple(body["off"])}))


def in_turn(
    requests: dict[str, Request], rounds: int, told: Any = None, until: float | None = None
) -> dict[str, list[Found]]:
    """Measure each request once a round, so that what else the machine does falls on all of them alike.

    Args:
        requests: by name.
        rounds: at most.
        told: called with each name and what was found, as it comes.
        until: time of `time.monotonic` after which nothing more is begun.

    Returns:
        What was found, by name, a round each; fewer where time ran out, none where memory did or it failed, which is
        said.
    """
    found: dict[str, list[Found]] = {name: [] for name in requests}
    given_up: set[str] = set()
    for _ in range(rounds):
        for name, request in requests.items():
            left = None if until is None else until - time.monotonic()
            if name in given_up or (left is not None and left <= 0):
                continue
            try:
                found[name].append(measure(request, left))
            except (OutOfMemory, RuntimeError, subprocess.TimeoutExpired) as error:
                print(f"{name}: {type(error).__name__}: {error}", flush=True)
                given_up |= set() if isinstance(error, subprocess.TimeoutExpired) else {name}
                continue
            if told is not None:
                told(name, found[name][-1])
    return found


def with_case(request: Request, **changes: Any) -> Request:
    """Return the request with parts of its case changed."""
    return replace(request, case=replace(request.case, **changes))


def main() -> None:
    """Train as the first argument says, and print."""
    from tuneoff.training.runtime import is_out_of_memory

    try:
        print(json.dumps(asdict(train(parsed(sys.argv[1])))))
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        sys.exit(OUT_OF_MEMORY)


if __name__ == "__main__":
    main()
