"""Which task some rows are for, and which column holds which part: said with a reason, refused where it is a toss-up.

Names that the readers recognise come first. Then what the columns hold decides (`tuneoff.data.profiles`), and words in
their names; never their order alone.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tuneoff.data import classification, oasst, qa, tasks
from tuneoff.data.formats import TEXT_SUFFIXES, Row
from tuneoff.data.problems import shown
from tuneoff.data.profiles import Profile, holds_share, named_for, profile
from tuneoff.errors import DataError
from tuneoff.study.testing import TaskKind

MIN_HELD = 0.8
"""Share of rows whose answer stands in the context, from which they are taken for questions on it."""
MIN_ASKED = 0.5
"""Share of values that end in a question mark, from which a column is taken for questions."""
LONGER = 3.0
"""How many times as long as the others one column's texts are, where it alone is taken for the text."""
PARTS: Mapping[TaskKind, tuple[str, ...]] = {
    "qa": ("context", "question", "answers"),
    "classification": ("text", "label"),
    "instruction": ("prompt", "response"),
    "text": ("text",),
}
"""Parts that each kind needs."""


@dataclass(frozen=True)
class Layout:
    """What rows are read as.

    Attributes:
        kind: of the task.
        columns: for `task.columns`; empty where the readers know the names.
        reasons: why, one sentence each.
    """

    kind: TaskKind
    columns: Mapping[str, str] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()


def guess_layout(rows: Sequence[Row], kind: TaskKind | None = None, named: Mapping[str, str] | None = None) -> Layout:
    """Tell what rows are for.

    Args:
        rows: of one file or hub split.
        kind: the task's, where the user says it.
        named: columns by part, where the user says them.

    Raises:
        DataError: no such column, nothing to learn from, or more than one way to read the rows; the message lists the
            columns and the options that decide.
    """
    named = dict(named or {})
    present = tasks.columns_of(rows)
    tasks.check_columns(rows, named)
    profiles = {name: profile(rows, name) for name in present}
    if not named and (found := _recognised(rows, profiles, kind)):
        return found
    guesser = _Guesser(rows, profiles, named)
    kinds: Sequence[TaskKind] = (kind,) if kind else tuple(PARTS)
    for one in kinds:
        layout = guesser.guess(one, is_asked=kind is not None)
        if layout is not None:
            return layout
    raise _refusal(rows, list(profiles.values()), kind)


def _recognised(rows: Sequence[Row], profiles: Mapping[str, Profile], kind: TaskKind | None) -> Layout | None:
    """Return the layout whose names the readers know, as they know them."""
    has = set(profiles)
    has_classes = any(one.is_class for one in profiles.values())
    if list(profiles) == [tasks.TEXT] and rows[0].file.lower().endswith(TEXT_SUFFIXES):
        if kind not in (None, "text"):
            raise DataError(
                f"is plain text; kind: {kind} needs rows with columns (or leave --kind out)", file=rows[0].file
            )
        return Layout("text", reasons=("plain text: one document a file",))
    known: list[tuple[TaskKind, bool, str]] = [
        ("instruction", set(oasst.COLUMNS) <= has, f"message trees, by the columns {', '.join(oasst.COLUMNS)}"),
        ("instruction", bool(has & set(tasks.MESSAGES)), "chats, by the column of messages"),
        ("qa", all(has & set(names) for names in (qa.CONTEXT, qa.QUESTION, qa.ANSWERS)), "questions on a context"),
        ("instruction", bool(has & set(tasks.PROMPT) and has & set(tasks.RESPONSE)), "prompts and replies"),
        (
            "classification",
            bool(has & set(classification.TEXTS) and has & set(classification.LABELS)),
            "texts and classes",
        ),
        (
            "text",
            tasks.TEXT in has and (kind == "text" or not has_classes),
            "documents: a column `text` and none of classes",
        ),
    ]
    for one, fits, what in known:
        if fits and kind in (None, one):
            by = "" if "column" in what else ", by the columns' names"
            return Layout(one, reasons=(what + by,))
    return None


