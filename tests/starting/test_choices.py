"""What a first study asks for, by the numbers of its data; and YAML that reads back as it was meant."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneoff.data.lengths import Lengths, SplitLengths
from tuneoff.data.survey import SplitCount, Survey
from tuneoff.starting.choices import (
    PROMPT_TOKENS,
    choose_budget,
    choose_length,
    choose_ranks,
    choose_rates,
    choose_shares,
    num_sequences,
)
from tuneoff.starting.lines import WIDTH, Lines, flow
from tuneoff.study.spec import BudgetSpec, SplitsSpec, TaskSpec
from tuneoff.study.yaml_text import parse_yaml


def lengths(median: int = 40, p95: int = 90, p99: int = 100, longest: int = 300, total: int = 40_000) -> SplitLengths:
    found = Lengths(median=median, p95=p95, p99=p99, longest=longest, total=total, num_measured=1000)
    return SplitLengths(whole=found, needed=found, targets=found)


def survey(kind: Any = "classification", units: int = 1000, sources: dict[str, str] | None = None) -> Survey:
    counts = SplitCount(
        source="rows", num_rows=units, num_examples=units, num_units=units, num_chars=units * 100, num_copies=0
    )
    return Survey(
        data="rows", format="CSV", kind=kind, columns={}, present=(), reasons=(), splits={"train": counts},
        split_sources=sources or {},
    )  # fmt: skip


@given(st.integers(1, 5000), st.none() | st.integers(64, 4096), st.integers(0, 30))
def test_a_length_covers_99_percent_where_the_model_sees_so_much(p99: int, context: int | None, extra: int) -> None:
    found = choose_length("qa", lengths(p99=p99), context, has_gpu=False, num_extra=extra).value
    assert TaskSpec(kind="qa", data="x", max_length=found)
    if context is None or p99 + extra + 16 + PROMPT_TOKENS <= context:
        assert p99 + extra <= found <= max(32, p99 + extra + 15)
    else:
        assert found + PROMPT_TOKENS <= context


def test_a_long_tail_is_said() -> None:
    assert "112 would keep 95 % whole" in choose_length("qa", lengths(p95=100, p99=400), None, has_gpu=False).reason
    assert "would keep" not in choose_length("qa", lengths(), None, has_gpu=False).reason


@pytest.mark.parametrize(("has_gpu", "context", "value"), [(True, None, 1024), (False, None, 512), (False, 256, 232)])
def test_windows_of_text(has_gpu: bool, context: int | None, value: int) -> None:
    assert choose_length("text", lengths(longest=99_999), context, has_gpu=has_gpu).value == value


@given(st.integers(1, 10**7), st.booleans(), st.sampled_from(["text", "qa"]))
def test_a_budget_is_one_and_is_bounded(number: int, has_gpu: bool, kind: Any) -> None:
    steps, batch = choose_budget(kind, number, has_gpu=has_gpu).value
    assert BudgetSpec(steps=steps, batch_size=batch)
    assert 20 <= steps <= (3000 if has_gpu else 600)
    assert batch == (8 if number < 320 else 16)


@given(st.integers(2, 10**6), st.integers(1, 10**6), st.booleans())
def test_shares_are_shares(units: int, number: int, has_gpu: bool) -> None:
    found = choose_shares(survey(units=units), number, has_gpu=has_gpu).value
    splits = SplitsSpec.model_validate(found)
    assert 0 < float(splits.validation) <= 0.1
    assert splits.validation == splits.test


def test_official_splits_are_taken_whole() -> None:
    found = choose_shares(survey(units=100_000, sources={"test": "dev.tsv"}), 100_000, has_gpu=False)
    assert found.value == {"validation": 0.005, "test": "dev.tsv"}
    assert "test is dev.tsv, whole; validation is cut from train: about 500 of 100,000 texts" in found.reason
    few = choose_shares(survey("qa", units=50), 100_000, has_gpu=False).value
    assert few["validation"] == 0.1  # five articles, and not a quarter of one


def test_windows_are_counted() -> None:
    assert num_sequences(survey("text", units=10), lengths(total=5110), 512) == 15
    assert num_sequences(survey(units=77), lengths(), 512) == 77


@pytest.mark.parametrize(
    ("width", "kind", "power", "full"),
    [
        (4096, "llama", 0.781, 3e-5),
        (2048, "llama", 0.781, 5e-5),
        (768, "gpt2", 0.781, 1e-4),
        (4096, "qwen3", 0.0775, 5e-5),
    ],
)
def test_rates_follow_the_rule(width: int, kind: str, power: float, full: float) -> None:
    """5e-5 (2000 / width)^0.781, for Qwen ^0.0775, and ten times that for LoRA, to one digit."""
    found, short = choose_rates(width, kind, 1000), choose_rates(width, kind, 99)
    exact = 5e-5 * (2000 / width) ** power
    assert found["full"].value[1] == short["full"].value[1] == full
    assert found["lora"].value[1] == float(f"{10 * exact:.0e}")
    assert short["lora"].value[1] == float(f"{15 * exact:.0e}")
    assert "15 times" in short["lora"].reason
    assert found["bottleneck"].value == found["lora"].value
    assert found["prompt"].value == (1e-2, 1e-1, 3e-1)
    for choice in found.values():
        low, middle, high = choice.value
        assert low < middle < high


def test_the_rule_ends_where_models_are_narrow() -> None:
    found = choose_rates(64, "llama", 60)
    assert found["lora"].value[1] == 5e-3
    assert "15 times those of full is the rule" in found["lora"].reason


def test_ranks_fit_the_layers() -> None:
    assert choose_ranks(1000, [768, 64]).value == (8, 32)
    assert choose_ranks(10**7, [768]).value == (16, 64)
    assert choose_ranks(1000, [16]).value == (8, 16)
    assert choose_ranks(1000, [4]).value == (4,)


TEXT = st.text() | st.sampled_from(
    ["1e-4", "yes", "null", "~", "0", "a: b", "# c", "\u2028", "\U0001f600", "- x", "{a}"]
)
VALUES = st.recursive(
    st.booleans() | st.none() | st.integers(-(10**6), 10**6) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_flow_reads_back(value: Any) -> None:
    text = flow(value)
    assert "\n" not in text
    found = parse_yaml(f"key: {text}", "study.yaml")["key"]
    assert found == value


@pytest.mark.parametrize(("value", "text"), [(3e-4, "3e-4"), (0.1, "0.1"), (1.0, "1"), (2.5e-5, "2.5e-5")])
def test_numbers_as_people_write_them(value: float, text: str) -> None:
    assert flow(value) == text


@given(st.text(), st.text(alphabet=st.characters(codec="utf-8")))
def test_comments_are_comments(reason: str, more: str) -> None:
    lines = Lines()
    lines.say(more, bullet="- ")
    lines.key("key: 1", reason)
    lines.key("other: 2", more, is_off=True)
    assert parse_yaml(lines.text(), "study.yaml") == {"key": 1}


def test_reasons_stand_behind_or_above() -> None:
    lines = Lines()
    lines.key("a: 1", "short")
    lines.key("b: 2", "long " * 40)
    text = lines.text().splitlines()
    assert text[0] == "a: 1" + " " * 42 + "# short"
    assert text[-1] == "b: 2"
    assert all(line.startswith("# long") and len(line) <= WIDTH for line in text[1:-1])
