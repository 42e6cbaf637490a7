"""What is done for each kind of task: rows to examples, examples cut into splits, splits to tokens, and notes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from tuneoff.data import classification, qa
from tuneoff.data.conversations import Conversation
from tuneoff.data.encoding import Encoder
from tuneoff.data.fields import FieldTemplate
from tuneoff.data.fitting import Fitter
from tuneoff.data.sources import SPLITS, Sources
from tuneoff.data.splits import cut, cut_document, keep_apart
from tuneoff.data.tasks import Document, to_conversations, to_documents
from tuneoff.data.templates import CHAT, Template, make_template
from tuneoff.data.tokens import PromptBuilder, Prompts, TokenSplit
from tuneoff.data.windows import build_windows
from tuneoff.study.spec import TaskSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_SAMPLES = 4
SAMPLE_CHARS = 200
"""Length of the prompt, and of the reference, of a sample of text."""


@dataclass(frozen=True)
class Tokenised:
    """What a kind's data became; the fields are those of `PreparedData`."""

    splits: Mapping[str, TokenSplit]
    notes: tuple[str, ...]
    cautions: tuple[str, ...] = ()
    samples: tuple[tuple[str, str], ...] = ()
    stride_tokens: int | None = None
    prompts: Prompts | None = None
    classes: tuple[str, ...] = ()
    label_ids: tuple[tuple[int, ...], ...] = ()


def make_preparer(task: TaskSpec, tokenizer: "PreTrainedTokenizerBase") -> Callable[[Sources], Tokenised]:
    """Return what reads the task's sources and tokenises them; the task's metrics have no part in it.

    Args:
        task: what is learnt.
        tokenizer: the base model's fast tokenizer.

    Returns:
        A function that raises `DataError` where the data cannot be used, and `StudyError` where `task.labels` do not go
        with the data.

    Raises:
        ModelError: a tokenizer that cannot be used.
        StudyError: a template that cannot be used.
    """
    encoder = Encoder(tokenizer, parses_special=task.kind in ("instruction", "qa") and task.template == CHAT)
    if task.kind == "text":
        return partial(_prepare_text, task, encoder)
    if task.kind == "instruction":
        return partial(_prepare_instruction, task, encoder, make_template(task.template, tokenizer))
    if task.kind == "qa":
        return partial(_prepare_qa, task, encoder, qa.QuestionTemplate(task.template, tokenizer))
    return partial(_prepare_classification, task, encoder, classification.make_field_template(task.template))


def _prepare_text(task: TaskSpec, encoder: Encoder, sources: Sources) -> Tokenised:
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
    counts = {name: (len(examples.examples), examples.notes) for name, examples in found.items()}
    return Tokenised(
        splits=splits,
        notes=(
            *_read_notes(sources, counts),
            *more_notes,
            *notes,
            *_window_notes(documents, splits, task.max_length, stride),
        ),
        samples=tuple(_continuation(document.text) for document in documents["validation"][:NUM_SAMPLES]),
        cautions=tuple(_alone_notes(documents)),
        stride_tokens=stride,
    )


def _prepare_instruction(task: TaskSpec, encoder: Encoder, template: Template, sources: Sources) -> Tokenised:
    found = {name: to_conversations(source.read(), task.columns) for name, source in sources.official().items()}
    conversations = {name: examples.examples for name, examples in found.items()}
    if shares := _shares(sources):
        conversations |= cut(conversations["train"], shares)
    conversations, notes = keep_apart(conversations)
    fitter = Fitter(encoder, template, task.max_length, task.truncation)
    prompts = PromptBuilder()
    splits: dict[str, TokenSplit] = {}
    cut_notes: dict[str, str | None] = {}
    for name in SPLITS:
        splits[name], cuts = fitter.build(conversations[name], prompts if name == "test" else None)
        cut_notes[name] = cuts.note(name, task.max_length, task.truncation)
    counts = {name: (len(examples.examples), examples.notes) for name, examples in found.items()}
    sizes = _size_notes(splits, "prompts or trees")
    return Tokenised(
        splits=splits,
        notes=(*_read_notes(sources, counts), *notes, *sizes, *filter(None, cut_notes.values())),
        samples=_first_replies(conversations["validation"], template),
        cautions=tuple(note for note in (cut_notes["test"],) if note is not None),
        prompts=prompts.build(),
    )


