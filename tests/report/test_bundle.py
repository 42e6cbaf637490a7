"""The page's script, kept on disk: made once, and made again where what was kept is not whole."""

from collections.abc import Callable
from pathlib import Path

import pytest
import vl_convert

from tuneoff.report import bundle


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The snippets that bundles were made for. The real one takes seconds."""
    snippets: list[str] = []

    def make(snippet: str) -> str:
        snippets.append(snippet)
        return f"/* vega */ {snippet}"

    monkeypatch.setattr(vl_convert, "javascript_bundle", make)
    monkeypatch.setenv("TUNEOFF_CACHE", str(tmp_path / "cache"))
    return snippets


def fresh() -> str:
    """Return the bundle as another process would get it."""
    bundle.vega_bundle.cache_clear()
    try:
        return bundle.vega_bundle()
    finally:
        bundle.vega_bundle.cache_clear()


def test_a_bundle_is_made_once(made: list[str]) -> None:
    assert fresh() == fresh() == "/* vega */ window.vegaEmbed = vegaEmbed;"
    assert len(made) == 1


@pytest.mark.parametrize("spoil", [lambda text: text[:-5], lambda text: text + "alert(1)", lambda text: ""])
def test_a_bundle_that_is_torn_or_altered_is_made_again(
    made: list[str], tmp_path: Path, spoil: Callable[[str], str]
) -> None:
    whole = fresh()
    (kept,) = (tmp_path / "cache" / "page").iterdir()
    kept.write_text(spoil(kept.read_text("utf-8")), encoding="utf-8")
    assert fresh() == whole
    assert len(made) == 2
    assert fresh() == whole
    assert len(made) == 2


def test_a_folder_that_cannot_be_written_costs_time_only(made: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    assert fresh() == fresh()
    assert len(made) == 2


def test_a_bundle_that_would_end_its_element_is_refused(made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vl_convert, "javascript_bundle", lambda snippet: "'</SCRIPT>'")
    with pytest.raises(AssertionError, match="script element"):
        fresh()
