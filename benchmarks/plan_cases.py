"""What `benchmarks.memory` and `benchmarks.plan_time` predict and measure: shapes, methods, sizes, phases."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NEW_TOKENS = 16

SHAPES: dict[str, dict[str, Any]] = {
    "llama-200m": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 1024,
        "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 16, "num_key_value_heads": 4,
        "head_dim": 64, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    },
    "tiny": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 320, "hidden_size": 64,
        "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 2048,
    },
}  # fmt: skip
"""Beside GPT-2 small's and the demo base's: 201M parameters, grouped queries and a head of its own; and a tiny one."""
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full", "lr": 1e-5},
    "lora": {"method": "lora", "rank": 8, "alpha": 16, "targets": ["all-linear"], "dropout": 0.1, "lr": 1e-4},
    "bottleneck": {"method": "bottleneck", "size": 64, "lr": 1e-4},
    "prompt": {"method": "prompt", "num_virtual_tokens": 20, "lr": 1e-2},
}


@dataclass(frozen=True)
class PlanCase:
    """What is predicted and measured.

    Attributes:
        model, method: keys of the tables above, `gpt2` or `demo`.
        batch_size, length: sequences of a step (of generation texts) and tokens of each (of generation of a prompt).
        precision: fp32 or bf16.
        phase: train, evaluate or generate.
        micro_batch: sequences in one forward; none takes them all.
        recompute: gradient checkpointing.
    """

    model: str
    method: str
    batch_size: int
    length: int
    precision: str
    phase: str = "train"
    micro_batch: int | None = None
    recompute: bool = False

    @property
    def name(self) -> str:
        """What it is called in the table, and by `--only`."""
        more = f" in {self.micro_batch}s" if self.micro_batch else ""
        more += ", recomputed" if self.recompute else ""
        sizes = f"{self.batch_size} x {self.length}{more}"
        return f"{self.model} {self.method} {sizes} {self.precision} {self.phase}"


CASES = (
    PlanCase("demo", "full", 16, 128, "fp32"),
    PlanCase("demo", "lora", 4, 256, "bf16"),
    PlanCase("demo", "bottleneck", 16, 256, "fp32"),
    PlanCase("demo", "prompt", 8, 128, "bf16"),
    PlanCase("demo", "lora", 16, 128, "fp32", "evaluate"),
    PlanCase("demo", "full", 4, 256, "bf16", "evaluate"),
    PlanCase("demo", "lora", 16, 128, "fp32", "generate"),
    PlanCase("demo", "prompt", 8, 128, "fp32", "generate"),
    PlanCase("gpt2", "full", 1, 128, "fp32"),
    PlanCase("gpt2", "lora", 2, 256, "fp32"),
    PlanCase("gpt2", "lora", 1, 1024, "bf16"),
    PlanCase("gpt2", "bottleneck", 4, 128, "bf16"),
    PlanCase("gpt2", "prompt", 2, 128, "fp32"),
    PlanCase("gpt2", "full", 16, 128, "bf16", micro_batch=4),
    PlanCase("gpt2", "lora", 4, 256, "fp32", recompute=True),
    PlanCase("gpt2", "lora", 1, 512, "bf16", "evaluate"),
    PlanCase("gpt2", "full", 8, 128, "fp32", "evaluate"),
    PlanCase("gpt2", "lora", 16, 128, "fp32", "generate"),
    PlanCase("gpt2", "full", 2, 256, "bf16", "generate"),
    PlanCase("llama-200m", "full", 1, 128, "fp32"),
    PlanCase("llama-200m", "lora", 2, 256, "bf16"),
    PlanCase("llama-200m", "bottleneck", 1, 512, "fp32"),
    PlanCase("llama-200m", "lora", 4, 128, "bf16", "evaluate"),
    PlanCase("llama-200m", "lora", 8, 128, "fp32", "generate"),
)
"""Of memory and of time."""
OF_MEMORY = (
    PlanCase("demo", "full", 4, 256, "bf16"),
    PlanCase("demo", "lora", 16, 256, "bf16"),
    PlanCase("demo", "bottleneck", 4, 256, "fp32"),
    PlanCase("demo", "prompt", 4, 256, "bf16", "evaluate"),
    PlanCase("demo", "full", 4, 256, "bf16", "generate"),
    PlanCase("gpt2", "full", 4, 128, "bf16", micro_batch=2),
    PlanCase("gpt2", "prompt", 2, 256, "bf16", "generate"),
    PlanCase("llama-200m", "prompt", 1, 256, "bf16"),
    PlanCase("llama-200m", "full", 1, 1024, "fp32", "evaluate"),
    PlanCase("llama-200m", "lora", 8, 128, "bf16", "generate"),
    PlanCase("llama-200m", "bottleneck", 1, 1024, "fp32", "generate"),
)
"""Of memory alone, which is soon measured."""
SMALL = "demo"
"""The model whose cases take minutes."""


def chosen(cases: Iterable[PlanCase], only: Iterable[str], *, is_small: bool) -> list[PlanCase]:
    """Return the cases whose names hold all of some words; of the small model alone, or of all."""
    words = set(only)
    return [case for case in cases if words <= set(case.name.split()) and (case.model == SMALL or not is_small)]


def study_of(case: PlanCase, folder: Path) -> Any:
    """Return a study of one arm; a shape of the table above is written into the folder."""
    from tuneoff.study.loading import study_from

    model = case.model
    if model in SHAPES:
        model = str(folder / model)
        Path(model).mkdir(exist_ok=True)
        (Path(model) / "config.json").write_text(json.dumps(SHAPES[case.model]), encoding="utf-8")
    raw: dict[str, Any] = {
        "name": "memory",
        "model": model,
        "task": {"kind": "instruction", "data": "demo", "max_length": case.length, "metrics": ["rouge1"]},
        "budget": {"steps": 3, "batch_size": case.batch_size},
        "precision": case.precision,
        "gradient_checkpointing": case.recompute,
        "generate": {"max_new_tokens": NEW_TOKENS, "batch_size": case.batch_size},
        "decoding": ["greedy", {"top_p": 0.9}],
        "arms": {"arm": METHODS[case.method]},
    }
    if case.micro_batch:
        raw["micro_batch"] = case.micro_batch
    return study_from(raw, folder)


def prompts_of(case: PlanCase) -> list[list[int]]:
    """Return prompts that share no beginning, as many as there are texts in the making."""
    return [[1 + index] + [0] * (case.length - 1) for index in range(max(1, case.batch_size // 2))]
