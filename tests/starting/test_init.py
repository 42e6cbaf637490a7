"""From data and a base to a study file: it loads, its plan works, its data can be prepared, and it runs as written."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cli.shell import tuneoff
from tests.running.world import write_rows
from transformers import LlamaConfig

from tuneoff import api
from tuneoff.errors import DataError, ModelError, StoreError, StudyError
from tuneoff.planning.plan import plan
from tuneoff.planning.room import memory_room
from tuneoff.running.preflight import preflight
from tuneoff.starting.init import Started, init, parse_columns, parse_kind
from tuneoff.study.loading import load_study
from tuneoff.training.machine import Gpu, Machine, look_at_machine
from tuneoff.training.memory_limits import Available

GIGABYTE = 10**9
CONTEXT = "The Rose left the harbour on a cold day. "
DATA: dict[str, tuple[list[dict[str, Any]], str]] = {
    "instruction": ([{"instruction": f"Say {n}", "response": f"{n} it is"} for n in range(40)], "loss"),
    "classification": ([{"body text": f"ship {n} was here", "mood": ["good", "bad"][n % 2]} for n in range(40)], ""),
    "numbers": ([{"sentence": f"ship {n} was here", "label": n % 3} for n in range(40)], ""),
    "qa": ([{"context": f"{n} {CONTEXT}", "question": "Who left?", "answers": ["Rose"]} for n in range(40)], ""),
    "text": ([{"text": f"Story {n}. {CONTEXT * 3}"} for n in range(40)], ""),
}


@pytest.fixture
def place(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a base."""
    shutil.copytree(world / "base", tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def begin(place: Path, name: str, **more: Any) -> Started:
    write_rows(place / f"{name}.jsonl", DATA[name][0])
    return init(f"{name}.jsonl", "base", Path("study.yaml"), **more)


@pytest.mark.parametrize("name", DATA)
def test_what_is_written_loads_plans_and_finds_its_data(place: Path, name: str) -> None:
    started = begin(place, name)
    study = load_study("study.yaml")
    assert study == started.study
    assert study.name == name
    assert [arm.family for arm in study.arms] == ["zero-shot", "full", "lora", "lora"]
    found = preflight(study)  # reads and tokenises all, as a run does before it trains
    assert found.num_steps == study.budget.steps
    assert (study.tuning.extend, {arm.is_extended for arm in study.arms if arm.is_trained}) == (2, {True})
    assert not any("longer than" in note for note in found.notes if started.lengths.needed.longest <= 72)
    text = Path("study.yaml").read_text("utf-8")
    assert all(len(line) <= 120 for line in text.splitlines())
    assert str(place) not in text  # so that the folder can be moved


def test_odd_columns_and_their_names_for_zero_shot(place: Path) -> None:
    task = begin(place, "classification").study.task
    assert (task.columns.text, task.columns.label) == ("body text", "mood")
    assert (task.labels, task.template) == (("bad", "good"), "{text}\nLabel:")
    assert "'mood': its 2 values come again and again" in " ".join(Path("study.yaml").read_text("utf-8").split())


@pytest.mark.parametrize("name", ["qa", "numbers"])
def test_what_is_switched_off_can_be_switched_on(place: Path, name: str) -> None:
    """Every line that is a key in a comment, all of them at once."""
    begin(place, name)
    path = Path("study.yaml")
    text = path.read_text("utf-8").replace("[word0, word1, word2]", "[one, two, none of them]")
    switched = re.sub(
        r"^( *)# (bottleneck|prompt|margin|retention|metrics|labels|template):", r"\1\2:", text, flags=re.M
    )
    path.write_text(switched, encoding="utf-8")
    study = load_study(path)
    assert {arm.family for arm in study.arms} == {"zero-shot", "full", "lora", "bottleneck", "prompt"}
    assert study.margin == 1.0
    assert (study.retention == "demo") == (name == "qa")
    assert (study.task.labels is not None) == (name == "numbers")
    assert [arm.problem for arm in plan(study).arms] == [""] * len(study.arms)


def test_a_file_that_is_there_is_kept(place: Path) -> None:
    begin(place, "text")
    before = Path("study.yaml").read_bytes()
    with pytest.raises(StoreError, match=r"study.yaml is there already; name another file with --out, or .* --force"):
        begin(place, "qa")
    assert Path("study.yaml").read_bytes() == before
    assert begin(place, "qa", force=True).study.task.kind == "qa"
    with pytest.raises(StoreError, match="is a folder; name the study file to write, such as"):
        init("qa.jsonl", "base", place)


def test_paths_are_found_from_where_the_file_lies(place: Path) -> None:
    write_rows(place / "rows.jsonl", DATA["text"][0])
    started = init("rows.jsonl", "base", Path("studies/first.yaml"))
    assert started.study.name == "first"
    assert (started.study.task.data, started.study.model) == (str(place / "rows.jsonl"), str(place / "base"))
    moved = init("rows.jsonl", "base", Path("near.yaml"))
    assert (moved.study.task.data, moved.study.model) == ("rows.jsonl", "base")
    assert preflight(load_study("studies/first.yaml")).num_sequences == preflight(moved.study).num_sequences


def test_nothing_is_written_where_something_is_wrong(place: Path) -> None:
    write_rows(place / "rows.jsonl", [{"label": n % 2, "text": f"{n} ships"} for n in range(2)])
    with pytest.raises(DataError, match="the train split would be empty"):
        init("rows.jsonl", "base", Path("study.yaml"))
    with pytest.raises(ModelError, match="no such folder"):
        init("rows.jsonl", "./bases", Path("study.yaml"))
    (place / "torn.jsonl").write_text('{"text": "a"}\n{"text": "b')
    with pytest.raises(DataError, match=r"torn\.jsonl, line 2, column 10"):
        init("torn.jsonl", "base", Path("study.yaml"))
    assert not (place / "study.yaml").exists()


def test_kinds_and_columns_that_there_are_not() -> None:
    assert parse_kind(None) is None
    assert parse_kind("qa") == "qa"
    with pytest.raises(StudyError, match=r"--kind classificaton: allowed: text.*Did you mean classification"):
        parse_kind("classificaton")
    assert parse_columns(["text=body text", "label=a=b"]) == {"text": "body text", "label": "a=b"}
    with pytest.raises(StudyError, match="expected PART=NAME"):
        parse_columns(["text"])
    with pytest.raises(StudyError, match=r"no column can be 'labels'; allowed: text.*Did you mean label"):
        parse_columns(["labels=x"])


def machine(room: float, gpu: tuple[int, int] | None = None, *, has_bf16: bool = False) -> Machine:
    """Return a machine with so many GB for a run."""
    room_bytes = round(room * GIGABYTE)
    gpus = () if gpu is None else (Gpu(name="GPU", memory_bytes=room_bytes, free_bytes=room_bytes, capability=gpu),)
    return Machine(
        processor="CPU", num_cores=8, num_threads=8, instructions=(), has_bf16_products=has_bf16,
        memory_bytes=64 * GIGABYTE, available=Available(num_bytes=room_bytes, source="RAM"), gpus=gpus,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "precision"),
    [
        (machine(80, (9, 0)), "bf16"),
        (machine(16, (7, 5)), "fp16"),
        (machine(16, (6, 1)), "fp32"),
        (machine(16, has_bf16=True), "bf16"),
        (machine(16), "fp32"),
    ],
)
def test_the_precision_that_pays(found: Machine, precision: str) -> None:
    assert found.precision == precision
    assert found.precision_reason


