"""What is worked out of finished runs, against Transformers, PEFT and numpy, in real child processes."""

import json
import multiprocessing
import os
import shutil
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.running.world import NUM_JOBS, Events, scores, study_of, write_rows
from transformers import AutoTokenizer, GPT2LMHeadModel

from tuneoff import api
from tuneoff.analysis.explanation import Explanation
from tuneoff.errors import DataError, StudyError
from tuneoff.running.events import Event
from tuneoff.running.store import ADAPTER_WEIGHTS, RECORD_FILE
from tuneoff.running.use import export_run
from tuneoff.study.expand import base_run
from tuneoff.study.explained import ExplainRecord
from tuneoff.study.spec import Study

pytestmark = pytest.mark.slow

MAX_LENGTH = 48
SAMPLES = 3
NEW_TOKENS = 8
ASKED = {"samples": SAMPLES, "max_new_tokens": NEW_TOKENS}
DOCUMENTS = ["The harbour lay still in the morning, and no boat had come in from the north.", "A short one.", "Third."]
ARMS: dict[str, Any] = {
    "full": {"method": "full", "lr": 1e-2},
    "lora": {"method": "lora", "rank": 3, "alpha": 6, "rslora": True, "targets": ["c_attn", "mlp.c_proj"], "lr": 1e-2},
    "dora": {"method": "lora", "rank": 2, "dora": True, "targets": ["c_fc"], "lr": 1e-2},
    "still": {"method": "lora", "rank": 2, "targets": ["c_attn"], "lr": 1e-30},
    "prompt": {"method": "prompt", "num_virtual_tokens": 3, "lr": 1e-1},
    "ia3": {
        "method": "peft",
        "peft": {"peft_type": "IA3", "target_modules": ["c_attn"], "feedforward_modules": []},
        "lr": 1e-1,
    },
}
EPSILON = 2.0**-24
"""Relative rounding of fp32, in which weights are stored."""


def study(world: Path, name: str, arms: dict[str, Any], **changes: Any) -> Study:
    write_rows(world / "general.jsonl", [{"text": text} for text in DOCUMENTS])
    return study_of(world, name, arms, **({"explain": ASKED, "retention": "general.jsonl"} | changes))


@pytest.fixture(scope="module")
def result(world: Path, tmp_path_factory: pytest.TempPathFactory) -> api.Result:
    found = api.run(study(world, "explained", ARMS), tmp_path_factory.mktemp("explained"), num_jobs=NUM_JOBS)
    assert not found.failed
    return found


def run_id(result: api.Result, arm: str) -> str:
    (found,) = next(one.chosen_run_ids for one in result.summary().arms if one.name == arm)
    return found


def record_of(result: api.Result, arm: str) -> ExplainRecord:
    return result.explained()[run_id(result, arm)]


def base_of(result: api.Result) -> ExplainRecord:
    return result.explained()[base_run(result.study).run_id]


def base_model(world: Path) -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(world / "base")


@contextmanager
def of_peft() -> Iterator[None]:
    """PEFT asks Transformers under an old name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def trained_model(world: Path, result: api.Result, arm: str, folder: Path) -> Any:
    """Return a run's model as Transformers and PEFT load it."""
    if arm == "full":
        model = base_model(world)
        model.load_state_dict(
            load_file(result.store.run_folder(run_id(result, arm)) / "model.safetensors"), strict=False
        )
        return model
    export_run(result.store.folder.parent, f"{result.study.name}/{arm}", folder, merge=False)
    with of_peft():
        return PeftModel.from_pretrained(base_model(world), folder)


