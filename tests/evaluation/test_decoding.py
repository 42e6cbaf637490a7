"""Draws follow the exact distribution that Transformers' own processors leave, and depend on nothing else."""

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from tuneoff.evaluation.decoding import NEAR_TIE, Chooser, Row, gumbel, warpers
from tuneoff.study.testing import Decoding

VOCABULARY = 40
NUM_DRAWS = 10_000
ROWS = [Row(index % 100, index // 100) for index in range(NUM_DRAWS)]
STRATEGIES = [
    Decoding(temperature=0.7),
    Decoding(temperature=2.5),
    Decoding(top_k=5),
    Decoding(top_p=0.8),
    Decoding(temperature=1.5, top_k=12, top_p=0.9),
    Decoding(top_p=1.0),
]
LOGITS = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(3)) * 1.5


def draw(decoding: Decoding, seed: int = 0, position: int = 0) -> np.ndarray:
    """Return 10,000 draws from the same logits."""
    chosen, _ = Chooser(decoding, seed).choose(LOGITS.expand(NUM_DRAWS, -1), ROWS, position)
    return chosen.numpy()


def exact(decoding: Decoding) -> np.ndarray:
    """Return the probabilities (V,), by the definitions and not by a warper."""
    scores = LOGITS.double().numpy() / decoding.temperature
    order = np.argsort(-scores)
    kept = np.zeros(VOCABULARY, dtype=bool)
    kept[order[: decoding.top_k or VOCABULARY]] = True
    probabilities = np.where(kept, np.exp(scores), 0)
    probabilities /= probabilities.sum()
    if decoding.top_p is not None:
        before = np.cumsum(probabilities[order]) - probabilities[order]
        kept[order[before >= decoding.top_p]] = False  # the smallest set that holds at least top_p
    probabilities = np.where(kept, probabilities, 0)
    return probabilities / probabilities.sum()


@pytest.mark.parametrize(("decoding", "seed"), [*((one, 0) for one in STRATEGIES), (STRATEGIES[0], 2**62 + 5)])
def test_token_frequencies_over_10000_draws(decoding: Decoding, seed: int) -> None:
    wanted = exact(decoding)
    counts = np.bincount(draw(decoding, seed), minlength=VOCABULARY)
    assert counts[wanted == 0].sum() == 0
    expected = wanted * NUM_DRAWS
    large = expected >= 5  # rarer ones together, as the test's approximation asks for
    observed = np.append(counts[large], counts[~large].sum())
    expected = np.append(expected[large], expected[~large].sum())
    if expected[-1] == 0:
        observed, expected = observed[:-1], expected[:-1]
    # 7 tests at explicit seeds: a fair drawer would fall below 1e-4 in any of them once in 1,400 sets of seeds
    assert stats.chisquare(observed, expected).pvalue > 1e-4


def test_the_test_of_frequencies_has_power() -> None:
    """Drawing at temperature 0.75 instead of 0.7 would be found."""
    counts = np.bincount(draw(Decoding(temperature=0.75)), minlength=VOCABULARY)
    expected = exact(Decoding(temperature=0.7)) * NUM_DRAWS
    large = expected >= 5
    found = np.append(counts[large], counts[~large].sum())
    assert stats.chisquare(found, np.append(expected[large], expected[~large].sum())).pvalue < 1e-6


def test_draws_of_neighbours_are_independent() -> None:
    """Of tokens drawn at two positions, prompts, samples or seeds, as many are equal as chance says."""
    decoding = Decoding(temperature=1.5)
    chance = float((exact(decoding) ** 2).sum())
    own = draw(decoding)
    others = {
        "position": draw(decoding, position=1),
        "seed": draw(decoding, seed=1),
        "prompt": own.reshape(100, 100)[:, np.r_[1:100, 0]].ravel(),
        "sample": own.reshape(100, 100)[np.r_[1:100, 0]].ravel(),
    }
    for name, other in others.items():
        assert stats.binomtest(int((own == other).sum()), NUM_DRAWS, chance).pvalue > 1e-4, name


def test_noise_is_a_standard_gumbel() -> None:
    noise = gumbel(7, ROWS[:200], 3, LOGITS.expand(200, -1))
    assert torch.isfinite(noise).all()
    assert stats.kstest(noise.numpy().ravel(), stats.gumbel_r.cdf).pvalue > 1e-3


def test_a_draw_does_not_depend_on_the_batch() -> None:
    chooser = Chooser(Decoding(temperature=1.3), seed=5)
    logits = torch.randn(50, VOCABULARY, generator=torch.Generator().manual_seed(1))
    rows = ROWS[:50]
    together, _ = chooser.choose(logits, rows, 4)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(2))
    shuffled, _ = chooser.choose(logits[order], [rows[index] for index in order], 4)
    assert torch.equal(shuffled, together[order])
    for index in (0, 17, 49):
        assert chooser.choose(logits[index : index + 1], rows[index : index + 1], 4)[0].item() == together[index]


