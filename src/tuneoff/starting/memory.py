"""Which arms of a study fit into the memory that there is, as the plan foretells it, before the study is written."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tuneoff.planning.costs import Basis, Forecast
from tuneoff.planning.fit import SAME_NUMBERS, Fit, Kind
from tuneoff.planning.plan import ArmPlan, Plan
from tuneoff.planning.room import Room
from tuneoff.planning.sizes import Sizes, longest_sizes
from tuneoff.study.spec import Arm, Study

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LEAD = ("full", "lora")
"""Families that a study is written around, those that take most first. The base alone takes less than either."""


class _Longest(Forecast):
    """Takes every sequence to be as long as one may be: the lengths are known, not which come together in a batch."""

    def sizes(self, study: Study, arm: Arm) -> Sizes:
        return longest_sizes(study.for_arm(arm), "the study is about to be written")


def find_fits(
    study: Study, planned: Plan, base: "PreTrainedModel", room: Room, *, is_gpu: bool, quantise: bool
) -> dict[str, Fit]:
    """Return whether the leading families' largest arms fit, and the nearest change with which they do.

    Each trace takes seconds. So an arm whose weights, gradients and optimizer state alone are too many is not traced;
    nor is LoRA where all weights can be trained: of a frozen base it holds no gradients and moments, and no more
    activations. An arm whose step cannot be traced (the code of any architecture runs in a trace) is left out.

    Args:
        study: the study, with all its arms.
        planned: its plan.
        base: its base on the meta device.
        room: memory that there is.
        is_gpu: whether runs are trained on a GPU.
        quantise: whether LoRA's base may be held in four bits.
    """
    forecast = _Longest(study, base, Basis(room, None, "cuda" if is_gpu else "cpu"))
    found: dict[str, Fit] = {}
    largest = _largest(study, planned)
    for family, (arm, own) in ((family, largest[family]) for family in LEAD if family in largest):
        if any(one.fits for one in found.values()):
            break
        kinds: tuple[Kind, ...] = (*SAME_NUMBERS, "qlora") if quantise and family == "lora" else SAME_NUMBERS
        if own.least_bytes > room.tensor_bytes and "qlora" not in kinds:
            found[family] = Fit(needed_bytes=own.least_bytes, room_bytes=room.tensor_bytes)
            continue
        try:
            found[family] = forecast.fit(study, arm, kinds)
        except Exception:  # whatever a model's code does without numbers: nothing is known of it then
            continue
    return found


def _largest(study: Study, planned: Plan) -> Mapping[str, tuple[Arm, ArmPlan]]:
    """Return the arm of each leading family that trains most, of those that the model can take."""
    found: dict[str, tuple[Arm, ArmPlan]] = {}
    for arm, own in zip(study.arms, planned.arms, strict=True):
        known = found.get(arm.family)
        is_larger = known is None or own.parameters.trainable > known[1].parameters.trainable
        if arm.family in LEAD and not own.problem and is_larger:
            found[arm.family] = (arm, own)
    return found
