"""Questions on a context: rows to questions, and questions to sequences and prompts.

The default prompt is `Context: ...`, `Question: ...` and `Answer:`, on three lines. What is learnt is the first answer
and the end of sequence; all answers are references. Prompt and answer are tokenised apart, so that the prompt has the
same tokens when it is trained and when an answer is generated after it; the space between them belongs to the answer,
as in running text (` Denver` is one token of GPT-2), and is left out where the template ends in white space or the
tokenizer puts one itself. White space around contexts, questions and answers is dropped, within them it is kept.

A prompt has at most `max_length` - room for the answer tokens, in every split and whatever its answer, so that a
prompt's length does not tell how long the answer is. Room for the answer is 32 tokens (a quarter of `max_length` where
that is less). Of a longer prompt the context is cut, by `task.truncation`; question and cue stay whole. An answer that
still does not fit loses its end.

The item is the article (its title), where there is none the context. SQuAD 2.0's questions without an answer
(Rajpurkar et al., 2018, arXiv:1806.03822) are left out and counted: the scores here are over answers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tuneoff.data.conversations import Conversation, Turn, checked_text, text_of
from tuneoff.data.encoding import Encoder
from tuneoff.data.fields import FieldTemplate, FittedPrompt, Prompt, fit_prompts
from tuneoff.data.formats import Row
from tuneoff.data.problems import Problems, shown
from tuneoff.data.tasks import Examples, check_columns, columns_of, first_of
from tuneoff.data.templates import CHAT, ChatTemplate, Segment
from tuneoff.data.tokens import PromptBuilder, SplitBuilder, TokenSplit
from tuneoff.errors import DataError, StudyError, did_you_mean
from tuneoff.study.spec import ColumnsSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CONTEXT = ("context", "passage")
QUESTION = ("question",)
ANSWERS = ("answers", "answer")
TITLE = "title"
ID = "id"

BODY = "Context: {context}\nQuestion: {question}"
"""What a chat template's user says."""
PLAIN = BODY + "\nAnswer:"

ANSWER_ROOM = 32
"""Tokens of `max_length` that a prompt leaves for its answer."""

CHUNK = 1024
"""Questions that are tokenised in one call."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question on a context, with its right answers."""

    context: str
    question: str
    answers: tuple[str, ...]
    """One at least; the first is learnt."""
    name: str
    """Its id, else FILE:LINE."""
    item: tuple[str, ...]
    item_name: str
    file: str
    line: int
    place: str


def to_questions(rows: Sequence[Row], columns: ColumnsSpec) -> Examples[Question]:
    """Return the questions in the rows; answers are a text, a list of texts, or SQuAD's lists with their starts.

    Raises:
        DataError: no column for the context, the question or the answers, or rows that cannot be used.
    """
    names = _named_columns(rows, columns)
    problems = Problems()
    found: list[Question] = []
    num_unanswerable = 0
    for row in rows:
        answers = _answers(row, names["answers"], problems)
        num_unanswerable += answers == ()
        question = _question(row, names, answers, problems)
        if question is not None:
            found.append(question)
    problems.check()
    if not found:
        raise DataError(f"none of the {len(rows)} questions has an answer", file=rows[0].file, column=names["answers"])
    notes = []
    if num_unanswerable:
        notes.append(
            f"{num_unanswerable} of {len(rows)} questions have no answer (SQuAD 2.0's unanswerable ones) and were left"
            " out."
        )
    num_outside = sum(not any(answer in question.context for answer in question.answers) for question in found)
    if num_outside:
        notes.append(
            f"{num_outside} of {len(found)} questions have no answer that stands in their context word for word."
        )
    if len({question.name for question in found}) < len(found):
        notes.append("Some ids stand for several questions; the later ones are told apart by a number.")
    return Examples(found, tuple(notes))


def _named_columns(rows: Sequence[Row], columns: ColumnsSpec) -> dict[str, str]:
    named = {part: getattr(columns, part) for part in ("context", "question", "answers")}
    check_columns(rows, {part: name for part, name in named.items() if name is not None})
    present = columns_of(rows)
    for part, known in (("context", CONTEXT), ("question", QUESTION), ("answers", ANSWERS)):
        named[part] = named[part] or first_of(known, present)
        if named[part] is None:
            hint = next(filter(None, (did_you_mean(name, present) for name in known)), "")
            raise DataError(
                f"no column for the {part} (known names: {', '.join(known)}); the data has {', '.join(present)}."
                f" Name it under task.columns.{part}.{hint} kind: qa takes SQuAD's JSON, or rows with context, question"
                " and answers",
                file=rows[0].file,
            )
    return named


