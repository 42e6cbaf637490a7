"""What benchmarks work out of what they measure, and hand to their processes."""

import importlib
import pickle
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import scoring
from benchmarks.disturbed import Records, differences, without_clocks
from benchmarks.growth import Figure, exponents
from benchmarks.growth_charts import draw
from benchmarks.growth_data import rows
from benchmarks.measuring import Request, with_case
from benchmarks.speed.cases import CASES, Case, base, block_weights, needed_flop
from benchmarks.switches import SWITCHES, without

from tuneoff.evaluation.likelihood import score_split
from tuneoff.training.runtime import open_runtime


def figures() -> list[Figure]:
    """A quadratic curve, and one that grows in proportion."""
    return [
        Figure("length", value, contender, measure, factor * value**power, value, value, 1)
        for measure in ("seconds a step", "peak memory, MB")
        for contender, factor, power in (("Tuneoff", 0.5, 1), ("Trainer + PEFT", 0.1, 2))
        for value in (64, 128, 512)
    ]


def test_every_benchmark_can_be_imported() -> None:
    """Most take too long for a test, so what they ask of the package is found out by this alone."""
    folder = Path(__file__).parent.parent / "benchmarks"
    names = [".".join(path.relative_to(folder.parent).with_suffix("").parts) for path in folder.rglob("*.py")]
    assert len(names) > 30
    for name in names:
        importlib.import_module(name.removesuffix(".__init__"))


def test_a_power_law_gives_its_exponent() -> None:
    found = exponents(figures())
    assert found["seconds a step", "Tuneoff"] == pytest.approx(1.0, rel=1e-12)
    assert found["peak memory, MB", "Trainer + PEFT"] == pytest.approx(2.0, rel=1e-12)
    assert exponents(figures()[:1]) == {}


def test_a_chart_names_its_curves_and_their_exponents() -> None:
    forms = draw([asdict(one) for one in figures()], "tokens of a sequence", exponents(figures()))
    text = forms["svg"].decode()
    for words in ("Tuneoff", "Trainer + PEFT", "power 1.00", "power 2.00", "tokens of a sequence", "seconds a step"):
        assert words in text
    assert len(text) < 60_000
    assert forms["png"].startswith(b"\x89PNG")


def test_a_request_comes_to_its_process_as_it_was() -> None:
    request = Request(CASES["text-lora"], off=("head", "packing"), micro_batch=3, device="cuda")
    request = with_case(request, targets=("q_proj", "v_proj"), max_length=77)
    assert request.case.max_length == 77
    assert pickle.loads(pickle.dumps(request)) == request


def test_the_blocks_matrices_are_counted_whatever_they_are_called() -> None:
    gpt2 = base(CASES["text-full"], "tiny-gpt2", torch.float32)
    assert block_weights(gpt2) == 2 * 12 * 64 * 64  # attention 4 d^2, MLP 8 d^2
    llama = base(Case("any", 64, 2, 0, True, 0.0), "tiny-llama", torch.float32)
    assert block_weights(llama) == 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    assert needed_flop(CASES["text-full"], 10, 7, 3, 2) == 3 * 2 * (10 * 3 + 7 * 2)
    assert needed_flop(CASES["text-lora"], 10, 7, 3, 2) == 2 * 2 * (10 * 3 + 7 * 2)


def test_rows_are_no_two_alike() -> None:
    made = rows(3000)
    assert len({row["instruction"] for row in made}) == len(made) == 3000


@pytest.mark.parametrize("name", SWITCHES)
def test_a_switch_puts_everything_back(name: str) -> None:
    from tuneoff.training import activations, masks, products, steps

    def held() -> list[object]:
        forward = steps.Forward
        names = (forward.check, forward.check_packing, forward._plain_head, masks.Masks.drawn, torch.optim.AdamW)
        return [*names, masks.drop, masks.attend_packed, activations.fuse_activations, products.has_bf16_products]

    before = held()
    with without(name):
        assert held() != before
    assert held() == before


@pytest.mark.parametrize("case", scoring.KINDS)
def test_scoring_and_padded_batches_of_transformers_come_to_one_loss(case: str) -> None:
    """In fp32: products of 64 and sums of some hundred terms lose less than 1e-6 of themselves."""
    cpu = torch.device("cpu")
    split = scoring.drawn_split(case, 9)
    runtime = open_runtime("fp32")
    model = scoring.base(case, "tiny-gpt2", torch.float32, cpu)
    usual = [scoring.score_padded(model, split, size, cpu) for size in (4, 9)]
    forward = scoring.prepared_forward(model, split, runtime)
    assert forward.can_pack
    found = score_split(model, forward, split, runtime, scoring.PAD).likelihood
    assert found.num_target_tokens == split.num_target_tokens
    assert usual == pytest.approx([found.loss_nats] * 2, rel=1e-6)


def test_drawn_lengths_are_those_of_the_data() -> None:
    replies, sentences = (scoring.drawn_split(case, 4000) for case in scoring.KINDS)
    assert np.median(replies.targets_by_sequence) == pytest.approx(237, rel=0.05)  # the median reply of OASST1
    assert np.median(sentences.lengths) == pytest.approx(22, abs=1)
    assert sentences.num_target_tokens == len(sentences) == 4000
    assert max(replies.lengths) <= 1024


def test_a_record_that_is_written_again_or_lost_is_found(tmp_path: Path) -> None:
    paths = [tmp_path / "runs" / "study" / run / "record.json" for run in ("one", "two", "three")]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_text("made at 9")
    records = Records(tmp_path)
    records.look()
    records.look()
    assert not records.rewritten | records.lost
    paths[0].write_text("made at 10")
    paths[1].unlink()
    records.look()
    assert (records.rewritten, records.lost) == ({paths[0]}, {paths[1]})


def test_a_report_without_clocks_still_tells_losses_and_sizes_apart() -> None:
    def told(seconds: float) -> list[str]:
        return [f"On the frontier: {seconds}", f"A cohort of 2 runs (a, b) took {seconds} s of training."]

    def report(loss: float, seconds: float, num_bytes: int) -> object:
        arm = {"loss": loss, "step_s": seconds, "weights_bytes": num_bytes, "costs": {"train": seconds}}
        frontiers = [{"cost": "time", "arms": [seconds]}, {"cost": "disk", "arms": ["full"]}]
        return without_clocks({"arms": [arm], "frontiers": frontiers, "sentences": told(seconds)})

    assert report(1.0, 2.0, 3) == report(1.0, 9.0, 3)
    assert report(1.0, 2.0, 3) != report(1.1, 2.0, 3)
    assert report(1.0, 2.0, 3) != report(1.0, 2.0, 4)
    assert differences({"a": 1, "b": 2}, {"a": 1, "c": 2}) == ["b", "c"]
