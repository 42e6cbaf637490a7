"""How a child leaves off when it is asked to: in training after its step, with a checkpoint; elsewhere at once.

The parent asks over the pipe (its time is up, or it was interrupted), a cluster with SIGTERM. What is written is
written whole or not at all, so a child may leave at any instant; in training it is worth to finish the step and to save
the state first.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

LEAVE = "leave"
"""What the parent says."""
LEFT = 4
"""Exit code of a child that left at once."""


class LeftOffError(Exception):
    """Raised where training is left off.

    Args:
        body: how far it came, as JSON types; empty where what was asked for is done.
    """

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(body)
        self.body = body


class Leave:
    """Whether this process was asked to leave off."""

    def __init__(self) -> None:
        self.is_asked = False
        self._is_deferred = False

    def ask(self) -> None:
        """Leave off: at once, or when what is deferred has come to a point where that is well."""
        self.is_asked = True
        if not self._is_deferred:
            os._exit(LEFT)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the context nothing happens until its end: whoever is in it looks at `is_asked`.

        Raises:
            LeftOffError: at the end, if it was asked.
        """
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False  # from here on `ask` does not come back, so it was asked before or never will be
        if self.is_asked:
            raise LeftOffError({})


def heed(leave: Leave) -> None:
    """Take SIGTERM for being asked, and leave Ctrl-C to the parent, which gets it too. In a child's main thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: leave.ask())


def listen_to_parent(connection: Connection, leave: Leave) -> None:
    """Do as the parent says, and end with it: the pipe then reads as ended. In a thread of its own."""
    try:
        while True:
            if connection.recv() == LEAVE:
                leave.ask()
    finally:
        os._exit(1)
