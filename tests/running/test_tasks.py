"""Question answering and classification from end to end, in real child processes: texts, classes, files, exports."""

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.running.world import NUM_JOBS, Events, scores, study_of, write_rows
from transformers import AutoModelForSequenceClassification

from tuneoff import api
from tuneoff.data.squad_metric import exact_match, token_f1
from tuneoff.errors import DataError
from tuneoff.running.session import Place, open_weights
from tuneoff.running.store import GENERATIONS_FILE, LABELS_FILE, PREDICTED_FILE, Store
from tuneoff.running.use import compare_on_prompt, export_run

pytestmark = pytest.mark.slow

IDS = torch.arange(3, 43).reshape(4, 10)
CLASSES = {"kind": "classification", "data": "classes.jsonl", "max_length": 24, "template": "{text}:"}
WORDS = ("bad", "good")


@contextmanager
def of_peft() -> Iterator[None]:
    """PEFT asks Transformers under an old name, and names the base's file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def write_classes(folder: Path) -> None:
    """Write rows whose class is told by one of two words."""
    words = (("grim", "foul"), ("kind", "fair"))
    rows = [{"text": f"day {n} was {words[n % 2][n % 3 % 2]}", "label": WORDS[n % 2]} for n in range(60)]
    write_rows(folder / "classes.jsonl", rows)


def write_questions(folder: Path) -> None:
    rows = [
        {
            "id": f"q{n}",
            "title": f"article {n // 2}",
            "context": f"The {n}th house is {'red' if n % 2 else 'blue'}.",
            "question": "Which colour?",
            "answers": {"text": ["red", "the red"] if n % 2 else ["blue"], "answer_start": [0, 0] if n % 2 else [0]},
        }
        for n in range(40)
    ]
    write_rows(folder / "questions.jsonl", rows)


@pytest.fixture(scope="module")
def classified(world: Path, tmp_path_factory: pytest.TempPathFactory) -> api.Result:
    """A finished classification of every kind of method; only to be read."""
    write_classes(world)
    arms: dict[str, Any] = {
        "words": {"method": "none"},
        "full": {"method": "full", "lr": 1e-2},
        "lora": {"method": "lora", "rank": 2, "tune": {"lr": [1e-3, 3e-2]}},
        "bottleneck": {"method": "bottleneck", "size": 4, "lr": 1e-2},
        "prompt": {"method": "prompt", "num_virtual_tokens": 3, "lr": 1e-1},
        "prefix": {"method": "prefix", "num_virtual_tokens": 3, "lr": 1e-2},
        "bitfit": {"method": "bitfit", "lr": 1e-2},
        "head": {"method": "head", "lr": 1e-2},
        "ia3": {"method": "peft", "peft": {"peft_type": "IA3"}, "lr": 1e-2},
    }
    study = study_of(world, "classes", arms, task=CLASSES | {"labels": list(WORDS)}, seeds=[0])
    return api.run(study, tmp_path_factory.mktemp("runs"), num_jobs=NUM_JOBS)


def run_of(result: api.Result, arm: str) -> str:
    return result.summary().arm(arm).chosen_run_ids[0]


def test_every_method_classifies(classified: api.Result) -> None:
    assert not classified.failed
    records, tests = classified.records()
    for arm in classified.summary().arms:
        record, test = records[arm.chosen_run_ids[0]], tests[arm.chosen_run_ids[0]]
        assert arm.status == "done", arm.name
        assert record.classes == WORDS
        assert test.test.vocabulary_size == 2
        assert set(test.metrics) == {"accuracy", "f1"}
        if arm.is_trained:
            trained = classified.store.weights(record.run_id)
            assert trained is not None, arm.name


def test_predictions_and_labels_are_two_lists_that_score_gives_the_records_numbers(classified: api.Result) -> None:
    _, tests = classified.records()
    for arm in classified.summary().arms:
        folder = classified.store.run_folder(arm.chosen_run_ids[0])
        predicted, labels = (json.loads((folder / name).read_text()) for name in (PREDICTED_FILE, LABELS_FILE))
        assert len(predicted) == len(labels) == tests[folder.name].test.num_sequences
        right = sum(a == b for a, b in zip(predicted, labels, strict=True))
        assert tests[folder.name].metrics["accuracy"] == pytest.approx(100 * right / len(labels), abs=1e-12)
        (scored,) = api.score(folder / PREDICTED_FILE, folder / LABELS_FILE).scores
        for name, value in tests[folder.name].metrics.items():
            assert scored.metrics[name] == value


def test_the_best_arm_is_the_most_accurate_one(classified: api.Result) -> None:
    summary = classified.summary()
    _, tests = classified.records()
    accuracy = {arm.name: tests[arm.chosen_run_ids[0]].metrics["accuracy"] for arm in summary.arms}
    assert accuracy[summary.ranking[0]] == max(accuracy.values())
    assert "accuracy" in summary.verdict


def test_a_merged_classifier_loads_in_transformers_with_its_classes(classified: api.Result, tmp_path: Path) -> None:
    run_id = run_of(classified, "lora")
    said = export_run(classified.store.folder.parent, run_id, tmp_path / "whole", merge=True)
    assert "AutoModelForSequenceClassification" in said
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole").eval()
    assert model.config.id2label == {0: "bad", 1: "good"}
    record = classified.records()[0][run_id]
    own = open_weights(record.run, Place(classified.store, classified.study.root), 2).module
    with torch.no_grad():
        assert torch.allclose(model(input_ids=IDS).logits, own(input_ids=IDS).logits, atol=2e-6)


@pytest.mark.parametrize("arm", ["lora", "prompt", "prefix", "ia3"])
def test_an_exported_adapter_of_a_classifier_brings_its_head(classified: api.Result, arm: str, tmp_path: Path) -> None:
    run_id = run_of(classified, arm)
    export_run(classified.store.folder.parent, run_id, tmp_path / "adapter")
    record = classified.records()[0][run_id]
    with of_peft():
        base = AutoModelForSequenceClassification.from_pretrained(classified.study.root / "base", num_labels=2)
        base.config.pad_token_id = 1
        theirs = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    own = open_weights(record.run, Place(classified.store, classified.study.root), 2).module
    own.config.pad_token_id = 1  # type: ignore[union-attr]
    with torch.no_grad():
        found = theirs(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
        assert torch.allclose(found, own(input_ids=IDS).logits, atol=2e-6)


def test_generate_tells_the_classes(classified: api.Result) -> None:
    out, run_id = classified.store.folder.parent, run_of(classified, "full")
    ((who, text),) = compare_on_prompt(out, run_id, "day 3 was fair", 8)
    assert run_id in who
    assert {line.partition(":")[0] for line in text.splitlines()} == set(WORDS)


@pytest.fixture(scope="module")
def answered(world: Path, tmp_path_factory: pytest.TempPathFactory) -> api.Result:
    """A finished study of questions with three decoding strategies; only to be read."""
    write_questions(world)
    task = {"kind": "qa", "data": "questions.jsonl", "max_length": 80}
    arms: dict[str, Any] = {
        "zero-shot": {"method": "none"},
        "lora": {"method": "lora", "rank": 4, "lr": 3e-2},
        "prompt": {"method": "prompt", "num_virtual_tokens": 3, "lr": 1e-1},
    }
    study = study_of(
        world,
        "questions",
        arms,
        task=task,
        decoding=["greedy", {"top_p": 0.9, "samples": 3}, {"beams": 2}],
        generate={"max_new_tokens": 6},
    )
    return api.run(study, tmp_path_factory.mktemp("runs"), num_jobs=NUM_JOBS)


def test_texts_of_every_strategy_are_kept_and_their_scores_are_the_records(answered: api.Result) -> None:
    assert not answered.failed
    _, tests = answered.records()
    assert len(tests) == 3
    for run_id, test in tests.items():
        folder = answered.store.run_folder(run_id)
        rows = [json.loads(line) for line in (folder / GENERATIONS_FILE).read_text().splitlines()]
        assert [one.decoding.name for one in test.generated] == ["greedy", "top-p-0.9", "beam-2"]
        assert test.metrics == test.generated[0].metrics
        for one in test.generated:
            own = [row for row in rows if row["decoding"] == one.decoding.name]
            assert len(own) == one.num_items > 1
            assert {len(row["texts"]) for row in own} == {one.decoding.samples}
            for name, function in (("exact_match", exact_match), ("f1", token_f1)):
                each = [[100 * function(text, row["references"]) for text in row["texts"]] for row in own]
                mean = sum(sum(samples) / len(samples) for samples in each) / len(each)
                best = sum(map(max, each)) / len(each)
                assert one.metrics[name] == pytest.approx(mean)
                assert one.best_of_n[name] == pytest.approx(best)
        squad = json.loads((folder / "predictions-greedy.json").read_text())
        assert squad == {row["id"]: row["texts"][0] for row in rows if row["decoding"] == "greedy"}


def test_another_decoding_reads_the_test_split_again_and_trains_nothing(answered: api.Result, world: Path) -> None:
    out = answered.store.folder.parent
    before = scores(answered)
    study = answered.study.model_copy(update={"decoding": answered.study.decoding[:1]})
    assert study.testing != answered.study.testing
    events = Events()
    again = api.run(study, out, num_jobs=NUM_JOBS, listener=events)
    assert {event.task.kind for event in events.of("start") if event.task} == {"score"}
    assert {run_id: found[:4] for run_id, found in scores(again).items()} == {k: v[:4] for k, v in before.items()}
    assert all(len(test.generated) == 1 for test in again.records()[1].values())
    for run_id, test in again.records()[1].items():
        kept = {path.name for path in again.store.run_folder(run_id).glob("predictions-*.json")}
        assert kept == {"predictions-greedy.json"} <= set(test.files)  # none of the strategies that are gone
    quiet = Events()
    api.run(study, out, listener=quiet)
    assert quiet == []


def test_generate_leaves_room_for_virtual_tokens(answered: api.Result) -> None:
    """The context holds 96 tokens, 3 of them virtual; a token is a byte."""
    out, run_id = answered.store.folder.parent, run_of(answered, "prompt")
    for_template = len("Context: \nQuestion: Which?\nAnswer:")

    def texts(num_tokens: int) -> dict[str, str]:
        context = "x" * (num_tokens - for_template)
        return dict(compare_on_prompt(out, run_id, "Which?", 500, api.decoding(temperature=9.0), context=context))

    assert len(texts(92)) == 2
    with pytest.raises(DataError, match="the prompt has 93 tokens; the base sees 93, beside 3 virtual ones"):
        texts(93)


def test_prompts_beyond_the_limit_need_not_fit(world: Path) -> None:
    write_questions(world)
    short = {"title": "s", "context": "x", "question": "?", "answers": ["x"]}
    write_rows(world / "asked.jsonl", [short, short | {"title": "l", "context": "x" * 20, "question": "?" * 12}])
    task = {"kind": "qa", "data": "questions.jsonl", "max_length": 80, "splits": {"test": "asked.jsonl"}}
    arms: dict[str, Any] = {"zero-shot": {"method": "none"}}
    with pytest.raises(DataError, match="prompt 2 has 60 tokens; with 40 new ones"):
        api.check(study_of(world, "asked", arms, task=task, generate={"max_new_tokens": 40}))
    assert api.check(study_of(world, "asked", arms, task=task, generate={"max_new_tokens": 40, "limit": 1}))


def test_a_record_takes_the_place_of_an_older_reading_of_the_test_split(answered: api.Result, tmp_path: Path) -> None:
    """A run that is trained again and killed before it is tested must not keep the old weights' scores."""
    store = Store(tmp_path / "copy")
    shutil.copytree(answered.store.folder, store.folder)
    run_id = run_of(answered, "lora")
    record = store.record(run_id)
    assert record is not None
    assert store.test(run_id) is not None
    store.write_record(record)
    assert store.record(run_id) == record
    assert store.test(run_id) is None


