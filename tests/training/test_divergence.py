"""A loss that stays too high ends a run, spikes do not, and the rule is a function of the losses alone."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.methods.models import make_model
from tests.training.helpers import Recorder, make_loop, make_split

from tuneoff.methods import Full, LoRA, LoRACohort
from tuneoff.study.spec import OptimizerSpec
from tuneoff.study.streams import INIT, stream_seed
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
STEPS = 56
CHECKPOINT = 48
"""Before the window is full."""
OPTIMIZER = OptimizerSpec(warmup=0.0, schedule="constant")
EVERY = {"num_steps": STEPS, "evaluate_every": STEPS, "checkpoint_every": CHECKPOINT, "optimizer": OPTIMIZER}
SPLIT = make_split(8)


@pytest.fixture(scope="module")
def learnt() -> dict[str, torch.Tensor]:
    """Weights that know the split by heart, so that there is far to fall."""
    model = make_model("gpt2")
    adapted, recorder = Full().adapt(model, torch.Generator()), Recorder()
    make_loop(adapted, [0], [1e-2], SPLIT, recorder, **EVERY).run()
    assert recorder.losses()[-1] < 1.0
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _trained(
    learnt: dict[str, torch.Tensor], num_choices: int | None, rates: tuple[float, ...], resume: Checkpoint | None = None
) -> tuple[Loop, Recorder]:
    model, recorder = make_model("gpt2"), Recorder()
    model.load_state_dict(learnt)
    seeds = SEEDS[: len(rates)]
    generators = [torch.Generator().manual_seed(stream_seed(seed, INIT)) for seed in seeds]
    adapted = LoRACohort((LoRA(rank=4, alpha=64.0),) * len(rates)).adapt(model, generators)
    loop = make_loop(adapted, seeds, rates, SPLIT, recorder, **EVERY)
    loop.plan = replace(loop.plan, num_choices=num_choices)
    loop.run(resume)
    return loop, recorder


@pytest.fixture(scope="module")
def trained(learnt: dict[str, torch.Tensor]) -> tuple[Loop, Recorder]:
    """A cohort of which one falls to guessing among all 61 tokens, told that there are 2: so its start decides."""
    return _trained(learnt, 2, RATES)


def test_a_member_whose_loss_stays_too_high_ends_early_and_keeps_its_curve(trained: tuple[Loop, Recorder]) -> None:
    loop, recorder = trained
    lost = loop.members[1]
    found = re.fullmatch(r"diverged: the loss was above .* at step (\d+)", lost.failure)
    assert found is not None, lost.failure
    step = int(found.group(1))
    assert WINDOW_STEPS <= step < STEPS
    assert lost.steps == step == len(lost.losses)
    assert recorder.losses(1) == lost.losses
    assert np.median(lost.losses[-WINDOW_STEPS:]) > limit_nats(lost.losses[0], 2)
    assert [(member.failure, member.steps) for member in loop.members[::2]] == [("", STEPS)] * 2


def test_the_others_bits_are_those_of_a_cohort_in_which_it_went_on(
    learnt: dict[str, torch.Tensor], trained: tuple[Loop, Recorder]
) -> None:
    (loop, recorder), (whole, told) = trained, _trained(learnt, None, RATES)
    assert [member.steps for member in whole.members] == [STEPS] * 3
    for index in (0, 2):
        assert recorder.losses(index) == told.losses(index)
        for name, tensor in whole.adapted.state_dict(index).items():
            assert torch.equal(tensor, loop.adapted.state_dict(index)[name]), name


def test_resumed_it_ends_at_the_same_step_with_the_same_bits(
    learnt: dict[str, torch.Tensor], trained: tuple[Loop, Recorder]
) -> None:
    loop, recorder = trained
    (checkpoint,) = recorder.checkpoints
    again, _ = _trained(learnt, 2, RATES, checkpoint)
    assert again.members[1].failure == loop.members[1].failure
    assert again.members[1].losses == loop.members[1].losses
    for index in range(3):
        for name, tensor in loop.adapted.state_dict(index).items():
            assert torch.equal(tensor, again.adapted.state_dict(index)[name]), name


def test_alone_it_ends_the_loop(learnt: dict[str, torch.Tensor]) -> None:
    loop, _ = _trained(learnt, 2, (WILD,))
    assert loop.members[0].failure.startswith("diverged: the loss was above")
    assert WINDOW_STEPS <= loop.step < STEPS
