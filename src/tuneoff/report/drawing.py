"""Whether charts can be drawn in this process: asked before the library that draws them ends it.

Charts are drawn by V8, which reserves address space far beyond what it uses and ends the process, with no exception,
where it may not: under a limit of 64 GiB (`ulimit -v`) it did, under one of 128 GiB it did not (vl-convert 1.9).
"""

import resource

NEEDED_BYTES = 2**37


def why_not_drawn() -> str:
    """Return why no chart can be drawn here; empty where it can."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY or limit >= NEEDED_BYTES:
        return ""
    return (
        f"`ulimit -v` is {limit / 2**30:.3g} GiB, and what draws charts reserves {NEEDED_BYTES / 2**30:.0f} GiB of "
        "address space, though it uses little of it. `tuneoff report` without that limit draws them."
    )
