"""The index of a store: saves the parsing of records, and never hides that one was altered, lost or written anew."""

import multiprocessing
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.report.fakes import Fakes, make_study

from tuneoff.running import index, store
from tuneoff.running.index import EXPLAINED_INDEX_FILE, INDEX_FILE
from tuneoff.running.store import EXPLAIN_FILE, RECORD_FILE, Store
from tuneoff.study.records import Record

NUM_READS = 12


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a finished study, of which every record is worth an index and settled as soon as it is written."""
    monkeypatch.setattr(index, "MIN_GAIN", 1)
    monkeypatch.setattr(index, "SETTLED_NS", -1)
    return written(tmp_path)


def written(folder: Path) -> Path:
    fakes = Fakes(make_study())
    found = Store(folder / "runs")
    found.create(fakes.study)
    for run_id, record in fakes.records.items():
        found.run_folder(run_id).mkdir()
        found.write_record(record.model_copy(update={"files": {}}))
    for test in fakes.tests.values():
        found.write_test(test.model_copy(update={"files": {}}))
    return found.folder


def unindexed(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the records hold, read one by one, which goes past the index."""
    found = Store(folder)
    records = {run_id: found.record(run_id) for run_id in found.run_ids()}
    tests = {run_id: found.test(run_id) for run_id in found.run_ids()}
    return tuple({name: one for name, one in kind.items() if one is not None} for kind in (records, tests))  # type: ignore[return-value]


def refuse(*_: Any) -> str:
    raise AssertionError("a record was parsed that the index holds")


def test_a_second_reading_parses_nothing_and_finds_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Store(place).records()
    assert first == unindexed(place)
    monkeypatch.setattr(store, "digest", refuse)
    assert Store(place).records() == first


@pytest.mark.parametrize("is_time_kept", [True, False])
def test_a_record_altered_by_hand_is_seen(place: Path, is_time_kept: bool) -> None:
    records, _ = Store(place).records()
    run_id = next(iter(records))
    path = place / run_id / RECORD_FILE
    before = path.stat()
    text = path.read_text("utf-8")
    digits = text.index('"num_target_tokens": ') + len('"num_target_tokens": ')
    path.write_text(f"{text[:digits]}{9 - int(text[digits])}{text[digits + 1 :]}", "utf-8")
    if is_time_kept:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    found = Store(place)
    assert found.records()[0].keys() == records.keys() - {run_id}
    assert [line for line in found.problems if "torn or was altered" in line and run_id in line]


def test_a_record_written_anew_is_read_anew(place: Path) -> None:
    records, _ = Store(place).records()
    run_id, record = next((name, one) for name, one in records.items() if one.costs is not None)
    assert record.costs is not None
    changed = record.model_copy(update={"costs": record.costs.model_copy(update={"train_s": record.costs.train_s + 1})})
    Store(place).write_record(changed)
    found, tests = Store(place).records()
    assert found[run_id] == changed
    assert run_id not in tests


def test_a_record_that_is_gone_is_gone(place: Path) -> None:
    records, _ = Store(place).records()
    run_id = next(iter(records))
    Store(place).set_aside(run_id)
    assert Store(place).records()[0].keys() == records.keys() - {run_id}


def flipped(content: bytes) -> bytes:
    middle = content.index(b'"nll_nats":') + len(b'"nll_nats":')
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        flipped,
        lambda content: content[content.index(b"\n") :],
        lambda content: b"\x00" * len(content),
        lambda content: b"[]",
    ],
    ids=["empty", "torn", "bit", "no checksum", "zeros", "other"],
)
def test_a_spoilt_index_is_ignored_and_made_again(place: Path, spoil: Any) -> None:
    first = Store(place).records()
    path = place / INDEX_FILE
    whole = path.read_bytes()
    path.write_bytes(spoil(whole))
    found = Store(place)
    assert found.records() == first
    assert not found.problems
    assert path.read_bytes() == whole


