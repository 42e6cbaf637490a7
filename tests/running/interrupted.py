"""What tests of studies that are killed, interrupted and gone on with share."""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.running.world import NUM_JOBS, Events, body, scores, weights

from tuneoff import api
from tuneoff.running.events import Event
from tuneoff.running.store import CHECKPOINT_FOLDER

KILL_AT_STEP = 10
WAIT_S = 120.0


class Killer(Events):
    """Kills a child with signal 9, once, when a kind of event comes (of a step: from one step on)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.has_killed = False

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        is_late = event.kind == self.kind and int(event.body.get("step", KILL_AT_STEP)) >= KILL_AT_STEP
        if is_late and not self.has_killed and event.task is not None:
            self.has_killed = True
            (child,) = (
                child for child in multiprocessing.active_children() if child.name == f"tuneoff {event.task.arm}"
            )
            os.kill(child.pid or 0, signal.SIGKILL)


def assert_same(found: api.Result, wanted: api.Result) -> None:
    """Hold a study against one that nothing disturbed: scores, curves, weights; no checkpoint is left of either."""
    assert scores(found) == scores(wanted)
    assert weights(found) == weights(wanted)
    assert not [path for path in found.store.folder.rglob("*") if CHECKPOINT_FOLDER in path.parts]


def command(world: Path, out: Path, name: str, arms: Mapping[str, Any], changes: Mapping[str, Any]) -> list[str]:
    """Write a study file of the world, named after the folder that `out` is in, and return the command that runs it."""
    path = world / f"{out.parent.name}.yaml"
    path.write_text(json.dumps(body(name, arms, **changes)), encoding="utf-8")  # JSON is YAML
    return [sys.executable, "-m", "tuneoff.cli", "run", str(path), "--jobs", str(NUM_JOBS), "--out", str(out)]


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so, `WAIT_S` at most."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.005)
