"""Writes the study file of a study whose arms were changed so that they fit.

Comments of the file it was made from are not kept. Where arms of one family are changed unlike, the family's grid is
written out as one arm each, under the names that they had.
"""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tuneoff.errors import StudyError
from tuneoff.planning.fit import Change
from tuneoff.study.loading import read_raw, study_from
from tuneoff.study.spec import Arm
from tuneoff.study.value import plain

PATHS = ("model", "retention")


def write_study(
    path: Path, source: str | Path, overrides: Sequence[str], changes: Mapping[str, Change], *, smoke: bool = False
) -> None:
    """Write a study file with changes made.

    Args:
        path: where to.
        source: study file or recipe that it is made from.
        overrides: `KEY=VALUE` each, that are written into it.
        changes: by the arm's name.
        smoke: take a recipe's small form.

    Raises:
        StudyError: the file cannot be written.
    """
    raw, root, label = read_raw(source, overrides, smoke=smoke)
    body = _absolute(raw, root) if root != path.parent.absolute() else raw
    arms = study_from(raw, root, label).arms
    body["arms"] = {
        name: arm
        for family, own in body["arms"].items()
        for name, arm in _family(family, own, [arm for arm in arms if arm.family == family], changes).items()
    }
    said = [f"#   {name}: {change.text()}" for name, change in changes.items()]
    head = [f"# Made from {source}, so that every arm fits. Changed:", *(said or ["#   nothing"])]
    text = "\n".join(head) + "\n" + yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=120)
    study_from(yaml.safe_load(text), path.parent.absolute(), str(path))  # what is written can be read
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StudyError(f"--write: {path} cannot be written ({error.strerror or error})") from None


def _family(
    family: str, body: Mapping[str, Any], arms: Sequence[Arm], changes: Mapping[str, Change]
) -> dict[str, dict[str, Any]]:
    """Return the arms of one family of the file, together where they are changed alike."""
    if len({changes.get(arm.name) for arm in arms}) == 1:
        return {family: _changed(body, changes.get(arms[0].name))}
    found = {}
    for arm in arms:
        own = {key: plain(arm.method).get(key, value) for key, value in body.items()}
        found[arm.name] = _changed(own, changes.get(arm.name))
    return found


def _changed(body: Mapping[str, Any], change: Change | None) -> dict[str, Any]:
    found = copy.deepcopy(dict(body))
    if change is None:
        return found
    override = dict(found.get("override", {}))
    for key, value in change.override().items():
        override[key] = {**override.get(key, {}), **value} if isinstance(value, Mapping) else value
    if override:
        found["override"] = override
    if change.quantize is not None:
        found["quantize"] = change.quantize
    return found


def _absolute(raw: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Return a study's body whose relative paths start from the root of the file system."""

    def absolute(value: Any) -> Any:
        is_local = isinstance(value, str) and value and not Path(value).is_absolute() and (root / value).exists()
        return str((root / value).absolute()) if is_local else value

    found = copy.deepcopy(dict(raw))
    for key in PATHS:
        if key in found:
            found[key] = absolute(found[key])
    task = found["task"]
    task["data"] = absolute(task["data"])
    if isinstance(task.get("splits"), dict):
        task["splits"] = {name: absolute(value) for name, value in task["splits"].items()}
    for arm in found["arms"].values():
        if "path" in arm:
            arm["path"] = absolute(arm["path"])
    return found
