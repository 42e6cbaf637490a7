"""What happens to one micro-batch: forward to the negative log-likelihood of each target.

Training, scoring and planning all go through here. Logits are made at target positions alone: of text, where the next
token is predicted; of classification, at each sequence's last token, pooled here and never by the model, which would
have to guess from the padding where that is. Rows are padded on the right and causal attention never looks right, so
no attention mask is needed and padding cannot reach a real token.

Shapes: R rows, T positions, N targets of the micro-batch, D width, V vocabulary or classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tuneoff.data.batching import Batch
from tuneoff.errors import ModelError
from tuneoff.methods.heads import head_names, is_classifier


@dataclass(frozen=True)
class DeviceBatch:
    """A micro-batch on the device.

    Attributes:
        input_ids: int64 (R, T).
        rows, positions: int64 (N,), where each target's *predicting* position stands: one before the target token, or
            the last token of a sequence with a class.
        labels: int64 (N,), the target tokens or classes.
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
    """Stack one micro-batch of each member, all of the same number of rows, into one."""
    length = max(batch.input_ids.shape[1] for batch in batches)
    ids = np.concatenate([_widen(batch.input_ids, length, pad_id) for batch in batches])
    targets = np.concatenate([_widen(batch.targets, length, False) for batch in batches])
    rows, positions = np.nonzero(targets)
    classes = np.concatenate([batch.labels for batch in batches])
    labels = classes if len(classes) else ids[rows, positions]
    return DeviceBatch(
        input_ids=torch.from_numpy(ids).to(device),
        rows=torch.from_numpy(rows).to(device),
        positions=torch.from_numpy(positions if len(classes) else positions - 1).to(device),
        labels=torch.from_numpy(labels).to(device),
        slots=torch.from_numpy(np.concatenate([batch.slots for batch in batches])).to(device),
        num_input_tokens=int(sum(batch.lengths.sum() for batch in batches)),
    )


def _widen(array: np.ndarray[Any, Any], length: int, fill: int | bool) -> np.ndarray[Any, Any]:
    return np.pad(array, ((0, 0), (0, length - array.shape[1])), constant_values=fill)


class Forward:
    """The way from a micro-batch to the logits and the NLL of its targets, for one model.

    Where the model is a trunk and a linear head, the head runs at target positions only. Whether that gives the
    model's own logits is tried out by `check`; models that scale or cap their logits go through their own forward
    instead.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._trunk_name = str(getattr(module, "base_model_prefix", ""))
        self.is_classifier = is_classifier(module)
        has_trunk = isinstance(getattr(module, self._trunk_name or " ", None), nn.Module)
        self.is_short = has_trunk and self._head_name() is not None

    def _head_name(self) -> str | None:
        """Return the name of the module that makes logits of hidden states; none where there is no single one."""
        if self.is_classifier:
            names = head_names(self.module)
            return names[0] if len(names) == 1 else None
        getter = getattr(self.module, "get_output_embeddings", None)
        head = getter() if callable(getter) else None
        return next((name for name, module in self.module.named_modules() if module is head), None)

    @torch.no_grad()
    def check(self, input_ids: Tensor) -> bool:
        """Compare the head's logits with the model's own on sequences (R, T); go the short way only if equal.

        Both are worked out at all positions here, in the same shapes, so that rounding cannot tell them apart in any
        type.

        Raises:
            ModelError: a classifier whose class logits are not those of a head at the last token.
        """
        if self.is_short:
            own = self.module(input_ids=input_ids, use_cache=False).logits
            found = self._head(self._hidden(input_ids))
            self.is_short = torch.equal(found[:, -1] if self.is_classifier else found, own)
        if self.is_classifier and not self.is_short:
            raise ModelError(
                f"{type(self.module).__name__}: its class logits are not those of one head at the last token. "
                "Use a causal model with a linear classification head, such as GPT-2, Llama, Qwen or Mistral."
            )
        return self.is_short

    def target_logits(self, batch: DeviceBatch) -> Tensor:
        """Return the logits from which each target is predicted (N, V), in fp32 at least."""
        if self.is_short:
            logits = self._head(self._hidden(batch.input_ids)[batch.rows, batch.positions])
        else:
            own = self.module(input_ids=batch.input_ids, use_cache=False).logits  # (R, T, V)
            logits = own[batch.rows, batch.positions]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def target_nll(self, batch: DeviceBatch) -> Tensor:
        """Return the negative log-likelihood (nats) of each target (N,), in fp32 at least."""
        return F.cross_entropy(self.target_logits(batch), batch.labels, reduction="none")

    def _hidden(self, input_ids: Tensor) -> Tensor:
        trunk = self.module.get_submodule(self._trunk_name)
        hidden: Tensor = trunk(input_ids=input_ids, use_cache=False).last_hidden_state  # (R, T, D)
        return hidden

    def _head(self, hidden: Tensor) -> Tensor:
        name = self._head_name()
        assert name is not None, "asked for only where there is one"
        logits: Tensor = self.module.get_submodule(name)(hidden)
        return logits
