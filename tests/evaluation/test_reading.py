"""What prompts begin with is read once, and what is read in pieces is what a prompt alone gives."""

import inspect
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.methods.models import VOCABULARY, make_model

from tuneoff.evaluation.cached_forward import CachedForward
from tuneoff.evaluation.reading import MIN_SHARED_TOKENS, READ_TOKENS, batches, read
from tuneoff.methods.soft_prompt import PrefixTuning, PromptTuning

PARAGRAPHS = st.lists(st.lists(st.integers(3, 6), min_size=1, max_size=40), min_size=1, max_size=5)
QUESTIONS = st.lists(st.tuples(st.integers(0, 4), st.lists(st.integers(3, 6), max_size=6)), max_size=20)


@given(PARAGRAPHS, QUESTIONS, st.integers(1, 9))
def test_every_prompt_is_read_once_behind_what_it_begins_with(
    paragraphs: list[list[int]], questions: list[tuple[int, list[int]]], max_rows: int
) -> None:
    prompts = [paragraphs[place % len(paragraphs)] + question for place, question in questions]
    found = list(batches(prompts, max_rows))
    groups = [group for batch in found for group in batch]
    assert sorted(index for group in groups for index in group.prompts) == list(range(len(prompts)))
    for batch in found:
        assert sum(len(group.prompts) for group in batch) <= max_rows
        assert len({group.shared > 0 for group in batch}) == 1
    for group in groups:
        own = [prompts[index] for index in group.prompts]
        assert {tuple(prompt[: group.shared]) for prompt in own} == {tuple(own[0][: group.shared])}
        assert group.shared < min(map(len, own))
        assert group.shared >= MIN_SHARED_TOKENS if len(own) > 1 else group.shared == 0


def test_questions_about_a_paragraph_are_read_behind_it() -> None:
    first, second, alone = [3] * 40, [3] * 18 + [4] * 22, [5] * 60
    prompts = [[*first, 6], [*second, 6], [*first, 7, 8], alone, [*second, 7], [*first, 9]]
    paragraphs, rest = batches(prompts, 16)
    assert [(group.shared, group.prompts) for group in paragraphs] == [(40, (0, 2, 5)), (40, (1, 4))]
    assert [(group.shared, group.prompts) for group in rest] == [(0, (3,))]


def test_little_is_read_ahead() -> None:
    prompts = [[index + 3] * 300 for index in range(20)]
    assert [len(batch) for batch in batches(prompts, 64)] == [-(-READ_TOKENS // 300)] * 5


@pytest.mark.parametrize("name", ["gpt2", "llama-untied", "gpt-neox"])
@pytest.mark.parametrize("tuning", [None, PromptTuning(3), PrefixTuning(3)], ids=["base", "prompt", "prefix"])
def test_logits_are_those_of_each_prompt_alone(name: str, tuning: Any) -> None:
    model = make_model(name).double()
    if tuning is not None:
        tuning.adapt(model, torch.Generator().manual_seed(5))
        model.double().eval()
    draw = torch.Generator().manual_seed(1)
    texts = [torch.randint(3, VOCABULARY, (length,), generator=draw).tolist() for length in (20, 17, 9, 2, 30, 1)]
    prompts = [texts[0] + texts[2], texts[0] + texts[3], texts[1] + texts[2], texts[1] + texts[5], texts[4], texts[2]]
    calls: list[int] = []
    forward = model.forward

    def spy(*args: Any, **options: Any) -> Any:
        calls.append(options["input_ids"].numel())
        return forward(*args, **options)

    spy.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    model.forward = spy  # type: ignore[method-assign]
    seen = set()
    with torch.no_grad():
        for batch in batches(prompts, 16):
            found, logits = read(CachedForward(model, 0), prompts, batch)
            for own, one in zip(found, logits, strict=True):
                wanted = forward(input_ids=torch.tensor([prompts[own.prompt]])).logits[0, -1]
                # float64: sums of at most 100 terms in another order
                torch.testing.assert_close(one, wanted, rtol=1e-10, atol=1e-10)
                assert own.length == len(prompts[own.prompt]) + (3 if tuning is not None else 0)
                seen.add(own.prompt)
    assert seen == set(range(len(prompts)))
    # two paragraphs of 20 and 17, four questions padded to 9, two prompts alone padded to 30
    assert calls == [2 * 20, 4 * 9, 2 * 30]
