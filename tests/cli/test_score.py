"""`tuneoff score` on files of all shapes, against torchmetrics and the official rules, and on files that are wrong."""

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.shell import Outcome, tuneoff
from tests.data import official_squad
from tests.data.adversarial import Sets, adversarial, generated
from torchmetrics.functional.text import squad

TEXTS = {"q1": "The cat", "q2": "Paris.", "q3": "no idea"}
TRUTHS = {"q1": ["a cat", "dog"], "q2": ["Paris", "in Paris"], "q3": ["yes"]}
TEXT_SCORES = {"f1": 200 / 3, "exact_match": 200 / 3}


def dump(path: Path, value: Any) -> str:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in value), encoding="utf-8")
    else:
        path.write_text(json.dumps(value), encoding="utf-8")
    return str(path)


def squad_json(truths: dict[str, list[str]]) -> dict[str, Any]:
    answers = {name: [{"text": text, "answer_start": 0} for text in own] for name, own in truths.items()}
    questions = [{"id": name, "question": "?", "answers": own} for name, own in answers.items()]
    half = len(questions) // 2
    paragraphs = [{"context": "c", "qas": own} for own in (questions[:half], questions[half:])]
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [own]} for own in paragraphs]}


def score(predictions: str, references: str | None = None, *metrics: str) -> dict[str, Any]:
    found = run(predictions, references, *metrics, "--json")
    assert (found.code, found.errors) == (0, "")
    scored: dict[str, Any] = json.loads(found.text)
    return scored


def run(predictions: str, references: str | None = None, *others: str) -> Outcome:
    given = ["--references", references] if references is not None else []
    metrics = [part for one in others for part in ([one] if one.startswith("--") else ["--metric", one])]
    return tuneoff("score", "--predictions", predictions, *given, *metrics)


@pytest.fixture
def doubles() -> Iterator[None]:
    """Torchmetrics in float64; its F1 is in float32 otherwise, and Python's is not."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.reference
@pytest.mark.usefixtures("doubles")
@pytest.mark.parametrize("sets", [generated(1000, 2), adversarial(1000, 3)], ids=["generated", "adversarial"])
def test_squad_scores_equal_torchmetrics_and_the_official_rules(sets: Sets, tmp_path: Path) -> None:
    predictions, references = sets
    found = score(dump(tmp_path / "p.json", predictions), dump(tmp_path / "r.json", squad_json(references)))
    assert found["references"].endswith("(SQuAD data set)")
    (own,) = found["scores"]
    assert own["num_items"] == 1000
    assert own["metrics"] == official_squad.evaluate(predictions, references, version=2)
    wanted = [{"id": n, "answers": {"text": t, "answer_start": [0] * len(t)}} for n, t in references.items()]
    peer = squad([{"id": n, "prediction_text": t} for n, t in predictions.items()], wanted)
    assert own["metrics"] == {name: float(value) for name, value in peer.items()}


PREDICTIONS: dict[str, Any] = {
    "map.json": TEXTS,
    "samples.json": {name: [text] for name, text in TEXTS.items()},
    "list.json": list(TEXTS.values()),
    "lists.json": [[text] for text in TEXTS.values()],
    "squad.json": [{"id": name, "prediction_text": text} for name, text in TEXTS.items()],
    "rows.jsonl": [{"id": name, "prediction": text} for name, text in reversed(TEXTS.items())],
    "many.jsonl": [{"question_id": name, "predictions": [text]} for name, text in TEXTS.items()],
}
REFERENCES: dict[str, Any] = {
    "map.json": TRUTHS,
    "squad.json": squad_json(TRUTHS),
    "list.json": list(TRUTHS.values()),
    "hub.jsonl": [{"id": name, "answers": {"text": own, "answer_start": [0]}} for name, own in TRUTHS.items()],
    "rows.jsonl": [{"id": name, "references": own} for name, own in TRUTHS.items()],
}


PAIRS = list(itertools.product(PREDICTIONS, REFERENCES))
PAIRS.remove(("rows.jsonl", "list.json"))  # another order, and no ids to mend it


@pytest.mark.parametrize(("predictions", "references"), PAIRS)
def test_texts_in_every_shape(predictions: str, references: str, tmp_path: Path) -> None:
    found = score(
        dump(tmp_path / f"p-{predictions}", PREDICTIONS[predictions]),
        dump(tmp_path / f"r-{references}", REFERENCES[references]),
    )
    assert found["kind"] == "text"
    has_ids = "list" not in predictions and "list" not in references
    assert found["matched_by"] == ("id" if has_ids else "order")
    assert found["scores"][0]["metrics"] == pytest.approx(TEXT_SCORES)


def test_text_files_have_one_text_a_line(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("The cat\r\n\r\nto\u2028be\n".encode())
    (tmp_path / "r.txt").write_bytes(b"cat\n\nto be")
    found = score(str(tmp_path / "p.txt"), str(tmp_path / "r.txt"), "exact_match")
    assert found["scores"][0]["num_items"] == 3
    assert found["scores"][0]["metrics"] == {"exact_match": 100}


LABELS = [0, 1, 1, 0, 1]
GUESSES = [0, 1, 0, 0, 1]
NAMES = ["negative", "positive"]


@pytest.mark.parametrize("as_names", [False, True])
def test_classes(as_names: bool, tmp_path: Path) -> None:
    labels: list[Any] = [NAMES[own] for own in LABELS] if as_names else LABELS
    guesses: list[Any] = [NAMES[own] for own in GUESSES] if as_names else GUESSES
    found = score(
        dump(tmp_path / "predictions.json", guesses),
        dump(tmp_path / "labels.json", labels),
        "accuracy",
        "f1",
        "macro_f1",
    )
    # class 1: precision 1, recall 2/3; class 0: precision 2/3, recall 1
    assert found["scores"][0]["metrics"] == pytest.approx({"accuracy": 80, "f1": 80, "macro_f1": 80})
    assert found["kind"] == "classification"
    assert found["notes"] == [f"f1 is that of class {'positive' if as_names else 1}"]


def test_classes_against_a_table_of_labels(tmp_path: Path) -> None:
    rows = [["sentence", "label"], *([f"it 's \"{index}", label] for index, label in enumerate(LABELS))]
    (tmp_path / "dev.tsv").write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")
    found = score(dump(tmp_path / "p.json", GUESSES), str(tmp_path / "dev.tsv"))
    assert found["scores"][0]["metrics"] == pytest.approx({"accuracy": 80, "f1": 80})
    both = [["idx", "prediction", "label"], *zip(range(5), GUESSES, LABELS, strict=True)]
    with (tmp_path / "both.csv").open("w", newline="") as file:
        csv.writer(file).writerows(both)
    found = score(str(tmp_path / "both.csv"), None, "accuracy")
    assert found["scores"][0]["metrics"] == pytest.approx({"accuracy": 80})


def test_f1_is_that_of_class_1_where_it_never_comes_up(tmp_path: Path) -> None:
    """As a run's own record has it: numbers begin with 0 and 1, so one number alone is one of two classes."""
    for number, f1 in ((0, 0.0), (1, 100.0)):
        found = score(dump(tmp_path / "p.json", [number, number]), dump(tmp_path / "l.json", [number, number]))
        assert found["notes"] == ["f1 is that of class 1"]
        assert found["scores"][0]["metrics"] == {"accuracy": 100.0, "f1": f1}


