"""Puts the runs' method on their base, where there is the memory for it; else says what is lacking."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tuneoff.errors import MethodError, UnsupportedError
from tuneoff.methods import cohort_from_specs, interchange
from tuneoff.methods.base import AdaptedModel
from tuneoff.methods.heads import draw_head, train_head
from tuneoff.methods.selective import FrozenModel, NoTraining
from tuneoff.planning.resident import predicted_resident_bytes
from tuneoff.running.place import Place
from tuneoff.study.identity import Run
from tuneoff.study.methods import LoadMethod, LoraMethod, NoneMethod
from tuneoff.study.shortage import MemoryPhase, Shortage
from tuneoff.study.streams import HEAD, INIT, stream_seed
from tuneoff.training.memory_limits import Available
from tuneoff.training.models import load_base
from tuneoff.training.out_of_memory import asked_bytes, is_out_of_memory
from tuneoff.training.recompute import recompute_activations
from tuneoff.training.runtime import Runtime, room

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Loaded:
    """The runs' model, or an empty one and why there is none.

    Attributes:
        adapted: the base with what the method added.
        room: what the process could have before it loaded anything.
        problem: why this model cannot take the method.
        shortage: what memory was lacking.
    """

    adapted: AdaptedModel
    room: Available
    problem: str = ""
    shortage: Shortage | None = None


def load(runs: Sequence[Run], place: Place, runtime: Runtime, num_classes: int) -> Loaded:
    """Load the base and put the runs' method on it.

    Args:
        runs: of one process.
        place: where.
        runtime: the device.
        num_classes: of the task; 0 where text is predicted.
    """
    place.doing("load")
    available, nothing = room(), FrozenModel(torch.nn.Module())
    shortage = place.shortage or _refused(place, runtime, available)
    if shortage is not None:
        return Loaded(nothing, available, shortage=shortage)
    try:
        return Loaded(adapt(runs, place, runtime, num_classes), available)
    except UnsupportedError as error:
        return Loaded(nothing, available, problem=str(error))
    except Exception as error:  # what memory ran out with has many kinds
        return Loaded(nothing, available, shortage=lacking(error, "load", available))


def _refused(place: Place, runtime: Runtime, available: Available) -> Shortage | None:
    """Say what is lacking where a run could not come to its first step's end, without waking the kernel's killer.

    On a GPU an allocation that does not fit is refused by itself, and kills nobody.
    """
    if runtime.device.type != "cpu" or not place.needed_bytes:
        return None
    needed = place.needed_bytes
    if available.source != "ulimit -v":  # of the address space the libraries are mapped already
        needed = predicted_resident_bytes(needed, is_loaded=True)
    if needed <= available.num_bytes:
        return None
    return Shortage(
        phase="load",
        needed_bytes=needed,
        available_bytes=available.num_bytes,
        source=available.source,
    )


def lacking(error: BaseException, phase: MemoryPhase, available: Available) -> Shortage:
    """Return what an error says of the memory that ran out, and what is left now.

    Args:
        error: what was raised.
        phase: what was going on.
        available: what there was before anything was loaded.

    Raises:
        BaseException: the error itself, where it is about something else.
    """
    if not is_out_of_memory(error):
        raise error
    return Shortage(
        phase=phase,
        asked_bytes=asked_bytes(error),
        available_bytes=available.num_bytes,
        source=available.source,
        left_bytes=room().num_bytes,
    )


def adapt(runs: Sequence[Run], place: Place, runtime: Runtime, num_classes: int) -> AdaptedModel:
    """Load the base and put the runs' method on it; what is not trained classifies as a language model."""
    first = runs[0]
    if isinstance(first.method, LoadMethod):
        adapted = _load_existing(first, first.method, place, runtime, num_classes)
    else:
        method = cohort_from_specs([run.method for run in runs])
        dtype = torch.float32 if method.trains_base else runtime.compute_dtype
        base = _base(first, place, dtype, 0 if isinstance(first.method, NoneMethod) else num_classes)
        draw_head(base, torch.Generator().manual_seed(stream_seed(first.seed or 0, HEAD)))
        if first.gradient_checkpointing and not isinstance(first.method, NoneMethod):
            recompute_activations(base)
        generators = [torch.Generator().manual_seed(stream_seed(run.seed or 0, INIT)) for run in runs]
        adapted = train_head(method.adapt(base, generators))
    adapted.module.to(runtime.device)
    return adapted


def _base(run: Run, place: Place, dtype: torch.dtype, num_classes: int) -> "PreTrainedModel":
    return load_base(
        run.model,
        place.root,
        run.revision,
        run.trust_remote_code,
        dtype,
        num_classes=num_classes,
        quantize=run.method.quantize if isinstance(run.method, LoraMethod) else "none",
    )


def _load_existing(run: Run, method: LoadMethod, place: Place, runtime: Runtime, num_classes: int) -> AdaptedModel:
    folder = place.root / method.path
    if interchange.is_adapter_folder(folder):
        return interchange.load_peft(_base(run, place, runtime.compute_dtype, num_classes), folder)
    if not folder.is_dir():
        raise MethodError(
            f"load: {method.path!r} is no folder. Give a PEFT adapter folder or a Transformers checkpoint."
        )
    model = load_base(
        str(folder),
        place.root,
        None,
        run.trust_remote_code,
        runtime.compute_dtype,
        num_classes=num_classes,
        has_head=bool(num_classes),
    )
    return NoTraining().adapt(model, torch.Generator())
