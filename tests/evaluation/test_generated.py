"""What testing saves of generated text: the record's numbers follow from the rows, and the rows from the model."""

import json
from contextlib import nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.methods.models import make_model
from transformers import PreTrainedModel

from tuneoff.data.tokens import Prompts
from tuneoff.errors import StudyError
from tuneoff.evaluation.generated import Written, generations_jsonl, predictions_json, text_of, write_and_score
from tuneoff.evaluation.generation import generate
from tuneoff.evaluation.scoring import score_files
from tuneoff.evaluation.texts import Continuation
from tuneoff.study.testing import Decoding, GenerateSpec, Testing
from tuneoff.training.models import load_base, load_tokenizer

TEXTS = ["Where is the boat?", "Who came", "The old man said that", "Two and two"]
REFERENCES = (("the boat",), ("a man", "the king"), ("he was", "it is so", "no"), ("four",))
METRICS = ("f1", "exact_match", "rougeL", "bleu", "regex:the", "function_of_mine:length")
DECODING = (Decoding(), Decoding(temperature=0.8, samples=3), Decoding(beams=2))
TESTING = Testing(metrics=METRICS, decoding=DECODING, generate=GenerateSpec(max_new_tokens=8, batch_size=3))


def demo() -> tuple[PreTrainedModel, Any]:
    return load_base("demo", Path()), load_tokenizer("demo", Path())


def prompts_of(tokenizer: Any) -> Prompts:
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    return Prompts(
        input_ids=np.concatenate(ids).astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum([len(own) for own in ids])]).astype(np.int64),
        ids=("q1", "q2", "ü3", "q4"),
        references=REFERENCES,
        items=np.array([0, 0, 1, 2], dtype=np.int32),
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    (folder / "function_of_mine.py").write_text("def length(text, references):\n    return len(text)\n")
    return folder


@cache
def written(root: Path) -> tuple[Written, ...]:
    model, tokenizer = demo()
    return write_and_score(
        model,
        prompts_of(tokenizer),
        TESTING,
        tokenizer,
        seed=3,
        context_length=512,
        autocast=nullcontext,
        root=root,
    )


def test_the_record_and_the_rows_agree(root: Path) -> None:
    found = written(root)
    assert [own.generated.decoding for own in found] == list(DECODING)
    for own, decoding in zip(found, DECODING, strict=True):
        generated = own.generated
        assert (generated.num_items, generated.num_samples) == (4, decoding.samples)
        assert [row["id"] for row in own.rows] == ["q1", "q2", "ü3", "q4"]
        assert [row["item"] for row in own.rows] == [0, 0, 1, 2]
        assert [tuple(row["references"]) for row in own.rows] == list(REFERENCES)
        assert {row["decoding"] for row in own.rows} == {decoding.name}
        assert generated.truncated_pct == 100 - 100 * np.mean([row["ended"] for row in own.rows])
        for name in set(METRICS) - {"bleu"}:
            scores = [row["scores"][name] for row in own.rows]
            assert generated.metrics[name] == pytest.approx(np.mean(scores))
            assert generated.best_of_n[name] == pytest.approx(np.mean(np.max(scores, axis=1)))
        lengths = [[len(text) for text in row["texts"]] for row in own.rows]
        assert lengths == [row["scores"]["function_of_mine:length"] for row in own.rows]
        assert generated.generate_s > 0
        assert 0 < generated.mean_new_tokens <= 8
    assert found[1].generated.best_of_n["f1"] >= found[1].generated.metrics["f1"]
    assert found[0].generated.best_of_n == found[0].generated.metrics


def test_texts_are_those_of_the_model(root: Path) -> None:
    model, tokenizer = demo()
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    continuations = generate(model, ids, DECODING[1], TESTING.generate, pad_id=0, eos_id=0, seed=3, context_length=512)
    wanted = [[tokenizer.decode(one.ids).strip() for one in samples] for samples in continuations]
    assert [row["texts"] for row in written(root)[1].rows] == wanted


def test_what_is_saved_is_scored_to_the_same_numbers(root: Path) -> None:
    path = root / "generations.jsonl"
    path.write_bytes(generations_jsonl(written(root)))
    found = score_files(path, metrics=METRICS, root=root)
    assert [own.decoding for own in found.scores] == [decoding.name for decoding in DECODING]
    for own, saved in zip(found.scores, written(root), strict=True):
        generated = saved.generated
        assert own.metrics == generated.metrics
        assert own.best_of_n == generated.best_of_n
        assert (own.distinct_1, own.distinct_2) == (generated.distinct_1, generated.distinct_2)
        assert (own.num_items, own.num_samples) == (generated.num_items, generated.num_samples)


def test_predictions_as_squads_script_reads_them(root: Path) -> None:
    (root / "predictions.json").write_bytes(predictions_json(written(root)[0]))
    saved = json.loads((root / "predictions.json").read_text("utf-8"))
    assert saved == {row["id"]: row["texts"][0] for row in written(root)[0].rows}
    (root / "references.json").write_text(json.dumps(dict(zip(saved, REFERENCES, strict=True))))
    found = score_files(root / "predictions.json", root / "references.json", ["f1", "exact_match"])
    assert found.scores[0].metrics == {name: written(root)[0].generated.metrics[name] for name in ("f1", "exact_match")}


def test_a_limit_takes_the_first_prompts(root: Path) -> None:
    model, tokenizer = demo()
    testing = Testing(
        metrics=("f1",), decoding=(Decoding(),), generate=GenerateSpec(max_new_tokens=8, batch_size=3, limit=2)
    )
    options: dict[str, Any] = {"seed": 0, "context_length": 512, "autocast": nullcontext, "root": root}
    (found,) = write_and_score(model, prompts_of(tokenizer), testing, tokenizer, **options)
    assert found.generated.num_items == 2
    assert [row["texts"] for row in found.rows] == [row["texts"] for row in written(root)[0].rows[:2]]


def test_a_function_that_fails_says_so(tmp_path: Path) -> None:
    model, tokenizer = make_model("gpt2"), load_tokenizer("demo", Path())
    prompts = Prompts(np.array([5], np.int32), np.array([0, 1]), ("q",), (("x",),), np.array([0], np.int32))
    (tmp_path / "bad_function.py").write_text("def f(text, references):\n    return 1 / 0\n")
    testing = Testing(metrics=("bad_function:f",), decoding=(Decoding(),))
    with pytest.raises(StudyError, match=r"'bad_function:f' failed on the text .*: ZeroDivisionError: division"):
        write_and_score(
            model, prompts, testing, tokenizer, seed=0, context_length=64, autocast=nullcontext, root=tmp_path
        )


def test_special_tokens_and_outer_white_space_are_no_text() -> None:
    tokenizer = load_tokenizer("demo", Path())
    ids = tokenizer("  yes , it is \n")["input_ids"]
    assert text_of(Continuation((tokenizer.eos_token_id, *ids), ended=False), tokenizer) == "yes , it is"