def test_the_explanation_is_made_of_the_records(result: api.Result) -> None:
    found = result.explanation()
    assert {one.arm for one in found.weights} >= {"full", "lora", "still"}
    base = base_of(result).retention
    assert base is not None
    assert found.base_retention_nats == base.likelihood.loss_nats
    for one in found.forgetting:
        after = record_of(result, one.arm).retention
        assert after is not None
        gained = after.likelihood.loss_nats - base.likelihood.loss_nats
        assert one.difference.value == pytest.approx(gained, abs=1e-9)
    paths = {path.name: path for path in result.report()}
    facts = json.loads(paths["report.json"].read_text("utf-8"))
    assert Explanation.model_validate(facts["explanation"]) == found
    assert "## Why" in paths["report.md"].read_text("utf-8")


def losses(model: Any, world: Path) -> tuple[list[float], list[int]]:
    """Return the NLL and the target tokens of each document, by Transformers' own loss, in float64."""
    model = model.double().eval()
    tokenizer = AutoTokenizer.from_pretrained(world / "base")
    sums, counts = [], []
    for text in DOCUMENTS:
        ids = [0, *tokenizer(text)["input_ids"], 0]
        total, position = 0.0, 1  # the next token to predict
        while position < len(ids):
            window = ids[position - 1 : position - 1 + MAX_LENGTH]  # one token of context, then targets
            with torch.no_grad():
                loss = model(input_ids=torch.tensor([window]), labels=torch.tensor([window])).loss.item()
            total += loss * (len(window) - 1)
            position += len(window) - 1
        sums.append(total)
        counts.append(len(ids) - 1)
    return sums, counts


@pytest.mark.parametrize("arm", ["base", "full", "lora", "dora"])
def test_the_retention_loss_is_transformers_own(world: Path, result: api.Result, tmp_path: Path, arm: str) -> None:
    retention = (base_of(result) if arm == "base" else record_of(result, arm)).retention
    assert retention is not None
    model = base_model(world) if arm == "base" else trained_model(world, result, arm, tmp_path / "adapter")
    sums, counts = losses(model, world)
    assert retention.likelihood.num_target_tokens == sum(counts)
    # fp32 forward against float64: measured 1e-7 relative
    assert retention.likelihood.nll_nats == pytest.approx(sum(sums), rel=1e-6)
    assert np.mean(retention.values) == pytest.approx(retention.likelihood.loss_nats, rel=1e-12)
    loss, mean = sum(sums) / sum(counts), sum(counts) / len(counts)
    wanted = [loss + (own - loss * count) / mean for own, count in zip(sums, counts, strict=True)]
    assert retention.values == pytest.approx(wanted, rel=1e-5)


def test_an_adapter_that_learnt_nothing_forgets_nothing(result: api.Result) -> None:
    still, base = record_of(result, "still"), base_of(result)
    assert still.retention == base.retention
    assert {arm for arm in ARMS if record_of(result, arm).retention == base.retention} == {"still"}


def oriented(model: Any, name: str) -> np.ndarray[Any, Any]:
    """Return the weight of a Conv1D as (out, in)."""
    return np.asarray(model.get_submodule(name).weight.detach().double().numpy().T)


def matrices(world: Path, result: api.Result, arm: str, folder: Path) -> dict[str, tuple[Any, Any]]:
    """Return W and W + D of every layer that a run changed, from what Transformers and PEFT load."""
    base, tuned = base_model(world), trained_model(world, result, arm, folder)
    names = [layer.module for layer in record_of(result, arm).layers]
    if arm != "full":
        with of_peft():
            tuned = tuned.double().merge_and_unload()
    return {name: (oriented(base, name), oriented(tuned, name)) for name in names}


NAMES = {
    "full": ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
    "lora": ["attn.c_attn", "mlp.c_proj"],
    "dora": ["mlp.c_fc"],
    "ia3": ["attn.c_attn"],
}


