"""A study and its records as a real run would leave them, made up: full, three LoRA ranks, zero-shot, three seeds."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from tuneoff.analysis.items import ItemScores
from tuneoff.analysis.selection import choose_rate
from tuneoff.analysis.tuning import Search
from tuneoff.study.expand import base_run, chosen_runs, trials
from tuneoff.study.explained import ExplainRecord, LayerChange, Retention, Sample
from tuneoff.study.identity import Run
from tuneoff.study.loading import study_from
from tuneoff.study.methods import DEFAULT_RATES, NoneMethod
from tuneoff.study.records import (
    Costs,
    Generated,
    Likelihood,
    Parameters,
    Provenance,
    Record,
    TestRecord,
    Training,
)
from tuneoff.study.spec import Arm, Study
from tuneoff.study.testing import Decoding

HOSTILE = "<script>alert('x')</script> \x1b[31mred\x1b[0m [bold]markup[/bold] =cmd() | a_b \u202ereversed"
BASE = 124_439_808
VOCABULARY = 50_257
STEPS = 800
# Best rate and the loss there; how much worse a rate ten times off is.
SHAPES = {"full": (3e-5, 2.31), "lora-rank2": (4e-4, 2.47), "lora-rank8": (3e-4, 2.39), "lora-rank32": (3e-4, 2.335)}
BOWL = 0.22


def study_file(**changes: Any) -> dict[str, Any]:
    """What a study's file holds; `changes` replace whole keys."""
    lora = {"method": "lora", "alpha": 16, "targets": ["c_attn"], "dropout": 0.05}
    raw: dict[str, Any] = {
        "name": "dolly-gpt2",
        "about": "Does a low-rank adapter keep up with full fine-tuning on short instructions?",
        "model": "gpt2",
        "task": {"kind": "instruction", "data": "databricks/databricks-dolly-15k", "max_length": 384},
        "budget": {"steps": STEPS, "batch_size": 16},
        "seeds": [0, 1, 2],
        "arms": {
            "zero-shot": {"method": "none"},
            "full": {"method": "full", "tune": {"lr": [1e-5, 3e-5, 1e-4]}},
            "lora": {**lora, "rank": [2, 8, 32], "tune": {"lr": [1e-4, 3e-4, 1e-3]}, "assumed": ["dropout"]},
        },
    }
    return raw | changes


def make_study(**changes: Any) -> Study:
    """A study as its file would give it; `changes` replace whole keys."""
    return study_from(study_file(**changes), Path())


EVERY_METHOD: dict[str, dict[str, Any]] = {
    "zero-shot": {"method": "none"},
    "full": {"method": "full", "tune": {"lr": [1e-5, 3e-5, 1e-4]}},
    "lora": {"method": "lora", "rank": 8, "targets": ["c_attn"], "tune": {"lr": [1e-4, 3e-4, 1e-3]}},
    "qlora": {"method": "lora", "rank": 8, "quantize": "nf4", "lr": 3e-4},
    "houlsby": {"method": "bottleneck", "placement": "houlsby", "size": 32, "dropout": 0.1, "lr": 3e-4},
    "prompt": {"method": "prompt", "num_virtual_tokens": 20, "tune": {"lr": [1e-2, 1e-1, 3e-1]}},
    "prefix": {"method": "prefix", "num_virtual_tokens": 10, "projection": 128, "lr": 1e-2},
    "biases": {"method": "bitfit", "lr": 1e-3},
    "output": {"method": "head", "lr": 1e-3},
    "loha": {"method": "peft", "peft": {"peft_type": "LOHA", "r": 4, "target_modules": ["c_attn"]}, "lr": 1e-3},
}


def make_qa(**changes: Any) -> Study:
    """A study of question answering, whose texts are written with three strategies."""
    qa = {
        "name": "squad-gpt2",
        "about": "",
        "task": {"kind": "qa", "data": "squad", "max_length": 384},
        "decoding": ["greedy", {"top_p": 0.9, "samples": 5}, {"temperature": 0.7, "samples": 5}],
    }
    return make_study(**(qa | changes))


def make_classification(**changes: Any) -> Study:
    """A study of two classes."""
    task = {"kind": "classification", "data": "sst2.tsv", "max_length": 64}
    return make_study(**({"name": "sst2-gpt2", "about": "", "task": task} | changes))


def make_likelihood(loss: float, tokens: int = 61_204) -> Likelihood:
    """A split's score with this loss."""
    return Likelihood(
        nll_nats=loss * tokens,
        num_target_tokens=tokens,
        num_sequences=750,
        num_target_bytes=round(4.3 * tokens),
        mean_sequence_loss_nats=loss + 0.21,
        vocabulary_size=VOCABULARY,
    )


