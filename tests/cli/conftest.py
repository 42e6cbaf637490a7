"""Fixtures made once in a session and shared with tests/running."""

from pathlib import Path

import pytest
from tests.running import world as worlds

from tuneoff.api import Result


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base, rows and a text."""
    return worlds.world(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A finished study; only to be read."""
    return worlds.finished(tmp_path_factory.getbasetemp())
