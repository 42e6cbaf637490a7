"""From some data and a base to a study file that fits them and this machine, and that runs as it is written."""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from tuneoff.data.classification import make_field_template, word_ids
from tuneoff.data.encoding import Encoder
from tuneoff.data.lengths import SplitLengths, measure
from tuneoff.data.sources import DEMO
from tuneoff.data.survey import Survey, Surveyed, check_splits, survey_data
from tuneoff.errors import StoreError, StudyError, did_you_mean
from tuneoff.files import write_synced
from tuneoff.methods.surgery import features, match_targets
from tuneoff.planning.fit import Fit
from tuneoff.planning.plan import plan
from tuneoff.planning.room import machine_room
from tuneoff.starting.choices import (
    Choice,
    choose_budget,
    choose_length,
    choose_ranks,
    choose_rates,
    choose_shares,
    num_sequences,
)
from tuneoff.starting.draft import CUE, Draft
from tuneoff.starting.memory import find_fits
from tuneoff.starting.write import study_text
from tuneoff.study.loading import parse_study, study_from
from tuneoff.study.spec import ColumnsSpec, Study
from tuneoff.study.testing import TaskKind
from tuneoff.study.value import Value
from tuneoff.training.machine import Machine, look_at_machine
from tuneoff.training.models import load_config, load_tokenizer, shape_only

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_FILE = Path("study.yaml")
TRAIN_NAMES = re.compile(r"(?i)train|training|data|index")
"""Names of files that say nothing; the folder's name does."""


class Started(Value):
    """A study file that was written, and what it was written from."""

    path: Path
    survey: Survey
    lengths: SplitLengths
    context: int | None
    machine: Machine
    fits: Mapping[str, Fit]
    """Whether full fine-tuning and LoRA fit, and with which change."""
    left_out: Mapping[str, str]
    """Arms that stand in the file as comments, with the reason."""
    study: Study
    text: str


def init(
    data: str,
    model: str,
    out: Path = DEFAULT_FILE,
    *,
    kind: TaskKind | None = None,
    columns: Mapping[str, str] | None = None,
    force: bool = False,
) -> Started:
    """Look at the data and at this machine, and write a study file.

    Args:
        data: file, folder, hub id, or `demo`.
        model: hub id, folder, or `demo`.
        out: the file.
        kind: of the task; none tells it from the data.
        columns: names of columns by part, as in `task.columns`; none tells them from the data.
        force: write over a file that is there.

    Raises:
        StoreError: the file is there, or cannot be written.
        DataError: the data cannot be used, or do not tell what they are for.
        ModelError: the base or its tokenizer cannot be had.
        StudyError: a part that no column can have.
    """
    _check_target(out, force)
    here = Path.cwd()
    named = dict(columns or {})
    config = load_config(model, here)
    surveyed = survey_data(data, here, kind, named)
    tokenizer = load_tokenizer(model, here)
    draft = _draft(surveyed, tokenizer, config.get_text_config(), _names(surveyed.survey.data, model, out, here))
    draft = _fitted(draft, config, out.absolute().parent)
    text = study_text(draft, str(out))
    study = parse_study(text, out.absolute().parent, str(out))
    check_splits(study.task, surveyed.examples)
    plan(study)  # no file is left behind that the next command would refuse
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_synced(out, text.encode())
    except OSError as error:
        raise StoreError(
            f"{out}: cannot be written: {error.strerror or error}. Name another file with --out."
        ) from None
    left_out = {name: why for name in draft.arms() if (why := draft.left_out(name))}
    return Started(
        path=out,
        survey=draft.survey,
        lengths=draft.lengths,
        context=draft.context,
        machine=draft.machine,
        fits=draft.fits,
        left_out=left_out,
        study=study,
        text=text,
    )


def _check_target(out: Path, force: bool) -> None:
    if out.is_dir():
        raise StoreError(f"{out} is a folder; name the study file to write, such as --out {out / 'study.yaml'}.")
    if out.exists() and not force:
        raise StoreError(f"{out} is there already; name another file with --out, or write over it with --force.")


def parse_kind(kind: str | None) -> TaskKind | None:
    """Return the kind of task that a text names; raises `StudyError` where it names none."""
    known: dict[str, TaskKind] = {name: name for name in get_args(TaskKind)}
    if kind is None or kind in known:
        return None if kind is None else known[kind]
    raise StudyError(f"--kind {kind}: allowed: {', '.join(known)}.{did_you_mean(kind, known)}")


