"""The one reading of the test split: the loss, the classes, the texts, and what is kept of each item.

predictions.jsonl     one line for each sequence: its loss, and of classification its class and the predicted one
predictions.json, labels.json     of classification: the two lists, for other tools
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tuneoff.data.metrics import class_metrics
from tuneoff.evaluation.likelihood import Scores
from tuneoff.files import file_sha256, write_synced
from tuneoff.running.session import Session, score
from tuneoff.running.store import LABELS_FILE, PREDICTED_FILE, PREDICTIONS_FILE
from tuneoff.study.records import TestRecord
from tuneoff.study.testing import Testing

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
    run, store = session.runs[index], session.place.store
    start = time.perf_counter()
    with session.adapted.member(index):
        scores = score(session, "test")
    taken = time.perf_counter() - start
    folder = store.run_folder(run.run_id)
    written = [_write_lines(folder / PREDICTIONS_FILE, _lines(session, scores))]
    metrics: Mapping[str, float] = {}
    if scores.predictions is not None:
        labels, predicted = session.data.test.labels.tolist(), scores.predictions.tolist()
        metrics = class_metrics(predicted, labels, testing.metrics, len(session.data.classes))
        for name, values in ((PREDICTED_FILE, predicted), (LABELS_FILE, labels)):
            write_synced(folder / name, json.dumps(values).encode())
            written.append(folder / name)
    store.write_test(
        TestRecord(
            run_id=run.run_id,
            test=scores.likelihood,
            testing=testing,
            metrics=metrics,
            score_s=taken,
            files={path.name: file_sha256(path) for path in written},
        )
    )


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


def _write_lines(path: Path, lines: Iterator[dict[str, Any]]) -> Path:
    write_synced(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    return path
