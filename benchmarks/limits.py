"""Runs studies where memory is short, as a user would, and says what became of each arm.

    python -m benchmarks.limits [ulimit] [cgroup] [reading] [kills] [--folder DIR]

- ulimit: `ulimit -v` in a shell, so low that full fine-tuning cannot fit even with one sequence at a time, and high
  enough for LoRA, and for full fine-tuning with gradient checkpointing. The limit lies just below what the plan says
  of the first. The study is run without the limit, under it, and under it with `--fit`; loss curves are compared.
- cgroup: the same in a control group, where the kernel kills what asks for too much. It needs the right to make one.
- reading: the base alone is scored and writes texts, with more at a time than there is memory for.
- kills: a process that somebody kills or that crashes, in a control group with room to spare.

The base is made on the spot: a GPT-2 that is narrow and deep, so that activations weigh more than weights; its data are
this repository's pages. All in fp32 with one thread; it takes about four minutes on an idle machine.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

import torch
from tests.running.world import save_base, write_rows
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils.logging import disable_progress_bar

from tuneoff import api
from tuneoff.planning.costs import Basis, Forecast
from tuneoff.planning.fit import Change, fitted
from tuneoff.planning.plan import study_shape
from tuneoff.planning.resident import FIRST_USE_BYTES
from tuneoff.planning.room import memory_room
from tuneoff.running.executors import in_child
from tuneoff.running.fitting import OWN_SPACE_BYTES
from tuneoff.study.records import Record
from tuneoff.training.memory_limits import CGROUP_ROOT, MEBIBYTE, PROC

ROOT = Path(__file__).resolve().parent.parent
CASES = ("ulimit", "cgroup", "reading", "kills")
LENGTH, WIDTH, LAYERS, HEADS = 768, 128, 24, 4
WIDE, POSITIONS = 8192, 400_000
"""Of the base that reads: the width within its MLP, and a table of positions that weighs 51 MB."""
SHORT = 0.96
"""Of what full fine-tuning needs with one sequence at a time, that there is."""
BOUND = 1e-5
"""In fp32 an effective batch's gradient is the same to this share whatever the layout (DESIGN, section 6)."""
BOTH: dict[str, Any] = {
    "full": {"method": "full", "lr": 1e-3},
    "lora": {"method": "lora", "rank": 4, "targets": ["c_attn"], "lr": 1e-2},
}


@dataclass(frozen=True)
class Limit:
    """What a command is held to.

    Attributes:
        prelude: what the shell does before it runs the command; empty holds it to nothing.
        text: the limit in words.
    """

    prelude: str = ""
    text: str = "no limit"


def make_base(folder: Path, **changes: Any) -> None:
    """Save a GPT-2 with random weights and a tokenizer of single bytes."""
    save_base(folder, eos_token="<eos>", pad_token="<pad>")
    given = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": LENGTH} | changes
    config = GPT2Config(vocab_size=264, bos_token_id=0, eos_token_id=0, pad_token_id=1, **given)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)


def write_study(folder: Path, name: str, arms: dict[str, Any], **changes: Any) -> Path:
    """Write a study file; JSON is YAML."""
    body = {
        "name": name, "model": "base", "seeds": [0], "arms": arms, "solo_costs": False,
        "task": {"kind": "text", "data": "pages.txt", "max_length": LENGTH},
        "budget": {"steps": 3, "batch_size": 2}, "evaluate": {"every": 3},
        "explain": {"weights": False, "samples": 0},
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(body | changes), encoding="utf-8")
    return path


def command_of(study: Path, out: Path, *options: str) -> list[str]:
    """Return the command that runs a study."""
    return [sys.executable, "-m", "tuneoff.cli", "run", str(study), "--out", str(out), *options]


def environment() -> dict[str, str]:
    """Return the surroundings of a command: this checkout's code, and the width of a page."""
    return os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "COLUMNS": "160", "TUNEOFF_PLAN": "off"}


def run(study: Path, out: Path, limit: Limit, *options: str) -> tuple[api.Result, str]:
    """Run a study in a shell that is held to a limit; return what there is of it, and what was said."""
    command = command_of(study, out, *options)
    script = f"{limit.prelude}exec {shlex.join(command)}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=study.parent, env=environment(), capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{script}\nended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    given = api.load(study)
    fitted_study, _ = api.fit(given, out)
    result = api.open_result(fitted_study, out)
    if done.returncode:
        print(f"  exit code {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    return result, done.stdout + done.stderr


def only(result: api.Result, arm: str) -> Record:
    """Return the one record of an arm."""
    (wanted,) = (one for one in result.study.arms if one.name == arm)
    found = [one for one in result.records()[0].values() if one.run.method.method == wanted.method.method]
    if len(found) != 1:
        raise RuntimeError(f"{arm} has {len(found)} records, not one; what was said of it stands above")
    return found[0]


def difference(one: tuple[api.Result, Record], other: tuple[api.Result, Record]) -> float:
    """Return by how much two loss curves differ at most, relative to the loss."""
    curves = [[row["loss_nats"] for row in result.store.curve(record.run_id)] for result, record in (one, other)]
    if not curves[0] or len(curves[0]) != len(curves[1]):
        raise RuntimeError(f"two curves that are not of the same steps: {curves}")
    return max(abs(ours - theirs) / abs(theirs) for ours, theirs in zip(*curves, strict=True))


def told(result: api.Result, arm: str) -> str:
    """Return what became of an arm."""
    record = only(result, arm)
    own = result.study.for_arm(result.study.arm(arm))
    how = f"micro-batch {record.provenance.micro_batch}"
    how += ", gradient checkpointing" if own.gradient_checkpointing else ""
    return f"{arm}: {record.status} ({record.reason or how})"


def needs(study: Path) -> dict[str, int]:
    """Return the bytes of tensors that the plan says arms need with one sequence at a time."""
    loaded = api.load(study)
    forecast = Forecast(loaded, study_shape(loaded), Basis(memory_room(10**12), None, "cpu"))
    ways = {
        "full": ("full", Change(micro_batch=1)),
        "full, checkpointing": ("full", Change(micro_batch=1, gradient_checkpointing=True)),
        "lora": ("lora", Change(micro_batch=1)),
    }
    found = {}
    for name, (arm, change) in ways.items():
        changed = fitted(loaded, {arm: change})
        found[name] = forecast.need(changed, changed.arm(arm)).peak_bytes
    return found


def address_space(num_bytes: int) -> Limit:
    """Return the limit of a shell whose runs have so much address space for their tensors."""
    born: str = in_child(Path.read_text, PROC / "self" / "status")
    found = re.search(r"^VmSize:\s+(\d+) kB$", born, re.MULTILINE)
    kilobytes = (int(found[1]) if found else 0) + (num_bytes + OWN_SPACE_BYTES) // 1024
    return Limit(f"ulimit -v {kilobytes}; ", f"ulimit -v {kilobytes} ({num_bytes / 1e6:.0f} MB for tensors)")


@contextmanager
def group(num_bytes: int) -> Iterator[Limit]:
    """Make a control group with so much memory for all processes of a command, of either version.

    Raises:
        OSError: none can be made here.
    """
    is_old = (CGROUP_ROOT / "memory").is_dir()
    folder = (CGROUP_ROOT / "memory" if is_old else CGROUP_ROOT) / f"tuneoff-limits-{os.getpid()}"
    folder.mkdir()
    try:
        (folder / ("memory.limit_in_bytes" if is_old else "memory.max")).write_text(str(num_bytes))
        prelude = f"echo $$ > {shlex.quote(str(folder / 'cgroup.procs'))}; "
        yield Limit(prelude, f"a control group of {num_bytes / 1e6:.0f} MB")
    finally:
        deadline = time.monotonic() + 10
        while folder.exists():
            try:
                folder.rmdir()
            except OSError:  # its last process is on its way out
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


def peak_of(study: Path, out: Path) -> int:
    """Return what a command's processes hold together at most beside tensors: as measured of the base alone, scored."""
    is_old = (CGROUP_ROOT / "memory").is_dir()
    with group(64 << 30) as limit:
        run(study, out, limit)
        folder = Path(limit.prelude.split()[3].removesuffix(";")).parent
        return int((folder / ("memory.max_usage_in_bytes" if is_old else "memory.peak")).read_text())


def begin(folder: Path) -> Path:
    """Make the base and the data in a folder, unless they are there."""
    if (folder / "pages.txt").exists():
        return folder
    make_base(folder / "base")
    pages = "\n\n".join(path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    (folder / "pages.txt").write_text(pages[:30_000], encoding="utf-8")
    return folder


def trained(folder: Path, study: Path, limit: Limit, free: api.Result) -> None:
    """Run a study under a limit, without and with `--fit`, and say what became of it."""
    print(f"\n{limit.text}", flush=True)
    label = study.stem
    tight, output = run(study, folder / f"tight-{label}", limit)
    for arm in ("full", "lora"):
        print(f"  run: {told(tight, arm)}", flush=True)
    for line in told_lines(output):
        print(f"    said: {line}")
    fit, output = run(study, folder / f"fit-{label}", limit, "--fit")
    for arm in ("full", "lora"):
        print(f"  run --fit: {told(fit, arm)}", flush=True)
    for name, result, arm in (("run", tight, "lora"), ("run --fit", fit, "full"), ("run --fit", fit, "lora")):
        if only(result, arm).status == "done":
            found = difference((result, only(result, arm)), (free, only(free, arm)))
            print(f"  {name}, {arm}: loss curve at most {found:.1e} from the unlimited one's (bound {BOUND:g})")


def told_lines(output: str) -> list[str]:
    """Return the lines of a command's output that tell of memory."""
    words = ("out of memory", "halved", "killed", "crash", "ended with")
    return [" ".join(line.split()) for line in output.splitlines() if any(word in line.casefold() for word in words)]


def unlimited(folder: Path) -> api.Result:
    """Run the study without a limit, once for all cases, and say what became of it."""
    study, out = write_study(folder, "free", BOTH), folder / "free"
    free = api.open_result(api.load(study), out)
    if free.progress().num_left:
        free, _ = run(study, out, Limit())
    print("no limit")
    for arm in ("full", "lora"):
        print(f"  run: {told(free, arm)}", flush=True)
    return free


def case_ulimit(folder: Path) -> None:
    """Train under `ulimit -v`."""
    free = unlimited(folder)
    study = write_study(folder, "ulimit", BOTH)
    wanted = needs(study)
    said = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in wanted.items())
    print(f"needed by the plan, one sequence at a time: {said}")
    below = int(SHORT * wanted["full"])
    trained(folder, study, address_space(below), free)


def case_cgroup(folder: Path) -> None:
    """Train in a control group."""
    study = write_study(folder, "cgroup", BOTH)
    zero = write_study(folder, "zero", {"zero-shot": {"method": "none"}})
    rest = peak_of(zero, folder / "probe")
    free = unlimited(folder)
    wanted = needs(study)
    below = int(SHORT * wanted["full"])
    with group(rest + FIRST_USE_BYTES + below) as limit:
        trained(folder, study, limit, free)


def case_reading(folder: Path) -> None:
    """Score and generate with more at a time than there is memory for."""
    make_base(folder / "wide", n_embd=32, n_layer=1, n_head=2, n_inner=WIDE, n_positions=POSITIONS)
    said = [{"instruction": f"Say {n} " + "again " * 6, "response": f"{n} it is, {'so ' * 12}"} for n in range(300)]
    write_rows(folder / "rows.jsonl", said)
    study = write_study(
        folder, "reading", {"zero-shot": {"method": "none"}}, model="wide",
        task={"kind": "instruction", "data": "rows.jsonl", "max_length": 128, "metrics": ["exact_match"],
              "splits": {"validation": 0.2, "test": 0.7}},
        generate={"max_new_tokens": 4, "batch_size": 512},
    )  # fmt: skip
    found = {}
    weights = sum(path.stat().st_size for path in (folder / "wide").glob("*.safetensors"))
    for name, limit in (("free", Limit()), ("tight", address_space(2 * weights + 200 * MEBIBYTE))):
        result, output = run(study, folder / name, limit)
        record = only(result, "zero-shot")
        test = result.records()[1][record.run_id]
        texts = (result.store.run_folder(record.run_id) / "predictions.jsonl").read_text("utf-8")
        found[name] = (record, test, texts)
        print(f"\n{limit.text}: {record.status}, loss {test.test.loss_nats:.7f}", flush=True)
        print(
            f"  tokens of one forward: {record.provenance.evaluation_tokens or 'as always'}; of the test:"
            f" {test.evaluation_tokens or 'as always'}; texts in the making: {test.generation_rows or 'as asked for'}"
        )
        for line in told_lines(output):
            print(f"    said: {line}")
    (_, one, texts), (_, other, others) = found["free"], found["tight"]
    moved = abs(one.test.loss_nats - other.test.loss_nats) / one.test.loss_nats
    alike = sum(mine == theirs for mine, theirs in zip(texts.splitlines(), others.splitlines(), strict=True))
    print(f"  loss differs by {moved:.1e} of itself; {alike} of {len(texts.splitlines())} predictions are the same")


def children_of(pid: int) -> Iterator[int]:
    """Yield the processes that a command has started, and those that these have."""
    for path in PROC.glob("[0-9]*/stat"):
        try:
            found = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended since
            continue
        if int(found[1]) == pid:
            child = int(path.parent.name)
            yield child
            yield from children_of(child)


def case_kills(folder: Path) -> None:
    """Kill the process that trains, once as somebody would and once as a crash does, where memory is to be had."""
    for number in (signal.SIGKILL, signal.SIGSEGV):
        study = write_study(folder, number.name.lower(), {"lora": BOTH["lora"]})
        out = folder / f"out-{number.name.lower()}"
        process = subprocess.Popen(
            command_of(study, out),
            cwd=folder,
            env=environment(),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None and not list(out.glob("*/*/curve.jsonl")):
            time.sleep(0.02)
        youngest = max(children_of(process.pid), default=0)
        os.kill(youngest, number)
        output, _ = process.communicate()
        result = api.open_result(api.load(study), out)
        (run_folder,) = (path.parent for path in out.glob("*/*/curve.jsonl"))
        setup = result.store.setup(run_folder.name) or {}
        print(f"\n{number.name} at its first step: exit code {process.returncode}, micro-batch {setup['micro_batch']}")
        for line in told_lines(output):
            print(f"    said: {line}")
        again, _ = run(study, out, Limit())
        print(f"  the same command again: {told(again, 'lora')}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cases and print what became of them."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [CASE ...] [--folder DIR]",
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"{', '.join(CASES)}; none is all of them")
    parser.add_argument("--folder", type=Path, help="where studies and results stay; what is there is not run again")
    options = parser.parse_args(arguments)
    disable_progress_bar()
    strange = set(options.cases) - set(CASES)
    if strange:
        parser.error(f"no such case: {', '.join(sorted(strange))}; there are {', '.join(CASES)}")
    place = Path(options.folder or tempfile.mkdtemp(prefix="tuneoff-limits-"))
    cases = {"ulimit": case_ulimit, "cgroup": case_cgroup, "reading": case_reading, "kills": case_kills}
    try:
        for name in options.cases or CASES:
            place.mkdir(parents=True, exist_ok=True)
            print(f"== {name} ==", flush=True)
            start = time.monotonic()
            try:
                cases[name](begin(place))
            except PermissionError as error:
                print(f"cannot be shown here: {error}")
            print(f"{time.monotonic() - start:.0f} s\n", flush=True)
    finally:
        if options.folder is None:
            shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