def parse_columns(columns: Sequence[str]) -> dict[str, str]:
    """Return the names of columns by part.

    Args:
        columns: `PART=NAME` each.

    Raises:
        StudyError: not written so, or a part that there is not.
    """
    found = {}
    for column in columns:
        part, equals, name = column.partition("=")
        if not equals or not name:
            raise StudyError(f"--column {column}: expected PART=NAME, such as text=body")
        if part not in ColumnsSpec.model_fields:
            allowed = ", ".join(ColumnsSpec.model_fields)
            hint = did_you_mean(part, ColumnsSpec.model_fields)
            raise StudyError(f"--column {column}: no column can be {part!r}; allowed: {allowed}.{hint}")
        found[part] = name
    return found


def _names(data: str, model: str, out: Path, here: Path) -> tuple[str, str, str]:
    """Return the study's name, and data and base as they are found from the file's folder."""
    folder = out.absolute().parent
    path = Path(data)
    stem = path.stem if path.exists() else data.rpartition("/")[2]
    if out.stem != DEFAULT_FILE.stem:
        stem = out.stem
    elif TRAIN_NAMES.fullmatch(stem):
        stem = path.absolute().parent.name or stem
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:80] or "study"
    return name, _from(folder, data, here), _from(folder, model, here)


def _from(folder: Path, name: str, here: Path) -> str:
    """Return a path as it is found from a folder: relative where it lies below it, else whole."""
    path = here / os.path.expanduser(name)
    if name == DEMO or not path.exists():
        return name
    path = Path(os.path.abspath(path))
    return str(path.relative_to(folder)) if path.is_relative_to(folder) and path != folder else str(path)


def _draft(surveyed: Surveyed, tokenizer: "PreTrainedTokenizerBase", config: Any, names: tuple[str, str, str]) -> Draft:
    survey = surveyed.survey
    machine = look_at_machine()
    has_gpu = bool(machine.gpus)
    context = getattr(config, "max_position_embeddings", None)
    context = context if isinstance(context, int) else None
    labels, num_words = _labels(survey, tokenizer)
    template = CUE if labels.value is not None else None
    lengths = measure(survey.kind, surveyed.examples["train"], tokenizer, template, context)
    length = choose_length(survey.kind, lengths, context, has_gpu=has_gpu, num_extra=num_words)
    number = num_sequences(survey, lengths, length.value)
    splits = choose_shares(survey, number, has_gpu=has_gpu)
    left = 1 - sum(value for value in splits.value.values() if not isinstance(value, str))
    budget = choose_budget(survey.kind, max(1, round(number * left)), has_gpu=has_gpu)
    return Draft(
        *names,
        survey=survey,
        lengths=lengths,
        machine=machine,
        context=context,
        labels=labels,
        template=template,
        max_length=length,
        splits=splits,
        budget=budget,
        rates=choose_rates(int(config.hidden_size), str(config.model_type), budget.value[0]),
        ranks=choose_ranks(lengths.targets.total, ()),
        linear_layers=(),
    )


def _labels(survey: Survey, tokenizer: "PreTrainedTokenizerBase") -> tuple[Choice[tuple[str, ...] | None], int]:
    """Return the words that zero-shot scores, if any, and how many tokens the longest has."""
    if survey.kind != "classification":
        return Choice(None, ""), 0
    if any(name.lstrip("+-").isdecimal() for name in survey.classes):
        return Choice(None, "the classes are numbers, so zero-shot is the most frequent class"), 0
    try:
        found = word_ids(survey.classes, make_field_template(CUE), Encoder(tokenizer))
    except StudyError:
        return Choice(None, "the classes' names begin alike in tokens, so zero-shot is the most frequent class"), 0
    return Choice(survey.classes, "the classes' own names, which zero-shot scores"), max(map(len, found))


def _fitted(draft: Draft, config: Any, root: Path) -> Draft:
    """Return the draft with what only the planned arms tell: layers, ranks, what fits, what the base cannot take."""
    classes = len(draft.survey.classes)
    shape = shape_only(config, num_classes=classes)
    layers = match_targets(shape, ["all-linear"])
    ends = tuple(dict.fromkeys(name.rpartition(".")[2] for name in layers))
    smaller = [min(features(layer)) for layer in layers.values()]
    ranks = choose_ranks(draft.lengths.targets.total, smaller)
    draft = dataclasses.replace(draft, linear_layers=ends, ranks=ranks)
    study = study_from({**draft.body(), "arms": draft.arms()}, root)
    planned = plan(study, classes or None)
    problems = {arm.family: own.problem for arm, own in zip(study.arms, planned.arms, strict=True) if own.problem}
    has_gpu = draft.has_gpu
    can_quantise = has_gpu and importlib.util.find_spec("bitsandbytes") is not None
    fits = find_fits(study, planned, shape, machine_room(), is_gpu=has_gpu, quantise=can_quantise)
    lora = fits["lora"].change if "lora" in fits else None
    quantize = (lora.quantize if lora is not None else None) or "none"
    return dataclasses.replace(draft, fits=fits, problems=problems, quantize=quantize)
