"""The corpus of the demo base: books as chapters of plain text, their tokenizer, and packed blocks of tokens."""

import random
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

Ids = npt.NDArray[np.int32]
"""Token ids of one document."""
EOS = "<|endoftext|>"
NUM_POSITIONS = 512
"""Tokens of a block, and the context of the model."""
HEADER = re.compile(r"^(#\s*Title|##\s*Author|##\s*Year):\s*(.*)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Book:
    """One file of the corpus: its metadata and its chapters as plain text."""

    file: str
    title: str
    author: str
    year: str
    chapters: tuple[str, ...]


def read_book(path: Path) -> Book:
    """Read one text file; a header of `# Title:`, `## Author:`, `## Year:` lines is metadata, not text."""
    text = path.read_text(encoding="utf-8").replace("\r\n", "\n")
    fields = {match[1].split()[-1].lower(): match[2].strip() for match in HEADER.finditer(text[:2000])}
    if fields:
        text = text.partition("\n-------")[2] or text
    text = re.sub(r"_([^_\n]+)_", r"\1", text)  # markdown italics would teach the model underscores
    parts = re.split(r"^#+ ", text, flags=re.MULTILINE)
    chapters = tuple(part.strip() for part in parts if part.strip())
    return Book(
        file=path.name,
        title=fields.get("title", path.stem),
        author=fields.get("author", "unknown"),
        year=fields.get("year", "unknown"),
        chapters=chapters,
    )


def read_corpus(folders: list[Path]) -> list[Book]:
    """Read every .md and .txt file of the folders, in the order of their names."""
    paths = sorted((p for f in folders for p in f.rglob("*") if p.suffix in {".md", ".txt"}), key=lambda p: p.name)
    if not paths:
        raise SystemExit(f"no .md or .txt file in {', '.join(map(str, folders))}")
    return [read_book(path) for path in paths]


def hold_out(books: list[Book], num_held_out: int, seed: int) -> list[str]:
    """random.Random(seed).sample(file names in sorted order, num_held_out): the files kept out of training."""
    return random.Random(seed).sample([book.file for book in books], num_held_out)


def train_tokenizer(books: list[Book], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with one special token, which is bos, eos and unk at once, as in GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((chapter for book in books for chapter in book.chapters), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=EOS,
        eos_token=EOS,
        unk_token=EOS,
        model_max_length=NUM_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, books: list[Book]) -> list[Ids]:
    """Tokenise every chapter, ended by eos; a chapter is one document."""
    chapters = [chapter for book in books for chapter in book.chapters]
    return [
        np.array([*encoding.ids, tokenizer.eos_token_id], dtype=np.int32)
        for encoding in tokenizer.backend_tokenizer.encode_batch(chapters)
    ]


def blocks_of_epoch(documents: list[Ids], epoch: int, seed: int) -> Tensor:
    """Pack the documents, in an order of their own each epoch, into shuffled blocks; the tail is dropped."""
    rng = np.random.default_rng([seed, epoch])
    stream = np.concatenate([documents[i] for i in rng.permutation(len(documents))])
    num_blocks = len(stream) // NUM_POSITIONS
    blocks = stream[: num_blocks * NUM_POSITIONS].reshape(num_blocks, NUM_POSITIONS)
    return torch.from_numpy(blocks[rng.permutation(num_blocks)].astype(np.int64))


class Batches:
    """The batch of any step, so that a resumed run reads what an uninterrupted one would."""

    def __init__(self, documents: list[Ids], batch_size: int, seed: int) -> None:
        self._documents, self._batch_size, self._seed = documents, batch_size, seed
        self.per_epoch = sum(map(len, documents)) // NUM_POSITIONS // batch_size
        if not self.per_epoch:
            raise SystemExit("the corpus is smaller than one batch")
        self._epoch, self._blocks = -1, torch.empty(0)

    def at(self, step: int) -> Tensor:
        """Return the blocks of this step."""
        epoch, index = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch, self._blocks = epoch, blocks_of_epoch(self._documents, epoch, self._seed)
        return self._blocks[index * self._batch_size : (index + 1) * self._batch_size]
