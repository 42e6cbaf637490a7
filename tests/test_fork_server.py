"""Ctrl-C while the server of child processes is still at its imports: one line, and no traceback of anybody."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest

from tuneoff import fork_server
from tuneoff.running.executors import in_child

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="signals are of Unix"),
]


def server_of(pid: int) -> psutil.Process | None:
    for child in psutil.Process(pid).children(recursive=True):
        if any("forkserver" in word for word in child.cmdline()):
            return child
    return None


def test_an_interrupt_at_the_start_is_the_parents_alone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tuneoff.cli", "run", "demo", "--out", str(tmp_path / "runs")]
    with (tmp_path / "said").open("w+") as said:
        # where the tests run in the background Ctrl-C may be ignored, and what is started inherits that
        hears = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True, preexec_fn=hears)
        deadline = time.monotonic() + 120
        while (server := server_of(process.pid)) is None and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        assert server is not None
        while sum(server.cpu_times()[:2]) < 0.3 and time.monotonic() < deadline:  # it is at its imports
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it to all at once
        assert process.wait(120) == 130
        with suppress(psutil.NoSuchProcess):
            server.kill()  # it would end by itself, once it has done its imports
        server.wait(60)
        said.seek(0)
        assert said.read().strip() == "stopped; the same command goes on from what is done"
    assert not (tmp_path / "runs").exists()


def test_children_keep_large_tensors_in_pages_of_their_own() -> None:
    name, wanted = fork_server.ALLOCATOR
    assert in_child(os.getenv, name) == os.environ.get(name, wanted)
