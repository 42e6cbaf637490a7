"""What happens to one micro-batch: forward to the negative log-likelihood of each target.

Training, scoring and planning all go through here. Logits are made at target positions alone: of text, where the next
token is predicted; of classification, at each sequence's last token, pooled here and never by the model, which would
have to guess from the padding where that is. Where the model allows it the sequences stand end to end, each attending
to itself alone, so that nothing is padding; else rows are padded on the right, and as causal attention never looks
right no attention mask is needed and padding cannot reach a real token.

Shapes: R rows, T positions, N targets of the micro-batch, D width, V vocabulary or classes.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from tuneoff.data.batching import Batch
from tuneoff.errors import ModelError
from tuneoff.methods.heads import is_classifier
from tuneoff.methods.surgery import output_head_names
from tuneoff.training.head_loss import summed_nll, target_nll
from tuneoff.training.layout import Layout, packed, padded
from tuneoff.training.masks import Masks, current_masks, masked

LARGEST_SHARE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Of the largest logit: how far a packed sequence's logits may lie from those of the sequence alone. Rounding stays far
below; a model that looks across sequences, or takes other positions, lies far above."""

MIN_PACKED_TOKENS = 100
"""Mean length from which sequences are trained end to end. Shorter ones are quicker padded there: attention goes
through packed ones one at a time, and small products do not fill a processor (`docs/performance.md`). Scoring sorts all
of a split by length and drops nothing, so it always packs on a CPU.
"""


@dataclass(frozen=True)
class DeviceBatch:
    """A micro-batch on the device.

    Attributes:
        input_ids: int64 (R, T).
        position_ids: int64 (R, T), of each token in its sequence; none where every row is one sequence.
        rows, positions: int64 (N,), where each target's *predicting* position stands: one before the target token, or
            the last token of a sequence with a class.
        labels: int64 (N,), the target tokens or classes.
        sequences: int64 (N,), which sequence of the micro-batch each target belongs to, members one after another.
        members: int64 (N,), which member it belongs to.
        counts: of each member's targets, which stand side by side.
        layout: where the sequences stand.
    """

    input_ids: Tensor
    position_ids: Tensor | None
    rows: Tensor
    positions: Tensor
    labels: Tensor
    sequences: Tensor
    members: Tensor
    counts: tuple[int, ...]
    layout: Layout

    def masked(self, step: int) -> AbstractContextManager[None]:
        """Within the context dropout draws this step's masks, and packed sequences are kept apart."""
        return masked(self.layout, step, self.input_ids.device)


def to_device(
    batches: Sequence[Batch],
    device: torch.device,
    pad_id: int,
    streams: Sequence[int] = (0,),
    *,
    is_packed: bool = False,
    num_virtual_tokens: int = 0,
) -> DeviceBatch:
    """Put one micro-batch of each member, all of the same number of sequences, into one.

    Args:
        batches: one for each member.
        device: where to.
        pad_id: token that fills rows up.
        streams: seed of each member's dropout stream.
        is_packed: put the sequences of a member end to end.
        num_virtual_tokens: positions that the method puts before each row.
    """
    inside = [np.arange(batch.input_ids.shape[1]) < batch.lengths[:, None] for batch in batches]
    if is_packed:
        layout = packed([batch.lengths.tolist() for batch in batches], streams, [b.slots.tolist() for b in batches])
    else:
        layout = _padded(batches, streams, num_virtual_tokens)
    segments = [segment for segment in layout.segments if not segment.is_padding]
    rows = np.concatenate([np.full(one.length, one.row) for one in segments])
    columns = np.concatenate([np.arange(one.start, one.start + one.length) for one in segments])
    own = np.concatenate([np.arange(one.length) for one in segments])
    sequences = np.repeat(np.arange(len(segments)), [one.length for one in segments])
    ids = np.full((layout.num_rows, layout.length), pad_id, dtype=np.int64)
    ids[rows, columns] = np.concatenate([batch.input_ids[where] for batch, where in zip(batches, inside, strict=True)])
    places = np.zeros_like(ids)
    places[rows, columns] = own
    is_target = np.concatenate([batch.targets[where] for batch, where in zip(batches, inside, strict=True)])
    classes = np.concatenate([batch.labels for batch in batches])
    members = np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])[sequences[is_target]]
    arrays = {
        "input_ids": ids,
        "rows": rows[is_target],
        "positions": columns[is_target] - (0 if len(classes) else 1),
        "labels": classes if len(classes) else ids[rows[is_target], columns[is_target]],
        "sequences": sequences[is_target],
        "members": members,
    }
    placed = {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in arrays.items()}
    position_ids = torch.from_numpy(places).to(device) if is_packed else None
    counts = tuple(np.bincount(members, minlength=len(batches)).tolist())
    return DeviceBatch(**placed, position_ids=position_ids, counts=counts, layout=layout)


