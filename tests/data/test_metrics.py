"""Metrics against independent implementations: torchmetrics, the official rules, rouge_score, sacrebleu, SciPy."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sacrebleu
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.data import official_squad
from tests.data.adversarial import ODD, Sets, adversarial, generated
from torchmetrics.functional.text import rouge_score, sacre_bleu_score, squad

from tuneoff.data.metrics import check_metrics, distinct, score_classes, score_texts
from tuneoff.data.squad_metric import exact_match, normalise, token_f1
from tuneoff.errors import StudyError

SQUAD = ("exact_match", "f1")
REFERENCES = [["the cat sat on the mat", "a cat sat"], ["it rains in Spain today"], ["no", "none", "nothing at all"]]
TEXTS = ["the cat sat on a mat", "in Spain it rains", "nothing"]


@pytest.fixture
def doubles() -> Iterator[None]:
    """Torchmetrics in float64; its F1 is in float32 otherwise, and Python's is not."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def score(predictions: dict[str, str], references: dict[str, list[str]]) -> dict[str, float]:
    texts = [[predictions[name]] for name in references]
    return dict(score_texts(list(references.values()), texts, SQUAD, Path()).metrics)


def peer(predictions: dict[str, str], references: dict[str, list[str]]) -> dict[str, float]:
    wanted = [{"id": n, "answers": {"text": t, "answer_start": [0] * len(t)}} for n, t in references.items()]
    found = squad([{"id": n, "prediction_text": t} for n, t in predictions.items()], wanted)
    return {name: float(value) for name, value in found.items()}


@pytest.mark.reference
@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("sets", [generated(1000, 0), adversarial(1000, 1)], ids=["generated", "adversarial"])
def test_squad_metrics_equal_torchmetrics_and_the_official_rules(sets: Sets) -> None:
    predictions, references = sets
    found = score(predictions, references)
    assert found == official_squad.evaluate(predictions, references, version=2)
    assert found == peer(predictions, references)
    assert 5 < found["exact_match"] < found["f1"] < 95  # a set that tells right from wrong
    for name, truths in references.items():  # equal in the sum by two wrongs that cancel would not do
        one = {name: predictions[name]}
        assert score(one, {name: truths}) == official_squad.evaluate(one, {name: truths}, version=2)


def test_version_1_differs_only_where_nothing_is_left() -> None:
    predictions, references = adversarial(1000, 1)
    num_other = 0
    for name, truths in references.items():
        text = predictions[name]
        old = max(official_squad.f1_score_v1(text, truth) for truth in truths)
        if token_f1(text, truths) != old:
            num_other += 1
            assert not normalise(text)
            assert any(not normalise(truth) for truth in truths)
            assert exact_match(text, truths) == token_f1(text, truths) == 1
    assert num_other > 10


@given(st.text() | st.sampled_from(ODD))
def test_normalise_equals_the_official_one(text: str) -> None:
    assert normalise(text) == official_squad.normalize_answer(text)


@pytest.mark.parametrize("name", ["rouge1", "rouge2", "rougeL"])
def test_rouge_equals_torchmetrics(name: str) -> None:
    found = score_texts(REFERENCES, [[text] for text in TEXTS], [name], Path()).metrics[name]
    wanted = rouge_score(TEXTS, REFERENCES, accumulate="best", rouge_keys=name)[f"{name}_fmeasure"]
    # theirs is in float32
    assert found == pytest.approx(100 * float(wanted), rel=1e-6)


def test_bleu_is_the_corpus_score_of_sacrebleu() -> None:
    found = score_texts(REFERENCES, [[text] for text in TEXTS], ["bleu"], Path())
    streams = [[own[index] if index < len(own) else "" for own in REFERENCES] for index in range(3)]
    assert found.metrics["bleu"] == pytest.approx(sacrebleu.corpus_bleu(TEXTS, streams).score, rel=1e-12)
    assert found.best_of_n == found.metrics
    assert found.per_text["bleu"][0][0] == pytest.approx(sacrebleu.sentence_bleu(TEXTS[0], REFERENCES[0]).score)


def test_bleu_equals_torchmetrics() -> None:
    texts = ["the cat sat on a mat today", "it rains in Spain all of the day"]
    references = [["the cat sat on a mat", "a cat sat on a mat"], ["it rains in Spain today", "it rains in Spain"]]
    found = score_texts(references, [[text] for text in texts], ["bleu"], Path()).metrics["bleu"]
    assert found == pytest.approx(100 * float(sacre_bleu_score(texts, references)), rel=1e-5)


def test_bleu_of_nothing() -> None:
    found = score_texts([[""], ["", "cat"]], [["cat"], [""]], ["bleu"], Path())
    assert found.metrics["bleu"] == 0


