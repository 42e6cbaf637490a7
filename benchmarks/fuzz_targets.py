"""What `benchmarks.fuzz` feeds: each reader of the package with files that it takes, and how these are changed."""

import json
import os
import random
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.fuzz_mutate import (
    Mutate,
    bytes_changed,
    json_changed,
    json_lines_changed,
    signed_changed,
    tensors_changed,
    written,
)

Drive = Callable[[bytes], object]
CACHE_ENTRIES = 200
"""Tokenised entries that are kept before the cache is emptied."""


@dataclass
class Target:
    """One reader.

    Attributes:
        name: of it.
        seeds: files that it takes, by a name that says what they are.
        drive: reads a changed file, and works with what came of it as the package does.
        mutate: changes it.
    """

    name: str
    seeds: Mapping[str, bytes]
    drive: Drive
    mutate: Mutate = bytes_changed
    corpus: list[bytes] = field(default_factory=list)


CHAT = {"messages": [{"role": "user", "content": "Hi, 1"}, {"role": "assistant", "content": "Hello"}]}
PAIR = {"prompt": "Say 1:", "completion": " 1"}
DOLLY = {"instruction": "Say 2", "context": "of it", "response": "2 it is", "category": "open_qa"}
QA = {"id": "1", "context": "Ann has 1 cats.", "question": "How many?", "answers": {"text": ["1"], "answer_start": [8]}}
MESSAGE = {"message_id": "a", "parent_id": None, "role": "prompter", "text": "Hi", "message_tree_id": "a", "lang": "en"}
TREE = [
    MESSAGE,
    MESSAGE | {"message_id": "b", "parent_id": "a", "role": "assistant", "text": "Hello"},
    MESSAGE | {"message_id": "c", "parent_id": "b", "text": "More"},
    MESSAGE | {"message_id": "d", "parent_id": "c", "role": "assistant", "text": "No"},
]
SQUAD_QA = {"id": "q", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]}
ARTICLE = {"title": "T", "paragraphs": [{"context": "Ann sat.", "qas": [SQUAD_QA]}]}


def lines(*values: Any, copies: int = 12) -> bytes:
    """Return values as JSON lines, several times over with other texts."""
    made = [json.loads(json.dumps(value).replace("1", f"1{number}")) for number in range(copies) for value in values]
    return b"".join(written(one) + b"\n" for one in made)


def trees() -> bytes:
    """Return OASST trees."""
    text = json.dumps(TREE)
    made = [json.loads(re.sub('"([abcd])"', rf'"\g<1>{number}"', text)) for number in range(10)]
    return b"".join(written(row) + b"\n" for tree in made for row in tree)


def squad() -> bytes:
    """Return a SQuAD data set."""
    articles = [json.loads(json.dumps(ARTICLE).replace('"T"', f'"T{n}"').replace('"q"', f'"q{n}"')) for n in range(12)]
    return written({"version": "1.1", "data": articles})


TABLE = "text,label\n" + "".join(f'"text {n}, of it",{("pos", "neg")[n % 2]}\n' for n in range(16))
DATA_SEEDS: dict[str, tuple[str, str, bytes]] = {
    "chat": ("instruction", ".jsonl", lines(CHAT)),
    "pairs": ("instruction", ".jsonl", lines(PAIR)),
    "dolly": ("instruction", ".json", written([DOLLY | {"instruction": f"Say {n}"} for n in range(12)])),
    "trees": ("instruction", ".jsonl", trees()),
    "qa rows": ("qa", ".jsonl", lines(QA)),
    "squad": ("qa", ".json", squad()),
    "csv": ("classification", ".csv", TABLE.encode()),
    "tsv": ("classification", ".tsv", TABLE.replace(",", "\t").encode()),
    "labels": ("classification", ".jsonl", lines({"text": "a 1", "label": 0}, {"text": "b 1", "label": 1})),
    "book": ("text", ".txt", "\n".join(f"Line {n} of the old book." for n in range(80)).encode()),
    "texts": ("text", ".jsonl", lines({"text": "A text of some length, 1, and more of it."})),
}


