"""What the meter says of memory: a phase's peak is its own."""

import os
import sys

import pytest
import torch
from tests.training.helpers import runtime

from tuneoff.training.memory_limits import MEBIBYTE, resident_bytes
from tuneoff.training.meter import Meter, give_back

NUM_BLOCKS = 200


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_what_one_phase_freed_is_no_part_of_anothers_peak() -> None:
    give_back()  # what other tests freed, which the blocks would else be made of
    before = resident_bytes(os.getpid())
    assert before is not None
    torch.ones(30 * MEBIBYTE // 4)  # malloc takes blocks up to this size from its heap from now on
    meter = Meter(runtime())
    meter.gives_back = True
    blocks = [torch.ones(MEBIBYTE // 4) for _ in range(NUM_BLOCKS)]
    last = blocks.pop()  # above the others in the heap, which so cannot shrink by itself
    blocks.clear()
    with meter.evaluating():
        last.add_(1)
    if meter.peak_kind == "resident":
        assert meter.peak_bytes["train"] > before + 0.9 * NUM_BLOCKS * MEBIBYTE  # some were free before
        assert meter.peak_bytes["evaluate"] < before + NUM_BLOCKS * MEBIBYTE // 2
