"""From a task to tokenised splits: read, cut into splits, tokenise, and keep on disk what that took time for."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tuneoff.data.cache import VERSION, cache_folder, fingerprint, load_entry, save_entry
from tuneoff.data.conversations import Conversation
from tuneoff.data.encoding import Encoder
from tuneoff.data.encoding import encode_prompt as encode_prompt
from tuneoff.data.encoding import pad_token_id as pad_token_id
from tuneoff.data.encoding import render_prompt as render_prompt
from tuneoff.data.fitting import Fitter
from tuneoff.data.sources import SPLITS, Sources, find_sources
from tuneoff.data.splits import cut, cut_document, keep_apart
from tuneoff.data.tasks import Document, Examples, to_conversations, to_documents
from tuneoff.data.templates import CHAT, Template, make_template
from tuneoff.data.tokens import PreparedData as PreparedData
from tuneoff.data.tokens import TokenSplit as TokenSplit
from tuneoff.data.tokens import hash_splits
from tuneoff.data.windows import build_windows
from tuneoff.errors import DataError
from tuneoff.study.identity import canonical_json
from tuneoff.study.spec import TaskSpec
from tuneoff.study.value import plain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_SAMPLES = 4
SAMPLE_CHARS = 200
"""Length of the prompt, and of the reference, of a sample of text."""


@dataclass(frozen=True)
class _Tokenised:
    splits: Mapping[str, TokenSplit]
    notes: tuple[str, ...]
    samples: tuple[tuple[str, str], ...]
    cautions: tuple[str, ...]
    stride_tokens: int | None = None


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
    encoder = Encoder(tokenizer, parses_special=task.kind == "instruction" and task.template == CHAT)
    template = make_template(task.template if task.kind == "instruction" else None, tokenizer)
    sources = find_sources(task, root, trust_remote_code)
    path = cache_folder(cache) / f"{_key(task, tokenizer, sources)}.safetensors"
    kept = load_entry(path)
    if kept is not None:
        return kept
    if task.kind == "text":
        done = _prepare_text(task, sources, encoder)
    else:
        done = _prepare_instruction(task, sources, encoder, template)
    for name, split in done.splits.items():
        if not len(split):
            raise DataError(f"the {name} split holds no target token: its texts have no tokens; give it more text")
    data = PreparedData(
        train=done.splits["train"],
        validation=done.splits["validation"],
        test=done.splits["test"],
        sha256=hash_splits([done.splits[name] for name in SPLITS]),
        notes=(*sources.notes, *_unused_notes(task), *done.notes, *_token_notes(tokenizer, task)),
        stride_tokens=done.stride_tokens,
        samples=done.samples,
        cautions=done.cautions,
    )
    save_entry(path, data)
    return data


def _key(task: TaskSpec, tokenizer: "PreTrainedTokenizerBase", sources: Sources) -> str:
    content = {name: source.digest() for name, source in sources.official().items()}
    parts = [VERSION, content, plain(task), fingerprint(tokenizer)]
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def _prepare_text(task: TaskSpec, sources: Sources, encoder: Encoder) -> _Tokenised:
    found = {name: to_documents(source.read(), task.columns) for name, source in sources.official().items()}
    shares = _shares(sources)
    documents = {name: examples.examples for name, examples in found.items()}
    more_notes = []
    if shares and len(documents["train"]) == 1:
        documents |= cut_document(documents["train"][0], shares)
        names = " and ".join(shares)
        more_notes.append(f"The data is one document: its head is train, and {names} are the stretches after it.")
    elif shares:
        documents |= cut(documents["train"], shares)
    documents, notes = keep_apart(documents)
    stride = task.stride or task.max_length - 1
    splits = {
        name: build_windows(
            documents[name], encoder, task.max_length, task.max_length - 1 if name == "train" else stride
        )
        for name in SPLITS
    }
    return _Tokenised(
        splits=splits,
        notes=(
            *_read_notes(sources, found),
            *more_notes,
            *notes,
            *_window_notes(documents, splits, task.max_length, stride),
        ),
        samples=tuple(_continuation(document.text) for document in documents["validation"][:NUM_SAMPLES]),
        cautions=tuple(_alone_notes(documents)),
        stride_tokens=stride,
    )


def _shares(sources: Sources) -> dict[str, float]:
    shares = {"validation": sources.validation, "test": sources.test}
    return {name: share for name, share in shares.items() if isinstance(share, float)}


def _prepare_instruction(task: TaskSpec, sources: Sources, encoder: Encoder, template: Template) -> _Tokenised:
    found = {name: to_conversations(source.read(), task.columns) for name, source in sources.official().items()}
    shares = _shares(sources)
    conversations = {name: examples.examples for name, examples in found.items()}
    if shares:
        conversations |= cut(conversations["train"], shares)
    conversations, notes = keep_apart(conversations)
    fitter = Fitter(encoder, template, task.max_length, task.truncation)
    splits: dict[str, TokenSplit] = {}
    cut_notes: dict[str, str | None] = {}
    for name in SPLITS:
        splits[name], cuts = fitter.build(conversations[name])
        cut_notes[name] = cuts.note(name, task.max_length, task.truncation)
    sizes = [
        f"{name}: {len(splits[name])} sequences of {len(splits[name].item_names)} prompts or trees;"
        f" {splits[name].num_target_tokens} of {splits[name].num_input_tokens} tokens are targets."
        for name in SPLITS
    ]
    return _Tokenised(
        splits=splits,
        notes=(*_read_notes(sources, found), *notes, *sizes, *filter(None, cut_notes.values())),
        samples=_first_replies(conversations["validation"], template),
        cautions=tuple(note for note in (cut_notes["test"],) if note is not None),
    )


def _read_notes(
    sources: Sources, found: Mapping[str, Examples[Document]] | Mapping[str, Examples[Conversation]]
) -> list[str]:
    notes = []
    for name, examples in found.items():
        notes.append(f"{name} was read from {sources.official()[name].label}: {len(examples.examples)} examples.")
        notes += [f"{name}: {note}" for note in examples.notes]
    return notes


def _window_notes(
    documents: Mapping[str, Sequence[Document]], splits: Mapping[str, TokenSplit], max_length: int, stride: int
) -> list[str]:
    notes = [
        f"{name}: {len(splits[name])} windows of {len(documents[name])} document{'s' * (len(documents[name]) != 1)},"
        f" {splits[name].num_target_tokens} target tokens, {splits[name].num_target_bytes} bytes."
        for name in SPLITS
    ]
    notes.append(
        f"Text is scored in windows of {max_length} tokens that move on by {stride}: each token is predicted once,"
        f" after {max_length - stride} to {max_length - 1} tokens of context (fewer where its document begins)."
    )
    return notes + _alone_notes(documents)


def _alone_notes(documents: Mapping[str, Sequence[Document]]) -> list[str]:
    alone = [name for name in ("validation", "test") if len(documents[name]) == 1]
    if not alone:
        return []
    return [
        f"{' and '.join(alone)}: one document only, so its windows are the items; windows of one document are not"
        " independent, and intervals over them are too narrow."
    ]


def _unused_notes(task: TaskSpec) -> list[str]:
    """Say which settings of the task have no part in its kind."""
    settings: dict[str, object] = {f"columns.{part}": name for part, name in task.columns.model_dump().items()}
    text = settings.pop("columns.text")
    if task.kind == "text":
        settings |= {"template": task.template, "truncation": None if task.truncation == "middle" else task.truncation}
    else:
        settings = {"columns.text": text, "stride": task.stride}
    return [f"task.{name} has no part in kind: {task.kind}." for name, value in settings.items() if value is not None]


def _token_notes(tokenizer: "PreTrainedTokenizerBase", task: TaskSpec) -> list[str]:
    notes = []
    if tokenizer.pad_token_id is None:
        notes.append(
            f"The tokenizer has no padding token; {tokenizer.eos_token} (end of sequence) fills up rows and is masked."
        )
    if tokenizer.eos_token_id is None:
        notes.append("The tokenizer has no end-of-sequence token, so none is learnt.")
    elif task.kind == "text" or task.template != CHAT:
        what = "document" if task.kind == "text" else "reply"
        notes.append(f"Each {what} ends with {tokenizer.eos_token}, which carries loss.")
    if task.kind == "instruction" and task.template == CHAT and "strftime_now" in str(tokenizer.chat_template):
        notes.append("The chat template may write the date of the day on which the data is prepared into every prompt.")
    return notes


def _continuation(text: str) -> tuple[str, str]:
    """Return the beginning of a text and what follows it, cut between words."""
    middle = text.rfind(" ", 1, min(SAMPLE_CHARS, len(text) // 2 + 1))
    middle = middle if middle > 0 else len(text) // 2
    return text[:middle], text[middle : middle + SAMPLE_CHARS]


def _first_replies(conversations: Sequence[Conversation], template: Template) -> tuple[tuple[str, str], ...]:
    samples: dict[tuple[str, ...], tuple[str, str]] = {}
    for conversation in conversations:
        first = next(place for place, turn in enumerate(conversation.turns) if turn.role == "assistant")
        if conversation.item not in samples:
            prompt = template.prompt(conversation.turns[:first])
            samples[conversation.item] = (prompt, conversation.turns[first].text)
        if len(samples) == NUM_SAMPLES:
            break
    return tuple(samples.values())
