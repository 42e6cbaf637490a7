"""From the file's arms to arms, trials and runs."""

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneoff.errors import StudyError
from tuneoff.study.expand import chosen_runs, expand_arms, num_runs, trials
from tuneoff.study.loading import study_from
from tuneoff.study.methods import DEFAULT_RATES, LoraMethod
from tuneoff.study.spec import Study


def study(arms: Any, **changes: Any) -> Study:
    body = {"name": "s", "model": "m", "task": {"kind": "text", "data": "d.txt"}, "budget": {"steps": 4}, "arms": arms}
    return study_from(body | changes, Path("/somewhere"))


def names(arms: Any) -> list[str]:
    return [arm["name"] for arm in expand_arms(arms)]


def test_a_list_is_one_arm_each() -> None:
    assert names({"lora": {"method": "lora", "rank": [2, 8]}}) == ["lora-rank2", "lora-rank8"]


def test_two_lists_are_crossed() -> None:
    found = names({"lora": {"method": "lora", "rank": [2, 8], "dropout": [0.0, 0.1]}})
    assert found == ["lora-rank2-dropout0.0", "lora-rank2-dropout0.1", "lora-rank8-dropout0.0", "lora-rank8-dropout0.1"]


def test_a_name_too_long_ends_in_what_tells_the_cell_apart() -> None:
    targets = [["c_attn", f"h.{layer}.attn.c_proj", "mlp.c_fc", "mlp.c_proj"] for layer in (1, 2)]
    long = {
        "method": "lora",
        "rank": [8],
        "alpha": [0.123456789012345],
        "dropout": [0.1234567890123],
        "targets": targets,
    }
    found = study({"lora": long}).arms
    assert len({arm.name for arm in found}) == 2
    assert all(arm.name.startswith("lora-rank8-alpha0.1234") and len(arm.name) == 100 for arm in found)
    assert [arm.name for arm in found] == names({"lora": long})


GRIDS: dict[str, Any] = {
    "rank": st.integers(1, 64),
    "alpha": st.floats(0.5, 64.0),
    "dropout": st.floats(0.0, 0.9),
    "rslora": st.booleans(),
    "targets": st.lists(st.sampled_from(["c_attn", "c_fc", "mlp.c_proj"]), min_size=1, max_size=3, unique=True),
}


@given(
    st.fixed_dictionaries({}, optional={key: st.lists(own, min_size=1, max_size=3) for key, own in GRIDS.items()}),
    st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=4, unique=True),
    st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True),
)
def test_a_grid_is_the_product_of_its_lists(lists: dict[str, Any], rates: list[float], seeds: list[int]) -> None:
    """In the file's order, each cell once by name and by its runs; trials are one seed's, chosen runs one rate's."""
    distinct = {
        key: [own for place, own in enumerate(values) if own not in values[:place]] for key, values in lists.items()
    }
    found = study({"lora": {"method": "lora", **distinct, "tune": {"lr": rates}}}, seeds=seeds)
    cells = [dict(zip(distinct, own, strict=True)) for own in itertools.product(*distinct.values())]
    assert len(found.arms) == len(cells)
    assert len({arm.name for arm in found.arms}) == len(cells)
    for arm, cell in zip(found.arms, cells, strict=True):
        assert isinstance(arm.method, LoraMethod)
        assert {key: getattr(arm.method, key) for key in cell} == {
            key: tuple(own) if isinstance(own, list) else own for key, own in cell.items()
        }
        assert [(run.lr, run.seed) for run in trials(found, arm)] == [(lr, seeds[0]) for lr in sorted(rates)]
        assert [(run.lr, run.seed) for run in chosen_runs(found, arm, rates[0])] == [(rates[0], s) for s in seeds]
        assert num_runs(found, arm) == len(
            {run.run_id for run in (*trials(found, arm), *chosen_runs(found, arm, rates[0]))}
        )
    ids = {run.run_id for arm in found.arms for run in trials(found, arm)}
    assert len(ids) == len(cells) * len(rates)


