"""Seconds from operations: hand-worked sums of rates and counts; nothing here depends on how fast the machine is."""

import json
from itertools import count
from pathlib import Path

import pytest
import torch

from tuneoff.planning.calibration import (
    BANDWIDTH_EFFICIENCY,
    LAUNCH_S,
    PRODUCT_EFFICIENCY,
    Calibration,
    DeviceSpeed,
    _read,
)
from tuneoff.planning.devices import find_device
from tuneoff.planning.operations import Counter, Operation, TensorSpec, Watch, Work, random_words, total
from tuneoff.planning.timing import FLOOR_S, Rates, _cut, seconds, time_one, time_operations

CPU = torch.device("cpu")
RATES = Rates({"float32": 1e9, "bfloat16": 2e9}, 1e8, 0.001)
PRODUCT = Operation("mm a", 4e9, 100)
COPY = Operation("copy b", 0.0, 10**9)


def seen(work: object) -> Counter:
    watch = Watch()
    with watch:
        work()  # type: ignore[operator]
    return watch.counter


def test_alike_operations_are_one_and_views_are_none() -> None:
    x, w = torch.ones(6, 4), torch.ones(4, 8)
    found = seen(lambda: [torch.mm(x, w), torch.mm(x, w), torch.mm(x, w.t().contiguous().t()), x.view(4, 6), x + x])
    products = {one: number for one, number in found.counts.items() if one.signature.startswith("mm")}
    assert sorted(products.values()) == [1, 2]  # the third is laid out otherwise
    assert {one.flop for one in products} == {2.0 * 6 * 4 * 8}
    adding = next(one for one in found.counts if one.signature.startswith("add"))
    assert adding.moved_bytes == 3 * 24 * 4
    assert found.num_operations == 5  # two transposes and a view are none; making contiguous is one


def test_words_of_dropout_are_counted_though_they_are_not_drawn_by_pytorch() -> None:
    drawn = torch.zeros(8, dtype=torch.int16)
    found = seen(lambda: drawn >= 3)
    assert found.counts[random_words(2)] == 1  # four 16-bit numbers a word


def test_what_an_optimizer_writes_counts_as_moved() -> None:
    x = torch.nn.Parameter(torch.ones(100))
    x.grad = torch.ones(100)
    optimizer = torch.optim.AdamW([x], fused=True)
    optimizer.step()
    found = seen(optimizer.step)
    (adamw,) = (one for one in found.counts if "adamw" in one.signature)
    # weight, gradient, two moments and the step are read; fused AdamW's schema marks all but the step as written
    assert 7 * 400 <= adamw.moved_bytes <= 8 * 400 + 8


def test_work_adds_up() -> None:
    one = Work({PRODUCT: 2, COPY: 1}, 10)
    assert one.times(3) == Work({PRODUCT: 6, COPY: 3}, 30)
    assert one.times(3, 2) == Work({PRODUCT: 6, COPY: 3}, 20)
    assert total([one, one.times(2)]) == one.times(3)
    assert one.beyond(Work({PRODUCT: 3}, 14), 4) == Work({PRODUCT: 6, COPY: -3}, 26)  # 2 + 4 (3 - 2), 1 + 4 (0 - 1)
    assert one.flop == 8e9
    assert one.moved_bytes == 200 + 10**9


def test_what_is_not_timed_goes_by_the_longer_of_computing_and_moving() -> None:
    assert RATES.estimate_s(PRODUCT) == 4.0
    assert RATES.estimate_s(COPY) == 10.0
    assert RATES.estimate_s(Operation("tiny", 0.0, 0)) == FLOOR_S
    half = TensorSpec(torch.bfloat16, (2, 2), (2, 1))
    assert RATES.estimate_s(Operation("mm h", 4e9, 0, "", (half, half))) == 2.0
    assert seconds({PRODUCT: 3, COPY: 2}, {"copy b": 1.5}, RATES) == 3 * 4.0 + 2 * 1.5


def test_a_named_device_takes_the_longer_of_kernels_and_of_starting_them() -> None:
    device = find_device("A100 80GB")
    speed = DeviceSpeed(device)
    expected = 1e15 / (PRODUCT_EFFICIENCY * 19.5e12) + 1e12 / (BANDWIDTH_EFFICIENCY * 2039e9)
    work = Work({Operation("mm", 1e15, 0): 1, Operation("copy", 0.0, 10**12): 1}, 2)
    assert speed.seconds(work) == pytest.approx(expected, rel=1e-12)
    assert speed.seconds(Work({}, 1e6)) == pytest.approx(1e6 * LAUNCH_S)
    half = TensorSpec(torch.bfloat16, (2, 2), (2, 1))
    assert speed.seconds(Work({Operation("mm", 312e12, 0, "", (half,)): 6}, 1)) == pytest.approx(10.0)
    assert "60%" in speed.basis
    assert "not measured" in speed.basis


