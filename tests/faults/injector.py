"""Faults of a disk, for tests: the n-th operation on files below some folders fails, kills, or loses what is unsynced.

`install` puts wrappers over what Python code reaches files with (`os.open`, `write`, `read`, `fsync`, `rename`,
`replace`, `link`, `unlink`, `mkdir`, `rmdir`, `utime`, and `io.open`, whose file objects are given a raw file of our
own). Processes that are forked afterwards count on together, so that the n-th operation is that of the whole study.

What it cannot see is what goes to the system without these functions: `flock` (it can fail on its own only), `stat` and
`scandir`, and the Rust code of safetensors. The product writes its tensors through Python, so that only reading them
(`load_file`, `safe_open`) is Rust's; those names are wrapped where the product imports them. Reading the base model and
the data happens outside the study's folder.

A power cut is played on a model of the disk (`tests/faults/disk.py`), the other end of which, everything kept, is
`die`. Either all processes are killed at the operation and the folders are given what the model holds (`power`,
`power-names`); or what each cut would leave is written down while one sitting goes on undisturbed (`cuts`): what a cut
leaves hangs on the disk alone, and one sitting then gives all cuts.
"""

import builtins
import errno
import fcntl
import io
import mmap
import os
import signal
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults import disk as disk_model
from tests.faults.disk import Disk

READS = frozenset({"open", "read"})
WRITES = frozenset({"create", "write", "fsync", "mkdir", "rename", "link"})
REMOVES = frozenset({"unlink", "rmdir"})
KINDS: dict[str, frozenset[str]] = {
    "ENOSPC": WRITES,
    "full": WRITES - {"fsync"},
    "EIO": READS | WRITES | REMOVES | {"utime"},
    "EACCES": WRITES - {"write", "fsync"} | {"open"} | REMOVES,
    "die": READS | WRITES | REMOVES,
    "power": WRITES | REMOVES,
    "power-names": WRITES | REMOVES,
}
"""Operations that each fault can hit. `full`: from the n-th on, all of them fail, as on a disk that is full."""
CUTS = "cuts"
"""Hits nothing, and writes down what is left by each power cut."""

_REAL: dict[str, Callable[..., Any]] = {
    name: getattr(os, name)
    for name in (
        "open", "write", "read", "fsync", "rename", "replace", "link", "unlink", "remove", "mkdir", "rmdir", "utime",
    )
} | {"io": io.open}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """Which operation is hit, and how.

    Attributes:
        action: a key of `KINDS`; empty counts only; `cuts` writes down what is left by each power cut.
        at: the operation, counted from 1 among those that the action can hit.
        roots: folders whose files count.
        shadow: a folder for the model of the disk and the counts, outside of `roots`.
    """

    action: str
    at: int
    roots: tuple[Path, ...]
    shadow: Path


@dataclass
class _State:
    """What the wrappers of a process, and of those forked from it, share."""

    plan: Plan
    counts: mmap.mmap
    disk: Disk | None = None
    """The model, where power cuts are played."""
    thread_lock: threading.RLock = field(default_factory=threading.RLock)
    depth: int = 0
    handle: int = -1


_state: _State | None = None


def install(plan: Plan) -> None:
    """Wrap this process's ways to files; it is not undone, so do it in a process of its own."""
    global _state
    plan.shadow.mkdir(parents=True, exist_ok=True)
    (plan.shadow / "lock").touch()
    disk = Disk(plan.shadow, plan.roots) if plan.action in (*disk_model.CUTS, CUTS) else None
    if disk is not None:
        disk.begin()
    _state = _State(plan, mmap.mmap(-1, 16), disk)
    for name in _REAL:
        if name != "io":
            setattr(os, name, _WRAPPED[name])
    io.open = builtins.open = _open_file


def watch_rust(*modules: Any) -> None:
    """Let reads by safetensors' Rust count, in the modules that have `load_file` or `safe_open` by name."""
    for module in modules:
        for name in ("load_file", "safe_open"):
            real = getattr(module, name, None)
            if real is not None:
                setattr(module, name, _counted_read(real))


