"""Perplexity: the same at any batch size, and that of a float64 loop that shares no code."""

import math

import numpy as np
import pytest
import torch
from tests.methods.models import VOCABULARY, make_model
from tests.training.helpers import PAD, make_split, runtime

from tuneoff.data.prepare import TokenSplit
from tuneoff.evaluation.likelihood import score_split
from tuneoff.study.records import Likelihood
from tuneoff.training.products import own_bf16_products
from tuneoff.training.steps import Forward

ARCHITECTURES = ("gpt2", "llama-tied")


def _by_hand(architecture: str, split: TokenSplit) -> list[tuple[float, int]]:
    """Return (sum of NLL, number of targets) of each sequence: one at a time, float64, one token after another."""
    model = make_model(architecture).double()
    found = []
    for index in range(len(split)):
        start, end = split.offsets[index], split.offsets[index + 1]
        ids = torch.tensor(split.input_ids[start:end].astype(np.int64))
        with torch.no_grad():
            probabilities = model(input_ids=ids[None]).logits[0].softmax(dim=-1)
        nll, count = 0.0, 0
        for position in range(1, len(ids)):
            if split.targets[start + position]:
                nll -= math.log(probabilities[position - 1, ids[position]])
                count += 1
        found.append((nll, count))
    return found


def _score(architecture: str, split: TokenSplit, batch_size: int | None = None) -> Likelihood:
    model = make_model(architecture)
    return score_split(model, Forward(model), split, runtime(), PAD, batch_size=batch_size).likelihood


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_perplexity_is_that_of_a_float64_loop_at_any_batch_size(architecture: str) -> None:
    split = make_split(num_sequences=70)
    parts = _by_hand(architecture, split)
    nll, count = sum(n for n, _ in parts), sum(c for _, c in parts)
    mean_sequence = math.exp(sum(n / c for n, c in parts) / len(parts))
    for batch_size in (1, 7, 64, None):
        found = _score(architecture, split, batch_size)
        assert found.num_target_tokens == count
        assert found.num_sequences == 70
        assert found.perplexity == pytest.approx(math.exp(nll / count), rel=1e-6)
        assert found.mean_sequence_perplexity == pytest.approx(mean_sequence, rel=1e-6)
        assert found.bits_per_byte == pytest.approx(nll / math.log(2) / split.target_bytes.sum(), rel=1e-6)
        assert found.mean_sequence_perplexity != pytest.approx(found.perplexity, rel=1e-4)


def test_casts_that_go_with_their_products_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, split = make_model("gpt2"), make_split(num_sequences=9)
    model.requires_grad_(True)  # autocast keeps the casts of those alone that are trained
    own, kept = runtime("bf16"), []
    with own_bf16_products():
        found = score_split(model, Forward(model), split, own, PAD)
        usual = type(own).autocast
        monkeypatch.setattr(type(own), "autocast", lambda self, keeps_casts: kept.append(keeps_casts) or usual(self))
        again = score_split(model, Forward(model), split, own, PAD)
    assert set(kept) == {False}
    assert np.array_equal(found.nll_nats, again.nll_nats)


def test_each_sequences_own_nll_is_kept() -> None:
    split = make_split(num_sequences=9)
    model = make_model("gpt2")
    scores = score_split(model, Forward(model), split, runtime(), PAD, batch_size=4)
    assert scores.nll_nats == pytest.approx([nll for nll, _ in _by_hand("gpt2", split)], rel=1e-5)


def test_a_model_that_scales_its_logits_goes_through_its_own_forward() -> None:
    model = make_model("gpt2")
    own = model.forward

    def scaled(*args: object, **kwargs: object) -> object:
        out = own(*args, **kwargs)
        out.logits = out.logits * 0.5
        return out

    plain = Forward(model)
    assert plain.check(torch.tensor([[3, 4, 5]]))
    model.forward = scaled
    forward = Forward(model)
    assert not forward.check(torch.tensor([[3, 4, 5]]))
    split = make_split(num_sequences=5)
    halved = score_split(model, forward, split, runtime(), PAD).likelihood.loss_nats
    assert halved != pytest.approx(score_split(model, plain, split, runtime(), PAD).likelihood.loss_nats, rel=1e-3)


def test_worse_than_uniform_is_flagged() -> None:
    base = _score("gpt2", make_split())
    assert base.vocabulary_size == VOCABULARY
    worse = base.model_copy(update={"nll_nats": base.num_target_tokens * (math.log(VOCABULARY) + 0.1)})
    assert worse.is_worse_than_uniform
    assert not base.model_copy(update={"nll_nats": base.num_target_tokens * 0.5}).is_worse_than_uniform


def test_a_likelihood_survives_json_and_its_derived_numbers_are_worked_out_anew() -> None:
    found = _score("gpt2", make_split())
    body = found.model_dump(mode="json")
    assert body["perplexity"] == found.perplexity
    assert Likelihood.model_validate(body | {"perplexity": 1.0}) == found