def targets(folder: Path, base: Path, finish: Callable[[], Path], asked: Sequence[str]) -> dict[str, Target]:
    """Return the targets that are asked for, by name.

    Args:
        folder: takes the files; nothing else is in it.
        base: of `tests.running.world`.
        finish: returns the folder of a study that is done, tested and explained.
        asked: beginnings of names.
    """
    makers: dict[str, Callable[[], list[Target]]] = {
        "study files": lambda: [_study(folder)],
        "options": lambda: [_options()],
        "data": lambda: _data(folder, base),
        "saved predictions": lambda: [_predictions(folder)],
        "cached tokens": lambda: [_cache(folder, base)],
        "checkpoints": lambda: [_checkpoint(folder)],
        "store": lambda: _store(folder, finish()),
        "model": lambda: _model(folder, base),
        "adapter": lambda: _adapter(folder, base),
    }
    made: list[Target] = []
    for name, make in makers.items():
        if any(name.startswith(one) or one.startswith(name) for one in asked):
            made += make()
    return {target.name: target for target in made if any(target.name.startswith(one) for one in asked)}


def _study(folder: Path) -> Target:
    from tuneoff.study.expand import chosen_runs, num_runs, trials
    from tuneoff.study.identity import canonical_json
    from tuneoff.study.loading import RECIPES, load_study
    from tuneoff.study.spec import Study
    from tuneoff.study.value import plain

    path = folder / "study.yaml"

    def drive(content: bytes) -> None:
        path.write_bytes(content)
        study = load_study(path)
        if len(study.arms) > 20:
            return
        for arm in study.arms:
            trials(study, arm)
            chosen_runs(study, arm, None if not arm.is_trained else 1e-3)
            num_runs(study, arm)
        again = Study.model_validate(json.loads(canonical_json(plain(study))) | {"root": study.root})
        assert again == study, "a study does not come back from its JSON"

    seeds = {one.name: one.read_bytes() for one in sorted(RECIPES.glob("*.yaml")) if one.name != "smoke.yaml"}
    for name, content in list(seeds.items()):  # JSON is YAML, and its values can be changed one by one
        import yaml

        seeds[f"{name} as JSON"] = written(yaml.safe_load(content))
    return Target("study files", seeds, drive, json_changed)


def _data(folder: Path, base: Path) -> list[Target]:
    from tuneoff.data.prepare import prepare
    from tuneoff.data.survey import check_splits, survey_data
    from tuneoff.study.spec import TaskSpec
    from tuneoff.training.models import load_tokenizer

    tokenizer = load_tokenizer(str(base / "base"), base)
    cache = folder / "cache"

    def drive(content: bytes, kind: str, suffix: str) -> None:
        path = folder / f"data{suffix}"
        path.write_bytes(content)
        try:
            surveyed = survey_data(path.name, folder)
            check_splits(TaskSpec.model_validate({"kind": surveyed.survey.kind, "data": path.name}), surveyed.examples)
        except _errors():
            pass
        task = TaskSpec.model_validate({"kind": kind, "data": path.name, "max_length": 48})
        if sum(1 for _ in cache.rglob("*")) > CACHE_ENTRIES:
            shutil.rmtree(cache)
        prepare(task, tokenizer, folder, 96, cache)

    made = []
    for name, (kind, suffix, content) in DATA_SEEDS.items():
        mutate = {".jsonl": json_lines_changed, ".json": json_changed}.get(suffix, bytes_changed)
        made.append(Target(f"data: {name}", {name: content}, partial(drive, kind=kind, suffix=suffix), mutate))
    made.append(
        Target("data: parquet", {"parquet": _parquet()}, partial(drive, kind="classification", suffix=".parquet"))
    )
    return made


def _errors() -> type[Exception]:
    from tuneoff.errors import TuneoffError

    return TuneoffError


def _parquet() -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    sink = pa.BufferOutputStream()
    table = pa.table({"text": [f"text {n}" for n in range(16)], "label": [n % 2 for n in range(16)]})
    parquet.write_table(table, sink)
    return bytes(sink.getvalue())


