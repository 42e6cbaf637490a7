"""Trainable parameters of every method on GPT-2 small: counted, by a closed formula, and by PEFT where it has it.

    python -m benchmarks.parameters

Nothing is loaded: the model is the shape of GPT-2 small (124,439,808 parameters) on the meta device. The formulas are
in GPT-2's sizes: D width, L layers, F = 4 D, r rank, m bottleneck, V virtual tokens, P width of a prefix's MLP.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tuneoff.methods import method_from_spec
from tuneoff.methods.heads import train_head
from tuneoff.study.methods import METHODS
from tuneoff.training.models import load_config, shape_only

D, L, VOCABULARY, POSITIONS = 768, 12, 50257, 1024
F = 4 * D
CLASSES = 2
QKV, OUT, UP, DOWN = (D, 3 * D), (D, D), (D, F), (F, D)
"""Inputs and outputs of `c_attn`, `attn.c_proj`, `c_fc` and `mlp.c_proj`."""
ALL = {"c_attn": QKV, "attn.c_proj": OUT, "c_fc": UP, "mlp.c_proj": DOWN}
BIASES = L * (D + 3 * D + D + D + F + D) + D
"""Of each block: first norm, c_attn, attn.c_proj, second norm, c_fc, mlp.c_proj; and of the last norm."""
FULL = VOCABULARY * D + POSITIONS * D + L * (sum(a * b for a, b in ALL.values()) + 2 * D) + D + BIASES


def lora(rank: int, *targets: str) -> int:
    """A (r, in) and B (out, r) of every target."""
    return L * sum(rank * sum(ALL[name]) for name in targets)


@dataclass(frozen=True)
class Row:
    """A method, its closed formula, and PEFT's configuration of the same where there is one."""

    spec: Mapping[str, Any]
    formula: str
    expected: int
    peft: Mapping[str, Any] | None = None
    num_classes: int = 0


def _lora_row(formula: str, expected: int, targets: list[str], rank: int = 8, **options: Any) -> Row:
    ours = {"method": "lora", "rank": rank, "targets": targets, **options}
    theirs = {"dora": "use_dora", "rslora": "use_rslora", "bias": "bias"}
    peft = {"peft_type": "LORA", "r": rank, "target_modules": targets}
    return Row(ours, formula, expected, peft | {theirs[key]: value for key, value in options.items()})


def _external(formula: str, expected: int, **config: Any) -> Row:
    return Row({"method": "peft", "peft": config}, formula, expected, config)


