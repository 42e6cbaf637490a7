"""Reads study files.

YAML to a frozen `Study`, with overrides, and errors that name the key, what was found and what is allowed.
"""

import copy
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from tuneoff.errors import StudyError, did_you_mean
from tuneoff.study.expand import expand_arms, shown
from tuneoff.study.methods import METHODS
from tuneoff.study.spec import Study
from tuneoff.study.yaml_text import parse_yaml, read_yaml

RECIPES = resources.files("tuneoff.study") / "recipes"
SMOKE = "smoke.yaml"
"""The recipes' small forms: recipe to dotted keys and values."""
EVERY_ARM = "arms.*."
"""Start of a key that is set in every arm that gives it."""
MAX_LINES = 5
"""Wrong keys and values that an error lists; of the rest it says how many they are."""


def recipe_names() -> tuple[str, ...]:
    """Return the names of the reference studies that ship with the package."""
    names = (entry.name for entry in RECIPES.iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml") and name != SMOKE))


def load_study(source: str | Path, overrides: Sequence[str] = (), *, smoke: bool = False) -> Study:
    """Read a study file or a recipe.

    Args:
        source: path of a YAML file, or the name of a recipe.
        overrides: `KEY=VALUE` each; KEY is a dotted path (`budget.steps`, `arms.lora.rank`), VALUE is YAML. With
            `arms.*.` before it the key is set in every arm that gives it.
        smoke: take a recipe's small form, on the demo base and demo data; the study is then called `NAME-smoke`.

    Raises:
        StudyError: no such file or recipe, not YAML, an unknown key, an impossible value, an empty grid, or no small
            form.
    """
    return study_from(*read_raw(source, overrides, smoke=smoke))


def read_raw(
    source: str | Path, overrides: Sequence[str] = (), *, smoke: bool = False
) -> tuple[dict[str, Any], Path, str]:
    """Return a study file's mapping with overrides in place, where its paths start, and what errors call it.

    Arguments and errors are those of `load_study`, but for what is found out by validating.
    """
    raw, root, label = _read(source)
    if smoke:
        for key, value in _smoke_form(source).items():
            _assign(raw, key, value, f"{SMOKE}: {source}: {key}")
        raw["name"] = f"{raw['name']}-smoke"
    for override in overrides:
        _apply(raw, override)
    return raw, root, label


def _is_recipe(source: str | Path) -> bool:
    """Whether a name is that of a recipe; a file goes before it. `isfile`, unlike `Path.is_file`, takes any text."""
    return not os.path.isfile(source) and str(source) in recipe_names()


def _smoke_form(source: str | Path) -> dict[str, Any]:
    if not _is_recipe(source):
        raise StudyError(
            f"{source}: a small form (--smoke) was asked for; only recipes have one: {', '.join(recipe_names())}. "
            "Shorten a study of your own with --set, such as --set budget.steps=5."
        )
    forms = parse_yaml((RECIPES / SMOKE).read_text(encoding="utf-8"), SMOKE)
    form: dict[str, Any] = forms[str(source)]
    return form


def parse_study(text: str, root: Path, label: str = "study") -> Study:
    """Validate a study given as the text of a study file.

    Args:
        text: YAML.
        root: where its relative paths start.
        label: names it in errors.

    Raises:
        StudyError: as `load_study`.
    """
    return study_from(_parse(text, label), root, label)


def study_from(raw: Mapping[str, Any], root: Path, label: str = "study") -> Study:
    """Validate a study given as a plain mapping.

    `root` is where its relative paths start; `label` names it in errors.
    """
    body = dict(raw)
    if "arms" not in body:
        raise StudyError(f"{label}: arms: missing. Give at least one arm, such as `lora: {{method: lora, rank: 8}}`.")
    if "root" in body:
        raise StudyError(f"{label}: root: unknown key")
    try:
        body["arms"] = expand_arms(body["arms"])
        return Study.model_validate(body | {"root": root})
    except StudyError as error:
        raise StudyError(f"{label}: {error}") from None
    except ValidationError as error:
        raise StudyError(_explain(error, body["arms"], label)) from None


def _read(source: str | Path) -> tuple[dict[str, Any], Path, str]:
    path = Path(source)
    if os.path.isfile(path):
        return _parse(read_yaml(path), str(path)), path.parent.absolute(), str(path)
    if _is_recipe(source):
        text = (RECIPES / f"{source}.yaml").read_text(encoding="utf-8")
        return _parse(text, f"recipe {source}"), Path.cwd(), f"recipe {source}"
    if os.path.isdir(path):
        raise StudyError(f"{path} is a folder; expected a study file (YAML)")
    hint = did_you_mean(str(source), recipe_names())
    raise StudyError(
        f"no study file and no recipe is called {str(source)!r}.{hint} Recipes: {', '.join(recipe_names())}."
    )


def _parse(text: str, label: str) -> dict[str, Any]:
    raw = parse_yaml(text, label)
    if not isinstance(raw, dict):
        raise StudyError(
            f"{label}: expected a mapping with the keys {', '.join(_keys(Study))}; found {type(raw).__name__}"
        )
    return raw


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise StudyError(f"--set {override}: expected KEY=VALUE, such as budget.steps=100")
    value = parse_yaml(text, f"--set {override}")
    if isinstance(value, str) and _is_path_key(key) and os.path.exists(value):
        value = str(Path(value).absolute())  # typed on the command line, so it starts from the working folder
    _assign(raw, key, value, f"--set {override}")


def _assign(raw: dict[str, Any], key: str, value: Any, label: str) -> None:
    """Set a dotted key, in place; with `arms.*.` before it, in every arm that gives it."""
    if not key.startswith(EVERY_ARM):
        _assign_one(raw, key, value, label)
        return
    rest = key.removeprefix(EVERY_ARM)
    arms = raw.get("arms")
    bodies = [body for body in arms.values() if _gives(body, rest)] if isinstance(arms, dict) else []
    if not bodies:
        raise StudyError(
            f"{label}: no arm gives {rest!r}, so there is nothing to override; allowed after {EVERY_ARM} is a key that "
            "at least one arm of the study has. For one arm write arms.NAME." + rest
        )
    for body in bodies:
        _assign_one(body, rest, copy.deepcopy(value), label)


def _gives(body: Any, key: str) -> bool:
    """Whether a mapping has a dotted key."""
    for part in key.split("."):
        if not isinstance(body, dict) or part not in body:
            return False
        body = body[part]
    return True


def _assign_one(raw: dict[str, Any], key: str, value: Any, label: str) -> None:
    node = raw
    *parents, last = key.split(".")
    for depth, part in enumerate(parents):
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise StudyError(f"{label}: {'.'.join(parents[: depth + 1])} is {shown(child)}, which has no keys")
        node = child
    if key in ("budget.steps", "budget.epochs", "budget.target_tokens"):
        for other in ("steps", "epochs", "target_tokens"):
            node.pop(other, None)  # the three exclude each other; the override is the one that is meant
    node[last] = value


def _is_path_key(key: str) -> bool:
    return (
        key in ("model", "task.data", "retention")
        or key.startswith("task.splits.")
        or (key.startswith("arms.") and key.endswith(".path"))
    )


def _keys(model: type[BaseModel]) -> list[str]:
    return [name for name, field in model.model_fields.items() if not field.exclude]


def _explain(error: ValidationError, arms: Sequence[Mapping[str, Any]], label: str) -> str:
    lines: dict[str, None] = {}  # in order, each once
    for item in error.errors():
        if item["type"] == "too_short" and item["input"]:
            continue  # what was in it is wrong, and is said by itself
        path = _path(item["loc"], arms)
        if item["type"] == "extra_forbidden":
            allowed = _allowed_at(item["loc"])
            hint = did_you_mean(str(item["loc"][-1]), allowed)
            line = f"{path}: unknown key; allowed: {', '.join(allowed)}.{hint}"
        elif item["type"] == "missing":
            line = f"{path}: missing"
        else:
            line = f"{path}: {_wrong_value(item['type'], item['msg'], item['input'])}"
        lines[f"{label}: {line}"] = None
    more = len(lines) - MAX_LINES
    return "\n".join([*lines][:MAX_LINES] + ([f"and {more} more"] if more > 0 else []))


def _wrong_value(kind: str, message: str, value: Any) -> str:
    """Return what is wrong with a value, what was found, and the nearest right one."""
    message = message.removeprefix("Value error, ").replace("tuple", "list").replace("Tuple", "List")
    if isinstance(value, dict) or "found" in message:
        return message
    allowed = re.findall(r"'([^']+)'", message) if kind == "literal_error" else ()
    hint = did_you_mean(value, allowed) if isinstance(value, str) else ""
    return f"{message}; found {shown(value)}{'.' if hint else ''}{hint}"


def _path(loc: tuple[int | str, ...], arms: Sequence[Mapping[str, Any]]) -> str:
    if len(loc) >= 2 and loc[0] == "arms" and isinstance(loc[1], int):
        rest = [str(part) for part in loc[2:] if part not in ("method", *METHODS)]
        return ".".join(["arms", str(arms[loc[1]]["family"]), *rest])
    return ".".join(str(part) for part in loc if part not in ("constrained-str",)) or "study"


def _allowed_at(loc: tuple[int | str, ...]) -> list[str]:
    model: Any = Study
    for part in _walk(loc[:-1]):
        field = model.model_fields.get(part)
        inner = field.annotation if field else None
        inner = next(iter(typing.get_args(inner)), inner)  # a list of values: what it is a list of
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            break
        model = inner
    return _keys(model)


def _walk(loc: tuple[int | str, ...]) -> Iterator[str]:
    yield from (part for part in loc if isinstance(part, str))