def _counted_read(real: Callable[..., Any]) -> Callable[..., Any]:
    def read(path: Any, *arguments: Any, **options: Any) -> Any:
        _before("open", _watched(path))
        _before("read", _watched(path))
        return real(path, *arguments, **options)

    return read


def result_of(plan: Plan) -> tuple[int, str]:
    """Return how many operations were counted, and what was hit (kind and file, empty for nothing)."""
    hit = plan.shadow / "hit"
    count = plan.shadow / "count"
    return int(count.read_text()) if count.exists() else 0, hit.read_text() if hit.exists() else ""


@contextmanager
def _locked() -> Iterator[None]:
    """One process and one thread at a time; a process that dies lets go."""
    assert _state is not None
    with _state.thread_lock:
        if _state.depth == 0:
            _state.handle = _REAL["open"](_state.plan.shadow / "lock", os.O_RDWR)
            fcntl.lockf(_state.handle, fcntl.LOCK_EX)
        _state.depth += 1
        try:
            yield
        finally:
            _state.depth -= 1
            if _state.depth == 0:
                os.close(_state.handle)


def _watched(target: Any, dir_fd: int | None = None) -> Path | None:
    """Return the absolute path of what counts, or none for what does not."""
    if _state is None or target is None:
        return None
    try:
        if isinstance(target, int):
            text = os.readlink(f"/proc/self/fd/{target}")
        else:
            text = os.fsdecode(os.fspath(target))
            if not os.path.isabs(text):
                start = os.getcwd() if dir_fd is None else os.readlink(f"/proc/self/fd/{dir_fd}")
                text = os.path.join(start, text)
    except (OSError, TypeError):
        return None
    path = Path(os.path.normpath(text))
    return path if any(path.is_relative_to(root) for root in _state.plan.roots) else None


def _before(kind: str, path: Path | None, torn: Callable[[], Any] = lambda: None) -> None:
    """Count an operation, and hit it if it is its turn; `torn` does half of it first."""
    if path is None or _state is None:
        return
    plan = _state.plan
    with _locked():
        count, is_lost = struct.unpack("qq", _state.counts[:16])
        if is_lost:
            os._exit(1)
        if kind not in KINDS.get(plan.action, KINDS["power" if plan.action == CUTS else "EIO"]):
            return
        count += 1
        _state.counts[:8] = struct.pack("q", count)
        _note(plan.shadow / "count", str(count))
        if plan.action in ("", CUTS):
            _note(plan.shadow / "trace", f"{kind} {path}\n", os.O_APPEND)
        if plan.action == CUTS:
            _record_cuts(_state, count)
        elif plan.action and (count == plan.at or (plan.action == "full" and count > plan.at)):
            if count == plan.at:
                _note(plan.shadow / "hit", f"{kind} {path}")
            _hit(_state, path, torn)


def _hit(state: _State, path: Path, torn: Callable[[], Any]) -> None:
    action = state.plan.action
    if action in disk_model.CUTS:
        state.counts[8:16] = struct.pack("q", 1)
        os.killpg(0, signal.SIGKILL)
    torn()
    if action == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    number = getattr(errno, {"full": "ENOSPC"}.get(action, action))
    raise OSError(number, os.strerror(number), str(path))


def _record_cuts(state: _State, count: int) -> None:
    assert state.disk is not None
    for cut in disk_model.CUTS:
        state.disk.leave(cut, left_by(state.plan, cut, count))


def _note(path: Path, text: str, flags: int = os.O_TRUNC) -> None:
    handle = _REAL["open"](path, os.O_WRONLY | os.O_CREAT | flags, 0o600)
    _REAL["write"](handle, text.encode())
    os.close(handle)


def _model(note: Callable[[Disk, Path], None], path: Path | None) -> None:
    """Let the model of the disk, where there is one, note something."""
    if path is not None and _state is not None and _state.disk is not None:
        with _locked():
            note(_state.disk, path)


def lose_unsynced(plan: Plan) -> None:
    """Give the folders what a power cut would have left in them; call it when all processes are gone."""
    Disk(plan.shadow, plan.roots).lose(plan.action)


