"""From the study file's arms to arms, trials and runs: a list where one value belongs is a grid, one arm each."""

import hashlib
import itertools
import math
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tuneoff.errors import StudyError, did_you_mean
from tuneoff.study.identity import Run, make_run, run_ids
from tuneoff.study.methods import DEFAULT_RATES, METHODS, UNTRAINED_METHODS, NoneMethod
from tuneoff.study.overriding import check_override
from tuneoff.study.rates import AUTO, auto_rates
from tuneoff.study.spec import Arm, Study

MAX_ARMS = 10_000
"""Of one grid: more than any study trains, and few enough to be told in seconds that they are too many."""
MAX_NAME = 100
"""Characters of an arm's name, as of `NAME_PATTERN`."""
NOT_OF_THE_METHOD = ("lr", "tune", "assumed", "override")


def expand_arms(arms: Any) -> list[dict[str, Any]]:
    """Turn the file's `arms` mapping into one plain mapping per arm, ready for `Arm`.

    Args:
        arms: name to mapping, as read from the file. A list for a hyperparameter that takes one value is a grid; so
            is a list of lists for one that takes a list (`targets`).

    Raises:
        StudyError: not a mapping, an unknown method or key, or an empty grid; the message names the key's path.
    """
    if not isinstance(arms, Mapping) or not arms:
        raise StudyError("arms: expected a mapping of at least one arm, such as `lora: {method: lora, rank: 8}`")
    return [cell for family, body in arms.items() for cell in _expand_arm(str(family), body)]


def _expand_arm(family: str, body: Any) -> Iterator[dict[str, Any]]:
    path = f"arms.{family}"
    if not isinstance(body, Mapping):
        raise StudyError(f"{path}: expected a mapping such as {{method: lora, rank: 8}}, found {shown(body)}")
    name = body.get("method")
    if not isinstance(name, str) or name not in METHODS:
        hint = did_you_mean(name, METHODS) if isinstance(name, str) else ""
        raise StudyError(f"{path}.method: found {shown(name)}; allowed: {', '.join(METHODS)}.{hint}")
    fields = METHODS[name].model_fields
    allowed = [*fields, *NOT_OF_THE_METHOD]
    for key in body:
        if key not in allowed:
            raise StudyError(
                f"{path}.{key}: unknown key; {name} takes {', '.join(allowed)}.{did_you_mean(str(key), allowed)}"
            )
    if "override" in body:
        check_override(path, body["override"])
    rates = _rates(path, name, body)
    own = {key: value for key, value in body.items() if key not in NOT_OF_THE_METHOD}
    grids = {key: value for key, value in own.items() if _is_grid(fields[key].annotation, value)}
    for key, values in grids.items():
        if not values:
            raise StudyError(f"{path}.{key}: found an empty list; give at least one value")
    num_cells = math.prod(map(len, grids.values()))
    if num_cells > MAX_ARMS:
        raise StudyError(
            f"{path}: its lists make a grid of {num_cells:,} arms; allowed are {MAX_ARMS:,}. Give fewer values."
        )
    for cell in itertools.product(*grids.values()):
        chosen = dict(zip(grids, cell, strict=True))
        yield {
            "name": _cell_name(family, "".join(f"-{key}{_label(value)}" for key, value in chosen.items())),
            "family": family,
            "method": own | chosen,
            "lr": rates,
            "is_extended": _is_extended(body),
            "assumed": body.get("assumed", ()),
            "override": body.get("override", {}),
        }


def _cell_name(family: str, suffix: str) -> str:
    """Return the name of a grid's cell; one that is too long for a name ends in what tells it apart."""
    name = family + suffix
    if len(name) <= MAX_NAME or len(family) > MAX_NAME // 2:
        return name
    told_apart = hashlib.sha256(suffix.encode()).hexdigest()[:8]
    return f"{name[: MAX_NAME - 9]}-{told_apart}"