def _question(row: Row, names: dict[str, str], answers: tuple[str, ...] | None, problems: Problems) -> Question | None:
    context = text_of(row, names["context"], problems)
    question = text_of(row, names["question"], problems)
    if context is None or question is None or not answers:
        return None
    title, key = row.values.get(TITLE), row.values.get(ID)
    where = f"{row.file}:{row.line}"
    context = context.strip()
    return Question(
        context=context,
        question=question.strip(),
        answers=answers,
        name=where if key is None or key == "" else str(key),
        item=(TITLE, title) if isinstance(title, str) and title.strip() else (context,),
        item_name=title if isinstance(title, str) and title.strip() else where,
        file=row.file,
        line=row.line,
        place=row.place,
    )


def _answers(row: Row, column: str, problems: Problems) -> tuple[str, ...] | None:
    """Return the answers, each once and in order; an empty tuple where there are none, none where the row is bad."""
    value = row.values.get(column)
    listed = value.get("text") if isinstance(value, dict) else value
    listed = [listed] if isinstance(listed, str) else listed
    if not isinstance(listed, list):
        expected = "expected a text, a list of texts, or {text: [...]}"
        problems.add_at(row, f"{expected}, found {shown(value)}", column)
        return None
    found: dict[str, None] = {}
    for number, answer in enumerate(listed, start=1):
        text: Any = answer.get("text") if isinstance(answer, dict) else answer
        checked = checked_text(text, column if isinstance(value, str) else f"{column}[{number}]", row, problems)
        if checked is None:
            return None
        found[checked.strip()] = None
    return tuple(found)