@pytest.mark.parametrize("arm", NAMES)
def test_weight_changes_are_those_of_numpy(world: Path, result: api.Result, tmp_path: Path, arm: str) -> None:
    record = record_of(result, arm)
    found = matrices(world, result, arm, tmp_path / "adapter")
    assert list(found) == [f"transformer.h.{block}.{name}" for block in range(2) for name in NAMES[arm]]
    rank = {"lora": 3}.get(arm)
    for layer in record.layers:
        base, tuned = found[layer.module]
        values = np.linalg.svd(tuned - base, compute_uv=False)
        assert layer.shape == base.shape
        assert layer.base_norm == pytest.approx(np.linalg.norm(base), rel=1e-12)
        assert layer.num_singular_values == (rank or min(base.shape))
        # W + D, or D, is rounded to fp32, element by element
        assert layer.change_norm == pytest.approx(np.linalg.norm(tuned - base), abs=EPSILON * np.linalg.norm(tuned))
        wanted = values[: len(layer.singular_values)]
        assert np.allclose(layer.singular_values, wanted, rtol=0, atol=EPSILON * np.linalg.norm(tuned))
        left, left_tuned = (np.linalg.svd(matrix, full_matrices=False)[0] for matrix in (base, tuned))
        cosines = np.abs(left.T @ left_tuned[:, : layer.num_top]).max(axis=0)
        assert np.allclose(layer.max_cosines, cosines, rtol=0, atol=1e-4)
    assert any("Embeddings and the output head" in note for note in record.notes)


def test_what_changes_no_matrix_has_no_weight_changes(result: api.Result) -> None:
    assert record_of(result, "prompt").layers == ()
    assert record_of(result, "prompt").notes == ()
    assert base_of(result).layers == ()


@pytest.mark.parametrize("arm", ["full", "lora"])
def test_samples_are_greedy_texts(world: Path, result: api.Result, tmp_path: Path, arm: str) -> None:
    samples = record_of(result, arm).samples
    assert len({sample.item for sample in samples}) == SAMPLES
    tokenizer = AutoTokenizer.from_pretrained(world / "base")
    model = trained_model(world, result, arm, tmp_path / "adapter").eval()
    for sample in samples:
        number = int(sample.prompt.removeprefix("Say ").removesuffix(":"))
        assert sample.reference == f"{number} it is, {number % 7}"
        ids = torch.tensor([tokenizer(sample.prompt)["input_ids"]])
        with torch.no_grad():
            out = model.generate(input_ids=ids, attention_mask=ids * 0 + 1, do_sample=False, max_new_tokens=NEW_TOKENS)
        assert sample.text == tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_the_base_is_explained_and_not_tested(result: api.Result) -> None:
    base = base_of(result)
    assert base.samples == ()
    assert not (result.store.run_folder(base.run_id) / RECORD_FILE).exists()
    assert base.run_id not in result.records()[1]
    assert result.num_other_runs() == 0


def test_what_the_bits_of_a_run_depend_on_stays_as_it_was(result: api.Result) -> None:
    for one in result.records()[0]:
        setup = result.store.setup(one)
        assert setup is not None
        assert setup["num_sittings"] == 1


@pytest.fixture
def copied(result: api.Result, tmp_path: Path) -> api.Result:
    """A copy of the study that a test may go on with."""
    shutil.copytree(result.store.folder, tmp_path / result.study.name)
    return api.open_result(result.study, tmp_path)


def kinds(events: Events) -> list[str]:
    return sorted({event.task.kind for event in events if event.task is not None})


def go_on(copied: api.Result, changed: Study, *, only: Sequence[str] = ()) -> tuple[api.Result, Events]:
    events = Events()
    return api.run(changed, copied.store.folder.parent, only=only, num_jobs=NUM_JOBS, listener=events), events


def test_nothing_is_worked_out_twice(copied: api.Result) -> None:
    assert go_on(copied, copied.study)[1] == []