ROWS: dict[str, Row] = {
    "full": Row({"method": "full"}, "all weights, tied ones once", FULL),
    "lora r4 c_attn": _lora_row("L r (D + 3D)", lora(4, "c_attn"), ["c_attn"], rank=4),
    "lora r8 c_attn": _lora_row("L r (D + 3D)", lora(8, "c_attn"), ["c_attn"]),
    "lora r8, four kinds": _lora_row("L r (4D + 2D + 5D + 5D)", lora(8, *ALL), list(ALL)),
    "rslora r8 c_attn": _lora_row("as LoRA", lora(8, "c_attn"), ["c_attn"], rslora=True),
    "dora r8 c_attn": _lora_row("LoRA + L 3D", lora(8, "c_attn") + L * 3 * D, ["c_attn"], dora=True),
    "lora r8, its biases": _lora_row("LoRA + L 3D", lora(8, "c_attn") + L * 3 * D, ["c_attn"], bias="lora_only"),
    "lora r8, all biases": _lora_row("LoRA + biases", lora(8, "c_attn") + BIASES, ["c_attn"], bias="all"),
    "bottleneck, Pfeiffer m64": Row(
        {"method": "bottleneck", "placement": "pfeiffer", "size": 64}, "L (2 D m + m + D)", L * (2 * D * 64 + 64 + D)
    ),
    "bottleneck, Houlsby m64": Row(
        {"method": "bottleneck", "placement": "houlsby", "size": 64},
        "2 L (2 D m + m + D)",
        2 * L * (2 * D * 64 + 64 + D),
    ),
    "prompt V20": Row(
        {"method": "prompt", "num_virtual_tokens": 20},
        "V D",
        20 * D,
        {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 20},
    ),
    "prefix V20": Row(
        {"method": "prefix", "num_virtual_tokens": 20},
        "V L 2 D",
        20 * L * 2 * D,
        {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 20},
    ),
    "prefix V20, MLP 512": Row(
        {"method": "prefix", "num_virtual_tokens": 20, "projection": 512},
        "V D + D P + P + P 2 L D + 2 L D",
        20 * D + D * 512 + 512 + 512 * 2 * L * D + 2 * L * D,
        {
            "peft_type": "PREFIX_TUNING",
            "num_virtual_tokens": 20,
            "prefix_projection": True,
            "encoder_hidden_size": 512,
        },
    ),
    "bitfit": Row({"method": "bitfit"}, "L (D + 3D + D + D + F + D) + D", BIASES),
    "head (untied copy)": Row({"method": "head"}, "D x vocabulary", D * VOCABULARY),
    "head, 2 classes": Row({"method": "head"}, "2 D", CLASSES * D, num_classes=CLASSES),
    "lora r8 c_attn, 2 classes": Row(
        {"method": "lora", "rank": 8, "targets": ["c_attn"]},
        "LoRA + 2 D",
        lora(8, "c_attn") + CLASSES * D,
        {"peft_type": "LORA", "r": 8, "target_modules": ["c_attn"], "modules_to_save": ["score"]},
        CLASSES,
    ),
    "IA3": _external("L (3D + F)", L * (3 * D + F), peft_type="IA3"),
    "VeRA r256": _external("L (256 + 3D)", L * (256 + 3 * D), peft_type="VERA", target_modules=["c_attn"]),
    "AdaLoRA r12": _external(
        "L (r (D + 3D) + r)", L * (12 * 4 * D + 12), peft_type="ADALORA", target_modules=["c_attn"], total_step=100
    ),
}


def counted(row: Row) -> int:
    """Return how many parameters our method trains."""
    spec = METHODS[row.spec["method"]].model_validate(dict(row.spec))
    model = _shape(row.num_classes)
    adapted = train_head(method_from_spec(spec).adapt(model, torch.Generator()))  # type: ignore[arg-type]
    return sum(parameter.numel() for parameter in adapted.trainable_parameters().values())


def counted_by_peft(row: Row) -> int | None:
    """Return how many parameters PEFT trains; none where it has no such method."""
    if row.peft is None:
        return None
    from peft import get_peft_config, get_peft_model

    task = "SEQ_CLS" if row.num_classes else "CAUSAL_LM"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Conv1D, which PEFT then handles right
        model = get_peft_model(_shape(row.num_classes), get_peft_config({"task_type": task, **row.peft}))
    # AdaLoRA's `ranknum` is how many ranks a layer has left: marked as trainable, and never given a gradient.
    trained = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    return sum(parameter.numel() for name, parameter in trained if "ranknum" not in name)


def _shape(num_classes: int) -> Any:
    return shape_only(load_config("gpt2", Path(), allow_shape=True), num_classes=num_classes)


def main() -> None:
    """Print the table; exit with 1 where two counts differ."""
    print(f"{'method':<28}{'counted':>13}{'formula':>13}{'PEFT':>13}  formula")
    num_wrong = 0
    for name, row in ROWS.items():
        ours, theirs = counted(row), counted_by_peft(row)
        num_wrong += ours != row.expected or theirs not in (None, ours)
        shown = "-" if theirs is None else f"{theirs:,}"
        print(f"{name:<28}{ours:>13,}{row.expected:>13,}{shown:>13}  {row.formula}")
    print("all equal" if not num_wrong else f"{num_wrong} rows differ")
    raise SystemExit(min(num_wrong, 1))


if __name__ == "__main__":
    main()
