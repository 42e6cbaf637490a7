"""What arms cost: hand-worked sums over runs, sizes of data, and the plan of a small study from its file to its end."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.shell import tuneoff

from tuneoff.errors import StudyError
from tuneoff.planning.costs import Basis, Forecast, basis_of, foretell, num_evaluations, total_s
from tuneoff.planning.devices import find_device
from tuneoff.planning.fit import SAME_NUMBERS, Change, Fit, Kind, fitted
from tuneoff.planning.fitted_file import write_study
from tuneoff.planning.operations import Work
from tuneoff.planning.plan import plan
from tuneoff.planning.render_costs import cost_lines, flop_text, range_text, seconds_text
from tuneoff.planning.room import Room
from tuneoff.planning.sizes import longest_sizes, study_sizes
from tuneoff.planning.trace import Lengths, PhaseTrace
from tuneoff.study.loading import load_study, study_from
from tuneoff.study.predicted import Seconds
from tuneoff.study.spec import Arm, Study

RAW: dict[str, Any] = {
    "name": "costs",
    "model": "demo",
    "task": {"kind": "instruction", "data": "demo", "max_length": 64, "limit": 60},
    "budget": {"steps": 50, "batch_size": 8},
    "seeds": [0, 1, 2],
    "arms": {
        "none": {"method": "none"},
        "full": {"method": "full", "tune": {"lr": [1e-4, 3e-4, 1e-3]}},
        "lora": {"method": "lora", "rank": [2, 4], "targets": ["c_attn"], "lr": 1e-3},
    },
}
ROOM = Room(where="here", total_bytes=10**9, process_bytes=0)


class Counted:
    """A speed at which each operation takes a second."""

    name = "counted"
    basis = "a second an operation"

    def seconds(self, work: Work) -> float:
        return work.num_operations


def make(**changes: Any) -> Study:
    return study_from(RAW | changes, Path())


def traced(study: Study, arm: Arm, lengths: Lengths, scored: float = 100 / 4096) -> tuple[PhaseTrace, ...]:
    """Ten operations a pass and two of the optimizer; memory in proportion to what one forward sees."""
    own = study.for_arm(arm)
    size = min(own.micro_batch or own.budget.batch_size, own.budget.batch_size)
    found = []
    for phase, num_tokens in (("train", sum(lengths.train)), ("evaluate", 100), ("generate", 40)):
        if (phase == "train" and not arm.is_trained) or (phase == "generate" and not lengths.prompts):
            continue
        rows = lengths.generation_rows or own.generate.batch_size
        peaks = {
            "train": 1000 * size,
            "evaluate": 400 + scored * lengths.evaluation_tokens,
            "generate": 400 + 99 * rows,
        }
        peak = round(peaks[phase])
        parts = {"weights": 400, "activations": peak - 400}
        one = PhaseTrace(
            phase=phase,
            peak_bytes=peak,
            parts=parts,
            flop=7.0,
            moved_bytes=1.0,
            num_operations=12,
            num_tokens=num_tokens,
        )
        one._passes, one._once = Work({}, 10), Work({}, 2)
        found.append(one)
    return tuple(found)


def test_runs_are_added_up_by_hand() -> None:
    study, reading = make(), Seconds(fewest=5.0, most=8.0)
    full, arms = study.arms[1], {arm.name: arm for arm in plan(study).arms}
    # three trials, two further seeds, three readings of the test split
    assert total_s(study, full, arms["full"], 100.0, 10.0, reading) == Seconds(fewest=515.0, most=524.0)
    halving = make(tuning={"search": "halving"})
    # at least: two of the three trials stop at their first scoring
    assert total_s(halving, full, arms["full"], 100.0, 10.0, reading) == Seconds(fewest=335.0, most=524.0)
    auto = make(arms={"full": {"method": "full", "tune": {"lr": "auto"}}}, tuning={"extend": 4})
    own = plan(auto).arms[0]
    assert total_s(auto, auto.arms[0], own, 100.0, 10.0, reading) == Seconds(fewest=515.0, most=924.0)
    assert total_s(study, study.arms[0], arms["none"], 3.0, 3.0, reading) == Seconds(fewest=8.0, most=11.0)


@pytest.mark.parametrize(
    ("steps", "every", "num"), [(50, None, 10), (50, 20, 3), (7, None, 7), (3, 10, 1), (0, None, 1)]
)
def test_scorings_are_counted_as_the_loop_makes_them(steps: int, every: int | None, num: int) -> None:
    study = make(evaluate={"every": every} if every else {})
    first = study.evaluate.every or max(1, round(steps / 10))
    loop = sum(step == steps or step % first == 0 for step in range(1, steps + 1))
    assert num_evaluations(study, steps) == num == (loop or 1)


def test_what_is_foretold_follows_from_the_trace() -> None:
    study = make()
    forecast = Forecast(study, None, Basis(ROOM, Counted(), "cpu"), tracer=traced)  # type: ignore[arg-type]
    planned = plan(study).arms[1]
    found = forecast.predicted(study, study.arms[1], planned)
    sizes = study_sizes(study)
    assert found.peak_bytes == {"train": 8000, "evaluate": 500}
    assert found.step_s == 12.0
    assert found.validate_s == pytest.approx(12 / 100 * sizes.num_tokens["validation"])
    assert found.run_s == pytest.approx(50 * 12.0 + 10 * found.validate_s)
    assert found.test_s == pytest.approx(12 / 100 * sizes.num_tokens["test"])
    assert found.total_s is not None
    assert found.total_s.fewest == found.total_s.most == pytest.approx(5 * found.run_s + 3 * found.test_s)
    trained = planned.parameters.trainable
    assert found.checkpoint_bytes == 12 * trained  # weights and two moments in fp32
    assert found.run_bytes >= 4 * trained
    assert found.store_bytes == pytest.approx(3 * 4 * trained, rel=0.02)  # of full the chosen rate's weights stay
    untrained = forecast.predicted(study, study.arms[0], plan(study).arms[0])
    assert untrained.step_s is None
    assert untrained.run_s == found.validate_s
    assert untrained.checkpoint_bytes == 0


def test_data_at_hand_give_their_own_lengths_and_others_the_longest() -> None:
    found = study_sizes(make())
    assert found.is_read
    assert sum(found.largest.lengths) >= sum(found.typical.lengths)
    assert max(found.largest.lengths) <= 64
    assert "of the data" in found.note
    away = study_sizes(make(model="gpt2"))  # no tokenizer on this machine
    assert not away.is_read
    assert away.largest.lengths == (64,) * 8
    assert "the longest that there may be: the model's tokenizer is not on this machine" in away.note
    missing = study_sizes(make(task={"kind": "instruction", "data": "./nothing.jsonl"}))
    assert "the data cannot be read here" in missing.note
    qa = make(task={"kind": "qa", "data": "demo", "max_length": 64}, generate={"batch_size": 4, "limit": 9})
    assert longest_sizes(qa, "so").prompts == (63,) * 4
    assert longest_sizes(qa, "so").num_prompts == 9


def test_a_micro_batch_that_fits_is_found_and_the_plan_after_it_fits() -> None:
    study = make()
    room = Room(where="here", total_bytes=3000, process_bytes=0)
    forecast = Forecast(study, None, Basis(room, None, "cpu"), tracer=traced)  # type: ignore[arg-type]
    found = forecast.fit(study, study.arms[1], SAME_NUMBERS)
    assert found.missing_bytes == 5000
    assert found.change == Change(micro_batch=2)
    after = fitted(study, {"full": Change(micro_batch=2)})
    assert forecast.fit(after, after.arms[1]).fits


def test_what_a_run_halves_by_itself_fits() -> None:
    """Training takes 8,000; scoring 400 and a byte a token, 4,096 at first; writing 400 and 99 a text, 32 at first."""
    study = make(task={"kind": "qa", "data": "demo", "max_length": 64}, generate={"batch_size": 32})
    full = study.arms[1]

    def forecast(tensor_bytes: int) -> Forecast:
        basis = Basis(Room(where="here", total_bytes=tensor_bytes, process_bytes=0), None, "cpu")
        tracer = partial(traced, scored=1.0)
        return Forecast(study, None, basis, tracer=tracer)  # type: ignore[arg-type]

    def fit(tensor_bytes: int, kinds: tuple[Kind, ...] = ()) -> Fit:
        return forecast(tensor_bytes).fit(study, full, kinds)

    assert fit(8000).halved == {}
    found = fit(4000, SAME_NUMBERS)
    assert (found.needed_bytes, found.change, found.changed_bytes) == (8000, Change(micro_batch=4), 4000)
    assert found.halved == {"evaluation_tokens": 2048}
    smaller = fit(2000, SAME_NUMBERS)
    assert smaller.change == Change(micro_batch=2)
    assert smaller.halved == {"evaluation_tokens": 1024, "generation_rows": 16}
    # scoring needs 464 with the longest sequence alone, writing 499 with one text
    none = next(arm for arm in study.arms if arm.name == "none")
    untrained = forecast(499).fit(study, none, ())
    assert untrained.fits
    assert untrained.halved == {"evaluation_tokens": 64, "generation_rows": 1}
    lacking = forecast(498).fit(study, none, ())
    assert (lacking.fits, lacking.missing_bytes, lacking.halved) == (False, 1, {})


def test_a_plan_says_what_a_run_halves_by_itself() -> None:
    study = make()
    basis = Basis(Room(where="here", total_bytes=3000, process_bytes=0), None, "cpu")
    tracer = partial(traced, scored=1.0)
    found = Forecast(study, None, basis, tracer=tracer).plan(study, None, ())  # type: ignore[arg-type]
    assert [arm.fit is not None and arm.fit.fits for arm in found.arms] == [True, False, False, False]
    lines = "\n".join(cost_lines(found))
    assert "halved by the run itself: none: 2,048 tokens scored at a time" in lines
    assert "full does not fit: 8 kB of tensors in 3 kB" in lines


def test_the_whole_plan_of_a_small_study() -> None:
    study = make(model="demo", budget={"steps": 4, "batch_size": 4})
    found = foretell(study, basis_of(find_device("RTX 4090")))
    full = found.arms[1]
    assert full.predicted is not None
    assert full.fit is not None
    assert full.fit.fits
    train = full.predicted.phases["train"]
    assert train.parts["weights"] == pytest.approx(full.weights_bytes, rel=0.02)
    assert train.parts["optimizer"] == pytest.approx(full.optimizer_bytes, rel=0.01)
    assert sum(train.parts.values()) == train.peak_bytes
    assert full.predicted.step_s is not None
    assert found.total_s is not None
    assert found.device == "RTX 4090"
    again = json.loads(found.model_dump_json())
    assert again["arms"][1]["predicted"]["phases"]["train"]["peak_bytes"] == train.peak_bytes


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    path = tmp_path / "costs.yaml"
    path.write_text(yaml.safe_dump(RAW, sort_keys=False), encoding="utf-8")
    return path


def test_a_fitted_study_is_written_and_runs_as_written(study_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "elsewhere" / "small.yaml"
    out.parent.mkdir()
    changes = {"full": Change(micro_batch=2), "lora-rank4": Change(quantize="nf4", max_length=32)}
    write_study(out, study_file, ["budget.steps=7"], changes)
    found = load_study(out)
    assert [arm.name for arm in found.arms] == ["none", "full", "lora-rank2", "lora-rank4"]
    assert found.budget.steps == 7
    assert found.for_arm(found.arms[1]).micro_batch == 2
    assert found.for_arm(found.arms[2]).task.max_length == 64
    assert found.arms[3].method.quantize == "nf4"  # type: ignore[union-attr]
    assert found.for_arm(found.arms[3]).task.max_length == 32
    assert out.read_text().startswith(
        f"# Made from {study_file}, so that every arm fits. Changed:\n#   full: micro_batch 2"
    )
    with pytest.raises(StudyError, match=r"--write: .* cannot be written"):
        write_study(tmp_path / "no" / "such" / "folder.yaml", study_file, [], changes)


def test_the_command_line_plans_for_a_device_and_makes_it_fit(study_file: Path, tmp_path: Path) -> None:
    arms = {"full": RAW["arms"]["full"], "lora": RAW["arms"]["lora"] | {"rank": 2}}
    study_file.write_text(yaml.safe_dump(RAW | {"arms": arms}), encoding="utf-8")
    done = tuneoff("plan", str(study_file), "--device-memory", "800MB", "--json", "--set", "budget.batch_size=16")
    assert done.code == 0, done.errors
    body = json.loads(done.text)
    assert body["room"]["total_bytes"] == 800 * 10**6
    assert all(arm["fit"]["change"] is None for arm in body["arms"])  # 160 MB for tensors are enough
    out = tmp_path / "fitted.yaml"
    done = tuneoff("plan", str(study_file), "--device-memory", "700MB", "--fit", "-o", str(out))
    assert done.code == 0, done.errors
    assert "a device of 0.7 GB, 700 MB, of which 65 MB can be tensors" in done.text
    assert out.exists()
    load_study(out)


def test_mistakes_are_one_message(study_file: Path, tmp_path: Path) -> None:
    name = str(study_file)
    tuneoff("plan", name, "--device", "RTX 4900").is_one_error("no device is known as 'RTX 4900'.*Did you mean")
    tuneoff("plan", name, "--device-memory", "lots").is_one_error("--device-memory: found 'lots'")
    tuneoff("plan", name, "--device", "T4", "--fit=everything").is_one_error("--fit: found 'everything'; allowed: all")
    tuneoff("plan", name, "--device", "T4", "-o", str(tmp_path / "x")).is_one_error("--write: .*add --fit")


def test_times_and_counts_are_said_as_people_say_them() -> None:
    times = (0.0123, 0.9996, 59.94, 75.2, 600, 7506, 90_000, 300_000)
    assert [seconds_text(value) for value in times] == [
        "12.3 ms", "1 s", "59.9 s", "1 min 15 s", "10 min", "2 h 5 min", "25 h", "3.47 days",
    ]  # fmt: skip
    assert range_text(Seconds(fewest=30, most=90)) == "30 s to 1 min 30 s"
    assert [flop_text(value) for value in (7.0, 8.89e9, 2.4e14)] == ["7 FLOP", "8.89 GFLOP", "240 TFLOP"]
