"""Files of predictions and references that cannot be scored."""

import json
import os
import pickle
from collections.abc import Callable, Sequence

from tests.bad_input.case import Case, Place, lines

P = "p.json"
SQUAD = {
    "data": [{"paragraphs": [{"context": "c", "qas": [{"id": "1", "question": "?", "answers": [{"text": "a"}]}]}]}]
}


def score(
    name: str, content: bytes | str, *more: str, references: object = ..., refs: str = "r.json"
) -> Callable[[Place], Sequence[str]]:
    def build(place: Place) -> Sequence[str]:
        place.file(name, content)
        if references is ...:
            return ("score", "--predictions", name, *more)
        place.file(refs, json.dumps(references) if not isinstance(references, bytes | str) else references)
        return ("score", "--predictions", name, "--references", refs, *more)

    return build


def a_folder(place: Place) -> Sequence[str]:
    (place.folder / P).mkdir()
    return ("score", "--predictions", P)


def a_pipe(place: Place) -> Sequence[str]:
    os.mkfifo(place.folder / P)
    return ("score", "--predictions", P)


PREDICTIONS = (
    Case(
        "predictions that are not there",
        lambda place: ("score", "--predictions", "nowhere.json"),
        r"nowhere\.json: cannot be read: No such file",
    ),
    Case("a folder for predictions", a_folder, r"p\.json: cannot be read: Is a directory"),
    Case("a named pipe for predictions", a_pipe, r"p\.json: "),
    Case("empty predictions", score(P, "", references=["a"]), r"p\.json, line 1, column 1: expected one JSON value"),
    Case(
        "predictions that are cut",
        score(P, '{"1": "a", "2', references=["a"]),
        r"p\.json, line 1, column \d+: expected one JSON value",
    ),
    Case(
        "an id twice among predictions",
        score(P, '{"1": "a", "1": "b"}', references=SQUAD),
        r"p\.json: the key '1' stands twice",
    ),
    Case(
        "predictions that are numbers with a point",
        score(P, "[0.5, 1.5]", references=[0, 1]),
        r"p\.json, line 1: expected a text, a class",
    ),
    Case("predictions that are null", score(P, "[null]", references=["a"]), r"p\.json, line 1: .*null"),
    Case("predictions that are NaN", score(P, "[NaN]", references=[0]), r"p\.json, line 1: .*nan"),
    Case(
        "a text for all predictions",
        score(P, '"a"', references=["a"]),
        r"p\.json: expected a JSON object or list, found 'a'",
    ),
    Case("deep predictions", score(P, "[" * 100_000, references=["a"]), r"p\.json: expected one JSON value"),
    Case(
        "predictions in UTF-16",
        score(P, json.dumps(["a"]).encode("utf-16"), references=["a"]),
        r"p\.json, line 1, column 1: expected UTF-8",
    ),
    Case(
        "pickled predictions",
        score("p.pkl", pickle.dumps(["a"]), references=["a"]),
        r"p\.pkl, line 1, column 1: expected UTF-8",
    ),
    Case("predictions without references", score(P, '["a"]'), r"references"),
    Case("more predictions than references", score(P, '["a", "b"]', references=["a"]), r"2.*1"),
    Case("predictions of other ids", score(P, '{"7": "a"}', references=SQUAD), r"'?1'?"),
    Case("texts against classes", score(P, '["a"]', references=[0]), r"class"),
    Case(
        "references for predictions",
        score(P, json.dumps(SQUAD), references=SQUAD),
        r"p\.json: is a SQuAD data set, which holds references",
    ),
    Case(
        "SQuAD without its answers",
        score(P, '{"1": "a"}', references={"data": [{"paragraphs": [{"qas": [{"id": "1"}]}]}]}),
        r"r\.json: expected SQuAD's layout .*answers",
    ),
    Case(
        "rows without a column of predictions",
        score("p.jsonl", lines([{"guess": "a"}]), references=["a"]),
        r"p\.jsonl, line 1: expected a column of predictions",
    ),
    Case(
        "a row that lacks the column",
        score("p.jsonl", lines([{"prediction": "a"}, {"other": "b"}]), references=["a", "b"]),
        r"p\.jsonl, line 2: expected the columns of the first row",
    ),
    Case(
        "a metric of saved predictions that is misspelt",
        score(P, '["a"]', "--metric", "rougeQ", references=["a"]),
        r"'rougeQ'",
    ),
    Case(
        "a pattern that is none for a metric",
        score(P, '["a"]', "--metric", "regex:(", references=["a"]),
        r"'regex:\(' is not a regular expression",
    ),
    Case(
        "a function that is not there for a metric",
        score(P, '["a"]', "--metric", "os:nothing", references=["a"]),
        r"os.*nothing",
    ),
    Case(
        "a metric of classes for texts",
        score(P, '["a"]', "--metric", "accuracy", references=["b"]),
        r"none of its classes",
    ),
    Case("an escape code in predictions", score(P, json.dumps({"\x1b[31m7": "a"}), references=SQUAD), r"1"),
    Case(
        "a class of 10^30", score(P, f"[{10**30}]", references=[10**30]), r"r\.json, line 1: expected a text, a class"
    ),
)
