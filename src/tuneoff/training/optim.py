"""One member's optimizer: AdamW, the shape of its rate, its clip and its loss scale."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tuneoff.study.spec import OptimizerSpec

FIRST_SCALE = 2.0**16
GROWTH_INTERVAL = 2000
"""Steps without overflow after which the loss scale doubles (the values of `torch.amp.GradScaler`)."""
SMALLEST_SCALE = 2.0**-14


def rate_factor(spec: OptimizerSpec, step: int, num_steps: int) -> float:
    """Return the learning rate of a step as a share of the peak.

    Warm-up rises in a straight line and its last step has the full rate; then the schedule falls towards zero, which
    it would reach one step after the last.

    Args:
        spec: schedule and warm-up.
        step: from 0.
        num_steps: of the whole run.
    """
    warmup = round(spec.warmup * num_steps) if spec.warmup < 1 else round(spec.warmup)
    warmup = min(warmup, num_steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, num_steps - warmup)
    if spec.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0 - progress if spec.schedule == "linear" else 1.0


@dataclass
class LossScale:
    """Dynamic loss scale of one member in fp16 (Micikevicius et al., 2018, "Mixed Precision Training", section 3.2)."""

    scale: float = 1.0
    good_steps: int = 0
    is_dynamic: bool = False

    def update(self, is_finite: bool) -> None:
        """Halve after an overflow; double after many steps without one."""
        if not self.is_dynamic:
            return
        if not is_finite:
            self.scale, self.good_steps = self.scale / 2, 0
            return
        self.good_steps += 1
        if self.good_steps == GROWTH_INTERVAL:
            self.scale, self.good_steps = self.scale * 2, 0

    @property
    def can_retry(self) -> bool:
        """Whether an overflow may be the scale's fault, so that the step is left out and not the run."""
        return self.is_dynamic and self.scale > SMALLEST_SCALE


class MemberOptimizer:
    """AdamW over one member's trainable parameters.

    Args:
        parameters: by name.
        lr: peak learning rate.
        spec: what every arm of the study shares.
        num_steps: of the whole run.
        is_fp16: whether the loss is scaled.
        factors: each parameter's rate as a multiple of `lr`, by name (LoRA+); all 1 where none are given.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        lr: float,
        spec: OptimizerSpec,
        num_steps: int,
        is_fp16: bool,
        factors: Mapping[str, float] | None = None,
    ) -> None:
        self.parameters = dict(parameters)
        self.lr = lr
        self.spec = spec
        self.num_steps = num_steps
        self.loss_scale = LossScale(FIRST_SCALE if is_fp16 else 1.0, is_dynamic=is_fp16)
        self._adamw = torch.optim.AdamW(self._groups(factors or {}), lr=lr, betas=spec.betas, eps=spec.eps, fused=True)

    def _groups(self, factors: Mapping[str, float]) -> list[dict[str, Any]]:
        """Part the parameters by what they share: weight decay (matrices alone have it) and the rate's factor."""
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            decay = self.spec.weight_decay if parameter.dim() >= 2 else 0.0
            groups.setdefault((decay, factors.get(name, 1.0)), []).append(parameter)
        return [
            {"params": parameters, "weight_decay": decay, "factor": factor}
            for (decay, factor), parameters in groups.items()
        ]

    def rate(self, step: int) -> float:
        """Learning rate of a step, of parameters whose factor is 1."""
        return self.lr * rate_factor(self.spec, step, self.num_steps)

    def step(self, step: int) -> tuple[float, bool]:
        """Unscale, clip and apply the gradients, which stay until `zero_grad`.

        Returns:
            The gradient's norm before clipping, and whether it was finite. Where it was not, nothing was changed.
        """
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        if self.loss_scale.scale != 1.0:
            torch._foreach_mul_(gradients, 1.0 / self.loss_scale.scale)
        norm = float(torch.nn.utils.get_total_norm(gradients))
        is_finite = math.isfinite(norm)
        if is_finite:
            if self.spec.clip is not None and norm > self.spec.clip:
                torch._foreach_mul_(gradients, self.spec.clip / norm)
            for group in self._adamw.param_groups:
                group["lr"] = self.rate(step) * group["factor"]
            self._adamw.step()
        self.loss_scale.update(is_finite)
        return norm, is_finite

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """Return the optimizer's tensors by parameter name; parameters that have not been stepped have none."""
        found = {}
        for name, parameter in self.parameters.items():
            for key, value in self._adamw.state.get(parameter, {}).items():
                found[f"{name}/{key}"] = value
        return found

    def scalars(self) -> dict[str, Any]:
        """Return the rest of the state as JSON types."""
        return asdict(self.loss_scale)

    def restore(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        """Put back what `tensors` and `scalars` gave."""
        self.loss_scale = LossScale(**scalars)
        for key, value in tensors.items():
            name, _, part = key.rpartition("/")
            parameter = self.parameters[name]
            # the fused AdamW wants its step count on the parameter's device, too
            self._adamw.state[parameter][part] = value.to(parameter.device)

    @property
    def num_bytes(self) -> int:
        """Bytes of the optimizer's state as it is held now."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors().values())