class _Guesser:
    """Finds the columns of each kind's parts."""

    def __init__(self, rows: Sequence[Row], profiles: Mapping[str, Profile], named: Mapping[str, str]) -> None:
        self._rows = rows
        self._profiles = profiles
        self._named = named
        self._texts = [name for name, one in profiles.items() if one.is_text]
        self._classes = [name for name, one in profiles.items() if one.is_class]

    def guess(self, kind: TaskKind, *, is_asked: bool) -> Layout | None:
        """Return the one layout of a kind that the rows have, else none."""
        if any(part not in (*PARTS[kind], *tasks.PARTS * (kind == "instruction")) for part in self._named):
            return None
        if kind == "qa":
            return self._qa()
        if kind == "classification":
            return self._classification()
        if kind == "instruction":
            return self._instruction()
        if self._classes and not is_asked and "text" not in self._named:
            return None  # rows with a class column that could not be told are not plain documents
        return self._layout("text", {"text": self._main_text()}) if self._main_text() else None

    def _layout(self, kind: TaskKind, columns: Mapping[str, tuple[str, str] | None]) -> Layout | None:
        """Return the layout where every part has a column, and no two the same one."""
        found = {part: pair for part, pair in columns.items() if pair is not None}
        names = [name for name, _ in found.values()]
        if len(found) < len(columns) or len(set(names)) < len(names):
            return None
        reasons = tuple(f"{part} is {shown(name)}: {why}" for part, (name, why) in found.items())
        return Layout(kind, {part: name for part, (name, _) in found.items()}, reasons)

    def _given(self, part: str) -> tuple[str, str] | None:
        name = self._named.get(part)
        return None if name is None else (name, "as you said")

    def _by_name(self, part: str, among: Sequence[str]) -> tuple[str, str] | None:
        """Return the one column whose name speaks best for a part."""
        strength = {name: named_for(part, name) for name in among}
        best = max(strength.values(), default=0)
        found = [name for name, value in strength.items() if value == best]
        return (found[0], "by its name") if best and len(found) == 1 else None

    def _qa(self) -> Layout | None:
        questions = self._given("question") or self._question()
        if questions is None:
            return None
        context, answers = self._given("context"), self._given("answers")
        if context is None or answers is None:
            held = [
                (share, outer, inner)
                for outer in ([context[0]] if context else self._texts)
                for inner in ([answers[0]] if answers else self._profiles)
                if len({outer, inner, questions[0]}) == 3 and self._profiles[inner].kind != "number"
                if (share := holds_share(self._rows, inner, outer)) >= MIN_HELD
            ]
            if len(held) != 1 and not (context or answers):
                held = [one for one in held if named_for("answers", one[2])]
            if len(held) != 1:
                return None
            share, outer, inner = held[0]
            why = f"its values stand in {shown(outer)} in {100 * share:.0f} % of the rows"
            context, answers = context or (outer, "it holds the answers"), answers or (inner, why)
        return self._layout("qa", {"context": context, "question": questions, "answers": answers})

    def _question(self) -> tuple[str, str] | None:
        asked = [name for name in self._texts if self._profiles[name].question_share >= MIN_ASKED]
        if len(asked) == 1:
            share = self._profiles[asked[0]].question_share
            return asked[0], f"{100 * share:.0f} % of its values end in a question mark"
        return self._by_name("question", asked or self._texts)

    def _classification(self) -> Layout | None:
        if not (self._classes or "label" in self._named):
            return None
        if "label" not in self._named and "text" not in self._named and self._pair_by_name():
            return None  # a prompt and its reply; the classes beside them are about the row
        label = self._given("label")
        if label is None and len(self._classes) == 1:
            label = (
                self._classes[0],
                f"its {self._profiles[self._classes[0]].num_distinct} values come again and again",
            )
        label = label or self._by_name("label", self._classes)
        return self._layout("classification", {"text": self._main_text(but=label), "label": label})

    def _main_text(self, but: tuple[str, str] | None = None) -> tuple[str, str] | None:
        """Return the column of text: the only one, the one that is far longer than the others, or the one so named."""
        if given := self._given("text"):
            return given
        left = [name for name in self._texts if but is None or name != but[0]]
        if len(left) == 1:
            return left[0], "the only column of running text"
        by_length = sorted(left, key=lambda name: self._profiles[name].mean_chars, reverse=True)
        if left and self._profiles[by_length[0]].mean_chars >= LONGER * self._profiles[by_length[1]].mean_chars:
            return by_length[0], "by far the longest texts"
        return self._by_name("text", left)

    def _pair_by_name(self) -> tuple[tuple[str, str], tuple[str, str]] | None:
        prompt, response = self._by_name("prompt", self._texts), self._by_name("response", self._texts)
        return (prompt, response) if prompt and response and prompt[0] != response[0] else None

    def _instruction(self) -> Layout | None:
        chats = [name for name, one in self._profiles.items() if one.kind == "chat"]
        if given := self._given("messages"):
            return self._layout("instruction", {"messages": given})
        if len(chats) == 1 and not self._named:
            return self._layout("instruction", {"messages": (chats[0], "lists of messages with a role")})
        prompt = self._given("prompt") or self._by_name("prompt", self._texts)
        response = self._given("response") or self._by_name("response", self._texts)
        if len(self._texts) == 2 and (prompt is None) != (response is None):
            other = next(name for name in self._texts if name != (prompt or response or ("", ""))[0])
            prompt, response = (
                prompt or (other, "the other column of text"),
                response or (other, "the other column of text"),
            )
        if prompt is None or response is None:
            return None
        columns = {"prompt": prompt, "response": response}
        left = [name for name in self._texts if name not in (prompt[0], response[0])]
        context = self._given("context") or self._by_name("context", left)
        return self._layout("instruction", columns | ({"context": context} if context else {}))


