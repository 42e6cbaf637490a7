"""Prints how fast a study's decoding strategies are written, beside `model.generate` called once for each of them.

Run from the repository's root: `.venv/bin/python -m benchmarks.decoding [--data dev-v1.1.json --tokenizer FOLDER]`.
Weights are random and GPT-2 small's shape; prompts are the first ones of a SQuAD file in the form of the recipe
`squad-gpt2`, or, without a file, random tokens of SQuAD's lengths, five questions to a paragraph. The peers pad on the
left, to the longest of a batch: of prompts as they come, and sorted by length. All take turns in one process, round by
round. Ratios are of medians; above 1 they are in favour of this package. Times are given by the clock and, of one
thread, as the processor's, which what else the machine does falls on less.

Random weights never end an answer. So the model itself is made to: after each new token the end comes, or cannot come,
by a hash of the token and its position, once in 4.5 times, which gives answers of 5.5 tokens with their end in the
mean, two at least, as SQuAD's have. It is a part of the model that all contenders call, and depends on nothing but the
text, so that all of them obey it exactly. `--endless` leaves every text to reach the limit.

Nor are they ever sure of a token: their logits are scaled up until a nucleus of 0.9 holds some tens of tokens, not most
of the vocabulary.

Equal work is checked: the greedy texts must be the peers', but after a near tie; drawn ones are of other draws, so
their mean lengths are printed.
"""

import argparse
import inspect
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.speed.cases import CASES, SQUAD_PROMPTS, VOCABULARY, base
from rich.console import Console
from rich.table import Table

from tuneoff.evaluation.decoding import NEAR_TIE
from tuneoff.evaluation.generation import generate_each
from tuneoff.study.testing import Decoding, GenerateSpec
from tuneoff.training.activations import fuse_activations

EOS_ID = VOCABULARY - 1
COLON = 25
"""The token that every prompt ends with; no answer ends before its first token."""
END_SHARE = 1 / 4.5
"""Of new tokens, after which the answer ends."""
QUESTION_TOKENS = 16
"""About the tokens of a question with what stands around it; the rest of a drawn prompt is the paragraph."""
QUESTIONS = 5
"""To a paragraph, about as in SQuAD's dev split."""
TEMPLATE = "Context: {context}\nQuestion: {question}\nAnswer:"
MAX_TOKENS = 352
FORCED = 1e4
SHARPNESS = 8.0
"""Factor on the last norm's weights, thus on all logits, whose standard deviation is about 0.55 without it."""
OURS = "ours"
PEERS = {"as-they-come": "generate, as they come", "sorted": "generate, sorted by length"}

Ids = list[list[int]]


@dataclass
class Took:
    """What a contender took, round by round, and wrote."""

    clock_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    written: list[list[tuple[int, ...]]] = field(default_factory=list)
    """Of each strategy the texts after all prompts."""


def drawn_prompts(number: int, seed: int = 0) -> Ids:
    """Return prompts of random tokens with SQuAD's lengths, paragraph by paragraph."""
    draw = np.random.default_rng(seed)
    found: Ids = []
    while len(found) < number:
        length = int(np.interp(draw.uniform(0, 10), range(11), SQUAD_PROMPTS))
        paragraph = draw.integers(0, EOS_ID, max(1, length - QUESTION_TOKENS)).tolist()
        for _ in range(min(QUESTIONS, number - len(found))):
            question = draw.integers(0, EOS_ID, draw.integers(8, 2 * QUESTION_TOKENS - 7)).tolist()
            found.append([*paragraph, *question, COLON])
    return found