def make_provenance(*notes: str) -> Provenance:
    """Where a fake comes from."""
    return Provenance(
        created_at="2026-10-01T12:00:00+00:00",
        tuneoff_version="0.1.0",
        versions={"torch": "2.13.0", "transformers": "5.17.0", "peft": "0.21.0"},
        python="3.11.9",
        platform="Linux x86_64",
        device="cpu",
        num_threads=2,
        micro_batch=16,
        model_sha256="248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
        data_sha256="1c1a9b40bd1e8a7e5a9ed9b1f3a4e9d7c0b6b7f0d7b5cfa0b1f0a2c4d5e6f708",
        notes=("3 of 15,011 examples lost the middle of their prompt", *notes),
    )


def final_loss(arm: Arm, run: Run) -> float:
    """Validation loss that this run ends with: a bowl over the logarithm of the rate, and a little luck of the seed."""
    if run.lr is None:
        return 3.42
    best, lowest = SHAPES.get(arm.name, (DEFAULT_RATES[arm.method.method][1], 2.4 + 0.011 * (len(arm.name) % 5)))
    luck = Random(f"{arm.name}/{run.lr}/{run.seed}").gauss(0, 0.006)
    return lowest + BOWL * math.log10(run.lr / best) ** 2 + luck


def make_record(arm: Arm, run: Run, *notes: str) -> Record:
    """A finished run."""
    rank = getattr(arm.method, "rank", 0 if arm.method.method in ("none", "full", "load") else 4)
    is_full = arm.method.method == "full"
    trainable = BASE if is_full else 36_864 * rank
    is_trained = run.lr is not None
    step_s = 0.61 if is_full else 0.44 + 0.001 * rank
    costs = Costs(
        train_s=STEPS * step_s,
        step_s=step_s,
        input_tokens_per_s=2600 / step_s,
        target_tokens_per_s=1040 / step_s,
        evaluate_s=41.0,
        peak_bytes={"load": 700 << 20, "train": (2900 if is_full else 1650 + 2 * rank) << 20, "evaluate": 1100 << 20},
        peak_kind="resident",
        optimizer_bytes=8 * trainable,
        weights_bytes=4 * trainable,
    )
    training = Training(
        steps=STEPS,
        epochs=0.95,
        num_target_tokens=STEPS * 1040,
        num_input_tokens=STEPS * 2600,
        batch_sequence_sha256=f"{run.seed}" * 64,
        best_step=STEPS,
        final_loss_nats=2.2,
    )
    return Record(
        run_id=run.run_id,
        run=run,
        status="done",
        parameters=Parameters(
            trainable=trainable, total=BASE + (0 if is_full else trainable), modules=("h.0.c_attn",) if rank else ()
        ),
        training=training if is_trained else None,
        validation=make_likelihood(final_loss(arm, run)),
        costs=costs if is_trained else None,
        provenance=make_provenance(*notes),
    )


def make_infeasible(run: Run, reason: str = "diverged: loss is not a number at step 41") -> Record:
    """A run that ended without a result."""
    return Record(run_id=run.run_id, run=run, status="infeasible", reason=reason, provenance=make_provenance())