def _refusal(rows: Sequence[Row], profiles: Sequence[Profile], kind: TaskKind | None) -> DataError:
    """Say what the columns hold, and which options decide."""
    file = rows[0].file
    texts = [one.name for one in profiles if one.is_text]
    classes = [one.name for one in profiles if one.is_class]
    listed = ", ".join(one.describe() for one in profiles)
    if not texts and not any(one.kind == "chat" for one in profiles):
        return DataError(
            f"expected a column of running text, found {listed}. Nothing can be learnt from these; give rows with"
            f" {tasks.LAYOUTS}; context, question and answers; a text and its label; or plain text."
            + _separator_hint(profiles),
            file=file,
        )
    what = f"how to read them as kind: {kind}" if kind else "which task they are for"
    choices = [_choice(kind_, parts) for kind_, parts in _choices(texts, classes) if kind in (None, kind_)]
    options = f" Say it, such as: {'; or '.join(choices)}." if choices else " No columns fit that kind."
    return DataError(f"the columns do not tell {what}: {listed}.{options}", file=file)


def _choices(texts: Sequence[str], classes: Sequence[str]) -> list[tuple[TaskKind, dict[str, str]]]:
    found: list[tuple[TaskKind, dict[str, str]]] = []
    found += [("classification", {"text": text, "label": label}) for text in texts[:2] for label in classes[:2]]
    if len(texts) > 1:
        found += [("instruction", {"prompt": texts[0], "response": texts[1]})]
        found += [("instruction", {"prompt": texts[1], "response": texts[0]})]
    return [*found, *(("text", {"text": text}) for text in texts[:2])]


def _choice(kind: TaskKind, parts: Mapping[str, str]) -> str:
    return " ".join([f"--kind {kind}", *(f"--column {shlex.quote(f'{part}={name}')}" for part, name in parts.items())])


def _separator_hint(profiles: Sequence[Profile]) -> str:
    """Say where a table seems to have another separator than its suffix says."""
    if len(profiles) != 1:
        return ""
    for mark, what in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars"), (",", "commas")):
        if mark in profiles[0].name:
            end = "name it .tsv" if mark == "\t" else "name it .csv" if mark == "," else "save it with commas (.csv)"
            name = shown(profiles[0].name)
            return f" Its one column is called {name}: the values seem to be separated by {what}; {end}."
    return ""