def test_what_was_measured_adds_what_starting_takes() -> None:
    own = {"device": "x", "is_gpu": False, "threads": 1}
    work = Work({PRODUCT: 1, COPY: 2}, 500)
    timed = {"mm a": 3.0, "copy b": 0.25}
    assert Calibration(own, RATES, timed).seconds(work) == 3.0 + 2 * 0.25 + 500 * 0.001
    on_gpu = Calibration(own | {"is_gpu": True}, RATES, timed)
    assert on_gpu.seconds(work) == 3.5  # the host is ahead
    assert on_gpu.seconds(Work({PRODUCT: 1}, 5000)) == 5.0


def test_the_most_expensive_are_timed_first_and_the_budget_ends_it() -> None:
    big, small = torch.ones(64, 64), torch.ones(8, 8)
    counts = seen(lambda: [big @ big, small @ small, big + big, small.exp()]).counts
    ticks = count()
    rates = Rates({"float32": 1e6}, 1e6, 0.0)
    found = time_operations(counts, {}, rates, budget_s=0, share=1.0, clock=lambda: float(next(ticks)))
    assert found == {}
    ticks = count()
    found = time_operations(counts, {}, rates, budget_s=3, share=1.0, clock=lambda: float(next(ticks)))
    assert [name.split("(")[0] for name in found] == ["mm"]
    assert "64" in next(iter(found))
    everything = time_operations(counts, {}, rates, budget_s=60, share=1.0)
    assert set(everything) == {one.signature for one in counts}
    assert all(taken > 0 for taken in everything.values())
    assert time_operations(counts, everything, rates, budget_s=60, share=1.0) == {}


def test_what_cannot_be_carried_out_by_itself_goes_by_rates() -> None:
    assert time_one(Operation("made up", 0.0, 8), CPU) is None
    many = (TensorSpec(torch.float32, (4,), (1,)),) * 20
    assert time_one(Operation("_foreach_add", 0.0, 8, "aten::_foreach_add.Scalar", (many, 1)), CPU) is None
    drawn = time_one(random_words(16), CPU)
    assert drawn is not None
    assert drawn > 0


def test_a_large_product_is_timed_in_a_smaller_form_of_its_own_proportions() -> None:
    left, right = TensorSpec(torch.float32, (8192, 4096), (4096, 1)), TensorSpec(torch.float32, (4096, 6144), (1, 4096))
    flop = 2.0 * 8192 * 4096 * 6144
    cut, factor = _cut(Operation("mm", flop, 10**9, "aten::mm", (left, right)))
    (rows, inner), (same, columns) = (spec.shape for spec in cut.args)
    assert inner == same
    assert cut.flop == 2.0 * rows * inner * columns <= 8e9
    assert factor == flop / cut.flop
    assert cut.args[1].strides == (1, inner)  # still laid out column by column
    whole = Operation("mm", 2.0 * 64**3, 0, "aten::mm", (TensorSpec(torch.float32, (64, 64), (64, 1)),) * 2)
    assert _cut(whole) == (whole, 1.0)


def test_a_calibration_is_kept_and_what_is_torn_or_of_another_machine_is_not_read(tmp_path: Path) -> None:
    machine = {"device": "x", "is_gpu": False, "threads": 1}
    path = tmp_path / "below" / "found.json"
    Calibration(machine, RATES, {"mm a": 3.0}, path=path).save()
    assert _read(path, machine) == (RATES, {"mm a": 3.0})
    assert _read(path, machine | {"threads": 2}) is None
    body = json.loads(path.read_bytes())
    for broken in (
        b"",
        b"{}",
        json.dumps(body | {"bytes_per_s": 0}).encode(),
        json.dumps(body | {"timed": 3}).encode(),
    ):
        path.write_bytes(broken)
        assert _read(path, machine) is None
    Calibration(machine, RATES, path=tmp_path / "file" / "x.json").save()
    (tmp_path / "taken").write_text("")
    Calibration(machine, RATES, path=tmp_path / "taken" / "x.json").save()  # a folder that cannot be: said in the log