def _padded(batches: Sequence[Batch], streams: Sequence[int], num_virtual_tokens: int) -> Layout:
    return padded(
        [int(length) for batch in batches for length in batch.lengths],
        [stream for batch, stream in zip(batches, streams, strict=True) for _ in range(len(batch))],
        [int(slot) for batch in batches for slot in batch.slots],
        num_virtual_tokens,
    )


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
        self.is_packed = False
        """Whether several sequences stand in one row; `check_packing` finds out."""
        self.can_pack = False
        """Whether they may: of short ones that are better padded in training, `is_packed` is turned off afterwards."""

    def _head_name(self) -> str | None:
        """Return the name of the module that makes logits of hidden states; none where there is no single one."""
        names = output_head_names(self.module)
        return names[0] if len(names) == 1 else None

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

    @torch.no_grad()
    def check_packing(self, sequences: Sequence[Tensor]) -> bool:
        """Find out whether sequences that stand end to end give the logits that each gives alone, and pack if so.

        A window of attention is not seen here where the sequences are shorter, so a model that has one is never packed.

        Args:
            sequences: int64 (length,) each, several of different lengths.
        """
        config = getattr(self.module, "config", None)
        if not self.is_short or config is None or not looks_everywhere(config.get_text_config()):
            return False
        lengths = [len(one) for one in sequences]
        layout = packed([lengths], (0,), [list(range(len(lengths)))])
        ids = torch.cat(list(sequences))[None]
        places = torch.cat([torch.arange(length, device=ids.device) for length in lengths])[None]
        with Masks(layout, None, ids.device):
            together = torch.split(self._head(self._hidden(ids, places))[0], lengths)
        alone = [self._head(self._hidden(one[None]))[0] for one in sequences]
        self.is_packed = self.can_pack = all(_is_close(*pair) for pair in zip(together, alone, strict=True))
        return self.is_packed

    def target_logits(self, batch: DeviceBatch) -> Tensor:
        """Return the logits from which each target is predicted (N, V), in fp32 at least."""
        if self.is_short:
            logits = self._head(self._target_hidden(batch))
        else:
            own = self.module(input_ids=batch.input_ids, use_cache=False).logits  # (R, T, V)
            logits = own[batch.rows, batch.positions]
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def target_nll(self, batch: DeviceBatch) -> Tensor:
        """Return the negative log-likelihood (nats) of each target (N,), in fp32 at least, without a way back."""
        head = self._plain_head()
        if head is None:
            return F.cross_entropy(self.target_logits(batch), batch.labels, reduction="none").detach()
        return target_nll(self._target_hidden(batch), head, batch.labels)

    def summed_nll(self, batch: DeviceBatch, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of the targets' NLL, to be differentiated, and each one's NLL (N,).

        Args:
            batch: the micro-batch.
            weights: of each target, (N,).
        """
        head = self._plain_head()
        if head is None:
            nll = F.cross_entropy(self.target_logits(batch), batch.labels, reduction="none")
            return (nll * weights.to(nll.dtype)).sum(), nll.detach()
        return summed_nll(self._target_hidden(batch), head, batch.labels, weights)

    def _plain_head(self) -> nn.Linear | None:
        """Return the head whose logits can be made and dropped a few targets at a time; none where there is none."""
        name = self._head_name() if self.is_short else None
        head = None if name is None else self.module.get_submodule(name)
        return head if type(head) is nn.Linear or (isinstance(head, nn.Linear) and is_parametrized(head)) else None

    def _target_hidden(self, batch: DeviceBatch) -> Tensor:
        """Return the last hidden states from which each target is predicted, (N, D)."""
        if batch.position_ids is None:
            return self._hidden(batch.input_ids)[batch.rows, batch.positions]
        if current_masks() is not None:
            return self._hidden(batch.input_ids, batch.position_ids)[batch.rows, batch.positions]
        with Masks(batch.layout, None, batch.input_ids.device):
            return self._hidden(batch.input_ids, batch.position_ids)[batch.rows, batch.positions]

    def _hidden(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """Return the trunk's hidden states (R, T, D); with `position_ids` within `Masks` that keep sequences apart."""
        trunk = self.module.get_submodule(self._trunk_name)
        given: dict[str, Tensor] = {}
        if position_ids is not None:
            # A mask of four dimensions is passed on as it is; `Masks` attends within each sequence instead.
            mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=input_ids.device)
            given = {"position_ids": position_ids, "attention_mask": mask}
        hidden: Tensor = trunk(input_ids=input_ids, use_cache=False, **given).last_hidden_state
        return hidden

    def _head(self, hidden: Tensor) -> Tensor:
        name = self._head_name()
        assert name is not None, "asked for only where there is one"
        logits: Tensor = self.module.get_submodule(name)(hidden)
        return logits


def looks_everywhere(config: Any) -> bool:
    """Whether every layer attends to all that came before."""
    kinds = set(getattr(config, "layer_types", None) or ("full_attention",))
    own_kinds = set(getattr(config, "attention_layers", None) or ("global",))  # GPT-Neo's
    is_full = kinds == {"full_attention"} and own_kinds == {"global"}
    return is_full and not getattr(config, "sliding_window", None)


def _is_close(one: Tensor, other: Tensor) -> bool:
    largest = float(other.abs().max())
    return float((one - other).abs().max()) <= LARGEST_SHARE.get(other.dtype, 0.0) * largest
