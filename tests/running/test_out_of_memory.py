"""Memory that really runs out: limits on address space and control groups that kill. No error is made up here.

The base is mostly a table of positions, so that its weights weigh much and cost little to compute with, and its one
block is wide, so that activations do, too.
"""

import multiprocessing
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.running.world import Events, save_base, study_of, write_rows
from transformers import GPT2Config, GPT2LMHeadModel

from tuneoff import api
from tuneoff.planning.resident import FIRST_USE_BYTES
from tuneoff.running.events import Event
from tuneoff.running.executors import in_child
from tuneoff.running.loading import _refused
from tuneoff.running.session import Place
from tuneoff.running.store import Store
from tuneoff.running.trial import score_run
from tuneoff.study.expand import trials
from tuneoff.study.records import Record
from tuneoff.study.shortage import Shortage
from tuneoff.study.spec import Study
from tuneoff.training.memory_limits import MEBIBYTE, PROC, Available, _kilobytes
from tuneoff.training.runtime import open_runtime

pytestmark = pytest.mark.slow

NUM_POSITIONS, WIDTH, WIDE = 800_000, 32, 8192
WEIGHTS_BYTES = 4 * NUM_POSITIONS * WIDTH
"""Of the table of positions: 102 MB, nearly all that the base has."""
LORA = {"lora": {"method": "lora", "rank": 2, "targets": ["mlp.c_fc"], "lr": 1e-2}}
FULL = {"full": {"method": "full", "lr": 1e-3}}


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the base and rows of about 60 tokens."""
    folder = tmp_path_factory.mktemp("heavy")
    save_base(folder / "base", eos_token="<eos>", pad_token="<pad>")
    config = GPT2Config(
        vocab_size=264, n_embd=WIDTH, n_layer=1, n_head=2, n_inner=WIDE, n_positions=NUM_POSITIONS, bos_token_id=0,
        eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder / "base")
    said = [{"instruction": f"Say {n} " + "again " * 6, "response": f"{n} it is, {'so ' * 12}"} for n in range(60)]
    write_rows(folder / "rows.jsonl", said)
    return folder


def study(folder: Path, name: str, arms: dict[str, Any], **changes: Any) -> Study:
    usual = {"task": {"kind": "instruction", "data": "rows.jsonl", "max_length": 96}, "solo_costs": False}
    return study_of(folder, name, arms, **(usual | {"budget": {"steps": 4, "batch_size": 32}} | changes))


def held(_: None) -> int:
    """Return the size of a child's address space."""
    return 1024 * (_kilobytes(PROC / "self" / "status", "VmSize") or 0)


@contextmanager
def address_space(num_bytes: int) -> Iterator[None]:
    """Within the context children have so much address space beside what they are born with, as by `ulimit -v`."""
    born_with = in_child(held, None)
    server = forkserver._forkserver._forkserver_pid
    before = resource.prlimit(server, resource.RLIMIT_AS)
    resource.prlimit(server, resource.RLIMIT_AS, (born_with + num_bytes, before[1]))
    try:
        yield
    finally:
        resource.prlimit(server, resource.RLIMIT_AS, before)


def only(result: api.Result, method: str) -> Record:
    (found,) = (record for record in result.records()[0].values() if record.run.method.method == method)
    return found


def losses(result: api.Result, record: Record) -> list[float]:
    return [row["loss_nats"] for row in result.store.curve(record.run_id)]


def test_an_arm_that_cannot_fit_is_a_row_and_the_others_finish(heavy: Path, tmp_path: Path) -> None:
    """Full fine-tuning needs four times the weights; LoRA one time, and as much again while they are read."""
    wanted = study(heavy, "cannot", FULL | LORA, budget={"steps": 2, "batch_size": 2})
    with address_space(round(3.6 * WEIGHTS_BYTES)):
        result = api.run(wanted, tmp_path)
    assert not result.failed
    assert only(result, "lora").status == "done"
    row = only(result, "full")
    assert row.status == "infeasible"
    assert row.shortage is not None
    assert row.shortage.source == "ulimit -v"
    held_weights = sum(tensor.nbytes for tensor in load_file(heavy / "base" / "model.safetensors").values())
    assert row.shortage.needed_bytes == 4 * held_weights  # themselves, their gradients and two moments, all in fp32
    assert "needs at least 4" in row.reason
    assert "not begun" in row.reason
    summary = result.summary()
    assert summary.arm("full").status == "infeasible"
    assert summary.arm("lora").status == "done"
    # Where there is more memory, the same command trains it, and says so.
    told = Events()
    again = api.run(wanted, tmp_path, listener=told)
    assert any("there is more now" in event.body["what"] for event in told.of("problem"))
    assert [event.task.arm for event in told.of("finished") if event.task] == ["full"]
    assert only(again, "full").status == "done"


@pytest.mark.parametrize(("source", "more"), [("RAM", FIRST_USE_BYTES), ("cgroup", FIRST_USE_BYTES), ("ulimit -v", 0)])
def test_a_run_is_not_begun_where_the_plans_own_figure_says_it_cannot_fit(
    tmp_path: Path, source: Any, more: int
) -> None:
    place, runtime = Place(Store(tmp_path), tmp_path, needed_bytes=10**9), open_runtime("fp32")
    if runtime.device.type != "cpu":
        return
    assert _refused(place, runtime, Available(num_bytes=10**9 + more, source=source)) is None
    found = _refused(place, runtime, Available(num_bytes=10**9 + more - 1, source=source))
    assert found is not None
    assert found.needed_bytes == 10**9 + more
    assert _refused(Place(Store(tmp_path), tmp_path), runtime, Available(num_bytes=0, source=source)) is None