def test_what_was_worked_out_of_the_weights_has_an_index_of_its_own(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Fakes(make_study()).explained
    for run_id, record in wanted.items():
        Store(place).run_folder(run_id).mkdir(exist_ok=True)
        Store(place).write_explained(record)
    names = [*wanted, "0" * 16]
    assert Store(place).explanations(names) == wanted
    assert (place / EXPLAINED_INDEX_FILE).exists()
    assert not (place / INDEX_FILE).exists()
    whole = store.digest
    monkeypatch.setattr(store, "digest", refuse)
    assert Store(place).explanations(names) == wanted
    monkeypatch.setattr(store, "digest", whole)
    first = next(iter(wanted))
    path = place / first / EXPLAIN_FILE
    path.write_text(path.read_text("utf-8").replace('"explain_s": 12.5', '"explain_s": 12.6'), "utf-8")
    found = Store(place)
    assert found.explanations(names).keys() == wanted.keys() - {first}
    assert [line for line in found.problems if "torn or was altered" in line and first in line]


def test_an_index_of_other_records_is_not_taken(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Store(place).records()
    monkeypatch.setattr(index, "INDEX_VERSION", index.INDEX_VERSION + 1)
    asked: list[Any] = []
    whole = store.digest
    monkeypatch.setattr(store, "digest", lambda body: asked.append(body) or whole(body))
    assert Store(place).records() == first
    assert len(asked) == len(first[0]) + len(first[1])


def test_where_no_index_can_be_written_records_are_read(place: Path) -> None:
    (place / INDEX_FILE / "in the way").mkdir(parents=True)
    assert Store(place).records() == unindexed(place)
    assert not [path for path in place.iterdir() if path.name.startswith(".") and path.name != INDEX_FILE]


def test_what_changed_a_moment_ago_is_not_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MIN_GAIN", 0)
    monkeypatch.setattr(index, "SETTLED_NS", 3_600_000_000_000)
    folder = written(tmp_path)
    first = Store(folder).records()
    monkeypatch.setattr(store, "digest", lambda body: "another")
    assert first[0]
    assert Store(folder).records() == ({}, {})


def test_a_small_study_goes_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "SETTLED_NS", -1)
    folder = written(tmp_path)
    Store(folder).records()
    assert not (folder / INDEX_FILE).exists()


def read_often(folder: Path, seen: "multiprocessing.Queue[Any]") -> None:
    index.MIN_GAIN, index.SETTLED_NS = 1, -1
    for _ in range(NUM_READS):
        found = Store(folder)
        records, _ = found.records()
        seen.put(({name: one.provenance.num_sittings for name, one in records.items()}, found.problems))


def later(records: Mapping[str, Record], sitting: int) -> list[Record]:
    return [
        one.model_copy(update={"provenance": one.provenance.model_copy(update={"num_sittings": sitting})})
        for one in records.values()
    ]


def test_readers_write_it_while_records_change(place: Path) -> None:
    """Every reader sees each record as it was at some moment, never an earlier one again, and at last the last one."""
    records, _ = Store(place).records()
    context = multiprocessing.get_context("spawn")
    queues = [context.Queue() for _ in range(2)]
    readers = [context.Process(target=read_often, args=(place, queue)) for queue in queues]
    for reader in readers:
        reader.start()
    writer = Store(place)
    sitting = 1
    while any(reader.is_alive() for reader in readers) and sitting < 60:
        sitting += 1
        for record in later(records, sitting):
            writer.write_record(record)
        if all(not queue.empty() for queue in queues) and sitting > 6:
            break
    for queue in queues:
        last = dict.fromkeys(records, 0)
        for _ in range(NUM_READS):
            seen, problems = queue.get(timeout=120)
            assert not problems
            assert seen.keys() == records.keys()
            assert all(seen[name] >= last[name] for name in seen)
            last = seen
    for reader in readers:
        reader.join(timeout=120)
        assert reader.exitcode == 0
    found, _ = Store(place).records()
    assert {one.provenance.num_sittings for one in found.values()} == {sitting}
    assert (found, {}) == unindexed(place)