def test_a_list_where_a_list_belongs_is_one_arm() -> None:
    (arm,) = study({"lora": {"method": "lora", "targets": ["c_attn", "mlp.c_proj"]}}).arms
    assert isinstance(arm.method, LoraMethod)
    assert arm.name == "lora"
    assert arm.method.targets == ("c_attn", "mlp.c_proj")


def test_a_list_of_lists_is_a_grid_of_lists() -> None:
    arms = study({"lora": {"method": "lora", "targets": [["c_attn"], ["c_attn", "mlp.*"]]}}).arms
    assert [arm.name for arm in arms] == ["lora-targetsc_attn", "lora-targetsc_attn-mlp.-"]
    assert [arm.method.targets for arm in arms if isinstance(arm.method, LoraMethod)] == [
        ("c_attn",),
        ("c_attn", "mlp.*"),
    ]


def test_names_stay_names_of_folders() -> None:
    (name,) = names({"lora": {"method": "lora", "targets": [["../x/y"]]}})
    assert "/" not in name


def test_rates_are_not_arms() -> None:
    (arm,) = study({"full": {"method": "full", "tune": {"lr": [1e-3, 1e-4, 1e-3]}}}).arms
    assert arm.lr == (1e-4, 1e-3)
    assert arm.is_tuned


def test_default_rates_are_tuned() -> None:
    full, lora = study({"full": {"method": "full"}, "lora": {"method": "lora"}}).arms
    assert (full.lr, lora.lr) == (DEFAULT_RATES["full"], DEFAULT_RATES["lora"])


def test_auto_starts_from_the_rule_and_is_marked() -> None:
    arms = {"auto": {"method": "lora", "tune": {"lr": "auto"}}}
    arms["grid"] = {"method": "lora", "tune": {"lr": [1e-4, 3e-4, 1e-3]}}
    auto, grid = study(arms).arms
    assert auto.lr == grid.lr
    assert (auto.is_extended, grid.is_extended) == (True, False)
    assert auto.is_tuned


def test_a_list_is_extended_where_that_is_asked_for() -> None:
    tune = {"lr": [2e-4, 6e-4], "extend": True}
    found = study({"a": {"method": "lora", "rank": [2, 4], "tune": tune}})
    assert [(arm.lr, arm.is_extended) for arm in found.arms] == [((2e-4, 6e-4), True)] * 2
    (arm,) = study({"a": {"method": "lora", "tune": {"lr": "auto", "extend": False}}}).arms
    assert (len(arm.lr), arm.is_extended) == (3, False)


def test_runs_of_a_tuned_arm() -> None:
    found = study({"full": {"method": "full", "tune": {"lr": [1e-3, 1e-4]}}}, seeds=[5, 6, 7])
    (arm,) = found.arms
    assert [(run.lr, run.seed) for run in trials(found, arm)] == [(1e-4, 5), (1e-3, 5)]
    assert [(run.lr, run.seed) for run in chosen_runs(found, arm, 1e-3)] == [(1e-3, 5), (1e-3, 6), (1e-3, 7)]
    assert num_runs(found, arm) == 4
    assert trials(found, arm)[1] == chosen_runs(found, arm, 1e-3)[0]


def test_an_untrained_arm_is_one_run() -> None:
    found = study({"zero": {"method": "none"}}, seeds=[5, 6, 7])
    (arm,) = found.arms
    assert [(run.lr, run.seed) for run in trials(found, arm)] == [(None, None)]
    assert chosen_runs(found, arm, None) == trials(found, arm)
    assert num_runs(found, arm) == 1


def test_arms_of_one_method_and_rate_share_their_runs() -> None:
    arms = {"fixed": {"method": "lora", "lr": 1e-3}, "tuned": {"method": "lora", "tune": {"lr": [1e-3, 1e-2]}}}
    found = study(arms)
    fixed, tuned = found.arms
    assert trials(found, fixed)[0].run_id == trials(found, tuned)[0].run_id


