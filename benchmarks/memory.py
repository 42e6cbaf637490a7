"""Prints predicted beside measured peak memory: of a training step, of scoring, of generation, over methods and shapes.

Run from the repository's root: `.venv/bin/python -m benchmarks.memory [--small | --only WORDS ...] [--json FILE]`.
Predicted is what `tuneoff.planning.trace` says without weights. Measured is a process of its own on random weights,
forked as a run's is: the training loop's second step, scoring, or the writing of texts, one CPU thread.

Tensor bytes are measured by the allocator's own events (torch.profiler, profile_memory): what is alive before, by a
walk over all tensors of the process, and the peak of the running sum of what was allocated and freed. The tracer has no
part in it. Resident memory is the kernel's peak (VmHWM, started anew before the phase, when what building and the first
step freed has been given back) without the profiler. The interpreter's share of it is what the process holds after its
imports, before a model is built. Predicted resident memory is what `plan` says (`tuneoff.planning.resident`): the
predicted tensors, and a constant for the interpreter and for what the first step of any model leaves.

It ends with 1 where fewer than 22 of 24 cases lie within 10 % of the tensor bytes, or fewer than that within 20 % of
resident memory.
"""

import argparse
import gc
import json
import math
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.plan_cases import CASES, OF_MEMORY, PlanCase, chosen, prompts_of, study_of
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
LARGEST_ERROR, LARGEST_RESIDENT_ERROR = 0.10, 0.20
NEEDED_SHARE = 22 / 24


@dataclass(frozen=True)
class Memory:
    """What came out, in bytes."""

    tensors: int
    predicted_tensors: int
    resident: int
    interpreter: int
    parts: dict[str, int]

    @property
    def predicted_resident(self) -> int:
        """What `plan` says."""
        from tuneoff.planning.resident import predicted_resident_bytes

        return predicted_resident_bytes(self.predicted_tensors)

    @property
    def error(self) -> float:
        """Of the predicted tensors, as a share of the measured ones."""
        return self.predicted_tensors / self.tensors - 1

    @property
    def resident_error(self) -> float:
        """Of the predicted resident memory, as a share of the measured one."""
        return self.predicted_resident / self.resident - 1


def predict(case: PlanCase, folder: Path) -> Any:
    """Return the trace of the case's phase."""
    from tuneoff.planning.plan import study_shape
    from tuneoff.planning.trace import Lengths, trace_arm

    study = study_of(case, folder)
    lengths = Lengths(
        train=(case.length,) * case.batch_size,
        targets=(case.length - 1,) * case.batch_size,
        prompts=tuple(map(len, prompts_of(case))),
    )
    (trace,) = trace_arm(study, study.arms[0], study_shape(study), lengths, phases=(case.phase,))
    return trace


def build(case: PlanCase, folder: Path) -> Callable[[], Any]:
    """Build the model with random weights, train one step, and return what runs the phase once."""
    import torch
    from transformers import AutoModelForCausalLM

    from tuneoff.data.batching import BatchSequence
    from tuneoff.methods import method_from_spec
    from tuneoff.planning.setting import PAD, synthetic_split
    from tuneoff.training.activations import fuse_activations
    from tuneoff.training.loop import Loop, LoopPlan, Member
    from tuneoff.training.meter import Meter
    from tuneoff.training.models import load_config
    from tuneoff.training.optim import MemberOptimizer
    from tuneoff.training.recompute import recompute_activations
    from tuneoff.training.runtime import open_runtime
    from tuneoff.training.steps import MIN_PACKED_TOKENS, Forward

    study = study_of(case, folder)
    method = method_from_spec(study.arms[0].method)
    runtime = open_runtime(study.precision, 1)
    dtype = torch.float32 if method.trains_base else runtime.compute_dtype
    config = load_config(study.model, study.root, allow_shape=True)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    fuse_activations(model)
    if study.gradient_checkpointing:
        recompute_activations(model)
    adapted = method.adapt(model, torch.Generator().manual_seed(0))
    forward = Forward(adapted.module)
    with runtime.autocast():
        forward.check(torch.zeros(1, 5, dtype=torch.int64))
        if adapted.can_pack:
            forward.check_packing([torch.zeros(length, dtype=torch.int64) for length in (5, 7, 6)])
    split = synthetic_split([case.length] * case.batch_size, [case.length - 1] * case.batch_size)
    forward.is_packed = forward.can_pack and case.length >= MIN_PACKED_TOKENS
    optimizer = MemberOptimizer(adapted.trainable_parameters(), 1e-5, study.optimizer, 3, False, adapted.rate_factors())
    member = Member(0, BatchSequence(len(split), len(split), 0), optimizer)
    plan = LoopPlan(3, 3, 3, study.micro_batch or case.batch_size, PAD)
    loop = Loop(adapted, forward, [member], split, plan, _Quiet(), Meter(runtime))
    loop.train_step()
    loop.step = 1
    return _phase(case, study, loop)


def _phase(case: PlanCase, study: Any, loop: Any) -> Callable[[], Any]:
    """Return what runs the phase once."""
    from tuneoff.evaluation.generation import generate_each
    from tuneoff.evaluation.likelihood import EVALUATION_TOKENS, score_split
    from tuneoff.planning.setting import PAD, synthetic_split

    if case.phase == "train":
        return loop.train_step
    module, forward, runtime = loop.adapted.module, loop.forward, loop.runtime
    if case.phase == "evaluate":
        number = math.ceil(EVALUATION_TOKENS / case.length)
        split = synthetic_split([case.length] * number, [case.length - 1] * number)
        return lambda: (score_split(module, forward, split, runtime, PAD), loop)
    options = {"pad_id": PAD, "eos_id": None, "seed": 0, "context_length": None, "autocast": runtime.autocast}
    options["num_virtual_tokens"] = loop.adapted.num_virtual_tokens
    return lambda: generate_each(module, prompts_of(case), study.decoding, study.generate, **options)