def test_this_machine_is_one() -> None:
    found = look_at_machine()
    assert found.available.num_bytes > 0
    assert found.num_cores >= 1
    assert found.memory_bytes > GIGABYTE // 4
    assert found.precision in ("fp32", "bf16", "fp16")


@pytest.fixture
def large(place: Path) -> Path:
    """A base of Llama 3 8B's shape, without weights: what is planned needs none."""
    LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=8192, bos_token_id=0, eos_token_id=0,
    ).save_pretrained(place / "large")  # fmt: skip
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(place / "base" / name, place / "large")
    return place


def pretend(monkeypatch: pytest.MonkeyPatch, room: float) -> None:
    """Let `init` find a GPU with so many GB."""
    monkeypatch.setattr("tuneoff.starting.init.look_at_machine", lambda: machine(room, (9, 0)))
    monkeypatch.setattr("tuneoff.starting.init.machine_room", lambda: memory_room(round(room * GIGABYTE)))


@pytest.mark.parametrize(
    ("room", "left_out", "quantize"), [(200, set(), "none"), (80, {"full"}, "none"), (14, {"full"}, "nf4")]
)
def test_what_does_not_fit_is_left_out_with_the_reason(
    large: Path, room: float, left_out: set[str], quantize: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8.03 billion weights: all trained 16 bytes each, 128 GB; frozen in bf16 16 GB; in four bits below 7 GB."""
    pytest.importorskip("bitsandbytes")
    pretend(monkeypatch, room)
    write_rows(large / "rows.jsonl", DATA["instruction"][0])
    started = init("rows.jsonl", "large", Path("study.yaml"))
    assert {name for name in started.left_out if name not in ("bottleneck", "prompt")} == left_out
    assert started.study.precision == "bf16"
    loras = [arm.method for arm in started.study.arms if arm.method.method == "lora"]
    assert {getattr(method, "quantize", "") for method in loras} == {quantize}
    full = started.fits["full"]
    assert 128.4 * GIGABYTE < full.needed_bytes < 135 * GIGABYTE
    assert full.room_bytes == memory_room(room * GIGABYTE).tensor_bytes  # what `tuneoff plan` goes by
    text = " ".join(Path("study.yaml").read_text("utf-8").replace("#", " ").split())
    if left_out:
        assert re.search(r"Left out, as it does not fit: it needs about 12\d GB, and there is room for [\d.]+ GB", text)
    assert "5e-5 (1e-5)" not in text
    assert "full: {method: full, tune: {lr: [1e-5, 3e-5, 9e-5], extend: true}}" in text


def test_a_smaller_micro_batch_comes_before_leaving_out(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bf16 all weights need 145 GB before any activation: 16 bytes each, and a copy in two for the products."""
    write_rows(large / "rows.jsonl", [{"text": f"{n} {CONTEXT * 40}"} for n in range(400)])
    fits = {}
    for room in (700, 200):
        pretend(monkeypatch, room)
        fits[room] = init("rows.jsonl", "large", Path(f"{room}.yaml"))
    assert (fits[700].study.micro_batch, fits[700].study.gradient_checkpointing) == (None, False)
    small = fits[200]
    assert "full" not in small.left_out
    assert small.study.gradient_checkpointing or (small.study.micro_batch or 16) < 16
    assert small.study.budget == fits[700].study.budget


def test_json_holds_what_was_found(place: Path) -> None:
    started = begin(place, "qa")
    found = json.loads(started.model_dump_json(exclude={"text", "study"}))
    assert found["survey"]["splits"]["train"]["num_examples"] == 40
    assert found["lengths"]["needed"]["longest"] > 0


def test_the_verb_says_what_it_found_and_what_comes_next(place: Path) -> None:
    write_rows(place / "rows.jsonl", DATA["classification"][0])
    found = tuneoff("init", "rows.jsonl", "--model", "base")
    assert (found.code, found.errors) == (0, "")
    for part in ("classes: good 50.0 %, bad 50.0 %", "mood", "Written: study.yaml", "Next: tuneoff plan study.yaml"):
        assert part in found.text
    tuneoff("init", "rows.jsonl", "--model", "base").is_one_error("study.yaml is there already")
    as_json = tuneoff("init", "rows.jsonl", "--model", "base", "--force", "--json")
    assert json.loads(as_json.text)["survey"]["columns"] == {"text": "body text", "label": "mood"}
    options = ("--kind", "text", "--column", "text=body text", "--out", "other.yaml")
    assert tuneoff("init", "rows.jsonl", "--model", "base", *options).code == 0
    assert load_study("other.yaml").task.kind == "text"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("torn.json", b'[{"text": "a", "label": 1}, {"text"', r"torn.json, line 1, column 36.*copy it again"),
        (
            "latin.csv",
            b"text,label\ncaf\xe9,1\n",
            r"latin.csv, line 2, column 4: expected UTF-8.*save the file as UTF-8",
        ),
        ("empty.csv", b"", "empty.csv: is empty"),
        (
            "two.csv",
            b"a,b\nOne ship came,Two ships left\nOne ship sank,Two ships rose\n",
            r"--kind instruction --column prompt=a",
        ),
    ],
)
def test_a_broken_file_is_one_error(place: Path, name: str, content: bytes, message: str) -> None:
    (place / name).write_bytes(content)
    tuneoff("init", name, "--model", "base").is_one_error(message)
    assert not (place / "study.yaml").exists()


def test_the_demo_data_of_every_kind(place: Path) -> None:
    for kind in ("text", "instruction", "qa", "classification"):
        started = api.init("demo", "demo", Path(f"{kind}.yaml"), kind=kind)
        assert started.study.task.data == "demo"
        assert yaml.safe_load(started.text)["task"]["kind"] == kind


@pytest.mark.slow
def test_a_study_runs_as_it_is_written(place: Path) -> None:
    """Every arm and rate of the file, at its first seed; few sentences make the budget the smallest that there is."""
    write_rows(place / "rows.jsonl", DATA["numbers"][0][:24])
    started = init("rows.jsonl", "base", Path("study.yaml"))
    study = load_study("study.yaml", ["seeds=[0]"])
    result = api.run(study, place / "runs")  # one at a time: none is measured alone afterwards
    progress = result.progress()
    assert progress.num_left == 0
    assert not result.failed
    assert {arm.name for arm in started.study.arms} == {row.name for row in result.summary().arms}
