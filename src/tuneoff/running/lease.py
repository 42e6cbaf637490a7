"""Who works on a run: a lock of the system, and a lease beside it, for shared folders where such a lock may not hold.

The lock (`.lock`, flock) is let go by the system when its holder dies, but some network file systems keep it on one
host or not at all. The lease (`.lease`) is a file that says who holds the run: host, process, and when the process
started. It is created by linking a file that is whole, which is atomic on NFS too (of two, one succeeds), and its
holder touches it every `HEARTBEAT_S`. It has ended when its holder is gone: of the same host where no such process
runs, or another one has its number (its start time differs); of another host where it was not touched for `EXPIRY_S`.

Ages are taken on the share's own clock: whoever asks touches a file of its own there and compares the two times that
the file server gave. How far the hosts' clocks are apart does not matter.

Whoever finds a dead holder's lease renames it away, which one of several can do, looks whether what it took was the
dead one's, and else puts it back. A holder that finds that the lease is not its own any more (its host slept, or the
share was gone for longer than `EXPIRY_S`) ends its process at once; the run goes on elsewhere from its last checkpoint,
to the same bits.
"""

import errno
import json
import os
import secrets
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from tuneoff.files import aside_of, make_folder, on_disk, remove_asides

LOCK_FILE = ".lock"
LEASE_FILE = ".lease"
HEARTBEAT_S = 10.0
EXPIRY_S = 90.0
"""Several heartbeats, as a busy server or a stalled network may swallow some."""
LOST = 75
"""Exit code of a process whose lease was taken (EX_TEMPFAIL: try again)."""
NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP})
NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})


class RunLock:
    """A context in which this process, and no other on any host, works on a run.

    Args:
        folder: of the run.
        host: names this host; none is the host that it is. Two processes of different names see each other's heartbeats
            alone.
        lose: is called, by a thread, when the lease was taken by another; none ends the process.

    """

    def __init__(self, folder: Path, host: str | None = None, lose: Callable[[], None] | None = None) -> None:
        self.folder = folder
        self.path = folder / LEASE_FILE
        self.owner = {"id": secrets.token_hex(8), "host": host or this_host(), "pid": os.getpid(), "started": started()}
        self._lose = lose or _end
        self._lock = FileLock(folder / LOCK_FILE, timeout=0)
        self._is_over = threading.Event()
        self._beating: threading.Thread | None = None

    @property
    def is_locked(self) -> bool:
        """Whether this object holds the run."""
        return self._beating is not None

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """Take the run, or raise at once.

        Raises:
            Timeout: another process is at the run.
            StoreError: the folder cannot be written to.
        """
        with on_disk(self.folder, "written"):
            make_folder(self.folder)
            self._lock_here()
            try:
                self._take()
            except BaseException:
                self._lock.release(force=True)
                raise
        remove_asides(self.folder)  # nobody else writes here now
        self._is_over.clear()
        self._beating = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._beating.start()

    def release(self) -> None:
        """Let go of the run."""
        self._is_over.set()
        if self._beating is not None:
            self._beating.join()
            self._beating = None
        with suppress(OSError):  # a lease that stays is told by its process, which is gone by then or holds no lock
            if self._is_own():
                self.path.unlink()
        with suppress(OSError):
            self._lock.release(force=True)

    def _lock_here(self) -> None:
        try:
            self._lock.acquire()
        except (NotImplementedError, OSError) as error:  # Timeout is an OSError, too
            is_without = isinstance(error, NotImplementedError) or error.errno in NO_LOCKS
            if not is_without:
                raise

    def _take(self) -> None:
        """Make the lease ours.

        Raises:
            Timeout: another process holds it.
        """
        for _ in range(2):
            if self._create() and self._is_own():
                return
            found = _read(self.path)
            if found is not None and not _is_dead(self.path, found, self.owner["host"]):
                break
            self._clear(found)
        raise Timeout(str(self.path))

    def _create(self) -> bool:
        """Create the lease, whole from the first instant; return whether it was not there."""
        content = json.dumps(self.owner).encode()
        aside = aside_of(self.path)
        try:
            aside.write_bytes(content)
            os.link(aside, self.path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return self._create_unlinked(content)
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)
        return True

    def _create_unlinked(self, content: bytes) -> bool:
        """Do the same on file systems without links; a kill in between leaves an empty lease, which counts as dead."""
        try:
            with self.path.open("xb") as handle:
                handle.write(content)
        except FileExistsError:
            return False
        return True

    def _clear(self, dead: dict[str, Any] | None) -> None:
        """Take a dead lease away; one that another process put in its place meanwhile is put back."""
        away = self.path.with_name(f"{LEASE_FILE}-{secrets.token_hex(8)}")  # none that `remove_asides` takes
        try:
            self.path.rename(away)
        except FileNotFoundError:
            return
        try:
            if _read(away) != dead:
                with suppress(OSError):  # where it cannot be, its holder finds that out and ends
                    os.link(away, self.path)
        finally:
            with suppress(OSError):
                away.unlink(missing_ok=True)

    def _is_own(self) -> bool:
        found = _read(self.path)
        return found is not None and found.get("id") == self.owner["id"]

    def _beat(self) -> None:
        """Touch the lease while it is ours."""
        while not self._is_over.wait(HEARTBEAT_S):
            try:
                is_own = self._is_own()
                if is_own:
                    os.utime(self.path)
            except FileNotFoundError:
                is_own = False
            except OSError:
                continue  # the share is gone for now; the next beat tells
            if not is_own:
                self._lose()
                return


def _end() -> None:
    os.write(2, b"another process took this run over; it goes on there\n")  # of a child that is the log
    os._exit(LOST)


def is_held(folder: Path) -> bool:
    """Whether some process works on the run in a folder now."""
    path = folder / LEASE_FILE
    try:
        found = _read(path)
        return found is not None and not _is_dead(path, found, this_host())
    except OSError:
        return False


def _read(path: Path) -> dict[str, Any] | None:
    """Return what a lease says; nothing of one that is not there, or empty."""
    try:
        body = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def _is_dead(path: Path, lease: dict[str, Any], host: Any) -> bool:
    if lease.get("host") == host:
        pid = lease.get("pid")
        return not isinstance(pid, int) or _started(pid) != lease.get("started")
    return _age_s(path) > EXPIRY_S


def _age_s(path: Path) -> float:
    """Return how long ago a file was touched, by the clock of where it lies; 0 where that cannot be told."""
    probe = aside_of(path.with_name(f"{LEASE_FILE}-probe"))
    try:
        probe.touch()
        os.utime(probe)  # without times: the file server's own now
        return probe.stat().st_mtime - path.stat().st_mtime
    except OSError:
        return 0.0
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)


@cache
def this_host() -> str:
    """Return what two processes have in common that see each other's process numbers: host, boot, and PID namespace."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def started() -> str:
    """Return when this process started, as its host counts."""
    return _started(os.getpid()) or "alive"


def _started(pid: int) -> str:
    """Return when a process started; empty where it does not run. Without /proc a process only is alive or not."""
    try:
        # The name in parentheses may hold anything; the start, in clock ticks since the boot, is field 22 (proc(5)).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in ("Z", "X") else fields[19]
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return ""
    except OSError:
        return ""
    return "alive" if _is_alive(pid) else ""


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
