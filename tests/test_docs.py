"""The documentation says what the code does: its commands parse, its keys and defaults are those of the study file."""

import re
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import typer
import yaml

from tuneoff.cli import app
from tuneoff.study.loading import load_study, recipe_names, study_from
from tuneoff.study.methods import DEFAULT_RATES, METHODS
from tuneoff.study.spec import ColumnsSpec, Study
from tuneoff.study.testing import Decoding
from tuneoff.study.value import Value

TOP = Path(__file__).resolve().parent.parent
DOCS = TOP / "docs"
PAGES = [TOP / "README.md", *sorted(DOCS.rglob("*.md"))]
NOT_KEYS = ("arms", "root")

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="the source distribution leaves the pages out")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def commands() -> Iterator[tuple[str, list[str]]]:
    """Yield each `tuneoff ...` of the pages' shell blocks, with its page."""
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["tuneoff"]:
                    yield page.name, words[1:]


COMMANDS = list(commands())


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=[f"{page}: {' '.join(words)}" for page, words in COMMANDS])
def test_commands(page: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verbs and options exist, and what is overridden in a recipe can be."""
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    verb, *rest = words
    options = {name for parameter in verbs[verb].params for name in parameter.opts}
    assert {word for word in rest if word.startswith("--")} <= options
    if rest and rest[0] in recipe_names():
        monkeypatch.chdir(tmp_path)
        (tmp_path / "FOLDER").mkdir()
        overrides = [after for word, after in pairwise(rest) if word == "--set"]
        for override in overrides:
            key, _, value = override.partition("=")
            if key in ("task.data", "task.splits.test") and value != "validation":
                (tmp_path / value).touch()
        study = load_study(rest[0], overrides, smoke="--smoke" in rest)
        only = [after for word, after in pairwise(rest) if word == "--only"]
        assert set(only) <= {arm.name for arm in study.arms}


def test_the_readmes_study_is_one() -> None:
    bodies = [yaml.safe_load(block) for block in blocks(TOP / "README.md", "yaml")]
    names = [study_from(body, TOP).name for body in bodies if "name" in body]
    assert names == ["my-study"]


def _keys(value: type[Value], before: str = "") -> Iterator[str]:
    for name, field in value.model_fields.items():
        inner = field.annotation
        if name in NOT_KEYS:
            continue
        if isinstance(inner, type) and issubclass(inner, Value):
            yield from _keys(inner, f"{before}{name}.")
        else:
            yield before + name


@pytest.mark.parametrize("key", [*_keys(Study)])
def test_every_key_is_explained(key: str) -> None:
    text = (DOCS / "study-file.md").read_text("utf-8")
    last = key.rpartition(".")[2]
    assert any(f"`{form}`" in text for form in (key, f".{last}", last))


def test_every_column_and_every_option_of_decoding_is_explained() -> None:
    text = (DOCS / "study-file.md").read_text("utf-8")
    assert all(f"`{name}`" in text for name in ColumnsSpec.model_fields)
    options = {name for name in Decoding.model_fields if name != "is_sampled"}
    assert options == set(re.findall(r"^\| `(\w+): [\d.]+` \|", text, re.MULTILINE))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_explained(method: str) -> None:
    row = re.search(rf"^\| `{method}` \|(.*)\|(.*)\|$", _arms(), re.MULTILINE)
    assert row is not None
    keys, rates = row[1], row[2]
    for name, field in METHODS[method].model_fields.items():
        if name == "method":
            continue
        assert f"`{name}`" in keys
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            assert f"`{name}` ({field.default:g})" in keys
    assert tuple(map(float, re.findall(r"[\d.e-]+", rates))) == DEFAULT_RATES.get(method, ())
    assert f"\n## {method}\n" in (DOCS / "methods.md").read_text("utf-8")


def _arms() -> str:
    return (DOCS / "study-file.md").read_text("utf-8").partition("## Arms")[2]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target