def test_near_ties_are_counted() -> None:
    logits = torch.tensor([[1.0, 0.0, 1.0 - NEAR_TIE / 2], [1.0, 0.0, 1.0 - 2 * NEAR_TIE], [0.0, 0.0, -1.0]])
    chosen, near = Chooser(Decoding(), seed=0).choose(logits, [Row(0, 0)] * 3, 0)
    assert chosen.tolist() == [0, 0, 0]
    assert near.tolist() == [True, False, True]


@pytest.mark.reference
@pytest.mark.parametrize("decoding", STRATEGIES, ids=lambda decoding: decoding.name)
def test_scores_are_cut_as_generate_cuts_them(decoding: Decoding) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=1))
    given = {name: getattr(decoding, name) for name in ("temperature", "top_k", "top_p")}
    config = GenerationConfig(do_sample=True, **(given | {"top_k": decoding.top_k or 0}))
    prepared, _ = model._prepare_generation_config(config)
    wanted = model._get_logits_processor(prepared, input_ids_seq_length=1, device="cpu")
    scores = LOGITS[None].repeat(3, 1) + torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(1))
    ids = torch.zeros(3, 1, dtype=torch.int64)
    assert torch.equal(warpers(decoding)(ids, scores), wanted(ids, scores))
    assert [type(one) for one in warpers(decoding)] == [type(one) for one in wanted]


def written_out(
    decoding: Decoding, seed: int, logits: torch.Tensor, rows: list[Row], positions: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose by the definition: warpers, noise of every token, the largest."""
    scores = warpers(decoding)(torch.empty(0), logits.float()).double()  # type: ignore[arg-type]
    scores += gumbel(seed, rows, positions, logits)
    best = scores.topk(2, dim=-1).values
    return scores.argmax(dim=-1), best[:, 0] - best[:, 1] < NEAR_TIE


@pytest.mark.parametrize("decoding", STRATEGIES, ids=lambda decoding: decoding.name)
@pytest.mark.parametrize("spread", [0.0, 0.5, 2.0, 6.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_not_worked_out_for_all_tokens_is_the_same(
    decoding: Decoding, spread: float, dtype: torch.dtype
) -> None:
    """The likeliest tokens, and the nucleus, are a small part of the vocabulary; in bf16 many scores are equal."""
    num_rows, size = 23, 5_000
    logits = (torch.randn(num_rows, size, generator=torch.Generator().manual_seed(7)) * spread).to(dtype)
    rows = [Row(index // 3, index % 3) for index in range(num_rows)]
    positions = [index % 5 for index in range(num_rows)]
    chosen, near = Chooser(decoding, 9).choose(logits, rows, positions)
    wanted, wanted_near = written_out(decoding, 9, logits, rows, positions)
    assert torch.equal(chosen, wanted)
    assert torch.equal(near, wanted_near)
    if spread == 0 and decoding.top_p is None:
        assert len(set(chosen.tolist())) > num_rows / 2
