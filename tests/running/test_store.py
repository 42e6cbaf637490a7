"""What the store writes comes back as it was, and what is torn at any place is found, said, and not used."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.running.world import ONE_LORA, body, study_of

from tuneoff.errors import StoreError
from tuneoff.running.fitting import FIT_FILE, as_last_run
from tuneoff.running.lease import LEASE_FILE
from tuneoff.running.store import (
    CURVE_FILE,
    EXPLAIN_FILE,
    ITEMS_FILE,
    RECORD_FILE,
    SETUP_FILE,
    TEST_FILE,
    Store,
)
from tuneoff.running.underway import runs_under_way
from tuneoff.study.explained import ExplainRecord
from tuneoff.study.identity import Run, make_run
from tuneoff.study.loading import study_from
from tuneoff.study.records import (
    RECORD_VERSION,
    Costs,
    Likelihood,
    Parameters,
    Provenance,
    Record,
    TestRecord,
    Training,
)
from tuneoff.study.spec import ExplainSpec

finite = st.floats(allow_nan=False, allow_infinity=False)
count = st.integers(min_value=0, max_value=2**63)
few = st.integers(0, 2**53 - 1)
text = st.text(max_size=20)
RUN = make_run(
    study_of(Path("/"), "store", {"lora": {"method": "lora", "rank": 2, "lr": 1e-3}}),
    study_of(Path("/"), "store", {"lora": {"method": "lora", "rank": 2, "lr": 1e-3}}).arms[0],
    1e-3,
    0,
)
RUN_ID = RUN.run_id

likelihoods = st.builds(
    Likelihood,
    nll_nats=st.floats(0.0, 1e6),
    num_target_tokens=st.integers(1, 10**9),
    num_sequences=count,
    num_target_bytes=count,
    mean_sequence_loss_nats=st.floats(0.0, 1e3),
    vocabulary_size=count,
    stride_tokens=st.none() | count,
)
provenances = st.builds(
    Provenance,
    created_at=text,
    tuneoff_version=text,
    versions=st.dictionaries(text, text, max_size=3),
    python=text,
    platform=text,
    device=text,
    num_threads=count,
    micro_batch=count,
    num_sittings=count,
    cohort=st.lists(text, max_size=3).map(tuple),
    model_sha256=text,
    data_sha256=text,
    notes=st.lists(text, max_size=3).map(tuple),
    cautions=st.lists(text, max_size=3).map(tuple),
)
trainings = st.builds(
    Training,
    steps=count,
    epochs=finite,
    num_target_tokens=count,
    num_input_tokens=count,
    batch_sequence_sha256=text,
    best_step=count,
    final_loss_nats=st.none() | finite,
)
costs = st.builds(
    Costs,
    train_s=finite,
    step_s=finite,
    input_tokens_per_s=finite,
    target_tokens_per_s=finite,
    evaluate_s=finite,
    peak_bytes=st.dictionaries(text, count, max_size=3),
    num_runs=count,
    peak_kind=st.sampled_from(["resident", "allocated"]),
    optimizer_bytes=count,
    weights_bytes=count,
)
runs = st.builds(
    lambda lr, seed: RUN.model_copy(update={"lr": lr, "seed": seed}),
    st.none() | st.floats(min_value=1e-300, allow_infinity=False),
    st.none() | count,
)


def recorded(run: Run, **fields: Any) -> Record:
    return Record(run_id=run.run_id, run=run, **fields)


records = st.builds(
    recorded,
    runs,
    status=st.sampled_from(["done", "infeasible", "pruned"]),
    reason=text,
    classes=st.lists(text, max_size=3).map(tuple),
    parameters=st.none() | st.builds(Parameters, trainable=count, total=count, modules=st.lists(text).map(tuple)),
    training=st.none() | trainings,
    validation=st.none() | likelihoods,
    costs=st.none() | costs,
    provenance=provenances,
)
tests = st.builds(
    TestRecord,
    run_id=st.just(RUN_ID),
    test=likelihoods,
    test_sha256=text,
    metrics=st.dictionaries(text, finite, max_size=3),
    score_s=finite,
    files=st.dictionaries(text, text, max_size=3),
)
values: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | finite | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
setups = st.dictionaries(text.filter(lambda name: name != "checksum"), values, max_size=5)
whole_rows = st.fixed_dictionaries(
    {"kind": text, "step": few, "loss_nats": finite, "target_tokens": few}, optional={"epoch": finite, "lr": finite}
)
rows = st.lists(st.tuples(st.dictionaries(text, values, max_size=4), whole_rows).map(lambda own: own[0] | own[1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@given(record=records)
def test_records_come_back(folder: Path, record: Record) -> None:
    store = Store(folder)
    store.run_folder(record.run_id).mkdir(exist_ok=True)
    store.write_record(record)
    assert Store(folder).record(record.run_id) == record
    assert Store(folder).records()[0][record.run_id] == record


@given(test=tests)
def test_readings_of_the_test_split_come_back(folder: Path, test: TestRecord) -> None:
    store = Store(folder)
    store.run_folder(RUN_ID).mkdir(exist_ok=True)
    store.write_test(test)
    assert Store(folder).test(RUN_ID) == test


@given(setup=setups)
def test_setups_come_back(folder: Path, setup: dict[str, Any]) -> None:
    Store(folder).write_setup(RUN_ID, setup)
    assert Store(folder).setup(RUN_ID) == setup


@given(points=rows)
def test_curves_come_back(folder: Path, points: list[dict[str, Any]]) -> None:
    store = Store(folder)
    store.run_folder(RUN_ID).mkdir(exist_ok=True)
    (store.run_folder(RUN_ID) / CURVE_FILE).unlink(missing_ok=True)
    for point in points:
        store.add_to_curve(RUN_ID, point)
    assert Store(folder).curve(RUN_ID) == points


@pytest.fixture
def whole(tmp_path: Path) -> Store:
    """A store with one small run of everything."""
    store = Store(tmp_path)
    likelihood = Likelihood(
        nll_nats=1.5,
        num_target_tokens=3,
        num_sequences=1,
        num_target_bytes=3,
        mean_sequence_loss_nats=0.5,
        vocabulary_size=9,
    )
    provenance = Provenance(
        created_at="é", tuneoff_version="", versions={}, python="", platform="", device="", num_threads=1,
        micro_batch=1, model_sha256="", data_sha256="",
    )  # fmt: skip
    store.write_setup(RUN_ID, {"cohort": [RUN_ID], "num_threads": 1})
    store.write_record(Record(run_id=RUN_ID, run=RUN, status="done", provenance=provenance, validation=likelihood))
    store.write_test(TestRecord(run_id=RUN_ID, test=likelihood, score_s=0.1))
    store.write_explained(ExplainRecord(run_id=RUN_ID, asked=ExplainSpec(), explain_s=0.1))
    (store.run_folder(RUN_ID) / ITEMS_FILE).write_text('{"items": ["é"], "scores": {"loss": [0.5]}}')
    return store


READERS: dict[str, Callable[[Store], Any]] = {
    RECORD_FILE: lambda store: store.record(RUN_ID, verify=True),
    TEST_FILE: lambda store: store.test(RUN_ID, verify=True),
    EXPLAIN_FILE: lambda store: store.explained(RUN_ID),
    ITEMS_FILE: lambda store: store.items(RUN_ID),
    SETUP_FILE: lambda store: store.setup(RUN_ID),
}


@pytest.mark.parametrize("name", READERS)
def test_a_file_torn_at_any_place_is_found_and_said(whole: Store, name: str) -> None:
    path = whole.run_folder(RUN_ID) / name
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        store = Store(whole.folder)
        assert READERS[name](store) is None, length
        assert len(store.problems) == 1, length
        assert str(path) in store.problems[0]
        assert store.problems[0].endswith(("; the run will be done again", "; the run starts anew"))
    path.write_bytes(content)
    store = Store(whole.folder)
    assert READERS[name](store) is not None
    assert not store.problems


def test_a_curve_torn_at_any_place_loses_its_last_line_alone(whole: Store) -> None:
    points = [{"kind": "train", "step": step, "loss_nats": step / 7, "target_tokens": 3 * step} for step in range(1, 4)]
    for point in points:
        whole.add_to_curve(RUN_ID, point)
    path = whole.run_folder(RUN_ID) / CURVE_FILE
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        num_whole = content[: length + 1].count(b"\n")  # a line that lacks nothing but its end is whole
        assert Store(whole.folder).curve(RUN_ID) == points[:num_whole], length


ROW = {"kind": "train", "step": 2, "loss_nats": 0.5, "target_tokens": 3}
NO_ROWS = {
    "no JSON": "{",
    "a number": "3",
    "two rows in a line": f"{json.dumps(ROW)}, {json.dumps(ROW)}",
    "deep": "[" * 3000,
    "no kind": json.dumps(ROW | {"kind": None}),
    "a text for a step": json.dumps(ROW | {"step": "2"}),
    "true for a step": json.dumps(ROW | {"step": True}),
    "a step below zero": json.dumps(ROW | {"step": -1}),
    "a loss that is none": json.dumps(ROW | {"loss_nats": math.nan}),
    "a loss of 400 digits": json.dumps(ROW | {"loss_nats": 10**400}),
    "no tokens": json.dumps({key: value for key, value in ROW.items() if key != "target_tokens"}),
}


@pytest.mark.parametrize("line", NO_ROWS.values(), ids=NO_ROWS)
def test_a_curve_ends_at_a_line_that_is_no_row(whole: Store, line: str) -> None:
    path = whole.run_folder(RUN_ID) / CURVE_FILE
    path.write_text("\n".join([json.dumps(ROW | {"step": 1}), line, json.dumps(ROW | {"step": 3})]))
    assert whole.curve(RUN_ID) == [ROW | {"step": 1}]


@pytest.mark.parametrize("line", NO_ROWS.values(), ids=NO_ROWS)
def test_how_far_a_run_is_is_read_from_whole_rows_alone(whole: Store, line: str) -> None:
    folder = whole.run_folder(RUN_ID)
    whole.write_setup(RUN_ID, {"version": RECORD_VERSION, "cohort": [RUN_ID]})
    (folder / CURVE_FILE).write_text(f"{json.dumps(ROW | {'step': 1, 'elapsed_s': 2.0})}\n{line}\n")
    found = runs_under_way(whole, (), {RUN_ID})[RUN_ID]
    assert (found.step, found.step_s) == (1, 2.0)


@pytest.mark.parametrize("content", ['{"items": ["a"], "scores": {"loss": [1%s]}}' % ("0" * 400), "[" * 100_000])
def test_scores_that_no_number_can_hold_are_none(whole: Store, content: str) -> None:
    (whole.run_folder(RUN_ID) / ITEMS_FILE).write_text(content)
    assert whole.items(RUN_ID) is None
    assert "items.json cannot be read" in whole.problems[-1]


def test_a_deep_lease_and_a_deep_fit_are_none(whole: Store) -> None:
    (whole.run_folder(RUN_ID) / LEASE_FILE).write_text("[" * 100_000)
    assert not whole.is_locked(RUN_ID)
    (whole.folder / FIT_FILE).write_text("[" * 100_000)
    study = study_from(body("any", ONE_LORA), Path())
    assert as_last_run(study, whole.folder) is study


@pytest.mark.parametrize("name", [RECORD_FILE, TEST_FILE, SETUP_FILE])
def test_what_the_disk_does_not_give_is_not_taken_for_missing(whole: Store, name: str) -> None:
    """A folder in the file's place fails when it is read, also for who may read everything."""
    path = whole.run_folder(RUN_ID) / name
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match=f"{name} cannot be read .*goes on from what is there"):
        READERS[name](Store(whole.folder))
    Store(whole.folder).records()  # a report is to be had of the rest
