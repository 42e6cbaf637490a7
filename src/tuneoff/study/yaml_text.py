"""YAML of study files: safe, of bounded size, and with the place of what is wrong.

Nothing but plain values comes out: no tag makes an object. An alias lets a few hundred bytes stand for gigabytes once
they are written out (billion laughs), so a text is weighed with its aliases followed before any value is made of it.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from tuneoff.errors import StudyError

MAX_BYTES = 1_000_000
"""Of a study file: thousands of arms. PyYAML reads about a third of that in a second."""
MAX_WEIGHT = 4_000_000
"""Characters and values of a file with its aliases written out."""


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-4 as a number (YAML 1.2; PyYAML's 1.1 makes it text).

    It refuses a key that is given twice, and aliases that stand for too much or for themselves.
    """

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _weigh(node, {})
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, OverflowError) as error:  # a date such as 2021-13-45, a number of thousands of digits
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for part, _ in node.value:
            key = self.construct_object(part, deep=True)
            try:
                is_double = key in seen
                seen.add(key)
            except TypeError:
                raise yaml.constructor.ConstructorError(
                    None, None, "a list or a mapping cannot be a key", part.start_mark
                ) from None
            if is_double:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", part.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _weigh(node: yaml.Node, weights: dict[int, int]) -> int:
    """Return how many characters and values a node stands for; `weights` has those that were weighed, by their id."""
    if isinstance(node, yaml.ScalarNode):
        return 1 + len(node.value)
    known = weights.get(id(node))
    if known == 0:
        raise yaml.constructor.ConstructorError(None, None, "an alias stands for what it is in", node.start_mark)
    if known is not None:
        return known
    weights[id(node)] = 0  # until it is weighed
    parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    weight = 1 + sum(_weigh(part, weights) for part in parts)
    if weight > MAX_WEIGHT:
        raise yaml.constructor.ConstructorError(
            None, None, f"its aliases stand for more than {MAX_WEIGHT:,} characters", node.start_mark
        )
    weights[id(node)] = weight
    return weight


def read_yaml(path: Path) -> str:
    """Return the text of a study file.

    Raises:
        StudyError: too large, not readable, or not UTF-8.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise StudyError(f"{path}: cannot be read ({error.strerror or error})") from None
    if len(content) > MAX_BYTES:
        raise StudyError(
            f"{path}: is larger than {MAX_BYTES / 1e6:g} MB, the most that a study file may be. Is it a file of data?"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - content.rfind(b"\n", 0, error.start)
        raise StudyError(
            f"{path}, line {line}, column {column}: expected UTF-8 text, found the byte 0x{content[error.start]:02x}; "
            "save the file as UTF-8"
        ) from None


def parse_yaml(text: str, label: str) -> Any:
    """Return the value of a YAML text.

    Args:
        text: the text.
        label: what errors call it.

    Raises:
        StudyError: not YAML, nested too deeply, or aliases that stand for too much.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise StudyError(f"{label}{where}: not valid YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - before.rfind("\n")
        raise StudyError(
            f"{label}, line {line}, column {column}: not valid YAML: the character #x{error.character:04x} may not "
            "stand in a text"
        ) from None
    except yaml.YAMLError as error:
        raise StudyError(f"{label}: not valid YAML: {error}") from None
    except RecursionError:
        raise StudyError(f"{label}: nested too deeply to be a study file") from None