def _predictions(folder: Path) -> Target:
    from tuneoff.evaluation.scoring import score_files

    forms = {
        ".json": [b'{"1": "a b", "2": ["c", "d"]}', b'["a", "b"]', b"[0, 1, 1]", b'[{"id": 1, "prediction": "x"}]'],
        ".jsonl": [lines({"id": "1", "prediction": "a", "references": ["a", "b"]}), lines({"label": 1, "text": "a 1"})],
        ".csv": [b"id,prediction,label\n1,a,a\n2,b,a\n"],
        ".txt": [b"a\nb\nc\n"],
    }
    seeds = {
        f"{suffix} {n}": suffix.encode() + b"\n" + one for suffix, own in forms.items() for n, one in enumerate(own)
    }

    def drive(content: bytes) -> None:
        suffix, _, rest = content.partition(b"\n")
        name = suffix.decode(errors="replace") if suffix.decode(errors="replace") in forms else ".json"
        path, references = folder / f"p{name}", folder / "r.json"
        path.write_bytes(rest)
        references.write_bytes(b'{"1": ["a"], "2": ["c"]}')
        try:
            score_files(path, None)
        except _errors():
            score_files(path, references, ["f1", "rouge1"])

    def mutate(content: bytes, corpus: list[bytes], chance: random.Random) -> bytes:
        suffix, _, rest = content.partition(b"\n")
        change = json_lines_changed if suffix == b".jsonl" else json_changed
        return suffix + b"\n" + change(rest, corpus, chance)

    return Target("saved predictions", seeds, drive, mutate)


def _cache(folder: Path, base: Path) -> Target:
    from tuneoff.data.cache import load_entry
    from tuneoff.data.prepare import prepare
    from tuneoff.study.spec import TaskSpec
    from tuneoff.training.models import load_tokenizer

    own = folder / "entries"
    task = TaskSpec.model_validate({"kind": "instruction", "data": "rows.jsonl", "max_length": 48})
    prepare(task, load_tokenizer(str(base / "base"), base), base, 96, own)
    (entry,) = own.rglob("*.safetensors")
    path = folder / "entry.safetensors"

    def drive(content: bytes) -> None:
        path.write_bytes(content)
        load_entry(path)

    return Target("cached tokens", {"entry": entry.read_bytes()}, drive, tensors_changed)


def _checkpoint(folder: Path) -> Target:
    import torch

    from tuneoff.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

    place = folder / "checkpoint"
    place.mkdir()
    save_checkpoint(place, Checkpoint(3, {"members": [{"losses": [1.0]}], "meter": {}}, {"0/weights/a": torch.ones(3)}))
    (own,) = place.glob("step-*")
    state, tensors = sorted(own.iterdir(), key=lambda path: path.suffix)
    seed = state.read_bytes() + b"\0\0\0\0" + tensors.read_bytes()

    def drive(content: bytes) -> None:
        first, _, second = content.partition(b"\0\0\0\0")
        state.write_bytes(first)
        tensors.write_bytes(second)
        load_checkpoint(place, [])

    return Target("checkpoints", {"checkpoint": seed}, drive)


def _store(folder: Path, finished: Path) -> list[Target]:
    from tuneoff import api
    from tuneoff.report.console import SafeConsole
    from tuneoff.report.status import status_json
    from tuneoff.report.tables import study_table
    from tuneoff.study.spec import Study

    out = folder / "runs"
    study = Study.model_validate(json.loads((finished / "study.json").read_bytes()) | {"root": folder})
    place = out / study.name
    shutil.copytree(finished, place)
    quiet = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # for the life of the process

    def drive(content: bytes, path: Path, original: bytes) -> None:
        path.write_bytes(content)
        try:
            result = api.open_result(study, out)
            reading = result.read()
            status_json(reading.progress, reading.time_to_go, reading.under_way)
            SafeConsole(file=quiet).print(study_table(reading.summary, reading.explanation))
            result.report(folder / "report", reading=reading)
        finally:
            path.write_bytes(original)

    made = []
    for name in sorted({path.name for path in place.rglob("*.json*")} | {".index"}):
        paths = sorted(place.rglob(name))
        if not paths:
            continue
        path = max(paths, key=lambda one: ((one.parent / "test.json").exists(), one.stat().st_size))
        content = path.read_bytes()
        mutate = json_lines_changed if path.suffix == ".jsonl" else signed_changed
        made.append(Target(f"store: {name}", {name: content}, partial(drive, path=path, original=content), mutate))
    return made