@pytest.mark.parametrize(
    ("arms", "message"),
    [
        ([], "arms: expected a mapping"),
        ({}, "arms: expected a mapping of at least one arm"),
        ({"a": "lora"}, r"arms\.a: expected a mapping .* found 'lora'"),
        (
            {"a": {}},
            r"arms\.a\.method: found None; allowed: none, full, lora, bottleneck, .*, peft, load",
        ),
        ({"a": {"method": "lroa"}}, r"arms\.a\.method: found 'lroa'.*Did you mean lora"),
        ({"a": {"method": ["lora", "full"]}}, r"arms\.a\.method: found \['lora', 'full'\]"),
        ({"a": {"method": {"x": 1}}}, r"arms\.a\.method: found \{'x': 1\}"),
        ({"a": {"method": "lora", "rnak": 8}}, r"arms\.a\.rnak: unknown key; .* Did you mean rank"),
        ({"a": {"method": "lora", "rank": []}}, r"arms\.a\.rank: found an empty list"),
        ({"a": {"method": "lora", "lr": [1, 2]}}, r"arms\.a\.lr: one fixed rate .* `tune: \{lr: \[1, 2\]\}`"),
        ({"a": {"method": "lora", "lr": 1, "tune": {"lr": [1]}}}, r"arms\.a: give `lr` .* not both"),
        ({"a": {"method": "lora", "tune": {"lr": []}}}, r"arms\.a\.tune\.lr: expected a list of at least one"),
        ({"a": {"method": "lora", "lr": "auto"}}, r"arms\.a\.lr: one fixed rate .* `tune: \{lr: 'auto'\}`"),
        (
            {"a": {"method": "lora", "tune": {"lr": "outo"}}},
            r"arms\.a\.tune\.lr: .* or auto; found 'outo'.* mean auto\?",
        ),
        ({"a": {"method": "none", "tune": {"lr": "auto"}}}, r"arms\.a\.tune: method 'none' trains nothing"),
        ({"a": {"method": "lora", "tune": {"lr": 1}}}, r"arms\.a\.tune\.lr: expected a list .* found 1"),
        ({"a": {"method": "lora", "tune": {"rate": [1]}}}, r"arms\.a\.tune: found \['rate'\]"),
        (
            {"a": {"method": "lora", "tune": {"lr": [1, 2], "extend": 4}}},
            r"tune\.extend: found 4; allowed: true or false",
        ),
        (
            {"a": {"method": "lora", "tune": {"lr": [1], "extend": True}}},
            r"arms\.a\.tune: .* at least two rates; found \[1\]",
        ),
        ({"a": {"method": "lora", "tune": {"extend": True}}}, r"arms\.a\.tune: found \['extend'\]; allowed"),
        ({"a": {"method": "lora", "tune": [1]}}, r"arms\.a\.tune: found \[1\]; allowed"),
        ({"a": {"method": "none", "lr": 1}}, r"arms\.a\.lr: method 'none' trains nothing"),
        ({"a": {"method": "load", "path": "p", "tune": {}}}, r"arms\.a\.tune: method 'load' trains nothing"),
        ({"a": {"method": "lora", "rank": [2, 2]}}, "two arms have the same name: a-rank2"),
        ({"a": {"method": "lora", "targets": []}}, r"arms\.a\.targets: .*at least 1"),
        ({"a": {"method": "lora", "rank": [2, 0]}}, r"arms\.a\.rank: .*greater than 0; found 0"),
        ({"a": {"method": "lora", "tune": {"lr": [1e-3, -1]}}}, r"arms\.a\.lr.*greater than 0; found -1"),
        ({"a b": {"method": "lora"}}, r"arms\.a b\.name: .*pattern"),
        ({"..": {"method": "lora"}}, r"arms\.\.\.\.name: .*pattern"),
    ],
)
def test_impossible_arms(arms: Any, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        study(arms)
