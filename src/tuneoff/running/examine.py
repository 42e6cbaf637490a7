"""The one reading of the test split: the loss, the classes, the texts, and what is kept of each item.

items.json            every metric by item, as numbers whose mean is the metric (see `tuneoff.data.items`)
predictions.jsonl     one line for each sequence: its loss, and of classification its class and the predicted one
predictions.json, labels.json     of classification: the two lists, for other tools
generations.jsonl     of generated text: one line for each prompt and decoding strategy
predictions-NAME.json     of questions: each strategy's first texts, `{id: text}` as SQuAD's script reads them
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from tuneoff.data.items import Values, class_values, mean_values, ratio_values, sums
from tuneoff.data.metrics import score_classes
from tuneoff.data.text_metrics import BLEU
from tuneoff.data.tokens import hash_targets
from tuneoff.evaluation.generated import Written, generations_jsonl, predictions_json, write_and_score
from tuneoff.evaluation.likelihood import Scores
from tuneoff.files import file_sha256, on_disk, write_synced
from tuneoff.running.session import Session, score
from tuneoff.running.store import GENERATIONS_FILE, ITEMS_FILE, LABELS_FILE, PREDICTED_FILE, PREDICTIONS_FILE
from tuneoff.running.tracking import RunTrackers
from tuneoff.study.records import TestRecord
from tuneoff.study.streams import GENERATION, stream_seed
from tuneoff.study.testing import LOSS, Testing

Tell = Callable[[str, dict[str, Any]], None]
"""Passes an event to the parent."""


def read_test_split(session: Session, index: int, testing: Testing, tell: Tell) -> None:
    """Score a run on the test split and write its record.

    Args:
        session: with the run's trained weights in place.
        index: of the run among the session's.
        testing: metrics and decoding.
        tell: is told what is going on.
    """
    tell("phase", {"what": "scoring the test split"})
    session.at("test")
    run, store = session.runs[index], session.place.store
    start = time.perf_counter()
    with session.adapted.member(index):
        scores = score(session, "test")
    taken = time.perf_counter() - start
    folder = store.run_folder(run.run_id)
    files = {PREDICTIONS_FILE: _json_lines(_lines(session, scores))}
    values = _values(session, scores, testing)
    metrics: Mapping[str, float] = {}
    if scores.predictions is not None:
        labels, predicted = session.data.test.labels.tolist(), scores.predictions.tolist()
        metrics = score_classes(labels, predicted, len(session.data.classes), testing.metrics)
        files |= {PREDICTED_FILE: json.dumps(predicted).encode(), LABELS_FILE: json.dumps(labels).encode()}
    rows = min(testing.generate.batch_size, int(session.setup.get("generation_rows") or testing.generate.batch_size))
    written = write_texts(session, index, testing, rows, tell)
    if written:
        metrics = written[0].generated.metrics
        files[GENERATIONS_FILE] = generations_jsonl(written)
        values |= _text_values(session, written)
        if run.task.kind == "qa":
            files |= {f"predictions-{one.generated.decoding.name}.json": predictions_json(one) for one in written}
    files[ITEMS_FILE] = _items_json(session, values)
    for path in (folder / GENERATIONS_FILE, *folder.glob("predictions-*.json")):
        if path.name not in files:  # of an earlier reading, by strategies that are not asked for any more
            with on_disk(path, "removed"):
                path.unlink(missing_ok=True)
    for name, content in files.items():
        write_synced(folder / name, content)
    test = TestRecord(
        run_id=run.run_id,
        test=scores.likelihood,
        testing=testing,
        test_sha256=hash_targets(session.data.test),
        metrics=metrics,
        generated=tuple(one.generated for one in written),
        score_s=taken,
        evaluation_tokens=session.setup.get("evaluation_tokens"),
        generation_rows=rows if written and rows < testing.generate.batch_size else None,
        files={name: file_sha256(folder / name) for name in files},
    )
    store.write_test(test)
    trackers = RunTrackers(session.place.tracking, run, tell, "test")
    trackers.test(test)
    trackers.finish()


def write_texts(session: Session, index: int, testing: Testing, rows: int, tell: Tell) -> tuple[Written, ...]:
    """Write on after the test split's prompts with each decoding strategy; nothing where none is asked for.

    Args:
        session: with the run's trained weights in place.
        index: of the run among the session's.
        testing: metrics and decoding.
        rows: texts in the making at a time, on which no text depends.
        tell: is told what is going on.
    """
    prompts = session.data.prompts
    if prompts is None or not testing.decoding:
        return ()
    session.at("generate")
    less = testing.generate.model_copy(update={"batch_size": rows})
    num_prompts = min(len(prompts), testing.generate.limit or len(prompts))
    names = ", ".join(decoding.name for decoding in testing.decoding)
    tell("phase", {"what": f"writing after {num_prompts:,} prompts ({names})"})
    with session.adapted.member(index) as module:
        return write_and_score(
            module,
            prompts,
            testing.model_copy(update={"generate": less}),
            session.tokenizer,
            seed=stream_seed(session.runs[index].seed or 0, GENERATION),
            context_length=session.context_length,
            autocast=session.runtime.autocast,
            root=session.place.root,
            num_virtual_tokens=session.adapted.num_virtual_tokens,
        )


def _values(session: Session, scores: Scores, testing: Testing) -> dict[str, Values]:
    """Return the loss, and the metrics of classes, by item."""
    split = session.data.test
    num_items, counts = len(split.item_names), split.targets_by_sequence
    found = {LOSS: np.full(num_items, np.nan)}
    tokens = sums(split.items, counts.astype(np.float64), num_items)
    present = tokens > 0
    found[LOSS][present] = ratio_values(sums(split.items, scores.nll_nats, num_items)[present], tokens[present])
    if scores.predictions is not None:
        num_classes = len(session.data.classes)
        names = testing.metrics
        found |= class_values(split.items, split.labels, scores.predictions, num_items, num_classes, names)
    return found


def _text_values(session: Session, written: Sequence[Written]) -> dict[str, Values]:
    """Return the metrics of generated text by item: by name for the strategy that decides, by NAME@STRATEGY for all."""
    num_items, found = len(session.data.test.item_names), {}
    for place, one in enumerate(written):
        items = np.array([row["item"] for row in one.rows])
        for name in one.generated.metrics:
            if name == BLEU:
                continue  # n-grams are counted over the corpus, so no item has a part of it
            scores = np.array([fmean(row["scores"][name]) for row in one.rows])
            values = mean_values(items, scores, num_items)
            found[f"{name}@{one.generated.decoding.name}"] = values
            if place == 0:
                found[name] = values
    return found


def _items_json(session: Session, values: Mapping[str, Values]) -> bytes:
    """Return the values as JSON, null for an item that was not scored."""
    scores = {name: [None if math.isnan(value) else value for value in own.tolist()] for name, own in values.items()}
    return json.dumps({"items": session.data.test.item_names, "scores": scores}, ensure_ascii=False).encode()


def _lines(session: Session, scores: Scores) -> Iterator[dict[str, Any]]:
    """Yield one line for each sequence of the test split."""
    split = session.data.test
    for index in range(len(split)):
        line = {
            "item": split.item_names[split.items[index]],
            "sequence": index,
            "nll_nats": float(scores.nll_nats[index]),
            "num_target_tokens": int(split.sequence(index)[1].sum()),
            "num_target_bytes": int(split.target_bytes[index]),
        }
        if scores.predictions is not None:
            line |= {"label": int(split.labels[index]), "prediction": int(scores.predictions[index])}
        yield line


def _json_lines(lines: Iterator[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