@pytest.mark.parametrize("separator", [",", "\t"])
def test_numbers_in_a_label_column_of_a_table_are_classes(separator: str, tmp_path: Path) -> None:
    """A table has no types, and SQuAD's F1 of the texts 0 and 1 would be the accuracy."""
    suffix = {",": "csv", "\t": "tsv"}[separator]
    tables = {"predictions": ("prediction", "0110"), "references": ("label", "0100")}
    for name, (column, classes) in tables.items():
        lines = [separator.join(("id", column)), *(f"{number}{separator}{own}" for number, own in enumerate(classes))]
        (tmp_path / f"{name}.{suffix}").write_text("\n".join(lines) + "\n")
    found = score(*(str(tmp_path / f"{name}.{suffix}") for name in tables))
    assert found["kind"] == "classification"
    assert found["scores"][0]["metrics"] == pytest.approx({"accuracy": 75.0, "f1": 200 / 3})


def test_a_number_among_texts_is_a_text(tmp_path: Path) -> None:
    truths = {"q1": [1984], "q2": ["the sea", 3]}
    found = score(dump(tmp_path / "p.json", {"q1": "1984", "q2": "sea"}), dump(tmp_path / "r.json", truths))
    assert found["kind"] == "text"
    assert found["scores"][0]["metrics"] == {"f1": 100.0, "exact_match": 100.0}


def test_f1_of_three_classes(tmp_path: Path) -> None:
    found = score(dump(tmp_path / "p.json", [0, 2, 2, 2]), dump(tmp_path / "r.json", [0, 1, 2, 2]))
    assert found["scores"][0]["metrics"] == pytest.approx({"accuracy": 75, "f1": 60})
    assert found["notes"] == ["f1 is the mean over 3 classes"]


def generations(tmp_path: Path) -> str:
    rows = [
        {"decoding": decoding, "id": name, "item": 0, "references": TRUTHS[name], "texts": texts}
        for decoding, samples in (("greedy", 1), ("t-0.7", 2))
        for name, texts in {name: ["a cat", "Paris"][:samples] for name in TEXTS}.items()
    ]
    return dump(tmp_path / "generations.jsonl", rows)


def test_generations_bring_their_references(tmp_path: Path) -> None:
    path = generations(tmp_path)
    found = score(path, None, "exact_match")
    assert [own["decoding"] for own in found["scores"]] == ["greedy", "t-0.7"]
    assert found["scores"][0]["metrics"]["exact_match"] == pytest.approx(100 / 3)
    assert found["scores"][1]["best_of_n"]["exact_match"] == pytest.approx(200 / 3)
    assert score(path, path, "exact_match") == found
    assert score(path, dump(tmp_path / "r.json", TRUTHS), "exact_match")["scores"] == found["scores"]


