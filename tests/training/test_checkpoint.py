"""Checkpoints: whole or not there, found by checksum, as often as is asked for."""

import io
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tuneoff.errors import StoreError
from tuneoff.training.checkpoint import (
    DTYPES,
    MAX_COST_SHARE,
    MIN_INTERVAL_S,
    STATE_FILE,
    TENSORS_FILE,
    Checkpoint,
    CheckpointTimer,
    load_checkpoint,
    save_checkpoint,
    save_tensors,
    write_tensors,
)


def tensors() -> dict[str, Tensor]:
    """Return tensors of every type and of odd shapes, one of them a view with strides."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"b": (3, 5), "a": (), 'é"x': (2, 0), "z": (7,)}
    found = {
        f"{name}{place}": (torch.randn(shape, generator=generator) * 50).to(dtype)
        for place, dtype in enumerate(DTYPES)
        for name, shape in shapes.items()
    }
    return found | {"turned": torch.arange(12.0).reshape(3, 4)}


def test_tensors_are_written_as_safetensors_does(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "theirs", metadata={"format": "pt"})
    save_tensors(tmp_path / "own", tensors())
    assert (tmp_path / "own").read_bytes() == (tmp_path / "theirs").read_bytes()
    turned = {"turned": torch.arange(12.0).reshape(4, 3).t()}
    save_tensors(tmp_path / "turned", turned)
    assert torch.equal(load_file(tmp_path / "turned")["turned"], turned["turned"])
    with pytest.raises(ValueError, match="complex64"):
        write_tensors(io.BytesIO(), {"odd": torch.zeros(1, dtype=torch.complex64)})


def state(step: int) -> Checkpoint:
    return Checkpoint(step, {"loss": 0.1 + step, "none": None}, {"weight": torch.full((3,), float(step))})


def assert_is(found: Checkpoint | None, step: int) -> None:
    assert found is not None
    assert (found.step, found.state) == (step, state(step).state)
    assert torch.equal(found.tensors["weight"], state(step).tensors["weight"])


def test_the_newest_stays(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoint"
    assert load_checkpoint(folder) is None
    for step in (5, 10):
        save_checkpoint(folder, state(step))
        assert_is(load_checkpoint(folder), step)
    assert [path.name for path in folder.iterdir()] == ["step-000000010"]


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with the checkpoints of two steps, as a kill before the removal of the older one leaves it."""
    save_checkpoint(tmp_path / "other", state(5))
    save_checkpoint(tmp_path / "both", state(10))
    (tmp_path / "other" / "step-000000005").rename(tmp_path / "both" / "step-000000005")
    return tmp_path / "both"


@pytest.mark.parametrize("name", [STATE_FILE, TENSORS_FILE])
def test_a_torn_one_is_passed_over_whatever_its_length(two: Path, name: str) -> None:
    path = two / "step-000000010" / name
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        problems: list[str] = []
        assert_is(load_checkpoint(two, problems), 5)
        assert [line for line in problems if str(path.parent) in line and "torn" in line] == problems != []
    path.write_bytes(content)
    assert_is(load_checkpoint(two), 10)


def test_an_altered_or_missing_part_is_passed_over(two: Path) -> None:
    path = two / "step-000000010" / STATE_FILE
    body = json.loads(path.read_text())
    body["state"]["loss"] += 1.0
    path.write_text(json.dumps(body))
    assert_is(load_checkpoint(two), 5)
    for content in ("[]", "[" * 100_000):
        path.write_text(content)
        assert_is(load_checkpoint(two), 5)
    path.unlink()
    assert_is(load_checkpoint(two), 5)
    save_checkpoint(two, state(10))  # in the place of the one that could not be used
    assert_is(load_checkpoint(two), 10)


def test_what_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(5))
    odd = Checkpoint(10, {}, {"odd": torch.zeros(1, dtype=torch.complex64)})
    with pytest.raises(ValueError, match="complex64"):
        save_checkpoint(tmp_path, odd)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000005"]
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"step-000000005 cannot be written \("):
        save_checkpoint(tmp_path / "file", state(5))


class Clock:
    """Gives the seconds that it is set to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(
    ("every", "minutes", "at", "is_due"),
    [
        (4, None, (4, 0.0), True),
        (4, None, (5, 1e6), False),
        (None, 2.0, (5, 119.0), False),
        (None, 2.0, (5, 120.0), True),
        (4, 2.0, (4, 1.0), True),
        (4, 2.0, (5, 120.0), True),
        (4, 2.0, (5, 1.0), False),
        (None, None, (5, MIN_INTERVAL_S - 1.0), False),
        (None, None, (5, MIN_INTERVAL_S), True),
    ],
)
def test_when_one_is_due(every: int | None, minutes: float | None, at: tuple[int, float], is_due: bool) -> None:
    clock = Clock()
    timer = CheckpointTimer(every, minutes, clock)
    clock.now_s += at[1]
    assert timer.is_due(at[0]) == is_due


@pytest.mark.parametrize(("taken_s", "interval_s"), [(0.1, MIN_INTERVAL_S), (6.0, 6.0 / MAX_COST_SHARE)])
def test_a_slow_disk_is_written_to_more_rarely(taken_s: float, interval_s: float) -> None:
    clock = Clock()
    timer = CheckpointTimer(None, None, clock)
    with timer.saving():
        clock.now_s += taken_s
    clock.now_s += interval_s - 0.01
    assert not timer.is_due(1)
    clock.now_s += 0.02
    assert timer.is_due(1)
    own = CheckpointTimer(None, 1.0, clock)
    with own.saving():
        clock.now_s += 50.0
    clock.now_s += 60.0
    assert own.is_due(1)  # what was asked for is kept to
