"""Runs the real `main` in this process, as the shell would: arguments in, exit code and the two outputs back.

Outputs are taken on the level of file descriptors, so what child processes and libraries print is among them.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from tuneoff import cli

WIDTH = "200"


@dataclass(frozen=True)
class Outcome:
    """What a command left in the shell."""

    code: int
    text: str
    errors: str

    def is_one_error(self, message: str) -> None:
        """Assert that it is one error, which matches a pattern, and nothing else on stderr."""
        assert self.code == 2, (self.code, self.text, self.errors)
        assert self.errors.startswith("error: "), self.errors
        assert re.search(message, self.errors, re.DOTALL), self.errors
        assert self.errors.count("error: ") == 1, self.errors
        assert "Traceback" not in self.text + self.errors
        assert "Warning" not in self.errors, self.errors


def tuneoff(*arguments: str) -> Outcome:
    """Run the command line."""
    with (
        tempfile.TemporaryFile() as text,
        tempfile.TemporaryFile() as errors,
        mock.patch.object(sys, "argv", ["tuneoff", *arguments]),
        mock.patch.dict(os.environ, {"COLUMNS": WIDTH, "TERMINAL_WIDTH": WIDTH, "NO_COLOR": "1"}),
        _redirected(1, text.fileno()),
        _redirected(2, errors.fileno()),
    ):
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        sys.stdout.flush()
        sys.stderr.flush()
        return Outcome(code, _read(text.fileno()), _read(errors.fileno()))


def _read(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return Path(f"/dev/fd/{descriptor}").read_bytes().decode()


@contextlib.contextmanager
def _redirected(descriptor: int, to: int) -> Iterator[None]:
    """Within the context a descriptor, and Python's stream of it, lead elsewhere."""
    name = {1: "stdout", 2: "stderr"}[descriptor]
    kept = os.dup(descriptor)
    os.dup2(to, descriptor)
    stream = os.fdopen(os.dup(descriptor), "w", encoding="utf-8")
    try:
        with mock.patch.object(sys, name, stream):
            yield
    finally:
        stream.close()
        os.dup2(kept, descriptor)
        os.close(kept)