def left_by(plan: Plan, cut: str, at: int) -> Path:
    """Return the folder with what is left by a power cut at an operation, after a sitting with `cuts`."""
    return plan.shadow / "cuts" / f"{at:06d}" / cut


# The wrappers.


def _os_open(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    found = _watched(path, dir_fd)
    is_new = found is not None and bool(flags & os.O_CREAT) and not os.path.lexists(found)
    _before("create" if is_new else "open", found)
    descriptor: int = _REAL["open"](path, flags, mode, dir_fd=dir_fd)
    if is_new:
        _model(Disk.created, found)
    return descriptor


def _os_write(descriptor: int, data: Any) -> int:
    half = bytes(data)[: len(data) // 2]
    _before("write", _watched(descriptor), lambda: _REAL["write"](descriptor, half))
    return int(_REAL["write"](descriptor, data))


def _os_read(descriptor: int, length: int) -> bytes:
    _before("read", _watched(descriptor))
    return bytes(_REAL["read"](descriptor, length))


def _os_fsync(descriptor: Any) -> None:
    number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
    path = _watched(number)
    _before("fsync", path)
    _REAL["fsync"](number)
    _model(Disk.synced, path)


def _of_two(kind: str, name: str) -> Callable[..., None]:
    def wrapped(source: Any, target: Any, **options: Any) -> None:
        _before(kind, _watched(target, options.get("dst_dir_fd")) or _watched(source, options.get("src_dir_fd")))
        _REAL[name](source, target, **options)

    return wrapped


def _of_one(kind: str, name: str) -> Callable[..., None]:
    def wrapped(path: Any, *arguments: Any, **options: Any) -> None:
        found = _watched(path, options.get("dir_fd"))
        _before(kind, found)
        _REAL[name](path, *arguments, **options)
        if kind == "mkdir":
            _model(Disk.made_folder, found)

    return wrapped


_WRAPPED: dict[str, Callable[..., Any]] = {
    "open": _os_open,
    "write": _os_write,
    "read": _os_read,
    "fsync": _os_fsync,
    "rename": _of_two("rename", "rename"),
    "replace": _of_two("rename", "replace"),
    "link": _of_two("link", "link"),
    "unlink": _of_one("unlink", "unlink"),
    "remove": _of_one("unlink", "remove"),
    "mkdir": _of_one("mkdir", "mkdir"),
    "rmdir": _of_one("rmdir", "rmdir"),
    "utime": _of_one("utime", "utime"),
}


class _RawFile(io.FileIO):
    """A raw file whose reads and writes count."""

    def __init__(self, path: Any, mode: str) -> None:
        self.watched = _watched(path)
        is_new = self.watched is not None and mode[0] in "wxa" and not os.path.lexists(self.watched)
        _before("create" if is_new else "open", self.watched)
        super().__init__(path, mode)
        if is_new:
            _model(Disk.created, self.watched)

    def write(self, data: Any) -> int:
        half = bytes(data)[: len(data) // 2]
        _before("write", self.watched, lambda: io.FileIO.write(self, half))
        return super().write(data)

    def readinto(self, buffer: Any) -> int:
        _before("read", self.watched)
        return super().readinto(buffer)

    def readall(self) -> bytes:
        _before("read", self.watched)
        return super().readall()

    def read(self, size: int | None = -1) -> bytes:
        _before("read", self.watched)
        return super().read(-1 if size is None else size)


def _open_file(
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Any = None,
) -> Any:
    if isinstance(file, int) or opener is not None or _watched(file) is None:
        return _REAL["io"](file, mode, buffering, encoding, errors, newline, closefd, opener)
    raw = _RawFile(file, mode.replace("b", "").replace("t", ""))
    if buffering == 0:
        return raw
    kind: Any = io.BufferedRandom if "+" in mode else io.BufferedReader if mode[0] == "r" else io.BufferedWriter
    buffered = kind(raw)
    if "b" in mode:
        return buffered
    return io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline)


def trace_of(plan: Plan) -> tuple[str, ...]:
    """Return the operations of an undisturbed run, kind and path each."""
    return tuple((plan.shadow / "trace").read_text().splitlines())
