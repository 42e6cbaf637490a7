"""Arms that are traced side by side, each in a process that is forked from one with the libraries in it.

A trace is the work of one thread, and of no arm's needs another's, so that a plan of several arms takes as long as its
slowest ones. What comes back is what `planning.trace` returns, tensor for tensor the same.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from tuneoff import fork_server
from tuneoff.planning.plan import study_shape
from tuneoff.planning.trace import Lengths, PhaseTrace, trace_arm
from tuneoff.study.methods import LoraMethod
from tuneoff.study.spec import Arm, Study


@dataclass(frozen=True)
class Errand:
    """One arm that is to be traced.

    Attributes:
        study: the study.
        arm: one of its arms.
        lengths: what a step sees.
        device: `cpu` or `cuda`.
        num_classes: of a classification, where the data have been read.
    """

    study: Study
    arm: Arm
    lengths: Lengths
    device: str
    num_classes: int | None

    @property
    def weight(self) -> int:
        """Rough order of how long it takes: quantised layers do most operations, an untrained model fewest."""
        method = self.arm.method
        return int(self.arm.is_trained) + int(isinstance(method, LoraMethod) and method.quantize != "none")


def can_help(num_errands: int) -> bool:
    """Whether processes would be quicker: the server has begun with its imports, and there is more than one to do."""
    return num_errands > 1 and fork_server.was_started_early() and (os.cpu_count() or 1) > 1


def trace_all(errands: Sequence[Errand]) -> list[tuple[PhaseTrace, ...] | None]:
    """Return each arm's phases; none where the trace failed, which tracing it here then says."""
    order = sorted(range(len(errands)), key=lambda index: -errands[index].weight)
    num_workers = min(len(errands), os.cpu_count() or 1)
    found: list[tuple[PhaseTrace, ...] | None] = [None] * len(errands)
    with (
        fork_server.main_hidden(),
        ProcessPoolExecutor(num_workers, fork_server.context(fork_server.FOR_PLANS)) as pool,
    ):
        futures = {index: pool.submit(_trace, errands[index]) for index in order}
        for index, future in futures.items():
            try:
                found[index] = future.result()
            except BrokenProcessPool:  # a process was killed
                break
    return found


def _trace(errand: Errand) -> tuple[PhaseTrace, ...] | None:
    try:
        base = study_shape(errand.study, errand.num_classes)
        return trace_arm(errand.study, errand.arm, base, errand.lengths, device=errand.device)
    except Exception:  # the code of any architecture runs in a trace; whoever asked traces it again and says so
        return None