def test_another_retention_text_is_scored_anew(world: Path, copied: api.Result) -> None:
    (world / "other.txt").write_text("Quite another text, of which nothing is known.", "utf-8")
    arms = {name: ARMS[name] for name in ("lora", "prompt")}
    changed = study(world, "explained", arms, retention="other.txt")
    result, events = go_on(copied, changed)
    assert kinds(events) == ["explain"]
    assert {event.task.arm for event in events if event.task} == {"base", *arms}
    (sha256,) = {one.retention_sha256 for one in result.explained().values()}
    assert sha256 != record_of(copied, "full").retention_sha256
    (world / "other.txt").write_text("The same file, with another text.", "utf-8")
    again, events = go_on(copied, changed)
    assert kinds(events) == ["explain"]
    assert {one.retention_sha256 for one in again.explained().values()} != {sha256}
    assert scores(again) == scores(copied)


def test_a_zero_shot_arm_takes_the_bases_place(world: Path, copied: api.Result) -> None:
    with_zero = study(world, "explained", {"zero": {"method": "none"}, "lora": ARMS["lora"]})
    before = base_of(copied).retention
    result, events = go_on(copied, with_zero)
    assert [(event.task.kind, event.task.arm) for event in events.of("finished") if event.task] == [
        ("train", "zero"),
        ("explain", "zero"),
    ]
    assert base_of(result).retention == before
    assert len(base_of(result).samples) == SAMPLES


class Killer(Events):
    """Kills the child that explains an arm."""

    def __init__(self, arm: str) -> None:
        super().__init__()
        self.arm = arm

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        task = event.task
        if event.kind == "phase" and task is not None and (task.kind, task.arm) == ("explain", self.arm):
            (child,) = (one for one in multiprocessing.active_children() if one.name == f"tuneoff {self.arm}")
            os.kill(child.pid or 0, signal.SIGKILL)


def test_a_kill_while_explaining_loses_nothing(world: Path, tmp_path: Path, result: api.Result) -> None:
    arms = {name: ARMS[name] for name in ("lora", "prompt")}
    small = study(world, "killed-explaining", arms)
    killed = api.run(small, tmp_path, num_jobs=NUM_JOBS, listener=Killer("lora"))
    assert list(killed.failed) == [run_id(killed, "lora")]
    assert "killed" in killed.failed[run_id(killed, "lora")]
    assert set(killed.explained()) == {base_run(small).run_id, run_id(killed, "prompt")}
    assert killed.summary().num_left == 0
    events = Events()
    again = api.run(small, tmp_path, num_jobs=NUM_JOBS, listener=events)
    assert not again.failed
    assert [(event.task.kind, event.task.arm) for event in events.of("finished") if event.task] == [("explain", "lora")]
    assert record_of(again, "lora").layers == record_of(result, "lora").layers
    assert record_of(again, "lora").samples == record_of(result, "lora").samples


class Spoiler(Events):
    """Spoils an arm's weights just before they are explained, so that the child crashes on them."""

    def __init__(self, folder: Path, arm: str) -> None:
        super().__init__()
        self.folder, self.arm = folder, arm

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        task = event.task
        if event.kind == "start" and task is not None and (task.kind, task.arm) == ("explain", self.arm):
            (self.folder / task.run.run_id / ADAPTER_WEIGHTS).write_bytes(b"torn")


def test_a_crash_while_explaining_leaves_the_result_standing(world: Path, tmp_path: Path) -> None:
    arms = {name: ARMS[name] for name in ("lora", "prompt")}
    small = study(world, "crashed", arms)
    found = api.run(small, tmp_path, num_jobs=NUM_JOBS, listener=Spoiler(tmp_path / "crashed", "lora"))
    assert list(found.failed) == [run_id(found, "lora")]
    assert "crashed" in found.failed[run_id(found, "lora")]
    assert {arm.status for arm in found.summary().arms} == {"done"}
    assert [arm.num_tested for arm in found.summary().arms] == [1, 1]
    assert run_id(found, "prompt") in found.explained()
    assert found.report()