def make_curve(arm: Arm, run: Run, steps: int = STEPS) -> list[dict[str, Any]]:
    """The lines that the run's `curve.jsonl` would hold."""
    luck = Random(f"curve/{arm.name}/{run.seed}")
    end = final_loss(arm, run)
    lines: list[dict[str, Any]] = []
    for step in range(steps + 1):
        level = end + 1.1 * math.exp(-5.0 * step / steps)
        place = {"step": step, "epoch": step / 840, "target_tokens": step * 1040}
        if step:
            more = {"lr": run.lr, "gradient_norm": 0.8, "input_tokens": step * 2600, "elapsed_s": step * 0.5}
            lines.append({"kind": "train", "loss_nats": level - 0.06 + luck.gauss(0, 0.09), **place, **more})
        if step % (steps // 10) == 0:
            lines.append({"kind": "validation", "loss_nats": level, "perplexity": math.exp(level), **place})
    return lines


def make_generated(study: Study, decoding: Decoding, score: float, luck: Random) -> Generated:
    """What a run wrote with one strategy; texts that are drawn score lower and differ more."""
    cost = 6.0 + 4.0 * (decoding.top_p or 0.0) if decoding.is_sampled else 0.0
    metrics = {
        name: max(1.0, score - cost - 8.0 * place) + luck.gauss(0, 0.2)
        for place, name in enumerate(study.task.metric_names)
    }
    bonus = 9.0 if decoding.samples > 1 else 0.0
    return Generated(
        decoding=decoding,
        num_items=200,
        num_samples=decoding.samples,
        metrics=metrics,
        best_of_n={name: value + bonus for name, value in metrics.items()},
        distinct_1=(0.58 if decoding.samples > 1 else 0.97) + luck.gauss(0, 0.01),
        distinct_2=(0.66 + 0.1 * (decoding.top_p or 0.0) if decoding.samples > 1 else 0.99) + luck.gauss(0, 0.005),
        truncated_pct=4.0,
        num_near_ties=0 if decoding.is_sampled else 3,
        mean_new_tokens=7.2,
        generate_s=31.0,
    )


def make_test(study: Study, arm: Arm, run: Run) -> TestRecord:
    """The reading of the test split by a finished run."""
    loss = final_loss(arm, run) + 0.012
    luck = Random(f"test/{arm.name}/{run.seed}")
    if study.task.kind == "classification":
        points = min(99.0, 100.0 - 4.0 * loss)
        metrics = {name: points + luck.gauss(0, 0.3) for name in study.task.metric_names}
        test = make_likelihood(loss / 6, 872).model_copy(update={"vocabulary_size": 2, "num_target_bytes": 0})
        return TestRecord(run_id=run.run_id, test=test, testing=study.testing, metrics=metrics, score_s=12.0)
    generated = tuple(make_generated(study, one, 140.0 - 40.0 * loss, luck) for one in study.testing.decoding)
    return TestRecord(
        run_id=run.run_id,
        test=make_likelihood(loss, 64_877),
        testing=study.testing,
        metrics=generated[0].metrics if generated else {},
        generated=generated,
        score_s=12.0,
    )


RETENTION_UNITS = 40
BASE_RETENTION = 3.21
FORGOTTEN = {"full": 0.31, "lora-rank2": 0.03, "lora-rank8": 0.08, "lora-rank32": 0.14}
"""Nats per token of the retention text that training costs, where an arm is not named 0.1."""
WIDTH = 96
LAYERS = ("h.0.attn.c_attn", "h.0.mlp.c_fc", "h.1.attn.c_attn", "h.1.mlp.c_fc")
KEPT_VALUES = 64
"""Singular values of a full change that a record keeps, fewer than there are."""


def make_layer(module: str, singular_values: list[float], num_singular_values: int, luck: Random) -> LayerChange:
    """A weight matrix whose change has these singular values, of which the largest are kept."""
    shares = [value / sum(singular_values) for value in singular_values]
    squares = [value**2 for value in singular_values]
    share_90 = 0.9 * sum(squares)
    rank_90 = next(rank for rank in range(1, len(squares) + 1) if sum(squares[:rank]) >= share_90 * (1 - 1e-12))
    kept = singular_values[:KEPT_VALUES]
    is_low = num_singular_values < WIDTH
    cosines = [luck.uniform(0.1, 0.5) if is_low and place < 3 else luck.uniform(0.7, 0.99) for place in range(10)]
    return LayerChange(
        module=module,
        shape=(3 * WIDTH, WIDTH),
        base_norm=12.0,
        change_norm=math.sqrt(sum(squares)),
        singular_values=tuple(kept),
        num_singular_values=num_singular_values,
        effective_rank=math.exp(-sum(share * math.log(share) for share in shares)),
        rank_90=rank_90 if rank_90 <= len(kept) else None,
        num_top=10,
        num_intruders=sum(cosine < 0.6 for cosine in cosines),
        max_cosines=tuple(cosines),
    )


def make_retention(loss: float, seed: str, units: int = RETENTION_UNITS) -> Retention:
    """A score of the retention text whose units lie about its loss; their mean is the loss to the last digit or so."""
    luck = Random(f"retention/{seed}")
    noise = [luck.gauss(0, 0.02) for _ in range(units)]
    mean = sum(noise) / units
    hard = [0.4 * math.sin(place) for place in range(units)]
    middle = sum(hard) / units
    values = tuple(loss + one - mean + other - middle for one, other in zip(noise, hard, strict=True))
    return Retention(likelihood=make_likelihood(loss, 20_000), values=values)


def make_samples(arm: Arm, num_samples: int = 3) -> tuple[Sample, ...]:
    """What a run wrote for the first items of the test split; one prompt and one text are hostile."""
    prompts = ["Name three colours.", f"Say this again: {HOSTILE}", "What is the capital of France?\n\nAnswer briefly."]
    return tuple(
        Sample(
            item=f"item-{place}",
            prompt=prompts[place % 3],
            reference=("Red, green and blue.", "No.", "Paris.")[place % 3],
            text=f"{arm.name} says {HOSTILE if place == 1 else 'Paris, and more of the same. ' * (place + 1)}",
        )
        for place in range(num_samples)
    )


def make_explained(study: Study, arm: Arm, run: Run, modules: Sequence[str] = LAYERS) -> ExplainRecord:
    """What was worked out of a run: its modules' change, the retention text, and what it wrote for a few items."""
    luck = Random(f"explained/{arm.name}/{run.seed}")
    is_trained = run.lr is not None
    forgotten = FORGOTTEN.get(arm.name, 0.1) + luck.gauss(0, 0.004) if is_trained else 0.0
    rank = getattr(arm.method, "rank", None)
    layers = []
    for place, module in enumerate(modules if arm.method.method in ("full", "lora") else ()):
        size = (1.5 if rank is None else 2.0) * (1 + 0.2 * place) * (1 + luck.gauss(0, 0.01))
        number = WIDTH if rank is None else min(rank, WIDTH)
        slope = 0.03 if rank is None else 0.9 / number
        values = [size * math.exp(-slope * one) for one in range(number)]
        layers.append(make_layer(module, values, number, luck))
    return ExplainRecord(
        run_id=run.run_id,
        asked=study.explain,
        retention_sha256="a" * 64,
        retention=None
        if study.task.kind == "classification"
        else make_retention(BASE_RETENTION + forgotten, f"{arm.name}/{run.seed}"),
        layers=tuple(layers) if is_trained else (),
        samples=make_samples(arm, min(3, study.explain.samples)),
        explain_s=12.5,
    )


def make_base_explained(study: Study) -> ExplainRecord:
    """The base's, which belongs to the run that trains nothing, whether an arm of the study is zero-shot or not."""
    arm = Arm(name="base", family="base", method=NoneMethod(method="none"))
    return make_explained(study, arm, base_run(study))


def make_items(fakes: "Fakes", num_items: int = 64, spread: float = 0.3) -> dict[str, ItemScores]:
    """Scores by item of every tested run: noise of the items, which arms share, and of run and item, around its mean.

    Args:
        fakes: the study.
        num_items: test items.
        spread: standard deviation of the items' own, in the metric's unit; a fifth of it for run and item.
    """
    names = tuple(f"document {place}" for place in range(num_items))
    shared = Random("items")
    own = [shared.gauss(0, spread) for _ in names]
    found: dict[str, ItemScores] = {}
    for run_id, test in fakes.tests.items():
        means = {"loss": test.test.loss_nats, **test.metrics}
        for texts in test.generated:
            means |= {f"{name}@{texts.decoding.name}": value for name, value in texts.metrics.items()}
        scores = {}
        for name, mean in means.items():
            luck = Random(f"items/{run_id}/{name.partition('@')[0]}")
            values = np.array([value + luck.gauss(0, spread / 5) for value in own])
            scores[name] = mean + values - values.mean()
        found[run_id] = ItemScores(names, scores)
    return found


class Fakes:
    """A study with its records, tests, curves and explanations.

    Args:
        study: the study.
        share: how much of it is done, arm by arm.
        lost: names of arms of which every run is infeasible.
        notes: further notes of the data.
    """

    def __init__(
        self, study: Study, share: float = 1.0, lost: tuple[str, ...] = (), notes: tuple[str, ...] = ()
    ) -> None:
        self.study = study
        self.records: dict[str, Record] = {}
        self.tests: dict[str, TestRecord] = {}
        self.curves: dict[str, list[dict[str, Any]]] = {}
        self.explained: dict[str, ExplainRecord] = {}
        """Of the base and of every chosen run that is done."""
        started = study.arms[: math.ceil(share * len(study.arms))]
        while missing := [(arm, run) for arm, run in self._trials(started) if run.run_id not in self.records]:
            for arm, run in missing:
                self._add(arm, run, is_lost=arm.name in lost, notes=notes)
        for arm in started:
            lr = choose_rate(study, arm, self.records)
            for run in chosen_runs(study, arm, lr) if lr is not None or not arm.is_trained else ():
                self._add(arm, run, is_lost=False, notes=notes)
                self.tests[run.run_id] = make_test(study, arm, run)
                self.explained[run.run_id] = make_explained(study, arm, run)
        if self.records:
            base = make_base_explained(study)
            self.explained.setdefault(base.run_id, base)

    def _trials(self, arms: Sequence[Arm]) -> Iterator[tuple[Arm, Run]]:
        rounds = Search(self.study, self.records).rounds([arm.name for arm in arms])
        return ((arm, run) for arm in arms for run in trials(self.study, arm, rounds.rates(arm)))

    def _add(self, arm: Arm, run: Run, *, is_lost: bool, notes: tuple[str, ...]) -> None:
        is_hot = run.lr is not None and run.lr >= 1e-3 and arm.name == "lora-rank32"
        if is_lost or is_hot:
            self.records[run.run_id] = make_infeasible(run)
            return
        self.records[run.run_id] = make_record(arm, run, *notes)
        if run.lr is not None:
            self.curves[run.run_id] = make_curve(arm, run)
