"""The one reading of the test split: the loss, the classes, the texts, and what is kept of each item.

predictions.jsonl     one line for each sequence: its loss, and of classification its class and the predicted one
predictions.json, labels.json     of classification: the two lists, for other tools
generations.jsonl     of generated text: one line for each prompt and decoding strategy
predictions-NAME.json     of questions: each strategy's first texts, `{id: text}` as SQuAD's script reads them
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tuneoff.data.metrics import score_classes
from tuneoff.evaluation.generated import Written, generations_jsonl, predictions_json, write_and_score
from tuneoff.evaluation.likelihood import Scores
from tuneoff.files import file_sha256, write_synced
from tuneoff.running.session import Session, score
from tuneoff.running.store import GENERATIONS_FILE, LABELS_FILE, PREDICTED_FILE, PREDICTIONS_FILE
from tuneoff.study.records import TestRecord
from tuneoff.study.streams import GENERATION, stream_seed
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
    files = {PREDICTIONS_FILE: _json_lines(_lines(session, scores))}
    metrics: Mapping[str, float] = {}
    if scores.predictions is not None:
        labels, predicted = session.data.test.labels.tolist(), scores.predictions.tolist()
        metrics = score_classes(labels, predicted, len(session.data.classes), testing.metrics)
        files |= {PREDICTED_FILE: json.dumps(predicted).encode(), LABELS_FILE: json.dumps(labels).encode()}
    written = _write_texts(session, index, testing, tell)
    if written:
        metrics = written[0].generated.metrics
        files[GENERATIONS_FILE] = generations_jsonl(written)
        if run.task.kind == "qa":
            files |= {f"predictions-{one.generated.decoding.name}.json": predictions_json(one) for one in written}
    for path in (folder / GENERATIONS_FILE, *folder.glob("predictions-*.json")):
        if path.name not in files:  # of an earlier reading, by strategies that are not asked for any more
            path.unlink(missing_ok=True)
    for name, content in files.items():
        write_synced(folder / name, content)
    store.write_test(
        TestRecord(
            run_id=run.run_id,
            test=scores.likelihood,
            testing=testing,
            metrics=metrics,
            generated=tuple(one.generated for one in written),
            score_s=taken,
            files={name: file_sha256(folder / name) for name in files},
        )
    )


def _write_texts(session: Session, index: int, testing: Testing, tell: Tell) -> tuple[Written, ...]:
    """Write on after the test split's prompts with each decoding strategy; nothing where none is asked for."""
    prompts = session.data.prompts
    if prompts is None or not testing.decoding:
        return ()
    num_prompts = min(len(prompts), testing.generate.limit or len(prompts))
    names = ", ".join(decoding.name for decoding in testing.decoding)
    tell("phase", {"what": f"writing after {num_prompts:,} prompts ({names})"})
    with session.adapted.member(index) as module:
        return write_and_score(
            module,
            prompts,
            testing,
            session.tokenizer,
            seed=stream_seed(session.runs[index].seed or 0, GENERATION),
            context_length=session.context_length,
            autocast=session.runtime.autocast,
            root=session.place.root,
            num_virtual_tokens=session.adapted.num_virtual_tokens,
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


def _json_lines(lines: Iterator[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
