"""Rows as the examples of a kind of task, and what can be told of these without a tokenizer."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from tuneoff.data import classification, qa, tasks
from tuneoff.data.conversations import Conversation
from tuneoff.data.formats import Row
from tuneoff.data.tasks import Document, Examples
from tuneoff.study.spec import ColumnsSpec
from tuneoff.study.testing import TaskKind

Example = Document | Conversation | qa.Question | classification.LabelledText


def to_examples(kind: TaskKind, rows: Sequence[Row], columns: ColumnsSpec) -> Examples[Any]:
    """Return what the rows of one source are to a kind of task.

    Raises:
        DataError: no such columns, or rows that cannot be used.
    """
    if kind == "text":
        return tasks.to_documents(rows, columns)
    if kind == "instruction":
        return tasks.to_conversations(rows, columns)
    if kind == "qa":
        return qa.to_questions(rows, columns)
    return Examples(classification.to_labelled(rows, columns))


def text_in(example: Example) -> str:
    """Return all text of an example, for its size."""
    if isinstance(example, Conversation):
        return "\n".join(part for turn in example.turns for part in (turn.text, turn.context) if part)
    if isinstance(example, qa.Question):
        return "\n".join((example.context, example.question, example.answers[0]))
    return example.text


def num_copies(examples: Sequence[Example]) -> int:
    """Return how many examples are word for word like an earlier one, class and answers included."""
    return len(examples) - len({_whole(example) for example in examples})


def num_contradictions(texts: Sequence[classification.LabelledText]) -> int:
    """Return how many different texts stand there with more than one class: no method can learn these."""
    classes: dict[str, set[int | str]] = {}
    for example in texts:
        classes.setdefault(example.text, set()).add(example.label)
    return sum(len(found) > 1 for found in classes.values())


def count_labels(texts: Sequence[classification.LabelledText]) -> Counter[int | str]:
    """Return how many texts each class of the data has."""
    return Counter(example.label for example in texts)


def _whole(example: Example) -> Hashable:
    if isinstance(example, Conversation):
        return example.turns
    if isinstance(example, qa.Question):
        return (example.context, example.question, example.answers)
    if isinstance(example, classification.LabelledText):
        return (example.text, example.label)
    return example.text
