"""The same question has the same name, whatever the order or spelling in the file; another question has another."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tuneoff.study.expand import chosen_run_ids, chosen_runs, trials
from tuneoff.study.identity import canonical_json, digest, make_run, run_ids
from tuneoff.study.loading import load_study, study_from
from tuneoff.study.spec import Study
from tuneoff.study.streams import DROPOUT, GENERATION, INIT, ORDER, stream_seed
from tuneoff.study.value import plain

PINNED = """
name: pinned
model: base
task: {kind: instruction, data: rows.jsonl, max_length: 64}
budget: {steps: 100, batch_size: 8}
arms:
  lora: {method: lora, rank: 4, alpha: 16, targets: [c_attn], lr: 1e-4}
"""
OTHER_SPELLING = """
arms: {lora: {lr: 0.0001, targets: [c_attn], alpha: 16.0, method: lora, rank: 4}}
budget:
  batch_size: 8
  steps: 1_00
task:
  max_length: 64
  data: 'rows.jsonl'
  kind: instruction
model: base
name: pinned
"""
STREAM_SEEDS = [1519069808562059438, 7159696962517958688, 7938499265082287326, 6956054376904269812]
"""Of seed 0: init, data order, dropout, generation."""
RUN_ID = "71e0ca0c8a54c153"
"""If this moves, finished runs of every user are trained again; say so under Numerics in the changelog."""

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def load(folder: Path, text: str, *overrides: str) -> Study:
    path = folder / "study.yaml"
    path.write_text(text, encoding="utf-8")
    return load_study(path, overrides)


def first_id(study: Study) -> str:
    return trials(study, study.arms[0])[0].run_id


def test_a_run_keeps_its_name(tmp_path: Path) -> None:
    assert first_id(load(tmp_path, PINNED)) == RUN_ID


def test_order_and_spelling_do_not_matter(tmp_path: Path) -> None:
    assert first_id(load(tmp_path, OTHER_SPELLING)) == RUN_ID


@pytest.mark.parametrize(
    "override",
    ["name=other", "about=words", "seeds=[0, 5]", "checkpoint.every=7", "arms.new={method: none}", "keep=none"],
)
def test_what_does_not_touch_a_result_does_not_rename_it(tmp_path: Path, override: str) -> None:
    assert first_id(load(tmp_path, PINNED, override)) == RUN_ID


@pytest.mark.parametrize(
    "override",
    [
        "model=other",
        "revision=abc",
        "task.data=other.jsonl",
        "task.max_length=65",
        "task.limit=10",
        "budget.steps=101",
        "budget.batch_size=4",
        "precision=bf16",
        "seeds=[1]",
        "optimizer.clip=null",
        "evaluate.every=3",
        "keep=last",
        "micro_batch=2",
        "arms.lora.rank=5",
        "arms.lora.lr=2e-4",
    ],
)
def test_what_moves_a_result_renames_it(tmp_path: Path, override: str) -> None:
    assert first_id(load(tmp_path, PINNED, override)) != RUN_ID


def test_where_the_file_lies_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "deeper").mkdir()
    assert first_id(load(tmp_path / "deeper", PINNED)) == RUN_ID


def test_the_seed_of_an_untrained_arm_is_no_part_of_it() -> None:
    body: dict[str, Any] = {"name": "s", "model": "m", "task": {"kind": "text", "data": "d"}, "budget": {"steps": 1}}
    arms = {"zero": {"method": "none"}}
    one, two = (study_from(body | {"arms": arms, "seeds": seeds}, Path()) for seeds in ([0], [9, 4]))
    assert first_id(one) == first_id(two)


def test_canonical_json() -> None:
    assert canonical_json({"b": 1e-4, "a": [1, "ä", None, True]}) == '{"a":[1,"ä",null,true],"b":0.0001}'
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


@given(st.dictionaries(st.text(), JSON))
def test_the_order_of_keys_does_not_matter(value: dict[str, Any]) -> None:
    assert digest(value) == digest(dict(reversed(value.items())))


def test_a_run_comes_back_from_its_json(tmp_path: Path) -> None:
    study = load(tmp_path, PINNED)
    run = make_run(study, study.arms[0], 1e-4, 3)
    assert type(run).model_validate(plain(run)) == run
    assert type(run).model_validate_json(run.model_dump_json()).run_id == run.run_id


def test_streams_are_pinned_and_apart() -> None:
    streams = (INIT, ORDER, DROPOUT, GENERATION)
    seeds = {stream_seed(seed, stream) for seed in range(100) for stream in streams}
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert [stream_seed(0, stream) for stream in streams] == STREAM_SEEDS


def test_runs_named_together_have_the_names_that_each_has() -> None:
    arms = {
        "base": {"method": "none"},
        "lora": {"method": "lora", "rank": 4, "targets": ["c_attn"], "tune": {"lr": [1e-4, 3e-4, 1]}},
        "short": {"method": "full", "lr": 1e-5, "override": {"budget": {"steps": 7}}, "assumed": ["lr"]},
    }
    study = study_from(yaml.safe_load(PINNED) | {"arms": arms, "seeds": [3, 1, 4]}, Path())
    for arm in study.arms:
        tried = [(lr, study.seeds[0]) for lr in arm.lr] or [(None, None)]
        assert list(run_ids(study, arm, tried)) == [run.run_id for run in trials(study, arm)]
        lr = arm.lr[-1] if arm.lr else None
        assert list(chosen_run_ids(study, arm, lr)) == [run.run_id for run in chosen_runs(study, arm, lr)]
        assert run_ids(study, arm, []) == ()
