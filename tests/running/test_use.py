"""What a finished run is good for: PEFT and Transformers load it, `generate` tries it, `method: load` scores it."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.running.world import study_of
from transformers import AutoModelForCausalLM, PreTrainedModel

from tuneoff import api
from tuneoff.analysis.selection import choose_rate
from tuneoff.errors import DataError, StoreError, StudyError, TuneoffError
from tuneoff.running.session import Place, open_weights
from tuneoff.running.store import ADAPTER_WEIGHTS
from tuneoff.running.use import compare_on_prompt, export_run, find
from tuneoff.study.records import Record

pytestmark = pytest.mark.slow

IDS = torch.arange(3, 43).reshape(4, 10)


def find_tested(result: api.Result, method: str) -> Record:
    """Return the record of a tested run of a method, of the highest rank."""
    records, tests = result.records()
    found = [record for run_id, record in records.items() if record.run.method.method == method and run_id in tests]
    return max(found, key=lambda record: getattr(record.run.method, "rank", 0))


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


def own_logits(result: api.Result, record: Record) -> torch.Tensor:
    return logits(open_weights(record.run, Place(result.store, result.study.root), 0).module)


def base_of(result: api.Result) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(result.study.root / "base")
    return model


def out_of(result: api.Result) -> Path:
    return result.store.folder.parent


# PEFT asks Transformers under the old name.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_loads_an_export_with_equal_logits(finished: api.Result, tmp_path: Path) -> None:
    record = find_tested(finished, "lora")
    said = export_run(out_of(finished), record.run_id, tmp_path / "adapter")
    assert "PeftModel.from_pretrained" in said
    assert said.endswith("prompts that are written so: 'INSTRUCTION:'")  # the study's own template
    peft = PeftModel.from_pretrained(base_of(finished), tmp_path / "adapter")
    found = logits(peft)
    # PEFT adds the same products in the same order; a bound for another matrix library.
    torch.testing.assert_close(found, own_logits(finished, record), rtol=0, atol=1e-6)
    assert not torch.equal(found, logits(base_of(finished)))


def test_transformers_loads_a_merged_export(finished: api.Result, tmp_path: Path) -> None:
    record = find_tested(finished, "lora")
    export_run(out_of(finished), f"three/{record.run_id[:10]}", tmp_path / "model", merge=True)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(logits(merged), own_logits(finished, record), rtol=0, atol=1e-5)
    assert (tmp_path / "model" / "tokenizer.json").exists()


def test_a_full_run_is_exported_as_a_model(finished: api.Result, tmp_path: Path) -> None:
    record = find_tested(finished, "full")
    export_run(out_of(finished), record.run_id, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    # Transformers writes GELU out in several steps, which round otherwise
    assert torch.allclose(logits(model), own_logits(finished, record), atol=1e-6)


def test_an_export_scores_as_the_run_it_came_from(finished: api.Result, tmp_path: Path) -> None:
    adapter, full = find_tested(finished, "lora"), find_tested(finished, "full")
    export_run(out_of(finished), adapter.run_id, tmp_path / "adapter")
    export_run(out_of(finished), full.run_id, tmp_path / "model")
    arms = {name: {"method": "load", "path": str(tmp_path / name)} for name in ("adapter", "model")}
    result = api.run(study_of(finished.study.root, "loaded", arms), tmp_path / "runs", num_jobs=2)
    tests = finished.records()[1]
    for arm, record in zip(result.summary().arms, (adapter, full), strict=True):
        (run_id,) = arm.run_ids
        found, wanted = result.records()[1][run_id].test, tests[record.run_id].test
        assert found.nll_nats == pytest.approx(wanted.nll_nats, rel=1e-6)
        assert found.num_target_tokens == wanted.num_target_tokens


@pytest.mark.parametrize("method", ["none", "lora", "full"])
def test_generate(finished: api.Result, method: str) -> None:
    record = find_tested(finished, method)
    found = dict(compare_on_prompt(out_of(finished), record.run_id, "Say 3", 5))
    assert list(found) == ["base", f"run {record.run_id}"]
    assert all(isinstance(text, str) for text in found.values())
    if method == "none":
        assert len(set(found.values())) == 1


def test_generate_with_other_strategies(finished: api.Result) -> None:
    record = find_tested(finished, "lora")

    def texts(**options: float) -> dict[str, str]:
        decoding = api.decoding(**options)
        return dict(compare_on_prompt(out_of(finished), record.run_id, "Say 3", 12, decoding))

    drawn = texts(temperature=3.0)
    assert drawn == texts(temperature=3.0)  # from the run's own stream
    assert drawn != texts() == dict(compare_on_prompt(out_of(finished), record.run_id, "Say 3", 12))
    assert all(isinstance(text, str) for text in texts(beams=3).values())
    with pytest.raises(StudyError, match="beams draws nothing, so it does not go with temperature"):
        texts(beams=3, temperature=0.7)
    with pytest.raises(StudyError, match=r"top_p: Input should be less than or equal to 1; found 1\.5"):
        texts(top_p=1.5)


def test_generate_stops_where_the_context_does(finished: api.Result) -> None:
    record = find_tested(finished, "lora")
    found = dict(compare_on_prompt(out_of(finished), record.run_id, "Say 3", 500))
    assert all(len(text) <= 96 for text in found.values())


def test_generate_refuses_a_prompt_that_does_not_fit(finished: api.Result) -> None:
    record = find_tested(finished, "lora")
    with pytest.raises(DataError, match=r"the prompt has \d+ tokens; the base sees 96"):
        list(compare_on_prompt(out_of(finished), record.run_id, "x" * 500, 5))


@pytest.mark.parametrize("make", [lambda path: (path.mkdir(), (path / "mine").touch()), lambda path: path.touch()])
def test_an_export_does_not_write_over_anything(finished: api.Result, tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "there")
    record = find_tested(finished, "lora")
    with pytest.raises(StoreError, match=r"is there already and (is a file|not empty); name another folder"):
        export_run(out_of(finished), record.run_id, tmp_path / "there")


@pytest.mark.parametrize("merge", [False, True])
def test_an_export_to_where_nothing_can_be(finished: api.Result, tmp_path: Path, merge: bool) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        export_run(out_of(finished), find_tested(finished, "lora").run_id, tmp_path / "file" / "x", merge=merge)


def test_finding_a_run(finished: api.Result) -> None:
    record = find_tested(finished, "lora")
    out = out_of(finished)
    for name in (record.run_id, record.run_id[:12], f"three/{record.run_id}", f"three/{record.run_id[:12]}"):
        assert find(out, name)[1] == record
    with pytest.raises(StoreError, match=r"10 runs are called 'three/' under"):
        find(out, "three/")
    with pytest.raises(StoreError, match="no run is called 'zzz'"):
        find(out, "zzz")


def test_finding_a_run_by_its_arm(finished: api.Result) -> None:
    records, tests = finished.records()
    for name in ("three/lora-rank4", "lora-rank4"):
        record = find(out_of(finished), name)[1]
        assert record.run.seed == 0
        assert record.run_id in tests
        assert record.run.lr == choose_rate(finished.study, finished.study.arm("lora-rank4"), records)


def test_an_arm_without_a_chosen_rate(finished: api.Result, tmp_path: Path) -> None:
    out = tmp_path / "runs"
    api.run(finished.study, out, only=["zero-shot"])
    with pytest.raises(StoreError, match=r"is not done\. `tuneoff run` finishes it"):
        find(out, "three/lora-rank4")


def test_a_run_whose_weights_are_gone(finished: api.Result, tmp_path: Path) -> None:
    records, tests = finished.records()
    (pruned,) = (run_id for run_id in set(records) - set(tests) if records[run_id].run.method.method == "full")
    with pytest.raises(TuneoffError, match=f"run {pruned}: its weights are gone"):
        export_run(out_of(finished), pruned, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_untrained_runs_have_no_adapter(finished: api.Result, tmp_path: Path) -> None:
    record = find_tested(finished, "none")
    with pytest.raises(TuneoffError, match=r"nothing to (merge|export)"):
        export_run(out_of(finished), record.run_id, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert not (finished.store.run_folder(record.run_id) / ADAPTER_WEIGHTS).exists()