class _Quiet:
    """Takes what the loop tells, and does nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def alive_bytes() -> int:
    """Return the bytes of all tensors of the process, storage that is shared once."""
    import torch

    gc.collect()
    found: dict[int, int] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in gc.get_objects():
            if issubclass(type(one), torch.Tensor):
                storage = one.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def tensor_peak(phase: Callable[[], Any]) -> int:
    """Return the most bytes of tensors alive while a phase runs, by the allocator's events."""
    from torch.profiler import ProfilerActivity, profile

    before = alive_bytes()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        phase()
    assert found.profiler is not None
    assert found.profiler.kineto_results is not None
    events = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    running = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        running += event.nbytes()
        highest = max(highest, running)
    return before + highest


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def measure(case: PlanCase) -> dict[str, int]:
    """Measure one case, in this process."""
    from tuneoff.training.memory_limits import resident_bytes
    from tuneoff.training.meter import give_back, resident_peak_bytes, start_resident_peak

    interpreter = resident_bytes(os.getpid()) or 0
    with _folder() as folder:
        phase = build(case, folder)
        give_back()
        start_resident_peak()
        phase()
        resident = resident_peak_bytes()
        return {"interpreter": interpreter, "resident": resident, "tensors": tensor_peak(phase)}


def predicted(case: PlanCase) -> dict[str, Any]:
    """Predict one case, in this process."""
    with _folder() as folder:
        trace = predict(case, folder)
    return {"predicted_tensors": trace.peak_bytes, "parts": trace.parts}


def run_case(case: PlanCase, kept: dict[str, Any] | None) -> Memory:
    """Measure and predict a case, each in a process of its own that is forked as a run's is.

    Args:
        case: the case.
        kept: what was measured before, which is not measured again.
    """
    from benchmarks import memory  # a child knows no `__main__`

    from tuneoff.running.executors import in_child

    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "KINETO_LOG_LEVEL": "5"}
    measured = kept or in_child(memory.measure, case)
    sizes = {name: measured[name] for name in ("tensors", "resident", "interpreter")}
    return Memory(**sizes, **in_child(memory.predicted, case))


def table_of(found: dict[str, Memory]) -> Table:
    """Return the table of cases."""
    table = Table(box=None, header_style="bold", title="peak memory, MB")
    table.add_column("case", overflow="fold")
    for name in ("tensors", "predicted", "error", "resident", "predicted", "error", "interpreter"):
        table.add_column(name, justify="right")
    for name, one in found.items():
        sizes = [one.tensors, one.predicted_tensors, one.resident, one.predicted_resident, one.interpreter]
        tensors, predicted, resident, predicted_resident, interpreter = (f"{size / 1e6:,.1f}" for size in sizes)
        errors = [f"{100 * error:+.2f} %" for error in (one.error, one.resident_error)]
        table.add_row(name, tensors, predicted, errors[0], resident, predicted_resident, errors[1], interpreter)
    return table


def first_use() -> dict[str, float]:
    """Return what the first step of a tiny model leaves in this process beside the imports, in MB by precision."""
    import tuneoff.running.preload  # noqa: F401
    from tuneoff.training.memory_limits import resident_bytes

    before, found = resident_bytes(os.getpid()) or 0, {}
    for precision in ("fp32", "bf16"):
        with _folder() as folder:
            build(PlanCase("tiny", "full", 2, 128, precision), folder)()
        found[precision] = round(((resident_bytes(os.getpid()) or 0) - before) / 1e6, 1)
    return found


def main() -> int:
    """Run the cases, print the table, and say how many lie within the bounds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the demo base's cases alone")
    parser.add_argument("--only", nargs="+", default=[], help="cases whose names hold all of these words")
    parser.add_argument(
        "--json", type=Path, help="a file that results are written to; what it has is not measured again"
    )
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time; no other case's memory is in any's")
    parser.add_argument("--first-use", action="store_true", help="what the smallest model's first step leaves, in MB")
    options = parser.parse_args()
    if options.first_use:
        print(first_use())
        return 0
    kept = json.loads(options.json.read_text("utf-8")) if options.json and options.json.exists() else {}
    cases = chosen((*CASES, *OF_MEMORY), options.only, is_small=options.small)
    with ThreadPoolExecutor(options.jobs) as pool:
        waiting = {pool.submit(run_case, case, kept.get(case.name)): case.name for case in cases}
        found = {}
        for done in as_completed(waiting):
            name = waiting[done]
            found[name] = done.result()
            print(f"{name}: {found[name].error:+.4f} {found[name].resident_error:+.4f}", flush=True)
            if options.json:
                kept[name] = asdict(found[name])
                options.json.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    found = {case.name: found[case.name] for case in cases}
    Console(width=160).print(table_of(found))
    num_tensors = sum(abs(one.error) <= LARGEST_ERROR for one in found.values())
    num_resident = sum(abs(one.resident_error) <= LARGEST_RESIDENT_ERROR for one in found.values())
    print(f"{num_tensors} of {len(found)} within {LARGEST_ERROR:.0%} of the tensors' bytes")
    print(f"{num_resident} of {len(found)} within {LARGEST_RESIDENT_ERROR:.0%} of resident memory")
    return int(min(num_tensors, num_resident) < NEEDED_SHARE * len(found))


if __name__ == "__main__":
    raise SystemExit(main())
