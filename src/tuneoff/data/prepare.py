"""From a task to tokenised splits: read, cut into splits, tokenise, and keep on disk what that took time for."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from tuneoff.data.cache import VERSION, cache_folder, fingerprint, load_entry, save_entry
from tuneoff.data.encoding import encode_prompt as encode_prompt
from tuneoff.data.encoding import pad_token_id as pad_token_id
from tuneoff.data.kinds import make_preparer
from tuneoff.data.rendering import render_prompt as render_prompt
from tuneoff.data.sources import SPLITS, Sources, find_sources
from tuneoff.data.templates import CHAT
from tuneoff.data.tokens import PreparedData as PreparedData
from tuneoff.data.tokens import Prompts as Prompts
from tuneoff.data.tokens import TokenSplit as TokenSplit
from tuneoff.data.tokens import hash_splits
from tuneoff.errors import DataError
from tuneoff.study.identity import canonical_json
from tuneoff.study.spec import TaskSpec
from tuneoff.study.value import plain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prepare(
    task: TaskSpec,
    tokenizer: "PreTrainedTokenizerBase",
    root: Path,
    context_length: int | None,
    cache: Path | None = None,
    trust_remote_code: bool = False,
) -> PreparedData:
    """Return the task's splits, tokenised; from the disk where they have been prepared before.

    Args:
        task: what is learnt and from which data.
        tokenizer: the base model's fast tokenizer.
        root: folder that relative paths start from.
        context_length: tokens that the base model can see, if it says so.
        cache: folder to keep tokenised data in; none is $TUNEOFF_CACHE, else the user's cache folder.
        trust_remote_code: whether the study allows code from the hub. Data sets' scripts are not run in any case.

    Raises:
        DataError: the data cannot be used; the message names file, line and column where there are such.
        ModelError: a tokenizer with neither padding nor end-of-sequence token, or a slow one.
        StudyError: a template that cannot be used.
    """
    if context_length is not None and task.max_length > context_length:
        raise DataError(
            f"task.max_length is {task.max_length} tokens, but the base model sees {context_length};"
            f" set task.max_length to {context_length} or less"
        )
    read_and_tokenise = make_preparer(task, tokenizer)
    sources = find_sources(task, root, trust_remote_code)
    path = cache_folder(cache) / f"{_key(task, tokenizer, sources)}.safetensors"
    kept = load_entry(path)
    if kept is not None:
        return kept
    done = read_and_tokenise(sources)
    for name, split in done.splits.items():
        if not len(split):
            raise DataError(f"the {name} split holds no target token: its texts have no tokens; give it more text")
    data = PreparedData(
        train=done.splits["train"],
        validation=done.splits["validation"],
        test=done.splits["test"],
        sha256=hash_splits([done.splits[name] for name in SPLITS], done.prompts),
        notes=(
            *sources.notes,
            *_commit_notes(sources),
            *_unused_notes(task),
            *done.notes,
            *_token_notes(tokenizer, task),
        ),
        stride_tokens=done.stride_tokens,
        samples=done.samples,
        cautions=done.cautions,
        prompts=done.prompts,
        classes=done.classes,
        label_ids=done.label_ids,
    )
    save_entry(path, data)
    return data


def is_prepared(
    task: TaskSpec,
    tokenizer: "PreTrainedTokenizerBase",
    root: Path,
    trust_remote_code: bool = False,
    cache: Path | None = None,
) -> bool:
    """Whether the task's splits are on the disk, tokenised; the data are hashed and not read.

    Args:
        task: what is learnt and from which data.
        tokenizer: the base model's fast tokenizer.
        root: folder that relative paths start from.
        trust_remote_code: as in `prepare`.
        cache: likewise.

    Raises:
        DataError: no such data.
    """
    key = _key(task, tokenizer, find_sources(task, root, trust_remote_code))
    return (cache_folder(cache) / f"{key}.safetensors").is_file()


def _key(task: TaskSpec, tokenizer: "PreTrainedTokenizerBase", sources: Sources) -> str:
    content = {name: source.digest() for name, source in sources.official().items()}
    asked = plain(task)
    del asked["metrics"]  # what is measured on the test split changes no token; prompts are made in any case
    parts = [VERSION, content, asked, fingerprint(tokenizer)]
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def _commit_notes(sources: Sources) -> list[str]:
    """Say of which commit the hub's data are, so that they can be had again (`task.data: ID@COMMIT`)."""
    commits = {source.name: source.commit() for source in sources.official().values()}
    return [f"{name} was read at commit {commit} of the hub." for name, commit in commits.items() if commit]


_COLUMNS = {
    "text": ("text",),
    "instruction": ("prompt", "context", "response", "messages"),
    "qa": ("context", "question", "answers"),
    "classification": ("text", "label"),
}
"""Columns that have a part in each kind of task."""


def _unused_notes(task: TaskSpec) -> list[str]:
    """Say which settings of the task have no part in its kind."""
    columns = task.columns.model_dump()
    settings: dict[str, object] = {
        f"columns.{part}": name for part, name in columns.items() if part not in _COLUMNS[task.kind]
    }
    if task.kind == "text":
        settings |= {"template": task.template, "truncation": None if task.truncation == "middle" else task.truncation}
    else:
        settings["stride"] = task.stride
    if task.kind != "classification":
        settings["labels"] = task.labels
    return [f"task.{name} has no part in kind: {task.kind}." for name, value in settings.items() if value is not None]


def _token_notes(tokenizer: "PreTrainedTokenizerBase", task: TaskSpec) -> list[str]:
    notes = []
    if tokenizer.pad_token_id is None:
        notes.append(
            f"The tokenizer has no padding token; {tokenizer.eos_token} (end of sequence) fills up rows and is masked."
        )
    if task.kind == "classification":
        return [*notes, "The class is read at the last token of a text; no end of sequence follows it."]
    if tokenizer.eos_token_id is None:
        notes.append("The tokenizer has no end-of-sequence token, so none is learnt.")
    elif task.kind == "text" or task.template != CHAT:
        what = {"text": "document", "qa": "answer"}.get(task.kind, "reply")
        notes.append(f"Each {what} ends with {tokenizer.eos_token}, which carries loss.")
    if task.template == CHAT and task.kind != "text" and "strftime_now" in str(tokenizer.chat_template):
        notes.append("The chat template may write the date of the day on which the data is prepared into every prompt.")
    return notes