def test_what_the_model_cannot_take_is_a_row_and_the_study_goes_on(world: Path, tmp_path: Path) -> None:
    arms: dict[str, Any] = {
        "prefix": {"method": "prefix", "num_virtual_tokens": 2, "lr": 1e-2},
        "poly": {"method": "peft", "peft": {"peft_type": "POLY", "target_modules": ["c_attn"]}, "lr": 1e-2},
        "lora": {"method": "lora", "rank": 2, "lr": 1e-2},
    }
    study = study_of(world, "cannot", arms, gradient_checkpointing=True)
    events = Events()
    result = api.run(study, tmp_path, listener=events)
    prefix, poly, lora = result.summary().arms
    assert (prefix.status, poly.status, lora.status) == ("infeasible", "infeasible", "done")
    assert "gradient checkpointing" in prefix.reason
    assert "POLY" in poly.reason
    assert not result.failed
    again = Events()
    api.run(study, tmp_path, listener=again)
    assert again == []


def test_checkpointed_gradients_train_the_same_weights(world: Path, tmp_path: Path) -> None:
    arms = {"lora": {"method": "lora", "rank": 2, "dropout": 0.1, "lr": 1e-2}}
    losses = []
    for name, switch in (("kept", False), ("again", True)):
        result = api.run(study_of(world, name, arms, gradient_checkpointing=switch), tmp_path)
        (run_id,) = result.records()[0]
        losses.append([row["loss_nats"] for row in result.store.curve(run_id)])
    assert losses[0] == losses[1]