def real_prompts(number: int, data: Path, tokenizer: Path) -> Ids:
    """Return the first prompts of a SQuAD file, without the few above `MAX_TOKENS`, which a study would cut."""
    from transformers import GPT2TokenizerFast

    encode = GPT2TokenizerFast.from_pretrained(tokenizer)
    found: Ids = []
    for article in json.loads(data.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                text = TEMPLATE.format(context=paragraph["context"], question=question["question"])
                ids = encode(text)["input_ids"]
                if len(ids) <= MAX_TOKENS:
                    found.append(ids)
                if len(found) == number:
                    return found
    return found


def ends_answers(model: Any) -> None:
    """Let the model end a text by a hash of the newest token and its position, but not after `COLON` (see above)."""
    forward = model.forward

    def ending(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        ids, positions = kwargs["input_ids"][:, -1], kwargs["position_ids"][:, -1]
        words = (ids * 40503 + positions * 30011) * 2654435761 % (1 << 32)
        ends = (words < END_SHARE * (1 << 32)) & (ids != COLON)
        last = out.logits[:, -1]
        last[:, EOS_ID] = torch.where(ends, FORCED, -FORCED).to(last.dtype)
        return out

    ending.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    model.forward = ending


def ours(model: Any, prompts: Ids, options: argparse.Namespace, autocast: Callable[[], Any]) -> Any:
    """Write with this package."""
    spec = GenerateSpec(max_new_tokens=options.new_tokens, batch_size=options.batch_size)
    eos_id = None if options.endless else EOS_ID
    wrote = generate_each(
        model, prompts, options.decodings, spec, pad_id=EOS_ID, eos_id=eos_id, seed=0, context_length=1024,
        autocast=autocast,
    )  # fmt: skip
    return [[one.ids for samples in own.texts for one in samples] for own in wrote]


@torch.no_grad()
def theirs(
    model: Any, prompts: Ids, options: argparse.Namespace, autocast: Callable[[], Any], *, is_sorted: bool
) -> Any:
    """Write with `model.generate`, a strategy after the other."""
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index])) if is_sorted else range(len(prompts))
    eos_id = None if options.endless else EOS_ID
    found = []
    for decoding in options.decodings:
        texts: dict[int, list[tuple[int, ...]]] = {}
        num_rows = max(1, options.batch_size // max(decoding.samples, decoding.beams or 1))
        top_k = (decoding.top_k or 0) if decoding.is_sampled else None  # 0 cuts nothing, none would be 50
        for start in range(0, len(order), num_rows):
            rows = list(order[start : start + num_rows])
            length = max(len(prompts[row]) for row in rows)
            ids = torch.full((len(rows), length), EOS_ID)
            mask = torch.zeros_like(ids)
            for place, row in enumerate(rows):
                ids[place, length - len(prompts[row]) :] = torch.tensor(prompts[row])
                mask[place, length - len(prompts[row]) :] = 1
            with autocast():
                out = model.generate(
                    input_ids=ids.to(options.device), attention_mask=mask.to(options.device),
                    max_new_tokens=options.new_tokens, do_sample=decoding.is_sampled, num_beams=decoding.beams or 1,
                    temperature=decoding.temperature, top_k=top_k, top_p=decoding.top_p or 1.0,
                    num_return_sequences=decoding.samples, pad_token_id=EOS_ID, eos_token_id=eos_id,
                )[:, length:].tolist()  # fmt: skip
            for place, new in enumerate(out):
                end = new.index(EOS_ID) if eos_id in new else len(new)
                texts.setdefault(rows[place // decoding.samples], []).append(tuple(new[:end]))
        found.append([text for row in range(len(prompts)) for text in texts[row]])
    return found


def num_unequal(model: Any, prompts: Ids, one: Sequence[Any], other: Sequence[Any]) -> tuple[int, int]:
    """Return how many greedy texts differ, and how many of those where no two best scores are nearly tied."""
    differing = [index for index, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]]
    num_wrong = 0
    for index in differing:
        pairs = zip(one[index], other[index], strict=False)
        same = next((place for place, pair in enumerate(pairs) if pair[0] != pair[1]), None)
        if same is not None:
            ids = torch.tensor([[*prompts[index], *one[index][:same]]], device=model.device)
            places = torch.arange(ids.shape[1], device=model.device)[None]
            with torch.no_grad():
                best = (
                    model(input_ids=ids, position_ids=places, attention_mask=torch.ones_like(ids))
                    .logits[0, -1]
                    .float()
                    .topk(2)
                    .values
                )
            num_wrong += bool(best[0] - best[1] >= NEAR_TIE)
        else:
            num_wrong += 1
    return len(differing), num_wrong


def parse() -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--model", default="gpt2", help="a shape that ships with the package")
    parser.add_argument("--layers", type=int, help="of the shape's layers, the first so many; all by default")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--samples", type=int, default=1, help="texts of a sampled strategy after each prompt")
    parser.add_argument("--beams", type=int, default=0, help="a fifth strategy, by beams of this width")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shared-out", action="store_true", help="each round takes its own part of the prompts")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--against", choices=PEERS, action="append", help="can be repeated; all of them by default")
    parser.add_argument("--endless", action="store_true", help="no text ends before the limit")
    parser.add_argument("--data", type=Path, help="a SQuAD file")
    parser.add_argument("--tokenizer", type=Path, help="folder of its tokenizer")
    parser.add_argument("--json", type=Path, help="write what was measured here, too")
    options = parser.parse_args()
    sampled = ({"temperature": 0.7}, {"top_k": 50}, {"top_p": 0.9})
    options.decodings = [Decoding(), *(Decoding(samples=options.samples, **own) for own in sampled)]
    if options.beams:
        options.decodings.append(Decoding(beams=options.beams))
    return options


def main() -> None:
    """Measure and print."""
    options = parse()
    torch.set_num_threads(options.threads)
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    model = base(CASES["squad-lora"], options.model, dtype).eval().to(options.device)
    if options.layers:
        model.transformer.h = model.transformer.h[: options.layers]
        model.config.n_layer = options.layers
    fuse_activations(model)  # for all contenders
    with torch.no_grad():
        model.transformer.ln_f.weight *= SHARPNESS
    if not options.endless:
        ends_answers(model)
    has_file = options.data is not None
    prompts = (
        real_prompts(options.prompts, options.data, options.tokenizer) if has_file else drawn_prompts(options.prompts)
    )
    autocast = partial(torch.autocast, options.device, dtype=dtype) if dtype != torch.float32 else nullcontext
    peers = options.against or list(PEERS)
    contenders = {OURS: ours} | {PEERS[name]: partial(theirs, is_sorted=name == "sorted") for name in peers}
    took = {name: Took() for name in contenders}
    size = -(-len(prompts) // options.rounds) if options.shared_out else len(prompts)
    for number in range(options.rounds):
        start = number * size if options.shared_out else 0
        for name, write in contenders.items():
            clock, cpu = time.perf_counter(), time.process_time()
            texts = write(model, prompts[start : start + size], options, autocast)
            took[name].clock_s.append(time.perf_counter() - clock)
            took[name].cpu_s.append(time.process_time() - cpu)
            before = took[name].written if options.shared_out and number else [[] for _ in texts]
            took[name].written = [[*old, *new] for old, new in zip(before, texts, strict=True)]
    unlike = show(model, prompts, options, took)
    if options.json is not None:
        times = {name: {"clock_s": own.clock_s, "cpu_s": own.cpu_s} for name, own in took.items()}
        options.json.write_text(json.dumps({"took": times, "unlike": unlike}), encoding="utf-8")


def show(model: Any, prompts: Ids, options: argparse.Namespace, took: dict[str, Took]) -> dict[str, int]:
    """Print the table, and return how many greedy texts are unlike each peer's without a near tie."""
    console = Console(width=150)
    console.print(
        f"{platform.machine()}, {options.device}, {options.threads} threads, {options.precision}; "
        f"{len(prompts)} prompts of {np.mean([len(own) for own in prompts]):.0f} tokens in the mean, "
        f"at most {options.new_tokens} new ones, {options.batch_size} rows at a time"
    )
    names = [decoding.name for decoding in options.decodings]
    table = Table("contender", "seconds", "spread", "ours is", "by processor time", *names)
    table.title = "all strategies; of each the new tokens of a text, in the mean"
    for name, own in took.items():
        ratios = [
            "" if name == OURS else f"{statistics.median(theirs) / statistics.median(mine):.2f} x as fast"
            for theirs, mine in ((own.clock_s, took[OURS].clock_s), (own.cpu_s, took[OURS].cpu_s))
        ]
        lengths = [f"{np.mean([len(text) for text in texts]):.2f}" for texts in own.written]
        spread = f"{min(own.clock_s):.2f} to {max(own.clock_s):.2f}"
        table.add_row(name, f"{statistics.median(own.clock_s):.2f}", spread, *ratios, *lengths)
    console.print(table)
    unlike = {}
    for name in list(took)[1:]:
        num, num_wrong = num_unequal(model, prompts, took[OURS].written[0], took[name].written[0])
        console.print(
            f"greedy texts unlike those of {name}: {num} of {len(prompts)}, {num_wrong} of them without a near tie"
        )
        unlike[name] = num_wrong
    return unlike


if __name__ == "__main__":
    main()
