"""Vega, Vega-Lite and Vega-Embed as one script. Making it takes longer than most pages, so it is kept on disk.

A kept bundle that does not match its checksum is made again; where nothing can be kept, it is made for every page.
"""

import hashlib
import logging
from functools import cache
from importlib.metadata import version
from pathlib import Path

import vl_convert

from tuneoff.errors import StoreError
from tuneoff.files import user_cache, write_synced
from tuneoff.report.drawing import why_not_drawn

_SNIPPET = "window.vegaEmbed = vegaEmbed;"
"""What the bundle hands to the page: no more than the page uses."""

log = logging.getLogger(__name__)


@cache
def vega_bundle() -> str:
    """Return the script, as it stands in a page's script element; nothing where it is not kept and cannot be made."""
    path = user_cache() / "page" / f"vega-{version('vl-convert-python')}.js"
    bundle = _kept(path) or ("" if why_not_drawn() else _made(path))
    if "</script" in bundle.lower() or "<!--" in bundle:
        raise AssertionError("the bundle would end its own script element")
    return bundle


def _kept(path: Path) -> str:
    """Return a kept bundle; nothing where there is none that is whole."""
    try:
        checksum, _, bundle = path.read_text(encoding="utf-8").partition("\n")
    except (OSError, ValueError):
        return ""
    return bundle if checksum == _checksum(bundle) else ""


def _made(path: Path) -> str:
    bundle: str = vl_convert.javascript_bundle(_SNIPPET)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(path, f"{_checksum(bundle)}\n{bundle}".encode())
    except (OSError, StoreError) as error:
        log.info("%s cannot be kept (%s); every page makes its own", path, error)
    return bundle


def _checksum(bundle: str) -> str:
    """Return the sha256 of the bundle and of what it was made from, so that another snippet makes another."""
    return hashlib.sha256(f"{_SNIPPET}\n{bundle}".encode()).hexdigest()
