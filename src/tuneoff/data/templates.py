r"""How a conversation is written as text: segments, each context or target, which are tokenised apart.

Plain (the default), of which a custom template changes the part of one user's turn:

    SYSTEM\n\n### Instruction:\nINSTRUCTION\n\n### Input:\nCONTEXT\n\n### Response:\nREPLY<eos>\n\n### Instruction:\n...

`chat` is the tokenizer's own chat template: the context before a reply is what it renders with a generation prompt, and
the target is all that it adds when the reply is there (its end-of-turn mark too). Placeholders are replaced, never
formatted, so that braces in the data are text.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tuneoff.data.conversations import Conversation, Turn
from tuneoff.errors import DataError, StudyError, TuneoffError, did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHAT = "chat"
PLAIN = "### Instruction:\n{instruction}\n\n### Response:\n"
PLAIN_WITH_CONTEXT = "### Instruction:\n{instruction}\n\n### Input:\n{context}\n\n### Response:\n"
PLACEHOLDERS = ("instruction", "context")
BETWEEN = "\n\n"
"""Between the system's text and the first turn, and between a reply and the next turn."""

LLAMA_DATE = "26 Jul 2024"
"""Llama 3.1's template writes today's date unless it is given one; this is the one that it falls back on."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a sequence that is tokenised by itself."""

    text: str
    is_target: bool = False
    """Whether its tokens carry loss."""
    ends: bool = False
    """Whether the end-of-sequence token follows, with the loss that the segment has."""
    num_bytes: int | None = None
    """UTF-8 bytes of the reply in it, where a chat template adds marks; none is all of the text."""


class Template(Protocol):
    """Writes conversations as segments."""

    parses_special: bool
    """Whether special tokens that are written out in a segment are meant as tokens."""

    def segments(self, conversation: Conversation) -> list[Segment]:
        """Return the conversation's segments; the last one is a target."""

    def prompt(self, turns: Sequence[Turn]) -> str:
        """Return the text after which a reply is to be generated."""


def make_template(name: str | None, tokenizer: "PreTrainedTokenizerBase") -> Template:
    """Return the template that `task.template` names.

    Raises:
        StudyError: an unknown placeholder, none for the instruction, or `chat` with a tokenizer that has no chat
            template.
    """
    if name == CHAT:
        return ChatTemplate(tokenizer)
    if name is None:
        return TextTemplate(PLAIN, PLAIN_WITH_CONTEXT)
    found = check_placeholders(name, PLACEHOLDERS)
    if "instruction" not in found:
        hint = " For the tokenizer's own template write: chat." if len(name) < 20 else ""
        raise StudyError(f"task.template: expected the placeholder {{instruction}}, found {name!r}.{hint}")
    return TextTemplate(name, name)


def check_placeholders(text: str, allowed: Sequence[str]) -> list[str]:
    """Return the placeholders of a template in order; raises `StudyError` where one is not among the allowed."""
    found = re.findall(r"\{(\w*)\}", text)
    for name in found:
        if name not in allowed:
            names = ", ".join(f"{{{one}}}" for one in allowed)
            raise StudyError(
                f"task.template: unknown placeholder {{{name}}}; allowed: {names}.{did_you_mean(name, allowed)}"
            )
    return found


class TextTemplate:
    """A prompt with placeholders.

    Args:
        bare: the prompt of a turn without context.
        full: the prompt of a turn with context.
    """

    parses_special = False

    def __init__(self, bare: str, full: str) -> None:
        self._bare = bare
        self._full = full

    def segments(self, conversation: Conversation) -> list[Segment]:
        """Return prompts and replies in turn. Raises `DataError` where a context has no place in the template."""
        segments: list[Segment] = []
        before = ""
        for place, turn in enumerate(conversation.turns):
            if turn.role == "assistant":
                if before:
                    segments.append(Segment(before))
                segments.append(Segment(turn.text, turn.is_target, ends=True))
                before = ""
            else:
                if turn.context and "{context}" not in self._full:
                    message = (
                        "the row has a context, but task.template has no place for it: add {context} to the template"
                    )
                    raise DataError(message, file=conversation.file, line=conversation.line)
                before += (BETWEEN if place and conversation.turns[place - 1].role != "system" else "") + self._write(
                    turn
                )
        return segments

    def prompt(self, turns: Sequence[Turn]) -> str:
        """Return the text after which a reply is to be generated."""
        reply = Turn("assistant", "", is_target=True)
        segments = self.segments(Conversation((*turns, reply), (), "", 0))
        return "".join(segment.text for segment in segments)

    def _write(self, turn: Turn) -> str:
        if turn.role == "system":
            return turn.text + BETWEEN if turn.text else ""
        values = {"instruction": turn.text, "context": turn.context}
        template = self._full if turn.context else self._bare
        return re.sub(r"\{(instruction|context)\}", lambda match: values[match[1]], template)


class ChatTemplate:
    """The tokenizer's own chat template.

    Args:
        tokenizer: the tokenizer.

    Raises:
        StudyError: the tokenizer has no chat template.
    """

    parses_special = True

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        if not tokenizer.chat_template:
            raise StudyError(
                "task.template: chat was asked for, but the model's tokenizer has no chat template; leave"
                " task.template out for the plain one, or write your own with placeholders such as {context}"
            )
        self._tokenizer = tokenizer

    def segments(self, conversation: Conversation) -> list[Segment]:
        """Return what the template renders, cut where replies begin and end.

        Raises:
            DataError: the template refuses the conversation, or writes earlier turns anew when later ones follow.
        """
        segments: list[Segment] = []
        done = ""
        try:
            for place, turn in enumerate(conversation.turns):
                if turn.role == "assistant":
                    before = self._render(conversation.turns[:place], for_reply=True)
                    after = self._render(conversation.turns[: place + 1])
                    segments.append(Segment(_added(done, before, conversation)))
                    reply = _added(before, after, conversation)
                    num_bytes = len(turn.text.strip().encode()) if turn.text.strip() in reply else None
                    segments.append(Segment(reply, turn.is_target, num_bytes=num_bytes))
                    done = after
        except TuneoffError:
            raise
        except Exception as error:  # the template is a program that came with the model, and may fail in any way
            message = f"the tokenizer's chat template refuses this conversation: {error}"
            raise DataError(message, file=conversation.file, line=conversation.line) from None
        return [segment for segment in segments if segment.text]

    def prompt(self, turns: Sequence[Turn]) -> str:
        """Return the text after which a reply is to be generated."""
        return self._render(turns, for_reply=True)

    def _render(self, turns: Sequence[Turn], *, for_reply: bool = False) -> str:
        messages = [
            {"role": turn.role, "content": turn.text + (BETWEEN + turn.context if turn.context else "")}
            for turn in turns
            if turn.text
        ]
        rendered: Any = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=for_reply, date_string=LLAMA_DATE
        )
        return str(rendered)


def _added(start: str, whole: str, conversation: Conversation) -> str:
    if not whole.startswith(start):
        raise DataError(
            "the tokenizer's chat template writes earlier turns anew when later ones follow, so what a reply is"
            " cannot be told;"
            " use a plain template for conversations of several turns",
            file=conversation.file,
            line=conversation.line,
        )
    return whole[len(start) :]
