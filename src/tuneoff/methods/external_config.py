"""From a study's dict to a PEFT configuration; every mistake is told by name."""

import dataclasses
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from tuneoff.errors import MethodError, TuneoffError, UnsupportedError, did_you_mean
from tuneoff.methods.heads import is_classifier

if TYPE_CHECKING:
    from peft import PeftConfig

ADALORA = "ADALORA"
PROMPTS = ("P_TUNING", "PROMPT_TUNING")
"""Types whose virtual tokens go before the input's embeddings."""
NOT_OPTIONS = {
    *("peft_type", "task_type", "inference_mode", "base_model_name_or_path"),
    *("revision", "auto_mapping", "peft_version"),
    *("generator_seed", "sample_at_inference", "megatron_config", "megatron_core"),
}
"""Fields that follow from the study, and those of PVeRA that would draw what a resumed run cannot draw again, and
those of LoRA that import a module by its name."""

_NEEDS_WEIGHTS = "it is drawn from the base's own weights, and a study is planned without them"
REFUSED = {
    "ADAMSS": _NEEDS_WEIGHTS,
    "ADAPTION_PROMPT": "it swaps whole attention modules and cannot be taken out again",
    "CARTRIDGE": "it trains keys and values; write `method: prefix`",
    "CPT": "it computes a loss of its own from labels",
    "FROD": _NEEDS_WEIGHTS,
    "MULTITASK_PROMPT_TUNING": "every row would need a task id",
    "POLY": "every row would need a task id",
    "OSF": "it splits the base's own weights and writes them anew",
    "PREFIX_TUNING": "it trains keys and values; write `method: prefix`",
    "SHADOW": "it runs a second, smaller model beside the base",
    "SHIRA": _NEEDS_WEIGHTS,
    "XLORA": "it mixes LoRA adapters that have been trained before",
}
"""PEFT's methods that are more than what is put into a model, and why each cannot be taken."""

_UNSUPPORTED = re.compile(r"not support(?!ed between)|[Oo]nly .*support|[Uu]nsupported (?!operand)|is not a plain")
"""How PEFT says that a method does not know a kind of layer or of model, as against a value that is out of range."""


def read_config(settings: Mapping[str, Any], model: nn.Module) -> "PeftConfig":
    """Return the PEFT configuration that a study's `peft:` describes, for this kind of model.

    Args:
        settings: `peft_type` and its options.
        model: a causal language model or a sequence classifier.

    Raises:
        MethodError: a type or an option that PEFT does not know, or a value that it refuses.
        UnsupportedError: a type that is more than what is put into a model.
    """
    kinds = _kinds()
    name = str(settings.get("peft_type", "")).upper()
    if name not in kinds:
        raise MethodError(
            f"peft.peft_type: PEFT has no {name!r}.{did_you_mean(name, kinds)} Allowed: {', '.join(sorted(kinds))}."
        )
    if name in REFUSED:
        raise UnsupportedError(f"peft_type {name} is not taken: {REFUSED[name]}")
    options = {key: _plain(value) for key, value in settings.items() if key != "peft_type"}
    task = "SEQ_CLS" if is_classifier(model) else "CAUSAL_LM"
    if options.pop("task_type", task) != task:
        raise MethodError(f"peft.task_type: it follows from the study's task and is {task} here; leave it out")
    allowed = [field.name for field in dataclasses.fields(kinds[name]) if field.name not in NOT_OPTIONS]
    for key in options:
        if key not in allowed:
            raise MethodError(
                f"peft.{key}: {name} has no such option.{did_you_mean(key, allowed)} Allowed: {', '.join(allowed)}."
            )
    if name in PROMPTS and not isinstance(options.get("num_virtual_tokens"), int):
        raise MethodError(f"peft.num_virtual_tokens: {name} needs to know how many, such as 20")
    if name == ADALORA and options.get("total_step") is None:
        # until the budget is known: the shortest schedule that PEFT takes
        options["total_step"] = int(options.get("tinit", 0)) + int(options.get("tfinal", 0)) + 1
    with explained(name, model):
        base = getattr(model, "name_or_path", None)
        config: PeftConfig = kinds[name](task_type=task, base_model_name_or_path=base, **options)
    return config


def _plain(value: Any) -> Any:
    """Return a value with lists where it has tuples; PEFT asks for lists."""
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return {key: _plain(part) for key, part in value.items()} if isinstance(value, Mapping) else value


def _kinds() -> dict[str, Any]:
    """Return PEFT's configuration classes by the name of their type."""
    with silent():
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING  # here, because importing PEFT takes a second
    return {kind.value: config for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


@contextmanager
def silent() -> Iterator[None]:
    """Within the context PEFT does not warn: of Conv1D and of tied weights, of which it takes care itself."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # of kernels that it looks for and does without
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def explained(name: str, model: nn.Module) -> Iterator[None]:
    """Within the context what PEFT raises becomes one error of this package.

    Raises:
        UnsupportedError: PEFT's method does not know this kind of model.
        MethodError: anything else, such as targets that match nothing or a rank out of range.
    """
    try:
        with silent():
            yield
    except (TuneoffError, MemoryError):
        raise
    except Exception as error:  # PEFT raises what comes to hand: ValueError, TypeError, KeyError, AttributeError ...
        text = " ".join(str(error).split())[:400] or type(error).__name__
        if isinstance(error, NotImplementedError) or _UNSUPPORTED.search(text):
            message = f"peft_type {name}: PEFT cannot put it on {type(model).__name__} ({text})"
            raise UnsupportedError(message) from error
        raise MethodError(f"peft_type {name}: {text}") from error
