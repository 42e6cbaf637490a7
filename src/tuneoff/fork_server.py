"""The server that child processes are forked from: it imports the libraries and does nothing else.

No torch is imported here, so that the server can begin with its own imports while the parent is at the same ones.
"""

import multiprocessing
import os
import signal
import sys
import threading
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess

FOR_RUNS = ("tuneoff.running.preload",)
FOR_PLANS = ("tuneoff.planning.side_by_side",)
"""Modules that the server imports, for what it was started for first; the other's children import the rest."""
INTERRUPTED = 130
"""Exit code of a command that Ctrl-C ended, as a shell gives it."""
SPIN = ("GOMP_SPINCOUNT", "10000")
"""How long an idle thread of GNU OpenMP spins before it sleeps.

By default it spins so long that a small model's step took ten times as long on a processor that had other work, too
(measured on 2 cores at a load of 3: 0.6 to 1.1 s against 0.05 s).
"""
ALLOCATOR = ("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=4194304:glibc.malloc.hugetlb=1")
"""How glibc keeps tensors on a CPU: those of 4 MiB and more in pages of their own, large pages where there are any.

By default it takes tensors of up to 32 MiB from one heap, where small ones that live on end up between large ones that
come and go, and the heap grows by the holes: a step of LoRA on GPT-2's shape held 2.0 GB in place of 1.0 GB. Pages of
their own alone cost 7 % of a step's processor time, large ones nothing (docs/performance.md, "Holes in the heap").
"""


_started_early = False


def context(preloaded: Sequence[str] = FOR_RUNS) -> BaseContext:
    """Return how children are started: forked from the server, or afresh where there is no fork."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault(*SPIN)
    os.environ.setdefault(*ALLOCATOR)
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(preloaded))
    return found


def start_early(preloaded: Sequence[str] = FOR_RUNS) -> None:
    """Start the server, without waiting for it, where there is a processor that it can import the libraries on."""
    global _started_early
    if context(preloaded).get_start_method() == "forkserver" and (os.cpu_count() or 1) > 1:
        with main_hidden(), interrupts_held():
            forkserver.ensure_running()
        _started_early = True


def start(process: BaseProcess) -> None:
    """Start a child of `context`, which never hears of Ctrl-C: whoever started it does, and sees to it.

    Whoever waits for the server, whose imports take seconds, can be interrupted.
    """
    is_served = isinstance(process, getattr(multiprocessing.context, "ForkServerProcess", ()))
    with main_hidden():
        with interrupts_held():
            if is_served:
                forkserver.ensure_running()
            else:
                process.start()
        if is_served:
            process.start()


def was_started_early() -> bool:
    """Whether children start at once, so that even a second's work is worth one."""
    return _started_early


@contextmanager
def main_hidden() -> Iterator[None]:
    """Keep children from importing the caller's script again, which would run it again where it has no main guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def interrupts_end_it(line: str) -> Iterator[None]:
    """Within the context Ctrl-C says a line and ends the process at once: for imports, before anything is begun.

    In the middle of its imports Transformers makes other errors of a `KeyboardInterrupt`. Where Ctrl-C is ignored, or
    handled in a way of its own, it is left so.
    """
    is_usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not is_usual or threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(_number: int, _frame: types.FrameType | None) -> None:
        os.write(sys.stderr.fileno(), f"{line}\n".encode())
        os._exit(INTERRUPTED)

    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Within the context Ctrl-C waits, and what is started never hears of it: whoever started it does, and sees to it.

    The server would else end with a traceback where it comes upon its imports.
    """
    if not hasattr(signal, "pthread_sigmask"):  # not on Windows
        yield
        return
    resource_tracker.ensure_running()  # which lets them through again once it has started
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
