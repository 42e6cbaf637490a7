"""Tells a child that ended for want of memory from one that somebody killed, and from a crash.

A child that ended by signal 9 is taken for out of memory on evidence alone, either of

1. the kernel's own count: of the child's control group (`oom_kill` in `memory.events`, of version 1 in
   `memory.oom_control`), or of the machine (`/proc/vmstat`) where groups do not count. It is read before the child
   starts and after it ended, and one kill explains one child;
2. a look at the machine, a second before at most: less than 2 % of what the child held and what was left could still
   be had. Daemons that kill before the kernel does (systemd-oomd) leave no count.

A child that ended itself counts where what it wrote to its log since it started says that memory ran out: OpenMP exits
when it gets no thread, and C++ aborts. Every other signal or exit is a kill by somebody, or a crash.
"""

import signal
from pathlib import Path

from tuneoff.training.memory_limits import kill_count_file, num_oom_kills, resident_bytes, shared_bytes
from tuneoff.training.out_of_memory import ended_for_memory

LOOK_S = 1.0
"""Between two looks at the memory that is left."""
SHORT_SHARE = 0.02
"""Of what a child holds and what is left, that counts as hardly any left."""
KILLED_BY_KERNEL = "the kernel killed it for want of memory"


class Watch:
    """What is seen of one child from outside.

    Args:
        pid: of the child, which has just been started.
        log: where it writes what libraries say.
        log_bytes: of the log that are of earlier children.
    """

    def __init__(self, pid: int | None, log: Path, log_bytes: int) -> None:
        self._pid = pid
        self._count = kill_count_file(pid)  # found while it lives: a dead process has no group
        self.num_oom_kills = num_oom_kills(self._count)
        """That are accounted for."""
        self.was_short = False
        """Whether hardly any memory was left at the last look."""
        self._log = log
        self._log_bytes = log_bytes

    def look(self) -> None:
        """Note whether the child holds memory of which hardly any is left."""
        own = resident_bytes(self._pid) if self._pid is not None else None
        if own is not None:
            left = shared_bytes().num_bytes
            self.was_short = left < SHORT_SHARE * (own + left)

    def why_starved(self, exit_code: int | None) -> str:
        """Return why an ended child is taken for out of memory; empty where nothing says so."""
        if exit_code == -signal.SIGKILL:
            if num_oom_kills(self._count) > self.num_oom_kills:
                return KILLED_BY_KERNEL
            return "it was killed when hardly any memory was left" if self.was_short else ""
        if exit_code != 0 and ended_for_memory(self._new_log()):
            return f"it ended with exit code {exit_code} as it got no more memory"
        return ""

    def _new_log(self) -> str:
        try:
            with self._log.open("rb") as handle:
                handle.seek(self._log_bytes)
                return handle.read().decode(errors="replace")
        except OSError:
            return ""
