"""What is trained: shapes, lengths, batch, type and method, the same for every contender."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tuneoff.data.tokens import TokenSplit
from tuneoff.study.shapes import known_shape

VOCABULARY = 50257
SQUAD_PROMPTS = (39, 108, 126, 139, 150, 162, 177, 194, 217, 256, 378)
"""Deciles (0 to 10) of prompt lengths of SQuAD v1.1's training split, in GPT-2's tokens, below 384 with the answer."""
SQUAD_ANSWERS = (2, 2, 3, 3, 4, 4, 5, 5, 7, 10, 52)
"""The same of answers with their end."""

OTHER_SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.2-1b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "rope_theta": 500000.0,
    },
    "tiny-gpt2": {"model_type": "gpt2", "vocab_size": 50257, "n_embd": 64, "n_layer": 2, "n_head": 2},
    "small-gpt2": {"model_type": "gpt2", "vocab_size": 50257, "n_embd": 256, "n_layer": 4, "n_head": 4},
    "tiny-llama": {
        "model_type": "llama", "vocab_size": 50257, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
"""The `config.json` of Llama 3.2 1B, but for how it stretches its positions, and two that try a script out."""


@dataclass(frozen=True)
class Case:
    """A piece of work.

    Attributes:
        name: what it is called in the table.
        max_length: tokens that a sequence may hold.
        batch_size: effective batch, in one forward.
        rank: of LoRA; 0 trains all weights.
        is_supervised: whether every token carries loss, else only an answer at the end.
        dropout: of the base in embedding, residual and attention, and of LoRA.
        targets: modules that LoRA adapts.
    """

    name: str
    max_length: int
    batch_size: int
    rank: int
    is_supervised: bool
    dropout: float
    targets: tuple[str, ...] = ("c_attn",)

    @property
    def has_lora(self) -> bool:
        """Whether the base is frozen."""
        return self.rank > 0

    def shape(self, model: str) -> dict[str, Any]:
        """Return the configuration of a model whose shape ships with the package, or is above, with this dropout."""
        shape = dict(OTHER_SHAPES.get(model) or known_shape(model) or {})
        if shape.get("model_type") == "llama":
            return shape | {"attention_dropout": self.dropout}
        return shape | dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), self.dropout)


CASES = {
    case.name: case
    for case in (
        Case("squad-lora", 384, 8, 8, False, 0.1),
        Case("squad-lora-no-dropout", 384, 8, 8, False, 0.0),
        Case("text-lora", 512, 8, 8, True, 0.0),
        Case("text-full", 512, 8, 0, True, 0.0),
    )
}


def drawn_split(case: Case, num_sequences: int, seed: int = 0) -> TokenSplit:
    """Return sequences of random tokens with SQuAD's lengths, or all of `max_length` where every token carries loss."""
    generator = np.random.default_rng(seed)
    sequences, targets = [], []
    for _ in range(num_sequences):
        if case.is_supervised:
            length, answer = case.max_length, case.max_length - 1
        else:
            prompt, answer = (
                int(np.interp(generator.uniform(0, 10), range(11), deciles))
                for deciles in (SQUAD_PROMPTS, SQUAD_ANSWERS)
            )
            length = min(case.max_length, prompt + answer)
        sequences.append(generator.integers(0, VOCABULARY, length, dtype=np.int32))
        targets.append(np.arange(length) >= length - answer)
    return TokenSplit(
        input_ids=np.concatenate(sequences),
        targets=np.concatenate(targets),
        offsets=np.cumsum([0, *map(len, sequences)], dtype=np.int64),
        target_bytes=np.array([int(flags.sum()) for flags in targets], dtype=np.int64),
        items=np.arange(num_sequences, dtype=np.int32),
        labels=np.zeros(0, dtype=np.int32),
        item_names=tuple(map(str, range(num_sequences))),
    )


def real_split(case: Case, data: Path, tokenizer: Path, num_sequences: int) -> TokenSplit:
    """Return the first sequences of a SQuAD file, tokenised."""
    from transformers import GPT2TokenizerFast

    from tuneoff.data.prepare import prepare
    from tuneoff.study.spec import TaskSpec

    task = TaskSpec(kind="qa", data=str(data), max_length=case.max_length, limit=20)
    train = prepare(task, GPT2TokenizerFast.from_pretrained(tokenizer), Path(), None).train
    return first_sequences(train, num_sequences)


def first_sequences(split: TokenSplit, number: int) -> TokenSplit:
    """Return the first sequences of a split."""
    keep = min(number, len(split))
    return TokenSplit(
        input_ids=split.input_ids[: split.offsets[keep]],
        targets=split.targets[: split.offsets[keep]],
        offsets=split.offsets[: keep + 1],
        target_bytes=split.target_bytes[:keep],
        items=split.items[:keep],
        labels=split.labels[:keep],
        item_names=split.item_names,
    )


def base(case: Case, model: str, dtype: torch.dtype) -> Any:
    """Return a model of the shape with weights drawn from one seed, so that every contender starts from the same."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = case.shape(model)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        made = AutoModelForCausalLM.from_config(AutoConfig.for_model(shape.pop("model_type", "gpt2"), **shape))
    return made.to(dtype)


def block_weights(model: Any) -> int:
    """Return how many weights the matrices of a model's blocks hold."""
    named = model.named_parameters()
    return sum(p.numel() for name, p in named if p.dim() == 2 and {"h", "layers"} & set(name.split(".")))


def needed_flop(case: Case, num_block_weights: int, num_head_weights: int, num_tokens: int, num_targets: int) -> float:
    """Return the matrix products that the method needs for some tokens: the blocks' of each, the head's of each target.

    2 FLOP a weight forward, as many for the gradient of what goes in, and as many again for that of weights that are
    trained. What attention multiplies is left out: a tenth of it all at most, at these lengths.
    """
    passes = 2 if case.has_lora else 3
    return 2.0 * passes * (num_block_weights * num_tokens + num_head_weights * num_targets)