class QuestionTemplate:
    """Writes a question as a prompt and its answer as what follows.

    Args:
        name: the task's template; none is the plain one, `chat` the tokenizer's own around context and question.
        tokenizer: the tokenizer.

    Raises:
        StudyError: a placeholder that is unknown or missing, or no chat template.
    """

    def __init__(self, name: str | None, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._chat = ChatTemplate(tokenizer) if name == CHAT else None
        self._field = FieldTemplate(BODY if name == CHAT else name or PLAIN, "context", ("question",))

    def prompt(self, question: str, context: str) -> Prompt:
        """Return the text after which the answer is generated."""
        body = self._field.write({"context": context, "question": question})
        if self._chat is None:
            return body
        text = self._chat.prompt([Turn("user", body.text)])
        start = text.find(body.text)
        if start < 0:
            raise StudyError(
                "task.template: chat was asked for, but the tokenizer's chat template changes what the user says, so a"
                " long context cannot be cut; write a template with {context} and {question}"
            )
        return Prompt(text, start + body.start, start + body.end)

    def answer(self, question: Question, encoder: Encoder) -> Segment:
        """Return what is learnt after the prompt; its bytes are the answer's, without the space before it."""
        answer = question.answers[0]
        num_bytes = len(answer.encode())
        if self._chat is None:
            before = encoder.space_before(self._field.text)
            return Segment(before + answer, is_target=True, ends=True, num_bytes=num_bytes)
        said = self._field.write({"context": question.context, "question": question.question}).text
        turns = (Turn("user", said), Turn("assistant", answer, is_target=True))
        return self._chat.segments(Conversation(turns, question.item, question.file, question.line))[-1]


@dataclass
class QuestionCuts:
    """What did not fit into `max_length`."""

    num_questions: int = 0
    num_long: int = 0
    """Questions whose context was cut."""
    num_context_tokens: int = 0
    num_lost: int = 0
    """Questions whose context held an answer before it was cut, and holds none since."""
    num_long_answers: int = 0
    num_target_tokens: int = 0

    def notes(self, split: str, room: int, truncation: str) -> list[str]:
        """Return sentences on what was cut; none where nothing was."""
        notes = []
        if self.num_long:
            notes.append(
                f"{split}: {self.num_long} of {self.num_questions} prompts were longer than {room} tokens;"
                f" {self.num_context_tokens} tokens were cut from the {truncation} of their contexts, and"
                f" {self.num_lost} of them no longer hold any of their answers."
            )
        if self.num_long_answers:
            notes.append(
                f"{split}: {self.num_long_answers} of {self.num_questions} answers did not fit behind their prompt;"
                f" {self.num_target_tokens} target tokens were cut from their ends."
            )
        return notes


class QuestionFitter:
    """Turns questions into sequences of at most `max_length` tokens.

    Args:
        encoder: the tokenizer.
        template: how questions are written.
        max_length: tokens that one sequence may hold.
        truncation: `middle`, `end` or `error`.
    """

    def __init__(self, encoder: Encoder, template: QuestionTemplate, max_length: int, truncation: str) -> None:
        self._encoder = encoder
        self._template = template
        self._max_length = max_length
        self._truncation = truncation
        self.room = max_length - min(ANSWER_ROOM, max_length // 4)
        """Tokens that a prompt may have."""

    def build(
        self, questions: Sequence[Question], prompts: PromptBuilder | None = None
    ) -> tuple[TokenSplit, QuestionCuts]:
        """Return the split's sequences and what had to be cut; `prompts` takes the prompts with all answers.

        Raises:
            DataError: a question that does not fit, also without its context, or may not be cut.
        """
        builder = SplitBuilder()
        problems = Problems()
        cuts = QuestionCuts(num_questions=len(questions))
        for start in range(0, len(questions), CHUNK):
            for question, fitted, answer, num_bytes in self._fitted(questions[start : start + CHUNK], cuts, problems):
                item = builder.add(
                    np.concatenate([fitted.ids, answer]),
                    np.arange(len(fitted.ids) + len(answer)) >= len(fitted.ids),
                    target_bytes=num_bytes,
                    item=question.item,
                    item_name=question.item_name,
                )
                if prompts is not None:
                    prompts.add(fitted.ids, name=question.name, references=question.answers, item=item)
        problems.check()
        return builder.build(), cuts

    def _fitted(
        self, questions: Sequence[Question], cuts: QuestionCuts, problems: Problems
    ) -> Iterator[tuple[Question, FittedPrompt, NDArray[np.int32], int]]:
        written = [self._template.prompt(question.question, question.context) for question in questions]
        answers = [self._template.answer(question, self._encoder) for question in questions]
        tails = self._encoder.encode([answer.text for answer in answers])
        fitted = fit_prompts(self._encoder, written, self.room, self._truncation)
        for question, answer, tail, prompt in zip(questions, answers, tails, fitted, strict=True):
            complaint = self._complaint(prompt, tail)
            if complaint is not None or isinstance(prompt, int):
                problems.add_at(question, complaint or "")
                continue
            if prompt.num_cut:
                cuts.num_long += 1
                cuts.num_context_tokens += prompt.num_cut
                cuts.num_lost += _holds(question, (question.context,)) and not _holds(question, prompt.kept)
            whole = tail + (self._encoder.eos if answer.ends else [])
            ids = whole[: self._max_length - len(prompt.ids)]
            cuts.num_long_answers += len(ids) < len(whole)
            cuts.num_target_tokens += len(whole) - len(ids)
            if len(ids) < len(whole) and self._truncation == "error":
                problems.add_at(question, self._too_long(len(prompt.ids) + len(whole)))
                continue
            yield question, prompt, np.array(ids, dtype=np.int32), self._num_bytes(answer, len(tail), len(ids))

    def _complaint(self, prompt: FittedPrompt | int, tail: list[int]) -> str | None:
        """Say why a question is a bad row."""
        if isinstance(prompt, int):
            if self._truncation == "error":
                return self._too_long(prompt, "prompt ")
            return (
                f"expected a prompt of at most {self.room} tokens (task.max_length less room for the answer), found one"
                f" of {prompt}, and its question and template alone fill it; raise task.max_length"
            )
        if not tail:
            return "expected an answer that carries loss, found one without a token; remove the row"
        if not len(prompt.ids):
            return "expected a prompt before the answer, found one without a token"
        return None

    def _too_long(self, num_tokens: int, what: str = "") -> str:
        limit = self.room if what else self._max_length
        return (
            f"the {what or 'question with its answer '}has {num_tokens} tokens, {limit} fit (task.max_length"
            f" {self._max_length}{', less room for the answer' if what else ''}), and task.truncation is error; raise"
            " task.max_length, or cut contexts with truncation: middle"
        )

    def _num_bytes(self, answer: Segment, num_text_tokens: int, num_kept: int) -> int:
        """Return the bytes of the answer as far as its tokens are kept."""
        whole = len(answer.text.encode()) if answer.num_bytes is None else answer.num_bytes
        if num_kept >= num_text_tokens:
            return whole
        ((_, ends),) = self._encoder.encode_with_ends([answer.text])
        space = len(answer.text) - len(answer.text.lstrip())
        return max(0, min(int(ends[num_kept - 1]) - space, whole))


def _holds(question: Question, pieces: Sequence[str]) -> bool:
    """Whether one of the answers stands in one of the pieces."""
    return any(answer in piece for answer in question.answers for piece in pieces)


def samples(questions: Sequence[Question], template: QuestionTemplate, num_samples: int) -> tuple[tuple[str, str], ...]:
    """Return a few prompts with their first answer, of as many items."""
    found: dict[tuple[str, ...], tuple[str, str]] = {}
    for question in questions:
        if question.item not in found:
            found[question.item] = (template.prompt(question.question, question.context).text, question.answers[0])
        if len(found) == num_samples:
            break
    return tuple(found.values())
