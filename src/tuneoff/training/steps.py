"""What happens to one micro-batch: forward to the negative log-likelihood of each target token.

Training, scoring and planning all go through here. Logits are made at target positions alone. Rows are padded on the right
and causal attention never looks right, so no attention mask is needed and padding cannot reach a real token.

Shapes: R rows, T positions, N targets of the micro-batch, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuneoff.data.batching import Batch

AGREEMENT = 1e-4
"""Largest difference of a logit (relative to the largest) at which the short way counts as the model's own."""


@dataclass(frozen=True)
class DeviceBatch:
    """A micro-batch on the device.

    Attributes:
        input_ids: int64 (R, T).
        rows, positions: int64 (N,), where each target's *predicting* position stands: one before the target.
        labels: int64 (N,), the target tokens.
        slots: int64 (R,), each row's place in its effective batch.
        num_input_tokens: tokens that are no padding.
    """

    input_ids: Tensor
    rows: Tensor
    positions: Tensor
    labels: Tensor
    slots: Tensor
    num_input_tokens: int


def to_device(batches: Sequence[Batch], device: torch.device, pad_id: int) -> DeviceBatch:
    """Stack one micro-batch of each member of a cohort (all of the same number of rows) into one, members one after another."""
    length = max(batch.input_ids.shape[1] for batch in batches)
    ids = np.concatenate([_widen(batch.input_ids, length, pad_id) for batch in batches])
    targets = np.concatenate([_widen(batch.targets, length, False) for batch in batches])
    rows, positions = np.nonzero(targets)
    return DeviceBatch(
        input_ids=torch.from_numpy(ids).to(device),
        rows=torch.from_numpy(rows).to(device),
        positions=torch.from_numpy(positions - 1).to(device),
        labels=torch.from_numpy(ids[rows, positions]).to(device),
        slots=torch.from_numpy(np.concatenate([batch.slots for batch in batches])).to(device),
        num_input_tokens=int(sum(batch.lengths.sum() for batch in batches)),
    )


def _widen(array: np.ndarray[Any, Any], length: int, fill: int | bool) -> np.ndarray[Any, Any]:
    return np.pad(array, ((0, 0), (0, length - array.shape[1])), constant_values=fill)


class Forward:
    """The way from a micro-batch to the NLL of its targets, for one model.

    Where the model is a trunk and a linear head, the head runs at target positions only. Whether that gives the model's own
    logits is tried out by `check`; models that scale or cap their logits go through their own forward instead.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        trunk = getattr(module, getattr(module, "base_model_prefix", "") or " ", None)
        head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
        self.is_short = isinstance(trunk, nn.Module) and isinstance(head, nn.Module)

    @torch.no_grad()
    def check(self, batch: DeviceBatch) -> bool:
        """Compare the short way with the model's own logits on a micro-batch; keep it only if they agree."""
        if self.is_short:
            short, own = self._short(batch).float(), self._own(batch).float()
            scale = own.abs().max().clamp(min=1.0)
            self.is_short = bool((short - own).abs().max() <= AGREEMENT * scale)
        return self.is_short

    def target_nll(self, batch: DeviceBatch) -> Tensor:
        """Return the negative log-likelihood (nats) of each target, fp32 (N,)."""
        logits = self._short(batch) if self.is_short else self._own(batch)
        return F.cross_entropy(logits.float(), batch.labels, reduction="none")

    def _short(self, batch: DeviceBatch) -> Tensor:
        trunk = getattr(self.module, str(self.module.base_model_prefix))
        hidden = trunk(input_ids=batch.input_ids, use_cache=False).last_hidden_state  # (R, T, D)
        logits: Tensor = self.module.get_output_embeddings()(hidden[batch.rows, batch.positions])  # type: ignore[operator]
        return logits

    def _own(self, batch: DeviceBatch) -> Tensor:
        logits: Tensor = self.module(input_ids=batch.input_ids, use_cache=False).logits  # (R, T, V)
        return logits[batch.rows, batch.positions]