def test_means_and_the_best_of_several_samples() -> None:
    texts = [["the cat sat", "a dog"], ["it rains", "it rains in Spain today"], ["yes", "perhaps"]]
    found = score_texts(REFERENCES, texts, ["exact_match", "bleu"], Path())
    assert found.per_text["exact_match"] == ((100, 0), (0, 100), (0, 0))
    assert found.metrics["exact_match"] == pytest.approx(100 / 3)
    assert found.best_of_n["exact_match"] == pytest.approx(200 / 3)
    corpora = [score_texts(REFERENCES, [[own[k]] for own in texts], ["bleu"], Path()).metrics["bleu"] for k in (0, 1)]
    best = score_texts(REFERENCES, [["the cat sat"], ["it rains in Spain today"], ["yes"]], ["bleu"], Path())
    assert found.metrics["bleu"] == pytest.approx(sum(corpora) / 2)
    assert found.best_of_n["bleu"] == pytest.approx(best.metrics["bleu"])


def test_distinct_counts_over_the_samples_of_an_item() -> None:
    assert distinct(["a b a", "a b"], 1) == 2 / 5
    assert distinct(["a b a", "a b"], 2) == 2 / 3
    assert distinct(["a", "b"], 2) == 0
    assert distinct([""], 1) == 0
    found = score_texts([["x"], ["x"]], [["a a", "a a"], ["a b", "c d"]], [], Path())
    assert (found.distinct_1, found.distinct_2) == ((1 / 4 + 1) / 2, (1 / 2 + 1) / 2)


def test_a_pattern_and_a_function_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "own_metric_a.py").write_text(
        "def length(text, references):\n    assert type(references) is list\n    return len(text) - len(references[0])"
    )
    names = [r"regex:^\d+$", "own_metric_a:length"]
    before = list(sys.path)
    check_metrics(names, tmp_path)
    found = score_texts([["ab"], ["a"]], [["12"], ["1b34"]], names, tmp_path)
    assert found.metrics == {r"regex:^\d+$": 50.0, "own_metric_a:length": 1.5}
    assert sys.path == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("regex:(", r"'regex:\(' is not a regular expression of Python: .*unterminated subpattern"),
        ("no_such_module:f", r"'no_such_module' cannot be imported \(ModuleNotFoundError: .*put it into"),
        ("json:dump_s", r"the module 'json' has no 'dump_s'\. Did you mean dumps"),
        ("own_metric_b:X", r"expected a function f\(text, references\), found 3"),
        ("own_metric_c:f", r"cannot be imported \(ZeroDivisionError: division by zero\)"),
        ("rouge3", r"no metric is called 'rouge3'; allowed: .*Did you mean rouge"),
    ],
)
def test_metrics_that_cannot_be_worked_out(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "own_metric_b.py").write_text("X = 3")
    (tmp_path / "own_metric_c.py").write_text("1 / 0")
    with pytest.raises(StudyError, match=message):
        check_metrics(["accuracy", "f1", name], tmp_path)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('x')", r"'own_\w+:f' failed on the text 'hello': KeyError: 'x'"),
        ("return 'high'", r"gave 'high' for the text 'hello'; it must give a finite number"),
        ("return float('nan')", r"gave nan"),
        ("return None", r"gave null"),
    ],
)
def test_a_function_that_fails(body: str, message: str, tmp_path: Path) -> None:
    module = f"own_{tmp_path.name}"  # another one each time: Python imports a name once
    (tmp_path / f"{module}.py").write_text(f"def f(text, references):\n    {body}")
    with pytest.raises(StudyError, match=message):
        score_texts([["x"]], [["hello"]], [f"{module}:f"], tmp_path)


def test_classes() -> None:
    labels, predictions = [0, 0, 1, 1, 1], [0, 1, 1, 1, 0]
    found = score_classes(labels, predictions, 2, ["accuracy", "f1", "macro_f1"])
    # by hand: class 1 has 2 of 3 predicted rightly and 2 of 3 found; class 0 has 1 of 2 and 1 of 2
    assert found == pytest.approx({"accuracy": 60, "f1": 100 * 2 / 3, "macro_f1": 100 * (2 / 3 + 1 / 2) / 2})


def test_f1_of_more_than_two_classes_is_the_mean_over_them() -> None:
    found = score_classes([0, 1, 2, 2], [0, 2, 2, 2], 3, ["f1", "macro_f1"])
    assert found["f1"] == found["macro_f1"] == pytest.approx(100 * (1 + 0 + 4 / 5) / 3)


def test_f1_where_one_class_alone_is_seen() -> None:
    assert score_classes([0, 0], [0, 0], 2, ["accuracy", "f1"]) == {"accuracy": 100, "f1": 0}
    assert score_classes([1, 1], [1, 1], 2, ["f1"]) == {"f1": 100}
    with pytest.raises(StudyError, match="metrics of classification are"):
        score_classes([1], [1], 2, ["rouge1"])


def test_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from tuneoff.data.metrics import *; import tuneoff.evaluation.scoring; "
        "score_texts([['a']], [['a']], ['f1', 'rouge1', 'bleu'], Path()); score_classes([0, 1], [1, 1], 2, ['f1']); "
        "print(*{'torch', 'transformers', 'torchmetrics'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == []
