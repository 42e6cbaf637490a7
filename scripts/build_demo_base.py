"""Pre-train the small base model that ships inside the package.

From folders of text this trains a byte-level BPE tokenizer and a GPT-2-architecture model, and writes a folder that
`AutoTokenizer` and `AutoModelForCausalLM` load, with a manifest that says what was read, what came out and how to do it
again.

    python scripts/build_demo_base.py --corpus books/text --out src/tuneoff/assets/demo_base --work build/demo_base

Killed at any moment, the same command goes on from the last checkpoint in `--work`. With `--steps` the schedule depends
on the step alone; with `--minutes` it depends on the clock, so that it ends on time on a busy machine, and two runs
differ.

On a busy machine two processes with one thread each are faster than one with two, which wait for each other in every
operation: `torchrun --nproc-per-node 2 scripts/build_demo_base.py --threads 1 ...`.

Departures from GPT-2 (Radford et al., 2019): the vocabulary and the shape are small; dropout is zero in pre-training,
because few epochs are seen (the saved config keeps GPT-2's 0.1); the matrices inside the blocks are trained by Muon
(Jordan et al., 2024, scaled to AdamW's update size as in Liu et al., 2025, arXiv:2502.16982), the rest by AdamW.
"""

import argparse
import copy
import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import torch.distributed as dist
import transformers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from demo_base_corpus import NUM_POSITIONS, Batches, Book, Ids, encode, hold_out, read_corpus, train_tokenizer

ROUNDING_TOKENS = 60_000
"""Held-out tokens on which the half precisions are compared; the whole of it takes minutes on a CPU."""


@dataclass(kw_only=True)
class Progress:
    """What a resumed run needs besides weights and optimizer state."""

    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    loss_sum: float = 0.0
    """Sum of the training losses since the last printed line."""
    loss_nats: float = float("nan")
    """Mean training loss over the last printed window."""


def build_model(args: argparse.Namespace, eos_id: int, vocab_size: int) -> GPT2LMHeadModel:
    """Make the model with random weights and no dropout."""
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=NUM_POSITIONS,
        n_embd=args.n_embd,
        n_layer=args.n_layer,
        n_head=args.n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=eos_id,
        eos_token_id=eos_id,
        use_cache=False,
    )
    model = GPT2LMHeadModel(config)
    model.set_attn_implementation("sdpa")
    placed: GPT2LMHeadModel = torch.nn.Module.to(model, device=args.device)
    return placed


def build_optimizers(model: GPT2LMHeadModel, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for embeddings, biases and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and ".h." in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or ".h." not in name]
    return [
        torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=args.lr, weight_decay=0.0, betas=(0.9, 0.95), fused=True),
    ]


def lr_factor(fraction: float, warmup: float) -> float:
    """Cosine from 1 to 0.01 after a linear warm-up over the given fraction of the run."""
    if fraction < warmup:
        return max(fraction, 1e-3) / warmup
    angle = math.pi * min((fraction - warmup) / (1 - warmup), 1.0)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(angle))


def loss_function(model: GPT2LMHeadModel, args: argparse.Namespace) -> Callable[[Tensor], Tensor]:
    """Return the mean next-token loss of a batch of blocks, compiled when asked."""

    def loss(blocks: Tensor) -> Tensor:
        hidden = model.transformer(blocks).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden).float()
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten())

    compiled: Callable[[Tensor], Tensor] = torch.compile(loss) if args.compile else loss
    return compiled


@torch.no_grad()
def held_out_loss(model: GPT2LMHeadModel, documents: list[Ids], limit: int | None = None) -> tuple[float, int]:
    """Sum of the NLL in nats over the first `limit` tokens, and the tokens scored: every one but the first.

    Blocks overlap by one token, so that each token is scored once, with up to 511 tokens before it.
    """
    stream = torch.from_numpy(np.concatenate(documents).astype(np.int64))[:limit].to(model.device)
    starts = range(0, len(stream) - 1, NUM_POSITIONS - 1)
    total = 0.0
    for first in range(0, len(starts), 8):
        rows = [stream[start : start + NUM_POSITIONS] for start in starts[first : first + 8]]
        blocks = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        logits = model(blocks[:, :-1].clamp(min=0)).logits.float()
        total += float(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten(), reduction="sum")
        )
    return total, len(stream) - 1


def save_checkpoint(
    path: Path, model: GPT2LMHeadModel, optimizers: list[torch.optim.Optimizer], progress: Progress
) -> None:
    """Write the whole state beside the old one, then swap, so that a kill leaves one of the two."""
    state = {
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
        "progress": asdict(progress),
    }
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def load_checkpoint(path: Path, model: GPT2LMHeadModel, optimizers: list[torch.optim.Optimizer]) -> Progress:
    """Go on from the last checkpoint, or start."""
    if not path.exists():
        return Progress()
    state = torch.load(path, weights_only=True, map_location=model.device)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return Progress(**state["progress"])


def share(parameters: list[torch.nn.Parameter], loss: float, elapsed_s: float) -> tuple[float, float]:
    """Average gradients and loss over the processes, and take the clock of the first one, in one exchange."""
    if not dist.is_initialized():
        return loss, elapsed_s
    gradients = [p.grad for p in parameters if p.grad is not None]
    clock = elapsed_s * dist.get_world_size() if dist.get_rank() == 0 else 0.0
    flat = torch.cat([*(g.flatten() for g in gradients), torch.tensor([loss, clock], device=gradients[0].device)])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    pieces = torch.split(flat, [*(g.numel() for g in gradients), 2])
    for gradient, piece in zip(gradients, pieces, strict=False):
        gradient.copy_(piece.view_as(gradient))
    return float(pieces[-1][0]), float(pieces[-1][1])


def train_step(
    loss_of: Callable[[Tensor], Tensor],
    blocks: Tensor,
    optimizers: list[torch.optim.Optimizer],
    args: argparse.Namespace,
    started: float,
) -> tuple[float, float]:
    """One optimizer step; return the loss and the seconds since the start, the same in every process."""
    with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
        loss = loss_of(blocks.to(args.device))
    torch.autograd.backward(loss)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    parameters = [p for group in groups for p in group["params"]]
    shared = share(parameters, float(loss.detach()), time.monotonic() - started)
    for group in groups:
        torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return shared


def train(model: GPT2LMHeadModel, batches: Batches, held_out: list[Ids], args: argparse.Namespace) -> Progress:
    """Train until the schedule is at its end, printing and checkpointing on the way."""
    optimizers = build_optimizers(model, args)
    checkpoint = args.work / "checkpoint.pt"
    progress = load_checkpoint(checkpoint, model, optimizers)
    loss_of = loss_function(model, args)
    rank, num_processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    started = time.monotonic() - progress.elapsed_s
    next_save_s = progress.elapsed_s + args.checkpoint_s
    while (fraction := progress.step / args.steps if args.steps else progress.elapsed_s / (args.minutes * 60)) < 1:
        blocks = batches.at(progress.step)
        lr = args.lr * lr_factor(fraction, args.warmup)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = lr
        loss, progress.elapsed_s = train_step(loss_of, blocks[rank::num_processes], optimizers, args, started)
        progress.loss_sum += loss
        progress.step += 1
        progress.tokens += blocks.numel()
        if progress.step % args.print_every == 0:
            report(progress, fraction, lr, args.print_every, rank)
        if progress.elapsed_s >= next_save_s and rank == 0:
            next_save_s = progress.elapsed_s + args.checkpoint_s
            save_checkpoint(checkpoint, model, optimizers, progress)
            nll, count = held_out_loss(model, held_out, limit=args.check_tokens)
            print(f"checkpoint at step {progress.step}; held-out loss (start only) {nll / count:.4f}", flush=True)
    if rank == 0:
        save_checkpoint(checkpoint, model, optimizers, progress)
    return progress


def report(progress: Progress, fraction: float, lr: float, num_steps: int, rank: int) -> None:
    """Print one line, and start a new window of training loss."""
    progress.loss_nats = progress.loss_sum / num_steps
    progress.loss_sum = 0.0
    speed = progress.tokens / progress.elapsed_s
    if rank:
        return
    print(
        f"step {progress.step} ({fraction:.1%}) tokens {progress.tokens / 1e6:.2f}M loss {progress.loss_nats:.4f} "
        f"lr {lr:.2e} {speed:.0f} tokens/s {progress.elapsed_s:.0f} s",
        flush=True,
    )


def rounded_copy(model: GPT2LMHeadModel, dtype: torch.dtype) -> GPT2LMHeadModel:
    """Copy the model with its weights rounded to a half precision, in fp32 again so that only the rounding shows."""
    rounded: GPT2LMHeadModel = copy.deepcopy(model)
    for target in (dtype, torch.float32):
        torch.nn.Module.to(rounded, dtype=target)
    return rounded


def save_model(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast, held_out: list[Ids], num_bytes: int, out: Path
) -> dict[str, Any]:
    """Write weights in the half precision that loses less held-out loss, config and tokenizer; return the measures."""
    dtypes = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    rounding = {}
    for name, dtype in dtypes.items():
        nll, scored = held_out_loss(rounded_copy(model, dtype), held_out, limit=ROUNDING_TOKENS)
        rounding[name] = nll / scored
        print(f"{name}: {rounding[name]:.6f} nats per token over {scored} held-out tokens", flush=True)
    stored = min(("float16", "bfloat16"), key=lambda name: rounding[name])
    nll, count = held_out_loss(rounded_copy(model, dtypes[stored]), held_out)
    config = model.config
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.1
    config.use_cache = model.generation_config.use_cache = True
    tokenizer.save_pretrained(out)
    torch.nn.Module.to(model, dtype=dtypes[stored])
    model.save_pretrained(out)
    # Half precision is for the download: a CPU computes in fp32. Any transformers knows that tokenizer class.
    changes = {"config": {"dtype": "float32"}, "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast"}}
    for name, change in changes.items():
        path = out / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change, indent=2) + "\n")
    return {
        "nats_per_token": nll / count,
        "bits_per_byte": nll / math.log(2) / num_bytes,
        "num_tokens": count,
        "num_bytes": num_bytes,
        "stored_dtype": stored,
        "rounding": {"num_tokens": scored, "nats_per_token": rounding},
    }


