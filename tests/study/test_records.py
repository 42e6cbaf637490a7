"""Records come back from their JSON to the last bit, and what is derived is derived again."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tuneoff.study.identity import canonical_json, digest
from tuneoff.study.records import Likelihood, Parameters, Record, TestRecord, to_json

RUN = {
    "model": "base",
    "revision": None,
    "trust_remote_code": False,
    "task": {"kind": "text", "data": "book.txt"},
    "budget": {"steps": 4},
    "precision": "fp32",
    "optimizer": {},
    "evaluate": {},
    "keep": "best",
    "method": {"method": "lora", "rank": 2},
    "lr": 1e-4,
    "seed": 0,
}
PROVENANCE = {
    "created_at": "2026-01-01T00:00:00+00:00",
    "tuneoff_version": "0",
    "versions": {"torch": "2"},
    "python": "3.11",
    "platform": "any",
    "device": "cpu",
    "num_threads": 1,
    "micro_batch": 4,
    "model_sha256": "a",
    "data_sha256": "b",
}
COUNTS = st.integers(1, 10**12)
LIKELIHOODS = st.builds(
    Likelihood,
    nll_nats=st.floats(0, 1e12),
    num_target_tokens=COUNTS,
    num_sequences=COUNTS,
    num_target_bytes=st.integers(0, 10**12),
    mean_sequence_loss_nats=st.floats(0, 1e6),
    vocabulary_size=COUNTS,
    stride_tokens=st.none() | st.integers(1, 4096),
)


def record(**changes: Any) -> Record:
    return Record.model_validate({"run_id": "abc", "run": RUN, "status": "done", "provenance": PROVENANCE} | changes)


@given(LIKELIHOODS)
def test_round_trip(likelihood: Likelihood) -> None:
    first = record(validation=likelihood.model_dump(), files={"curve.jsonl": "0" * 64})
    again = Record.model_validate(json.loads(json.dumps(to_json(first))))
    assert again == first
    assert digest(to_json(again)) == digest(to_json(first))
    test = TestRecord(run_id="abc", test=likelihood, score_s=1.5)
    assert TestRecord.model_validate(json.loads(canonical_json(to_json(test)))) == test


@given(LIKELIHOODS)
def test_what_is_derived_is_written_for_readers_and_not_believed(likelihood: Likelihood) -> None:
    written = likelihood.model_dump(mode="json")
    assert written["perplexity"] == likelihood.perplexity
    assert Likelihood.model_validate(written | {"perplexity": 1.0, "loss_nats": 0.0}) == likelihood


def test_definitions() -> None:
    found = Likelihood(
        nll_nats=20.0,
        num_target_tokens=10,
        num_sequences=2,
        num_target_bytes=40,
        mean_sequence_loss_nats=3.0,
        vocabulary_size=5,
    )
    assert found.loss_nats == 2.0
    assert found.perplexity == math.exp(2)
    assert found.mean_sequence_perplexity == math.exp(3)
    assert found.bits_per_byte == pytest.approx(20 / math.log(2) / 40)
    assert found.is_worse_than_uniform
    assert found.model_copy(update={"num_target_bytes": 0}).bits_per_byte is None


def test_an_enormous_loss_stays_json() -> None:
    found = Likelihood(
        nll_nats=1e9,
        num_target_tokens=1,
        num_sequences=1,
        num_target_bytes=1,
        mean_sequence_loss_nats=1e9,
        vocabulary_size=5,
    )
    assert math.isfinite(found.perplexity)
    json.dumps(found.model_dump(), allow_nan=False)


def test_share() -> None:
    assert Parameters(trainable=294_912, total=124_734_720).share_pct == pytest.approx(0.2364, abs=5e-5)
    assert Parameters(trainable=0, total=0).share_pct == 0.0


@pytest.mark.parametrize("changes", [{"status": "fine"}, {"unknown": 1}, {"run": {}}, {"validation": {"nll_nats": 1}}])
def test_refuses_what_is_no_record(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        record(**changes)


def test_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        record().status = "infeasible"