def test_the_micro_batch_is_halved_until_it_fits(heavy: Path, tmp_path: Path) -> None:
    wanted = study(heavy, "halved", LORA, budget={"steps": 2, "batch_size": 32})
    free = api.run(wanted, tmp_path / "free")
    told = Events()
    with address_space(round(3.0 * WEIGHTS_BYTES)):
        tight = api.run(wanted, tmp_path / "tight", listener=told)
    asked, found = only(free, "lora"), only(tight, "lora")
    assert (asked.status, found.status) == ("done", "done")
    assert asked.provenance.micro_batch == 32
    assert found.provenance.micro_batch < 32
    said = [note for note in found.provenance.notes if "halved from" in note]
    assert said
    assert any(said[0] in event.body["what"] and "was asked for" in event.body["what"] for event in told.of("problem"))
    # An effective batch's gradient is that of its summed loss: the layout moves it by 1e-5 relative at most in fp32.
    assert losses(tight, found) == pytest.approx(losses(free, asked), rel=1e-5)


@contextmanager
def group(num_bytes: int) -> Iterator[None]:
    """Within the context children are in a control group that the kernel kills in; skipped where none can be made."""
    in_child(held, None)
    server, root = forkserver._forkserver._forkserver_pid, Path("/sys/fs/cgroup/memory")
    folder = root / f"tuneoff-children-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / "memory.limit_in_bytes").write_text(str(num_bytes))
        (folder / "cgroup.procs").write_text(str(server))
    except OSError:
        pytest.skip("no control group can be made here")
    try:
        yield
    finally:
        (root / "cgroup.procs").write_text(str(server))
        folder.rmdir()


def test_what_the_kernel_kills_goes_on_with_less(heavy: Path, tmp_path: Path) -> None:
    """Signal 9 from the kernel, which the child cannot catch: the parent tells it by the group's count of kills."""
    wanted = study(heavy, "killed", LORA, budget={"steps": 2, "batch_size": 32})
    told = Events()
    with group(200 * MEBIBYTE):
        result = api.run(wanted, tmp_path, listener=told)
    assert not result.failed
    record = only(result, "lora")
    assert record.status == "done"
    assert record.provenance.micro_batch < 32
    assert any("the kernel killed it for want of memory" in event.body["what"] for event in told.of("problem"))
    assert any("the micro-batch halved from 32 to 16" in note for note in record.provenance.notes)


class Killer(Events):
    """Kills a child with signal 9 at its first step, as a person would."""

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if event.kind == "step" and len(self.of("step")) == 1:
            (child,) = multiprocessing.active_children()
            os.kill(child.pid or 0, signal.SIGKILL)


def test_a_kill_by_somebody_is_no_out_of_memory(heavy: Path, tmp_path: Path) -> None:
    """Within a control group that has room: the signal is the same, the evidence is not there."""
    wanted = study(heavy, "somebody", LORA, budget={"steps": 2, "batch_size": 2})
    with group(1024 * MEBIBYTE):
        result = api.run(wanted, tmp_path, listener=Killer())
    ((run_id, what),) = result.failed.items()
    assert what.startswith("killed (exit code -9)")
    setup = result.store.setup(run_id)
    assert setup is not None
    assert (setup["micro_batch"], setup["notes"]) == (2, [])


def test_a_test_that_cannot_be_read_is_said_and_training_is_kept(heavy: Path, tmp_path: Path) -> None:
    """Texts of a prompt at a time are the least; where the weights can be loaded and no more, they are too many."""
    wanted = study(heavy, "untested", {"zero": {"method": "none"}})
    run = trials(wanted, wanted.arms[0])[0]
    result = api.run(wanted, tmp_path)
    lacking = Shortage(phase="generate", available_bytes=1000, source="RAM", testing=wanted.testing)
    place = Place(result.store, heavy, shortage=lacking)
    (result.store.run_folder(run.run_id) / "test.json").unlink()
    score_run(run, place, lambda kind, body: None, wanted.testing)
    arm = result.summary().arm("zero")
    assert arm.status == "infeasible"
    assert "out of memory while generating text" in arm.reason
    # Nothing is left to do for this machine; where there is more memory, the test alone is read.
    told = Events()
    api.run(wanted, tmp_path, listener=told)
    assert [event.task.kind for event in told.of("start") if event.task] == ["score"]
    assert result.summary().arm("zero").status == "done"


def test_a_base_that_cannot_even_be_mapped_is_a_row(heavy: Path, tmp_path: Path) -> None:
    """Reading its checksum comes first, and maps nothing."""
    wanted = study(heavy, "unmapped", {"zero": {"method": "none"}})
    checked = api.check(wanted)  # it maps the weights itself, and says so in one line where that is too much
    with address_space(round(1.8 * WEIGHTS_BYTES)):
        result = api.run(wanted, tmp_path, checked=checked)
    assert not result.failed
    row = only(result, "none")
    assert (row.status, row.shortage.phase if row.shortage else "") == ("infeasible", "load")
    assert "out of memory while loading the base" in row.reason
