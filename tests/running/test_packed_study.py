"""A study of sequences long enough to stand end to end: packed, and killed at any step it ends in the same bits."""

from pathlib import Path

import pytest
from tests.running.interrupted import Killer, assert_same
from tests.running.world import NUM_JOBS, Events, rows, save_base, study_of, write_rows

from tuneoff import api
from tuneoff.running.session import MIN_PACKED_TOKENS, Place, open_session
from tuneoff.running.store import Store
from tuneoff.study.expand import trials
from tuneoff.study.spec import Study

pytestmark = pytest.mark.slow

ARMS = {
    "lora": {"method": "lora", "rank": 4, "dropout": 0.1, "lr": 1e-2},
    "full": {"method": "full", "lr": 1e-3},
}
PROMPT = "{instruction}, and say it in words that are long enough to stand end to end in one row, one after another:"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("long")
    save_base(folder / "base", num_positions=256, eos_token="<eos>", pad_token="<pad>")
    long = [row | {"response": f"{row['response']} " * (1 + place % 5)} for place, row in enumerate(rows())]
    write_rows(folder / "rows.jsonl", long)
    task = {"kind": "instruction", "data": "rows.jsonl", "max_length": 200, "template": PROMPT}
    budget, often = {"steps": 24, "batch_size": 4}, {"evaluate": {"every": 8}, "checkpoint": {"every": 4}}
    return study_of(
        folder, "packed", ARMS, task=task, budget=budget, micro_batch=3, gradient_checkpointing=True, **often
    )


def test_killed_it_goes_on_to_the_bits_of_an_undisturbed_study(study: Study, tmp_path: Path) -> None:
    undisturbed = api.run(study, tmp_path / "undisturbed", num_jobs=NUM_JOBS)
    killer = Killer("step")
    first = api.run(study, tmp_path / "killed", num_jobs=NUM_JOBS, listener=killer)
    assert killer.has_killed
    assert len(first.failed) == 1
    events = Events()
    second = api.run(study, tmp_path / "killed", num_jobs=NUM_JOBS, listener=events)
    assert not second.failed
    assert len(events.of("resumed")) == 1
    assert_same(second, undisturbed)
    for record in undisturbed.records()[0].values():
        place = Place(undisturbed.store, study.root)
        session = open_session([record.run], place, is_afterwards=True)
        assert session.data.train.lengths.mean() >= MIN_PACKED_TOKENS
        assert session.forward.is_packed


def test_short_sequences_stand_end_to_end_where_they_are_scored_alone(tmp_path: Path) -> None:
    save_base(tmp_path / "base", eos_token="<eos>", pad_token="<pad>")
    write_rows(tmp_path / "rows.jsonl", rows())
    short = study_of(tmp_path, "short", ARMS)
    store = Store(tmp_path / "out")
    store.create(short)
    session = open_session(trials(short, short.arms[0])[:1], Place(store, short.root), is_afterwards=True)
    assert session.data.train.lengths.mean() < MIN_PACKED_TOKENS
    assert session.forward.can_pack
    assert not session.forward.is_packed
