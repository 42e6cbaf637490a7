"""Looks at everything a study will read before anything is trained, so that bad input costs seconds and not a night."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tuneoff.analysis.time_to_go import ArmWork, Workload
from tuneoff.data.batching import num_steps
from tuneoff.data.metrics import check_metrics
from tuneoff.data.prepare import prepare
from tuneoff.data.retention import prepare_retention
from tuneoff.evaluation.generation import check_lengths
from tuneoff.planning.cohort_memory import CohortMemory, cohort_memory
from tuneoff.planning.plan import Plan, plan
from tuneoff.running.halving import check_search
from tuneoff.running.tracking import check_trackers
from tuneoff.study.identity import task_key
from tuneoff.study.spec import Study
from tuneoff.study.value import Value
from tuneoff.training.memory_limits import Available
from tuneoff.training.models import fingerprint, load_config, load_tokenizer, tokenizer_notes
from tuneoff.training.runtime import check_precision, device_bytes, room


class Preflight(Value):
    """What the study is about to do."""

    plan: Plan
    notes: tuple[str, ...]
    """What happened to the data, and what the tokenizer lacks."""
    num_sequences: dict[str, int]
    """By split."""
    num_target_tokens: dict[str, int]
    """By split."""
    num_steps: int
    """Optimizer steps of each run."""
    num_epochs: float
    """The same in passes over the training split."""
    data_sha256: dict[str, str]
    """Hash of the tokenised splits, by the task's key: arms may override the template or the length."""
    model_sha256: str
    """Hash of the base's configuration and weights."""
    retention_sha256: str = ""
    """Hash of the tokenised retention text; empty where none is asked for."""
    memory: CohortMemory = CohortMemory(device_bytes=0, base_bytes=0, run_bytes=0)
    """What LoRA runs need that share a pass."""
    available: Available
    """What a child of this command may take, with the libraries loaded and nothing else."""

    def workload(self, num_jobs: int) -> Workload:
        """Return what the work is made of, with so many processes at a time."""
        counted = {arm.name: arm.parameters for arm in self.plan.arms}
        return Workload(
            num_steps=self.num_steps,
            num_jobs=num_jobs,
            arms={name: ArmWork(trainable=own.trainable, total=own.total) for name, own in counted.items()},
        )

    def lines(self) -> Iterator[str]:
        """Yield what a person should know before the run starts."""
        yield from (f"- {note}" for note in self.notes)
        for name, num_sequences in self.num_sequences.items():
            yield f"{name}: {num_sequences:,} sequences, {self.num_target_tokens[name]:,} target tokens"
        yield f"each run: {self.num_steps:,} steps ({self.num_epochs:.2f} epochs)"


def preflight(study: Study) -> Preflight:
    """Check precision, metrics, base, tokenizer, targets, ranks and data; the tokenised data are left in the cache.

    Raises:
        TuneoffError: the first thing that is wrong.
    """
    available = room()
    check_search(study)
    check_trackers(study.trackers)
    check_metrics(study.task.metric_names, study.root)
    config = load_config(study.model, study.root, study.revision, study.trust_remote_code)
    planned = plan(study)  # what is wrong with the arms is said before the data are read
    model_sha256 = fingerprint(
        study.model, study.root, study.revision
    )  # reads the weights, so a torn file is found now
    tokenizer = load_tokenizer(study.model, study.root, study.revision, study.trust_remote_code)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    data = prepare(study.task, tokenizer, study.root, context, trust_remote_code=study.trust_remote_code)
    if data.classes:  # how many there are, and so how wide the heads, the data alone tell
        planned = plan(study, len(data.classes))
    hashes = {task_key(study.task): data.sha256}
    for own in map(study.for_arm, study.arms):
        check_precision(own.precision)
        if task_key(own.task) not in hashes:
            other = prepare(own.task, tokenizer, study.root, context, trust_remote_code=study.trust_remote_code)
            hashes[task_key(own.task)] = other.sha256
    splits = {"train": data.train, "validation": data.validation, "test": data.test}
    if data.prompts is not None and study.testing.decoding:
        num_virtual = max((arm.num_virtual_tokens for arm in planned.arms), default=0)
        lengths = np.diff(data.prompts.offsets)[: study.generate.limit]
        check_lengths(lengths.tolist(), study.generate, context, num_virtual)
    general = None
    if study.retention is not None:
        general = prepare_retention(study.retention, study.task, tokenizer, study.root)
    steps = num_steps(study.budget, data.train)
    return Preflight(
        plan=planned,
        notes=(*tokenizer_notes(tokenizer), *data.notes, *(general.notes if general is not None else ())),
        num_sequences={name: len(split) for name, split in splits.items()},
        num_target_tokens={name: split.num_target_tokens for name, split in splits.items()},
        num_steps=steps,
        num_epochs=steps * study.budget.batch_size / len(data.train),
        data_sha256=hashes,
        model_sha256=model_sha256,
        retention_sha256=general.sha256 if general is not None else "",
        memory=_memory(study, planned, config),
        available=available,
    )


def _memory(study: Study, planned: Plan, config: Any) -> CohortMemory:
    arms = {arm.name: arm for arm in planned.arms}
    lora = [arms[arm.name].weights_bytes for arm in study.arms if arm.method.method == "lora"]
    trainable = {name: arm.parameters.trainable for name, arm in arms.items()}
    return cohort_memory(study, config.get_text_config(), max(lora, default=0), trainable, device_bytes())
