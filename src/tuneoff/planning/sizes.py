"""How much data there is and how long its sequences are: of the data where at hand, else the longest that there may be.

Data are at hand where reading them needs neither the hub nor much time: local files (or the demo's) with a tokenizer on
this machine, if they were tokenised before or are small. Memory is foretold of the step that needs most, time of one
that is like the mean.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tuneoff.data.batching import BatchSequence, num_steps
from tuneoff.data.prepare import PreparedData, TokenSplit, is_prepared, prepare
from tuneoff.data.sources import find_sources
from tuneoff.errors import TuneoffError
from tuneoff.study.spec import Study
from tuneoff.study.value import Value
from tuneoff.training.model_files import resolve
from tuneoff.training.models import load_config, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_READ_BYTES = 8 << 20
"""Of data that were not tokenised before: what is larger takes longer than a plan may."""
MAX_SEARCHED_STEPS = 4000
"""Among which the step that needs most is looked for."""


class Step(Value):
    """The sequences of one effective batch, or the prompts that are read for one batch of texts."""

    lengths: tuple[int, ...]
    targets: tuple[int, ...] = ()
    """Target tokens of each."""


class Sizes(Value):
    """What a plan knows of a task's data."""

    largest: Step
    """The effective batch that takes most memory."""
    typical: Step
    """One of about the mean number of tokens."""
    prompts: tuple[int, ...] = ()
    """Of a batch of texts, the longest ones; empty where nothing is generated."""
    typical_prompts: tuple[int, ...] = ()
    num_tokens: Mapping[str, int] = Field(default_factory=dict)
    """Input tokens of each split; empty where the data were not read."""
    num_sequences: Mapping[str, int] = Field(default_factory=dict)
    num_prompts: int | None = None
    """After which text is generated; none where the data were not read."""
    num_steps: int | None = None
    """Of a run; none where the data decide and were not read."""
    note: str
    """Where the lengths are from, for a line below the table."""

    @property
    def is_read(self) -> bool:
        """Whether the lengths are those of the data."""
        return bool(self.num_tokens)


def study_sizes(study: Study) -> Sizes:
    """Return what is known of the data of a study, as an arm has it; it reads them where they are at hand."""
    try:
        data, why = _at_hand(study)
    except (TuneoffError, OSError) as error:
        data, why = None, f"the data cannot be read here ({error})"
    return longest_sizes(study, why) if data is None else read_sizes(study, data)


def longest_sizes(study: Study, why: str) -> Sizes:
    """Return the longest sequences that there may be, for data that are not read.

    Args:
        study: as an arm has it.
        why: they are not read, for the note.
    """
    length, batch = study.task.max_length, study.budget.batch_size
    targets = 1 if study.task.kind == "classification" else length - 1
    step = Step(lengths=(length,) * batch, targets=(targets,) * batch)
    prompts = _prompts(study, np.full(study.generate.limit or study.generate.batch_size, _longest_prompt(study)))
    return Sizes(
        largest=step,
        typical=step,
        prompts=prompts,
        typical_prompts=prompts,
        num_prompts=study.generate.limit if prompts else None,
        num_steps=study.budget.steps,
        note=f"lengths: {length} tokens each, the longest that there may be: {why}",
    )


def read_sizes(study: Study, data: PreparedData) -> Sizes:
    """Return the sizes of data that were read."""
    train = data.train
    steps = num_steps(study.budget, train)
    batch = study.budget.batch_size
    order = BatchSequence(len(train), batch, study.seeds[0])
    micro_batch = min(study.micro_batch or batch, batch)
    batches = [order.indices(step) for step in range(min(steps, MAX_SEARCHED_STEPS))]
    largest = max(batches, key=lambda indices: int(np.sort(train.lengths[indices])[-micro_batch:].sum()))
    mean = float(train.lengths.mean()) * batch
    typical = min(batches, key=lambda indices: abs(float(train.lengths[indices].sum()) - mean))
    own = np.zeros(0, dtype=np.int64) if data.prompts is None else np.diff(data.prompts.offsets)
    own = own[: study.generate.limit]
    return Sizes(
        largest=_step(train, largest),
        typical=_step(train, typical),
        prompts=_prompts(study, np.sort(own)[::-1]),
        typical_prompts=_prompts(study, np.full(len(own), round(float(own.mean())) if len(own) else 0)),
        num_tokens={name: split.num_input_tokens for name, split in data.splits().items()},
        num_sequences={name: len(split) for name, split in data.splits().items()},
        num_prompts=len(own) if _generates(study) else None,
        num_steps=steps,
        note=(
            f"lengths: of the data, {train.lengths.mean():.0f} tokens a sequence on average and {train.lengths.max()} "
            "at most; memory is of the step that needs most, time of one like the mean"
        ),
    )


def _step(split: TokenSplit, indices: NDArray[np.int64]) -> Step:
    lengths, targets = split.lengths[indices], split.targets_by_sequence[indices]
    return Step(lengths=tuple(lengths.tolist()), targets=tuple(targets.tolist()))


def _generates(study: Study) -> bool:
    return bool(study.testing.decoding)


def _prompts(study: Study, lengths: NDArray[np.int64]) -> tuple[int, ...]:
    """Return the prompts of the texts that are in the making at a time, one for each."""
    if not _generates(study) or not len(lengths):
        return ()
    return tuple(lengths[: study.generate.batch_size].tolist())


def _longest_prompt(study: Study) -> int:
    return max(1, study.task.max_length - 1)


def _at_hand(study: Study) -> tuple[PreparedData | None, str]:
    """Return the data where they are at hand, or why they are not."""
    model = resolve(study.model, study.root)
    if isinstance(model, Path) and model.is_file():
        return None, "a shape alone has no tokenizer"
    if isinstance(model, str) and not _is_cached(model, study.revision):
        return None, "the model's tokenizer is not on this machine"
    sources = find_sources(study.task, study.root, study.trust_remote_code)
    official = sources.official().values()
    if any(source.kind == "hub" for source in official):
        return None, "the data are on the hub"
    tokenizer = load_tokenizer(study.model, study.root, study.revision, study.trust_remote_code)
    files = [path for source in official for path, _ in source.files]
    size = sum(path.stat().st_size for path in files)
    if size > MAX_READ_BYTES and not is_prepared(study.task, tokenizer, study.root, study.trust_remote_code):
        return None, f"the data, {size / 1e6:,.0f} MB, have not been tokenised yet; `tuneoff run` does so"
    return _prepared(study, tokenizer), ""


def _prepared(study: Study, tokenizer: "PreTrainedTokenizerBase") -> PreparedData:
    config = load_config(study.model, study.root, study.revision, study.trust_remote_code)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    return prepare(study.task, tokenizer, study.root, context, trust_remote_code=study.trust_remote_code)


def _is_cached(model: str, revision: str | None) -> bool:
    """Whether a hub model's tokenizer and configuration were fetched before; nothing is asked of the hub."""
    from huggingface_hub import try_to_load_from_cache

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    names = ("config.json", "tokenizer.json")
    return all(isinstance(try_to_load_from_cache(model, name, revision=revision), str) for name in names)