def _prepare_qa(task: TaskSpec, encoder: Encoder, template: qa.QuestionTemplate, sources: Sources) -> Tokenised:
    found = {name: qa.to_questions(source.read(), task.columns) for name, source in sources.official().items()}
    questions = {name: examples.examples for name, examples in found.items()}
    if shares := _shares(sources):
        questions |= cut(questions["train"], shares)
    questions, notes = keep_apart(questions)
    fitter = qa.QuestionFitter(encoder, template, task.max_length, task.truncation)
    prompts = PromptBuilder()
    splits: dict[str, TokenSplit] = {}
    cut_notes: dict[str, list[str]] = {}
    for name in SPLITS:
        splits[name], cuts = fitter.build(questions[name], prompts if name == "test" else None)
        cut_notes[name] = cuts.notes(name, fitter.room, task.truncation)
    counts = {name: (len(examples.examples), examples.notes) for name, examples in found.items()}
    left_out = [f"test: {note}" for note in found["test"].notes] if "test" in found else []
    return Tokenised(
        splits=splits,
        notes=(
            *_read_notes(sources, counts),
            *notes,
            *_size_notes(splits, "articles or contexts"),
            f"A prompt has at most {fitter.room} of {task.max_length} tokens; the rest is room for its answer.",
            *(note for name in SPLITS for note in cut_notes[name]),
        ),
        samples=qa.samples(questions["validation"], template, NUM_SAMPLES),
        cautions=(*left_out, *cut_notes["test"]),
        prompts=prompts.build(),
    )


def _prepare_classification(task: TaskSpec, encoder: Encoder, template: FieldTemplate, sources: Sources) -> Tokenised:
    rows = {name: source.read() for name, source in sources.official().items()}
    texts = {name: classification.to_labelled(rows[name], task.columns) for name in rows}
    counts: dict[str, tuple[int, Sequence[str]]] = {name: (len(found), ()) for name, found in texts.items()}
    _, label_column = classification.find_columns(rows["train"], task.columns)
    hub_names = sources.train.class_names(label_column)
    classes, number = classification.number_classes(texts, task.labels, hub_names)
    if shares := _shares(sources):
        texts |= cut(texts["train"], shares)
    texts, notes = keep_apart(texts)
    classification.check_classes(texts, classes, number)
    label_ids = classification.word_ids(task.labels or (), template, encoder)
    room = task.max_length - max(map(len, label_ids), default=0)
    fitter = classification.TextFitter(encoder, template, room, task.truncation)
    splits: dict[str, TokenSplit] = {}
    cut_notes: dict[str, str | None] = {}
    for name in SPLITS:
        splits[name], cuts = fitter.build(texts[name], number)
        cut_notes[name] = cuts.note(name, room, task.truncation)
    return Tokenised(
        splits=splits,
        notes=(
            *_read_notes(sources, counts),
            *notes,
            *(classification.class_note(name, splits[name], classes) for name in SPLITS),
            *filter(None, cut_notes.values()),
        ),
        cautions=tuple(note for note in (cut_notes["test"],) if note is not None),
        classes=classes,
        label_ids=label_ids,
    )


def _shares(sources: Sources) -> dict[str, float]:
    shares = {"validation": sources.validation, "test": sources.test}
    return {name: share for name, share in shares.items() if isinstance(share, float)}


def _read_notes(sources: Sources, found: Mapping[str, tuple[int, Sequence[str]]]) -> list[str]:
    """Say what was read: the number of examples of each source, and what was noted about them."""
    notes = []
    for name, (num_examples, more) in found.items():
        notes.append(f"{name} was read from {sources.official()[name].label}: {num_examples} examples.")
        notes += [f"{name}: {note}" for note in more]
    return notes


def _size_notes(splits: Mapping[str, TokenSplit], units: str) -> list[str]:
    return [
        f"{name}: {len(splits[name])} sequences of {len(splits[name].item_names)} {units};"
        f" {splits[name].num_target_tokens} of {splits[name].num_input_tokens} tokens are targets."
        for name in SPLITS
    ]


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
