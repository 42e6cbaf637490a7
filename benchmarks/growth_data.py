"""Prepares rows, takes a first step, and scores them, in a process of its own; prints the seconds of each as JSON.

`python -m benchmarks.growth_data ROWS ours|trainer-longest`, on the embedded base and its tokenizer. Theirs is the
usual recipe: `datasets` reads the file and maps the tokenizer over it, the Trainer scores padded batches of 8 (its
default).
"""

import json
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from benchmarks.measuring import OURS

from tuneoff.data.demo_tasks import generate_rows
from tuneoff.data.prepare import prepare
from tuneoff.evaluation.likelihood import score_split
from tuneoff.methods import LoRA
from tuneoff.study.spec import TaskSpec
from tuneoff.training.models import load_base, load_tokenizer

NUM_SCORED = 8
"""One of so many rows is scored: what a validation split is of a training split."""
LENGTH = 64
BATCH = 8
IGNORED = -100


def rows(number: int) -> list[dict[str, str]]:
    """Return rows of an instruction and a response, no two alike."""
    made = generate_rows("instruction", "train")
    return [
        {"instruction": f"{row['instruction']} ({place})", "response": row["response"]}
        for place, row in ((place, made[place % len(made)]) for place in range(number))
    ]


def write(folder: Path, number: int) -> None:
    """Write a file for each split, no row in two of them."""
    scored, tested = max(8, number // NUM_SCORED), 8
    made = rows(number + scored + tested)
    parts = {"train": made[:number], "validation": made[number:-tested], "test": made[-tested:]}
    for name, part in parts.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")


def ours(folder: Path) -> dict[str, float]:
    """Go the way that a run goes."""
    from benchmarks.speed.worker import train_ours

    task = TaskSpec(
        kind="instruction", data="train.jsonl", max_length=LENGTH, template="{instruction}\n",
        splits={"validation": "validation.jsonl", "test": "test.jsonl"},
    )  # fmt: skip
    tokenizer = load_tokenizer("demo", folder)
    start = time.perf_counter()
    data = prepare(task, tokenizer, folder, 512, cache=folder / "cache")
    cold = time.perf_counter()
    prepare(task, tokenizer, folder, 512, cache=folder / "cache")
    warm = time.perf_counter()
    adapted = LoRA(rank=8).adapt(load_base("demo", folder), torch.Generator().manual_seed(0))
    loop = train_ours(adapted, data.train, BATCH, num_steps=1)
    scoring = time.perf_counter()
    score_split(adapted.module, loop.forward, data.validation, loop.runtime, tokenizer.pad_token_id)
    return {
        "seconds to prepare": cold - start,
        "seconds to prepare again": warm - cold,
        "seconds of the first step": loop.meter.step_s[0],
        "seconds to score an eighth": time.perf_counter() - scoring,
    }


def theirs(folder: Path) -> dict[str, float]:
    """Go the way of the usual recipe."""
    from datasets import load_dataset
    from peft import LoraConfig, get_peft_model
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    tokenizer = load_tokenizer("demo", folder)

    def tokenised(row: dict[str, str]) -> dict[str, Any]:
        prompt = tokenizer(row["instruction"] + "\n")["input_ids"]
        answer = tokenizer(row["response"])["input_ids"] + [tokenizer.eos_token_id]
        ids = (prompt + answer)[:LENGTH]
        return {
            "input_ids": ids,
            "labels": ([IGNORED] * len(prompt) + answer)[:LENGTH],
            "attention_mask": [1] * len(ids),
        }

    start = time.perf_counter()
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "validation")}
    data = load_dataset("json", data_files=files, cache_dir=str(folder / "datasets"))
    data = data.map(tokenised, remove_columns=["instruction", "response"])
    prepared = time.perf_counter()
    again = load_dataset("json", data_files=files, cache_dir=str(folder / "datasets"))
    again.map(tokenised, remove_columns=["instruction", "response"])
    warm = time.perf_counter()
    config = LoraConfig(r=8, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    arguments = TrainingArguments(
        str(folder / "out"), per_device_train_batch_size=BATCH, max_steps=1, use_cpu=True, report_to=[],
        save_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Trainer(
        get_peft_model(load_base("demo", folder), config),
        arguments,
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    )
    training = time.perf_counter()
    trainer.train()
    scoring = time.perf_counter()
    trainer.evaluate()
    return {
        "seconds to prepare": prepared - start,
        "seconds to prepare again": warm - prepared,
        "seconds of the first step": scoring - training,
        "seconds to score an eighth": time.perf_counter() - scoring,
    }


def main() -> None:
    """Measure and print."""
    number, contender = int(sys.argv[1]), sys.argv[2]
    with TemporaryDirectory(prefix="tuneoff-growth-") as folder:
        write(Path(folder), number)
        print(json.dumps((ours if contender == OURS else theirs)(Path(folder))))


if __name__ == "__main__":
    main()
