"""How to get the same study again: its file, written back from the frozen value, and the commands."""

from typing import Any

import yaml

from tuneoff.study.spec import Arm, Study


def study_mapping(study: Study) -> dict[str, Any]:
    """Return the study as its file would give it: what differs from the defaults; an arm for each cell of a grid."""
    body = study.model_dump(mode="json", exclude_defaults=True, exclude={"arms", "root"})
    # Sampling is by seed, so the seeds are part of the question even where they are the usual ones.
    return body | {"seeds": list(study.seeds), "arms": {arm.name: _arm_mapping(arm) for arm in study.arms}}


def study_yaml(study: Study) -> str:
    """Return the study file as YAML; control characters in its texts are written as escapes."""
    return yaml.safe_dump(study_mapping(study), sort_keys=False, default_flow_style=None, width=100)


def commands(study: Study) -> tuple[str, ...]:
    """Return what to type, given the study file."""
    return (f"tuneoff run {study.name}.yaml", f"tuneoff report {study.name}.yaml")


def _arm_mapping(arm: Arm) -> dict[str, Any]:
    body = arm.method.model_dump(mode="json")
    if arm.is_tuned:
        body["tune"] = {"lr": list(arm.lr)}
    elif arm.lr:
        body["lr"] = arm.lr[0]
    return body | ({"assumed": list(arm.assumed)} if arm.assumed else {})
