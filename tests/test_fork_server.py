"""Ctrl-C while the server of child processes is still at its imports: one line, and no traceback of anybody."""

import os
import signal
import subprocess
import sys
import threading
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


@pytest.mark.parametrize(
    ("words", "line"), [(("run",), "stopped; the same command goes on from what is done"), (("plan",), "stopped")]
)
def test_an_interrupt_at_the_start_is_the_parents_alone(words: tuple[str, ...], line: str, tmp_path: Path) -> None:
    more = ("--out", str(tmp_path / "runs")) if words == ("run",) else ()
    command = [sys.executable, "-m", "tuneoff.cli", *words, "demo", *more]
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
        assert said.read().strip() == line
    assert not (tmp_path / "runs").exists()


def wait_long(folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)


def test_an_interrupt_ends_the_child_that_is_waited_for(tmp_path: Path) -> None:
    def interrupt() -> None:
        deadline = time.monotonic() + 120
        while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            in_child(wait_long, str(tmp_path))
    finally:
        signal.signal(signal.SIGINT, before)
    (child,) = tmp_path.iterdir()
    with suppress(psutil.NoSuchProcess):  # it is the server's to bury
        psutil.Process(int(child.name)).wait(60)


def test_children_keep_large_tensors_in_pages_of_their_own() -> None:
    name, wanted = fork_server.ALLOCATOR
    assert in_child(os.getenv, name) == os.environ.get(name, wanted)
