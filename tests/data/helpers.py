"""Two small tokenizers of the kinds that matter, and writers of small files."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from tuneoff.data.prepare import PreparedData, TokenSplit, prepare
from tuneoff.study.spec import TaskSpec

CORPUS = [
    "The old sailor told the captain that the ship would not come again.",
    "### Instruction:\n\n### Response:\n",
] * 9


@cache
def _byte_level() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer.to_str()


def gpt2_like(**special: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE, one special token that is begin and end, no padding."""
    tokenizer = Tokenizer.from_str(_byte_level())
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{k: v for k, v in names.items() if v})


def llama_like(**special: Any) -> PreTrainedTokenizerFast:
    """Characters with byte fallback, a space put before each text, BOS put first."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "▁",
        *"abcdefghijklmnopqrstuvwxyz",
        "▁t",
        "he",
    ]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab, [("▁", "t"), ("h", "e")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | special
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{k: v for k, v in names.items() if v})


CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat_like() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a ChatML template."""
    tokenizer = gpt2_like(extra_special_tokens=["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    """Write one JSON value a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pairs(n: int, **more: Any) -> list[dict[str, Any]]:
    """Return n instruction rows, no two alike."""
    return [{"instruction": f"Say {number}.", "response": f"It is {number}!"} | more for number in range(n)]


def run_prepare(folder: Path, tokenizer: PreTrainedTokenizerFast, **task: Any) -> PreparedData:
    """Prepare a task whose data lies in `folder`, with a cache of its own there."""
    return prepare(TaskSpec(**task), tokenizer, folder, None, cache=folder / "cache")


def target_texts(split: TokenSplit, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Return what each sequence's targets spell, special tokens included."""
    texts = []
    for index in range(len(split)):
        ids, targets = split.sequence(index)
        texts.append(tokenizer.decode(ids[targets], clean_up_tokenization_spaces=False))
    return texts


def full_texts(split: TokenSplit, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Return what each sequence spells, special tokens included."""
    return [tokenizer.decode(split.sequence(i)[0], clean_up_tokenization_spaces=False) for i in range(len(split))]