def _rates(path: str, method: str, body: Mapping[str, Any]) -> Sequence[Any]:
    tune = body.get("tune")
    if method in UNTRAINED_METHODS:
        for key in ("lr", "tune"):
            if key in body:
                raise StudyError(f"{path}.{key}: method {method!r} trains nothing, so it takes no learning rate")
        return ()
    if tune is None:
        lr = body.get("lr")
        if isinstance(lr, list) or lr == AUTO:
            raise StudyError(
                f"{path}.lr: one fixed rate belongs here; to choose among several write `tune: {{lr: {shown(lr)}}}`"
            )
        return DEFAULT_RATES[method] if lr is None else (lr,)
    if "lr" in body:
        raise StudyError(f"{path}: give `lr` (fixed) or `tune.lr` (chosen on the validation split), not both")
    if not isinstance(tune, Mapping) or not {"lr"} <= set(tune) <= {"lr", "extend"}:
        found = shown(sorted(map(str, tune)) if isinstance(tune, Mapping) else tune)
        raise StudyError(
            f"{path}.tune: found {found}; allowed: a mapping with the key lr, and extend where wanted, such as"
            " {lr: [1e-4, 3e-4], extend: true}"
        )
    rates = _candidates(f"{path}.tune.lr", method, tune["lr"])
    _check_extend(f"{path}.tune", tune.get("extend", False), rates)
    return rates


def _check_extend(path: str, extend: Any, rates: Sequence[Any]) -> None:
    if not isinstance(extend, bool):
        raise StudyError(
            f"{path}.extend: found {shown(extend)}; allowed: true or false. How many rates may be added is the study's"
            " `tuning: {extend: 4}`."
        )
    if extend and len(set(map(str, rates))) < 2:
        raise StudyError(f"{path}: to extend a search, lr has to give at least two rates; found {shown(rates)}")


def _candidates(path: str, method: str, rates: Any) -> Sequence[Any]:
    if rates == AUTO:
        return auto_rates(method)
    if not isinstance(rates, list) or not rates:
        hint = did_you_mean(rates, (AUTO,)) if isinstance(rates, str) else ""
        raise StudyError(
            f"{path}: expected a list of at least one learning rate, or {AUTO}; found {shown(rates)}"
            f"{'.' if hint else ''}{hint}"
        )
    return rates


def _is_extended(body: Mapping[str, Any]) -> bool:
    tune = body.get("tune")
    return isinstance(tune, Mapping) and bool(tune.get("extend", tune.get("lr") == AUTO))


def shown(value: Any) -> str:
    """Return a value of the file for a message, cut: aliases let a few lines of YAML stand for gigabytes."""
    short = reprlib.Repr()
    short.maxlevel = 2
    short.maxstring = short.maxother = 80
    return short.repr(value)


def _is_grid(annotation: Any, value: Any) -> bool:
    if not isinstance(value, list):
        return False
    if _takes_list(annotation):
        return bool(value) and all(isinstance(item, list) for item in value)
    return True


def _takes_list(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _takes_list(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return any(_takes_list(part) for part in typing.get_args(annotation))
    return origin in (tuple, list)


def _label(value: Any) -> str:
    parts = value if isinstance(value, list) else [value]
    text = "+".join(shown(part) if isinstance(part, list | dict) else str(part) for part in parts)
    return "".join(char if char.isalnum() or char in "._-" else "-" for char in text)


def trials(study: Study, arm: Arm, rates: Sequence[float] | None = None) -> tuple[Run, ...]:
    """Return the runs among which the arm's learning rate is chosen: every candidate rate, on the first seed.

    Args:
        study: the study.
        arm: one of its arms.
        rates: the candidates, where the search has added to the arm's own; none is the arm's own.
    """
    if not arm.is_trained:
        return (make_run(study, arm, None, None),)
    return tuple(make_run(study, arm, lr, study.seeds[0]) for lr in (arm.lr if rates is None else rates))


def chosen_runs(study: Study, arm: Arm, lr: float | None) -> tuple[Run, ...]:
    """Return the runs that are tested once the rate is chosen.

    One for each seed (one in all where nothing is trained).
    """
    if not arm.is_trained:
        return trials(study, arm)
    return tuple(make_run(study, arm, lr, seed) for seed in study.seeds)


def chosen_run_ids(study: Study, arm: Arm, lr: float | None) -> tuple[str, ...]:
    """Return the names of `chosen_runs`."""
    return run_ids(study, arm, [(lr, seed) for seed in study.seeds] if arm.is_trained else [(None, None)])


def base_run(study: Study) -> Run:
    """Return the run of the base as it is: a zero-shot arm's, whether or not the study has one."""
    return make_run(study, Arm(name="base", family="base", method=NoneMethod(method="none")), None, None)


def num_runs(study: Study, arm: Arm) -> int:
    """Return how many runs the arm takes in all, tuning included; an arm with `lr: auto` may take more."""
    return len(trials(study, arm)) + (len(study.seeds) - 1 if arm.is_trained else 0)