def test_the_table(tmp_path: Path) -> None:
    found = run(generations(tmp_path), None, "exact_match", "rougeL")
    assert (found.code, found.errors) == (0, "")
    for part in (
        f"predictions: 3 in {tmp_path}/generations.jsonl (JSON lines, column texts, by id)",
        "scored as texts, matched by id",
        "greedy",
        "t-0.7",
        "exact_match, best of 2",
        "distinct-1",
        "66.67",
    ):
        assert part in found.text


def test_a_function_beside_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "words_of_mine.py").write_text("def count(text, references):\n    return len(text.split())\n")
    monkeypatch.chdir(tmp_path)
    paths = dump(tmp_path / "p.json", TEXTS), dump(tmp_path / "r.json", TRUTHS)
    assert score(*paths, "words_of_mine:count", "regex:^P")["scores"][0]["metrics"] == pytest.approx(
        {"words_of_mine:count": 5 / 3, "regex:^P": 100 / 3}
    )


class TestMistakes:
    def test_ids_that_do_not_meet(self, tmp_path: Path) -> None:
        truths = {f"q{index}": ["x"] for index in range(2, 9)}
        found = run(dump(tmp_path / "p.json", TEXTS), dump(tmp_path / "r.json", squad_json(truths)))
        found.is_one_error(
            r"5 of 7 references have no prediction: 'q4', 'q5', 'q6', \.\.\.; "
            r"1 of 3 predictions have no reference: 'q1'\. Each id must stand in both files"
        )

    def test_another_count(self, tmp_path: Path) -> None:
        found = run(dump(tmp_path / "p.json", ["a", "b"]), dump(tmp_path / "r.json", ["a", "b", "c"]))
        found.is_one_error("holds 2 predictions; .*holds 3 references.*so there must be as many")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("p.json", '{"q1": "a", "q1": "b"}', "the key 'q1' stands twice"),
            ("p.json", '{"q1": "a"} {"q2": "b"}', "expected one JSON value: Extra data. For one JSON object a line"),
            ("p.json", "[1.5]", r"expected a text, a class \(a whole number\) or a list .*found 1.5 \(float\)"),
            ("p.json", '[null, "a"]', "line 1: expected a text, .*found null"),
            ("p.json", "[]", "is empty"),
            ("p.json", "3", "expected a JSON object or list, found 3"),
            ("p.json", '{"q1": []}', "found an empty list"),
            ("p.json", json.dumps(squad_json(TRUTHS)), "is a SQuAD data set, which holds references"),
            (
                "p.jsonl",
                '{"id": 1, "prediktion": "a"}',
                r"a column of predictions \(prediction,.*found id, pred",
            ),
            (
                "p.jsonl",
                '{"id": 1, "prediction": "a"}\n{"id": 1, "prediction": "a"}',
                "each id once; found twice: '1'",
            ),
            ("p.jsonl", '{"id": 1, "prediction": "a"}\n{"id": 2}', "line 2: expected the columns of the first row"),
            ("p.json", '[["a", "b"], ["c"]]', "item 2 has 1 predictions and the first has 2"),
            ("p.txt", "", "is empty"),
        ],
    )
    def test_predictions_that_are_none(self, name: str, content: str, message: str, tmp_path: Path) -> None:
        (tmp_path / name).write_text(content)
        run(str(tmp_path / name), dump(tmp_path / "r.json", ["a", "b"])).is_one_error(message)

    def test_no_file(self, tmp_path: Path) -> None:
        run(str(tmp_path / "none.json"), dump(tmp_path / "r.json", ["a"])).is_one_error("cannot be read: No such file")
        run(str(tmp_path / "none.txt"), dump(tmp_path / "r.json", ["a"])).is_one_error("cannot be read: No such file")

    def test_no_references(self, tmp_path: Path) -> None:
        run(dump(tmp_path / "p.json", TEXTS)).is_one_error("holds no references; give their file as --references")

    def test_broken_squad(self, tmp_path: Path) -> None:
        broken = squad_json(TRUTHS)
        del broken["data"][1]["paragraphs"][0]["qas"][0]["answers"]
        found = run(dump(tmp_path / "p.json", TEXTS), dump(tmp_path / "r.json", broken))
        found.is_one_error("expected SQuAD's layout .*found no 'answers'")

    def test_metrics_of_another_kind(self, tmp_path: Path) -> None:
        classes = dump(tmp_path / "p.json", GUESSES), dump(tmp_path / "r.json", LABELS)
        run(*classes, "rougeL").is_one_error("'rougeL' is of texts; these are classes. Allowed: accuracy, f1, macro_f1")
        run(*classes, "rouge9").is_one_error("no metric is called 'rouge9'")

    def test_names_against_numbers(self, tmp_path: Path) -> None:
        names = dump(tmp_path / "p.json", [NAMES[own] for own in GUESSES])
        found = run(names, dump(tmp_path / "r.json", LABELS))
        found.is_one_error("none of its classes is among the references': 'negative', 'positive'")
        run(names, dump(tmp_path / "s.json", [["negative", "positive"]] * 5), "accuracy").is_one_error(
            "the references: item 1 has 2 values; a class is one"
        )
