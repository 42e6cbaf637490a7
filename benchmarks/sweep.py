"""Prints how long a sweep of LoRA trials takes as a cohort, one after another, and with the Trainer and PEFT.

Run from the repository's root: `.venv/bin/python -m benchmarks.sweep [--device cuda] [--runs 8]`. The trials differ in
rank and rate; base, sequences, their order, batch, type, AdamW and steps are the same for all contenders. Weights are
random, of GPT-2 small's shape with SQuAD's lengths, or of the embedded base's shape with the demo's short ones
(`--model demo`). A contender takes a process of its own; contenders take turns, round by round, so that what else the
machine does falls on all of them alike. Times are of optimizer steps, warm-up left out, and of the whole process with
its loading; ratios are of medians over the rounds. Every trial's final loss must be the same, whoever trained it: to
rounding between ours, and within what other start values of A make against PEFT.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import islice, product
from typing import Any

import numpy as np
import torch
from benchmarks.speed.cases import CASES, Case, drawn_split
from benchmarks.speed.worker import ALPHA, _Silent, batches
from rich.console import Console
from rich.table import Table

from tuneoff.data.batching import BatchSequence
from tuneoff.data.tokens import TokenSplit
from tuneoff.training.meter import NUM_WARMUP_STEPS, Meter, resident_peak_bytes

COHORT, ALONE, TRAINER = "a cohort", "one after another", "Trainer + PEFT, one after another"
RANKS, RATES = (4, 8, 16, 32), (3e-3, 1e-3)
NUM_BATCHES = 4
"""That there are of training sequences: seen again and again they are learnt, so that the trials' losses differ."""
OWN_DIFFERENCE = {"fp32": 1e-4, "bf16": 0.02}
"""Nats between a cohort and its runs alone: rounding, which the steps amplify."""
PEER_DIFFERENCE = 0.05
"""Nats between ours and PEFT's: A starts from other draws of one distribution."""
DEMO_LENGTH, DEMO_BATCH = 64, 16
"""Of the demo's own study."""
NUM_FINAL = 3


@dataclass(frozen=True)
class Trial:
    """A point of the sweep."""

    rank: int
    rate: float


@dataclass(frozen=True)
class Work:
    """What every contender is to do."""

    case: Case
    trials: tuple[Trial, ...]
    shape: dict[str, Any]
    num_steps: int
    device: torch.device
    dtype: torch.dtype

    def split(self) -> TokenSplit:
        """Return the training sequences."""
        found = drawn_split(self.case, NUM_BATCHES * self.case.batch_size)
        vocabulary = int(self.shape["vocab_size"])
        return TokenSplit(**(vars(found) | {"input_ids": found.input_ids % vocabulary}))

    def base(self) -> Any:
        """Return the frozen base on the device, the same for every trial."""
        from transformers import AutoModelForCausalLM, GPT2Config

        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(GPT2Config(**self.shape))
        return made.to(self.dtype).to(self.device)


def work_of(options: argparse.Namespace) -> Work:
    """Return what the options ask for."""
    case = CASES[options.case]
    if options.model == "demo":
        text = (resources.files("tuneoff") / "assets" / "demo_base" / "config.json").read_text(encoding="utf-8")
        dropouts = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), case.dropout)
        shape = json.loads(text) | dropouts
        case = Case("demo", DEMO_LENGTH, DEMO_BATCH, case.rank, True, case.dropout)
    else:
        shape = case.shape(options.model)
    if options.batch_size:
        case = Case(case.name, case.max_length, options.batch_size, case.rank, case.is_supervised, case.dropout)
    trials = tuple(Trial(*pair) for pair in islice(product(RANKS, RATES), options.runs))
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    return Work(case, trials, shape, options.steps, torch.device(options.device), dtype)


@dataclass(frozen=True)
class Part:
    """What one training took: seconds by step, losses by trial and step, and its peak in bytes."""

    step_s: list[float]
    losses: list[list[float]]
    peak_bytes: int


def ours(work: Work, trials: Sequence[Trial]) -> Part:
    """Train trials in one pass with the loop that `tuneoff run` runs."""
    from tuneoff.methods import LoRA, LoRACohort
    from tuneoff.running.session import MIN_PACKED_TOKENS
    from tuneoff.study.spec import OptimizerSpec
    from tuneoff.training.activations import fuse_activations
    from tuneoff.training.loop import Loop, LoopPlan, Member
    from tuneoff.training.optim import MemberOptimizer
    from tuneoff.training.runtime import open_runtime
    from tuneoff.training.steps import Forward

    case, split, model = work.case, work.split(), work.base()
    fuse_activations(model)
    runtime = open_runtime("bf16" if work.dtype == torch.bfloat16 else "fp32", torch.get_num_threads())
    loras = (LoRA(rank=trial.rank, alpha=ALPHA, dropout=case.dropout, targets=("c_attn",)) for trial in trials)
    adapted = LoRACohort(tuple(loras)).adapt(model, [torch.Generator().manual_seed(1) for _ in trials])
    adapted.module.to(work.device)
    adapted.module.eval()
    forward = Forward(adapted.module)
    probes = [torch.from_numpy(split.sequence(place)[0].astype("int64")).to(work.device) for place in range(3)]
    with runtime.autocast(), adapted.member(0):
        forward.check(probes[0][None])
        if split.lengths.mean() >= MIN_PACKED_TOKENS:
            forward.check_packing(probes)
    spec = OptimizerSpec(schedule="constant", warmup=0.0)
    members = [
        Member(
            seed=0,
            order=BatchSequence(len(split), case.batch_size, 0),
            optimizer=MemberOptimizer(adapted.trainable_parameters(index), trial.rate, spec, work.num_steps, False),
        )
        for index, trial in enumerate(trials)
    ]
    plan = LoopPlan(work.num_steps, work.num_steps + 1, work.num_steps + 1, case.batch_size, 0)
    meter = Meter(runtime)
    Loop(adapted, forward, members, split, plan, _Silent(), meter).run()
    return Part(meter.step_s, [member.losses for member in members], meter.peak_bytes["train"])


def trainer(work: Work, trial: Trial) -> Part:
    """Train one trial with the Trainer of Transformers and PEFT, padded to the longest of each batch."""
    from tempfile import TemporaryDirectory

    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainerCallback, TrainingArguments

    case, on_gpu = work.case, work.device.type == "cuda"
    rows = list(batches(case, work.split(), work.num_steps, is_fixed=False))
    torch.manual_seed(1)
    config = LoraConfig(
        r=trial.rank, lora_alpha=ALPHA, lora_dropout=case.dropout, target_modules=["c_attn"], fan_in_fan_out=True,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    model = get_peft_model(work.base(), config)
    step_s: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        start = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            synchronize(work.device)
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronize(work.device)
            step_s.append(time.perf_counter() - self.start)

    class Steps(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return work.num_steps

        def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
            return rows[step]

    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=1, max_steps=work.num_steps, learning_rate=trial.rate, weight_decay=0.0,
            lr_scheduler_type="constant", bf16=work.dtype == torch.bfloat16, use_cpu=not on_gpu, report_to=[],
            logging_steps=1, save_strategy="no", disable_tqdm=True, dataloader_pin_memory=on_gpu, max_grad_norm=1.0,
        )  # fmt: skip
        made = Trainer(model, arguments, train_dataset=Steps(), data_collator=lambda some: some[0], callbacks=[Clock()])
        made._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(made.train_dataset)
        made.train()
        losses = [float(line["loss"]) for line in made.state.log_history if "loss" in line]
    return Part(step_s, [losses], peak(work.device))


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak(device: torch.device) -> int:
    """Return the highest memory use since this process began to train."""
    return int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else resident_peak_bytes()


def cohort(work: Work) -> Iterator[Part]:
    """Yield the one pass of all trials."""
    yield ours(work, work.trials)


def alone(work: Work) -> Iterator[Part]:
    """Yield each trial's own pass."""
    yield from (ours(work, [trial]) for trial in work.trials)


def peer(work: Work) -> Iterator[Part]:
    """Yield each trial's own training."""
    yield from (trainer(work, trial) for trial in work.trials)


CONTENDERS: dict[str, Callable[[Work], Iterator[Part]]] = {COHORT: cohort, ALONE: alone, TRAINER: peer}


def do(options: argparse.Namespace) -> None:
    """Do one contender's work in this process and print what it took as JSON."""
    start = time.perf_counter()
    torch.set_num_threads(options.threads)
    work = work_of(options)
    parts = list(CONTENDERS[options.do](work))
    kept = slice(min(NUM_WARMUP_STEPS, work.num_steps - 1), None)
    taken = {
        "step_s": sum(statistics.median(part.step_s[kept]) for part in parts),
        "whole_s": time.perf_counter() - start,
        "peak_bytes": max(part.peak_bytes for part in parts),
        "losses": [statistics.fmean(own[-NUM_FINAL:]) for part in parts for own in part.losses],
    }
    print(json.dumps(taken))


def measure(options: argparse.Namespace, contender: str) -> dict[str, Any]:
    """Run one contender in a process of its own.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    command = [sys.executable, "-m", "benchmarks.sweep", *sys.argv[1:], "--do", contender]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{contender} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    cases = [name for name, case in CASES.items() if case.has_lora and case.targets == ("c_attn",)]  # of GPT-2
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", default="gpt2", help="a shape that ships with the package, or demo")
    parser.add_argument("--case", choices=cases, default="squad-lora")
    parser.add_argument("--batch-size", type=int, help="sequences of a trial's step; the case's own by default")
    parser.add_argument("--runs", type=int, default=8, help=f"trials, at most {len(RANKS) * len(RATES)}")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--leave-out", choices=CONTENDERS, action="append", default=[], help="can be repeated")
    parser.add_argument("--do", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        do(options)
    else:
        compare(options, Console(width=130))


def compare(options: argparse.Namespace, console: Console) -> None:
    """Measure all contenders in turn and print them."""
    work = work_of(options)
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"{os.cpu_count()} cores"
    console.print(
        f"{platform.machine()}, {name}, {options.threads} threads, {options.precision}, {options.steps} steps"
    )
    took: dict[str, list[dict[str, Any]]] = {one: [] for one in CONTENDERS if one not in options.leave_out}
    for _ in range(options.rounds):
        for contender, rounds in took.items():
            rounds.append(measure(options, contender))

    def median(contender: str, key: str) -> float:
        return statistics.median(one[key] for one in took[contender])

    table = Table(
        "contender", "a step of all trials, s", "spread", "a cohort is", "whole, s", "a cohort is", "peak, GB"
    )
    table.title = (
        f"{len(work.trials)} LoRA trials on {options.model}, {work.case.name}: batch {work.case.batch_size} each"
    )
    for contender, rounds in took.items():
        spread = [one["step_s"] for one in rounds]
        ratios = [median(contender, key) / median(COHORT, key) for key in ("step_s", "whole_s")]
        faster = ["" if contender == COHORT else f"{ratio:.2f} x as fast" for ratio in ratios]
        table.add_row(
            contender,
            f"{median(contender, 'step_s'):.3f}",
            f"{min(spread):.3f} to {max(spread):.3f}",
            faster[0],
            f"{median(contender, 'whole_s'):.1f}",
            faster[1],
            f"{median(contender, 'peak_bytes') / 1e9:.2f}",
        )
    console.print(table)
    console.print(*losses_apart(took, options.precision), sep="\n")


def losses_apart(took: dict[str, list[dict[str, Any]]], precision: str) -> Iterator[str]:
    """Yield how far final losses lie apart from a cohort's, largest of the trials, and whether that is too far."""
    own = np.array(took[COHORT][0]["losses"])
    for contender in [one for one in took if one != COHORT]:
        apart = float(np.abs(np.array(took[contender][0]["losses"]) - own).max())
        bound = OWN_DIFFERENCE[precision] if contender == ALONE else PEER_DIFFERENCE
        verdict = "equal" if apart <= bound else "[bold]NOT EQUAL[/bold]"
        yield f"final losses of {contender}: {verdict}, {apart:.2g} nats apart at most (allowed: {bound:g})"


if __name__ == "__main__":
    main()