def command_line(args: argparse.Namespace) -> str:
    """Give the command with every setting that decides the result, and paths that mean something elsewhere."""
    corpus = " ".join("/".join(folder.parts[-2:]) for folder in args.corpus)
    keys = ("minutes", "steps", "seed", "num_held_out", "vocab_size", "n_embd", "n_layer", "n_head", "batch_size", "lr")
    settings = {key: getattr(args, key) for key in (*keys, "warmup", "threads", "device")}
    flags = [f"--{key.replace('_', '-')} {value}" for key, value in settings.items() if value is not None]
    flags += [f"--{'' if getattr(args, key) else 'no-'}{key}" for key in ("bf16", "compile")]
    launcher = f"torchrun --nproc-per-node {dist.get_world_size()}" if dist.is_initialized() else "python"
    paths = f"--corpus {corpus} --out src/tuneoff/assets/demo_base --work build/demo_base"
    return f"{launcher} scripts/build_demo_base.py {paths} {' '.join(flags)}"


def write_manifest(args: argparse.Namespace, books: list[Book], held_out: list[str], results: dict[str, Any]) -> None:
    """Write where the weights come from, what they reach and what the files are."""
    manifest = {
        "name": "tuneoff demo base",
        "licence": "Apache-2.0 (weights and tokenizer); the corpus is in the public domain",
        "command": command_line(args),
        "seed": args.seed,
        **results,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
            "numpy": np.__version__,
        },
        "corpus": {
            "origin": args.origin,
            "licence": "public domain",
            "num_books": len(books),
            "held_out_rule": hold_out.__doc__,
            "held_out": held_out,
            "books": [
                {"title": b.title, "author": b.author, "year": b.year, "licence": "public domain", "file": b.file}
                for b in books
            ],
        },
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
            for path in sorted(args.out.iterdir())
            if path.name != "MANIFEST.json"
        },
    }
    (args.out / "MANIFEST.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Pre-train the small base model that ships inside the package.")
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help="folders of .md and .txt files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished model")
    parser.add_argument("--work", type=Path, required=True, help="folder of the checkpoint that a killed run resumes")
    parser.add_argument("--minutes", type=float, default=55, help="training time; the schedule follows the clock")
    parser.add_argument(
        "--steps", type=int, help="schedule by steps instead of time: slower or faster, the same result"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--origin", default="not stated", help="where the corpus comes from, for the manifest")
    parser.add_argument("--num-held-out", type=int, default=3, help="whole books kept out of training")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--n-embd", type=int, default=192)
    parser.add_argument("--n-layer", type=int, default=4)
    parser.add_argument("--n-head", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=8, help="blocks of 512 tokens in a step")
    parser.add_argument("--lr", type=float, default=3e-3, help="peak rate of Muon (scaled to AdamW's RMS) and AdamW")
    parser.add_argument("--warmup", type=float, default=0.02, help="share of the run")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="bf16 autocast")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--print-every", type=int, default=50)
    parser.add_argument("--check-tokens", type=int, default=20_000, help="held-out tokens scored at a checkpoint")
    parser.add_argument("--checkpoint-s", type=float, default=180)
    return parser.parse_args()


def main() -> None:
    """Train the tokenizer and the model, then write the folder."""
    args = parse_arguments()
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    books = read_corpus(args.corpus)
    names = hold_out(books, args.num_held_out, args.seed)
    training = [book for book in books if book.file not in names]
    held_out = [book for book in books if book.file in names]
    print("held out:", ", ".join(f"{book.author}: {book.title}" for book in held_out), flush=True)
    tokenizer = train_tokenizer(training, args.vocab_size)
    documents, held_out_documents = encode(tokenizer, training), encode(tokenizer, held_out)
    model = build_model(args, tokenizer.eos_token_id, len(tokenizer))
    batches = Batches(documents, args.batch_size, args.seed)
    num_tokens = sum(map(len, documents))
    print(f"{num_tokens} tokens, {model.num_parameters()} parameters, {batches.per_epoch} steps an epoch", flush=True)
    progress = train(model, batches, held_out_documents, args)
    if dist.is_initialized() and dist.get_rank():
        return
    num_bytes = sum(len(chapter.encode()) for book in held_out for chapter in book.chapters)
    measures = save_model(model, tokenizer, held_out_documents, num_bytes, args.out)
    shape = {key: getattr(args, key) for key in ("n_embd", "n_layer", "n_head", "vocab_size")}
    results = {
        "architecture": {
            "type": "gpt2",
            **shape,
            "n_positions": NUM_POSITIONS,
            "num_parameters": model.num_parameters(),
        },
        "training": {
            "num_steps": progress.step,
            "num_tokens_seen": progress.tokens,
            "num_tokens_corpus": num_tokens,
            "loss_nats_per_token": progress.loss_nats,
            "wall_time_s": round(progress.elapsed_s, 1),
        },
        "held_out": measures,
    }
    write_manifest(args, books, [book.file for book in held_out], results)


if __name__ == "__main__":
    main()