def test_full_weights_are_explained_before_they_are_removed(world: Path, tmp_path: Path) -> None:
    arms = {"full": ARMS["full"]}
    found = api.run(study(world, "none", arms, keep="none"), tmp_path)
    assert len(record_of(found, "full").layers) == 8
    assert record_of(found, "full").retention is not None
    assert found.store.weights(run_id(found, "full")) is None
    more = study(world, "none", arms, keep="none", explain=ASKED | {"samples": 2})
    again, events = go_on(found, more)
    assert kinds(events) == ["explain"]
    record = record_of(again, "full")
    assert (record.layers, record.samples, record.retention) == ((), (), None)
    assert any("weights are gone" in note for note in record.notes)
    assert record.retention_sha256
    assert go_on(found, more)[1] == []


def test_only_the_named_arms_are_explained(world: Path, tmp_path: Path) -> None:
    arms = {name: ARMS[name] for name in ("lora", "prompt")}
    found = api.run(study(world, "only", arms, retention=None), tmp_path, only=["prompt"])
    assert set(found.explained()) == {run_id(found, "prompt")}
    assert record_of(found, "prompt").retention is None
    assert record_of(found, "prompt").retention_sha256 == ""


def test_classes_and_texts_that_testing_wrote_are_samples(world: Path, tmp_path: Path) -> None:
    rows = [{"text": f"{'good' if index % 2 else 'bad'} {index}", "label": index % 2} for index in range(40)]
    write_rows(world / "sampled.jsonl", rows)
    task = {"kind": "classification", "data": "sampled.jsonl", "max_length": 24, "labels": ["bad", "good"]}
    found = api.run(
        study(world, "sampled", {"full": ARMS["full"]}, task=task, retention=None), tmp_path, num_jobs=NUM_JOBS
    )
    record = record_of(found, "full")
    lines = (found.store.run_folder(record.run_id) / "predictions.jsonl").read_text().splitlines()
    predicted = [["bad", "good"][json.loads(line)["prediction"]] for line in lines]
    assert [sample.text for sample in record.samples] == predicted[:SAMPLES]
    assert all(sample.prompt.startswith(f"{sample.reference} ") for sample in record.samples)
    assert not any("score" in layer.module for layer in record.layers)  # the head started at random

    task = {"kind": "instruction", "data": "rows.jsonl", "max_length": 48, "template": "{instruction}:"}
    task["metrics"] = ["exact_match"]  # type: ignore[assignment]
    decoding = [{"temperature": 0.7}, "greedy"]
    arms = {"lora": ARMS["lora"]}
    written = api.run(study(world, "written", arms, task=task, retention=None, decoding=decoding), tmp_path)
    record = record_of(written, "lora")
    lines = (written.store.run_folder(record.run_id) / "generations.jsonl").read_text().splitlines()
    texts = [row["texts"][0] for row in map(json.loads, lines) if row["decoding"] == "greedy"]
    assert [sample.text for sample in record.samples] == texts[:SAMPLES]
    assert all(sample.prompt.startswith("Say ") for sample in record.samples)


def test_text_is_continued_from_the_middle_of_a_window(world: Path, tmp_path: Path) -> None:
    task = {"kind": "text", "data": "book.txt", "max_length": 32}
    found = api.run(study(world, "book", {"zero": {"method": "none"}}, task=task, retention=None), tmp_path)
    samples = record_of(found, "zero").samples
    assert len(samples) == SAMPLES
    book = (world / "book.txt").read_text("utf-8")
    assert all(sample.prompt + sample.reference in book for sample in samples)
    assert all(len(sample.prompt) <= 16 and sample.reference for sample in samples)


def test_what_cannot_be_is_refused(world: Path) -> None:
    task = {"kind": "classification", "data": "classes.jsonl", "max_length": 24}
    with pytest.raises(StudyError, match="no language-model head"):
        study(world, "refused", {"full": ARMS["full"]}, task=task)
    with pytest.raises(DataError, match="retention: no such file or folder"):
        api.check(study(world, "missing", {"lora": ARMS["lora"]}, retention="nowhere.txt"))