def _model(folder: Path, base: Path) -> list[Target]:
    from tuneoff.training.models import load_base, load_config, load_tokenizer

    place = folder / "base"
    shutil.copytree(base / "base", place)

    def drive(content: bytes, path: Path, original: bytes, *, is_tokenizer: bool) -> None:
        path.write_bytes(content)
        try:
            if is_tokenizer:
                tokenizer = load_tokenizer("base", folder)
                tokenizer("The cat.\n\u00e9 1")
            else:
                load_config("base", folder)
                load_base("base", folder, is_shape_alone=True)
        finally:
            path.write_bytes(original)

    made = []
    for path in sorted(place.iterdir()):
        content = path.read_bytes()
        is_tokenizer = path.name.startswith("tokenizer")
        mutate = tensors_changed if path.suffix == ".safetensors" else json_changed
        run = partial(drive, path=path, original=content, is_tokenizer=is_tokenizer)
        made.append(Target(f"model: {path.name}", {path.name: content}, run, mutate))
    return made


def _adapter(folder: Path, base: Path) -> list[Target]:
    import torch
    from transformers import AutoModelForCausalLM

    from tuneoff.methods import LoRA
    from tuneoff.methods.interchange import load_peft, write_peft
    from tuneoff.training.models import load_config, shape_only

    place = folder / "adapter"
    model = AutoModelForCausalLM.from_pretrained(base / "base")
    write_peft(LoRA(rank=2, alpha=4).adapt(model, torch.Generator().manual_seed(0)), place, "base")
    config = load_config(str(base / "base"), base)

    def drive(content: bytes, path: Path, original: bytes) -> None:
        path.write_bytes(content)
        try:
            load_peft(shape_only(config), place)
        finally:
            path.write_bytes(original)

    made = []
    for path in sorted(place.iterdir()):
        if path.suffix in (".json", ".safetensors"):
            content = path.read_bytes()
            mutate = tensors_changed if path.suffix == ".safetensors" else json_changed
            run = partial(drive, path=path, original=content)
            made.append(Target(f"adapter: {path.name}", {path.name: content}, run, mutate))
    return made


def _options() -> Target:
    from tuneoff.planning.devices import find_device, parse_bytes
    from tuneoff.planning.fit import parse_kinds
    from tuneoff.running.cohorts import asked_size
    from tuneoff.running.sitting import seconds_of
    from tuneoff.starting.init import parse_columns, parse_kind
    from tuneoff.study.loading import load_study

    readers: dict[bytes, Callable[[str], object]] = {
        b"time": seconds_of,
        b"memory": parse_bytes,
        b"device": find_device,
        b"fit": parse_kinds,
        b"cohort": asked_size,
        b"kind": parse_kind,
        b"columns": lambda text: parse_columns(text.split("|")),
        b"set": lambda text: load_study("squad-gpt2", text.split("|")),
        b"study": load_study,
    }
    given = {b"time": b"1h30m", b"memory": b"6.5GB", b"device": b"RTX 4090", b"fit": b"micro_batch", b"cohort": b"8"}
    given |= {b"kind": b"text", b"columns": b"text=body|label=class", b"study": b"demo"}
    given |= {b"set": b"budget.steps=50|arms.*.targets=[all-linear]|task.data=a.jsonl"}

    def drive(content: bytes) -> None:
        name, _, text = content.partition(b":")
        readers.get(name, load_study)(text.decode(errors="surrogateescape"))

    def mutate(content: bytes, corpus: list[bytes], chance: random.Random) -> bytes:
        name, _, text = content.partition(b":")
        return name + b":" + bytes_changed(text, [one.partition(b":")[2] for one in corpus], chance)[:5000]

    return Target("options", {n.decode(): n + b":" + one for n, one in given.items()}, drive, mutate)
