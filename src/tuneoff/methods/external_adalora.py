r"""What AdaLoRA does beside its layers: a regulariser, and ranks that are shared out anew after each step.

Source: Zhang et al., 2023, "AdaLoRA: Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning",
arXiv:2303.10512: the regulariser is equation (4), the importance of a direction equations (8) to (12), the budget of
ranks equation (13). The computation of the ranks is PEFT's.

Departures from the paper: PEFT's regulariser is the Frobenius norm, where the paper squares it, and is the mean over
matrices, where the paper sums.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tuneoff.errors import MethodError

MOMENTS = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What PEFT's allocator keeps of each matrix."""
PATTERN = "rank_pattern"


class AdaLora:
    """The schedule of one AdaLoRA model.

    Args:
        tuner: PEFT's `AdaLoraModel`.
        total_steps: as the study gives it; none takes the budget's number of steps.
    """

    def __init__(self, tuner: Any, total_steps: int | None) -> None:
        self.tuner = tuner
        self.config = tuner.peft_config[tuner.trainable_adapter_name]
        self._total_steps = total_steps
        if self.config.target_r >= self.config.init_r:
            raise MethodError(
                f"peft.target_r: {self.config.target_r} must be below init_r ({self.config.init_r}), "
                "as AdaLoRA starts from init_r and takes ranks away"
            )

    def before_training(self, num_steps: int) -> None:
        """Fit the schedule to the budget.

        Raises:
            MethodError: no steps are left between the first `tinit` and the last `tfinal`.
        """
        total = num_steps if self._total_steps is None else self._total_steps
        # the ranks are cut by importances, which the steps before the last cut give
        if max(1, self.config.tinit) >= total - self.config.tfinal:
            raise MethodError(
                f"peft: tinit {self.config.tinit} and tfinal {self.config.tfinal} leave none of {total} steps in which "
                "ranks could be taken away. Lower them, or train longer."
            )
        self.tuner.rankallocator.set_total_step(total)

    def after_optimizer_step(self, step: int) -> None:
        """Weigh the directions by the step's gradients and share the ranks out.

        Args:
            step: optimizer steps done, from 1; so the last step, at `total_step`, cuts to the final budget.
        """
        self.tuner.update_and_allocate(step)

    def extra_loss(self) -> Tensor:
        r"""Return the orthogonal regulariser.

        $\gamma\,\frac{1}{M}\sum_{m} \lVert P_m P_m^\top - I \rVert_F$ over the M matrices A (and B, transposed), with
        gamma the option `orth_reg_weight`.
        """
        norms = [torch.linalg.matrix_norm(p @ p.T - torch.eye(len(p), device=p.device)) for p in self._bases()]
        weighted: Tensor = self.config.orth_reg_weight * torch.stack(norms).mean()
        return weighted

    def _bases(self) -> Iterator[Tensor]:
        """Yield each A and each B transposed, (rank, features)."""
        for name, parameter in self._own().items():
            if ".lora_A." in name:
                yield parameter
            elif ".lora_B." in name:
                yield parameter.T

    def _own(self) -> dict[str, nn.Parameter]:
        adapter = self.tuner.trainable_adapter_name
        named = self.tuner.model.named_parameters()
        return {name: parameter for name, parameter in named if name.endswith(f".{adapter}") and ".lora_" in name}

    def state(self) -> dict[str, Tensor]:
        """Return what the schedule keeps from step to step."""
        allocator = self.tuner.rankallocator
        found = {f"{part}/{name}": value for part in MOMENTS for name, value in getattr(allocator, part).items()}
        pattern = self.config.rank_pattern or {}
        return found | {f"{PATTERN}/{name}": torch.tensor(kept) for name, kept in pattern.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        own = self._own()
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in (*MOMENTS, PATTERN)}
        for key, value in state.items():
            part, _, name = key.partition("/")
            parts[part][name] = value
        for part in MOMENTS:
            moved = {name: value.to(own[name].device) for name, value in parts[part].items()}
            setattr(self.tuner.rankallocator, part, moved)
        self.config.rank_pattern = {name: kept.tolist() for name, kept in parts[PATTERN].items()} or None
