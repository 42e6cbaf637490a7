"""A loss that stays too high ends a run, spikes do not, and the rule is a function of the losses alone."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.methods.models import VOCABULARY
from tests.training.helpers import Recorder, adapt, make_loop, make_split

from tuneoff.methods import LoRA
from tuneoff.study.spec import OptimizerSpec
from tuneoff.training.checkpoint import Checkpoint
from tuneoff.training.divergence import MARGIN_NATS, WINDOW_STEPS, limit_nats, why_diverged
from tuneoff.training.loop import Loop

CHOICES = 1000
GUESSING = math.log(CHOICES)
losses = st.floats(0.0, 50.0)


def first_end(curve: list[float]) -> int | None:
    """Return the step at which the rule ends a run, or none."""
    return next((step for step in range(1, len(curve) + 1) if why_diverged(curve[:step], CHOICES)), None)


@given(st.lists(losses, min_size=1, max_size=3 * WINDOW_STEPS))
def test_a_run_ends_at_the_first_window_that_lies_too_high_for_more_than_half(curve: list[float]) -> None:
    limit = max(curve[0], GUESSING) + MARGIN_NATS
    windows = np.lib.stride_tricks.sliding_window_view(curve, WINDOW_STEPS) if len(curve) >= WINDOW_STEPS else ()
    above = [place for place, window in enumerate(windows) if (window > limit).sum() > WINDOW_STEPS / 2]
    expected = above[0] + WINDOW_STEPS if above else None
    assert first_end(curve) == expected


@given(
    st.lists(st.floats(0.0, GUESSING), min_size=WINDOW_STEPS, max_size=3 * WINDOW_STEPS),
    st.sets(st.integers(0, 3 * WINDOW_STEPS), max_size=WINDOW_STEPS // 2),
)
def test_no_spikes_end_a_sound_run(curve: list[float], spikes: set[int]) -> None:
    """As many steps as half a window holds, wherever they are and however high."""
    spiked = [1e30 if step in spikes and step else loss for step, loss in enumerate(curve)]
    assert first_end(spiked) is None


def test_a_rough_start_and_a_start_above_guessing_are_forgiven() -> None:
    rough = [*[GUESSING + 9.0] * (WINDOW_STEPS // 2), *[2.0] * WINDOW_STEPS]
    assert first_end([2.0, *rough[1:]]) is None
    above = [GUESSING + 3.0 - step / 100 for step in range(4 * WINDOW_STEPS)]
    assert first_end(above) is None


def test_what_is_bad_but_better_than_guessing_goes_on() -> None:
    assert first_end([2.0, *[GUESSING + MARGIN_NATS] * (4 * WINDOW_STEPS)]) is None


def test_what_it_says() -> None:
    why = why_diverged([2.0, *[12.5] * (WINDOW_STEPS - 1)], CHOICES)
    assert (
        why == "the loss was above 7.908 nats in 49 of the last 50 steps (guessing gives 6.908, the first step gave 2)"
    )
    assert limit_nats(9.0, CHOICES) == 9.0 + MARGIN_NATS


SOUND, WILD = 1e-3, 3.0
RATES = (SOUND, WILD, 3e-3)
SEEDS = (0, 1, 2)
STEPS = 64


def _trained(rates: tuple[float, ...] = RATES, resume: Checkpoint | None = None) -> tuple[Loop, Recorder]:
    recorder = Recorder()
    adapted = adapt([LoRA(rank=4, alpha=64.0)] * len(rates), SEEDS[: len(rates)])
    loop = make_loop(
        adapted, SEEDS[: len(rates)], rates, make_split(), recorder, num_steps=STEPS, evaluate_every=16,
        checkpoint_every=12, optimizer=OptimizerSpec(warmup=0.0, schedule="constant"),
    )  # fmt: skip
    loop.plan = replace(loop.plan, num_choices=VOCABULARY)
    loop.run(resume)
    return loop, recorder


@pytest.fixture(scope="module")
def trained() -> tuple[Loop, Recorder]:
    return _trained()


def test_a_member_whose_loss_stays_too_high_ends_early_and_keeps_its_curve(trained: tuple[Loop, Recorder]) -> None:
    loop, recorder = trained
    lost = loop.members[1]
    found = re.fullmatch(r"diverged: the loss was above .* at step (\d+)", lost.failure)
    assert found is not None, lost.failure
    step = int(found.group(1))
    assert WINDOW_STEPS <= step < STEPS
    assert lost.steps == step == len(lost.losses) == len(recorder.losses(1))
    assert recorder.losses(1) == lost.losses
    assert all(map(math.isfinite, lost.losses))
    assert np.median(lost.losses[-WINDOW_STEPS:]) > limit_nats(lost.losses[0], VOCABULARY)
    assert [member.failure for member in loop.members[::2]] == ["", ""]
    assert [member.steps for member in loop.members[::2]] == [STEPS, STEPS]


def test_the_others_bits_are_those_of_a_cohort_in_which_it_went_on(trained: tuple[Loop, Recorder]) -> None:
    loop, recorder = trained
    told = Recorder()
    adapted = adapt([LoRA(rank=4, alpha=64.0)] * 3, SEEDS)
    whole = make_loop(
        adapted, SEEDS, RATES, make_split(), told, num_steps=STEPS, evaluate_every=16, checkpoint_every=12,
        optimizer=OptimizerSpec(warmup=0.0, schedule="constant"),
    )  # fmt: skip
    whole.run()
    assert [member.steps for member in whole.members] == [STEPS] * 3
    for index in (0, 2):
        assert recorder.losses(index) == told.losses(index)
        for name, tensor in whole.adapted.state_dict(index).items():
            assert torch.equal(tensor, loop.adapted.state_dict(index)[name]), name


def test_resumed_it_ends_at_the_same_step(trained: tuple[Loop, Recorder]) -> None:
    loop, recorder = trained
    for checkpoint in recorder.checkpoints:
        again, _ = _trained(resume=checkpoint)
        assert again.members[1].failure == loop.members[1].failure, checkpoint.step
        assert again.members[1].losses == loop.members[1].losses
        for index in range(3):
            for name, tensor in loop.adapted.state_dict(index).items():
                assert torch.equal(tensor, again.adapted.state_dict(index)[name]), (checkpoint.step, name)


def test_alone_it_ends_the_loop() -> None:
    loop, _ = _trained((WILD,))
    assert loop.members[0].failure.startswith("diverged: the loss was above")
    assert WINDOW_STEPS <= loop.step < STEPS
