"""How to get the same study again: its file, written back from the frozen value, and the commands."""

import re
from typing import Any

import yaml

from tuneoff.study.rates import AUTO, auto_rates
from tuneoff.study.spec import Arm, Study

_FLOAT = "tag:yaml.org,2002:float"


class _OneLine(dict[str, Any]):
    """A mapping that is written on one line."""


class _Dumper(yaml.SafeDumper):
    """Writes an arm on one line, and numbers as people do: 1e-5 and 16, not 1.0e-05 and 16.0."""


def study_mapping(study: Study) -> dict[str, Any]:
    """Return the study as its file would give it, with one arm for each cell of a grid.

    Defaults are written out, since another version may have others; only what is none by default is left out.
    """
    given = study.model_dump(mode="json", exclude_none=True, exclude={"arms", "root"})
    # Where none is a choice, as for `clip`, it differs from the default.
    chosen = study.model_dump(mode="json", exclude_defaults=True, exclude={"arms", "root"})
    return _merged(given, chosen) | {"arms": {arm.name: _arm_mapping(arm) for arm in study.arms}}


def study_yaml(study: Study) -> str:
    """Return the study file as YAML; control characters in its texts are written as escapes."""
    body = study_mapping(study)
    short = {
        key: _OneLine(value) if isinstance(value, dict) and key not in ("arms", "task") else value
        for key, value in body.items()
    }
    short["arms"] = {name: _OneLine(arm) for name, arm in body["arms"].items()}
    return yaml.dump(short, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=10**6)


def commands(study: Study) -> tuple[str, ...]:
    """Return what to type, given the study file."""
    return (f"tuneoff run {study.name}.yaml", f"tuneoff report {study.name}.yaml")


def _merged(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """Return both mappings, the second one's values first; empty ones within are left out."""
    found = one | {
        key: _merged(one.get(key, {}), value) if isinstance(value, dict) else value for key, value in two.items()
    }
    return {key: value for key, value in found.items() if value != {}}


def _arm_mapping(arm: Arm) -> dict[str, Any]:
    body = arm.method.model_dump(mode="json")
    if arm.is_extended and arm.lr == auto_rates(arm.method.method):
        body["tune"] = {"lr": AUTO}
    elif arm.is_tuned:
        body["tune"] = {"lr": list(arm.lr)} | ({"extend": True} if arm.is_extended else {})
    elif arm.lr:
        body["lr"] = arm.lr[0]
    body |= {"assumed": list(arm.assumed)} if arm.assumed else {}
    return body | ({"override": dict(arm.override)} if arm.override else {})


def _write_one_line(dumper: yaml.SafeDumper, value: _OneLine) -> yaml.Node:
    return dumper.represent_mapping("tag:yaml.org,2002:map", value, flow_style=True)


def _write_float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    if value.is_integer() and abs(value) < 10**6:
        return dumper.represent_int(int(value))
    mantissa, e, exponent = repr(value).partition("e")
    return dumper.represent_scalar(_FLOAT, f"{mantissa}e{int(exponent)}" if e else mantissa)


# YAML 1.1 takes 1e-5 for text and would tag it; study files follow 1.2.
_Dumper.add_implicit_resolver(_FLOAT, re.compile(r"^\d+(\.\d+)?e-?\d+$"), list("0123456789"))
_Dumper.add_representer(_OneLine, _write_one_line)
_Dumper.add_representer(float, _write_float)
