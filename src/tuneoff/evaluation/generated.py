"""Reads the test split's prompts with every decoding strategy of a study: texts, their scores, and the rows to save."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from tuneoff.data.metrics import score_texts
from tuneoff.data.tokens import Prompts
from tuneoff.evaluation.generation import Autocast, generate_each
from tuneoff.evaluation.texts import Continuation
from tuneoff.study.records import Generated
from tuneoff.study.testing import Decoding, Testing

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Written:
    """What one decoding strategy wrote.

    Attributes:
        generated: the scores, for the record.
        rows: one for each prompt, as JSON types: `decoding` (name), `id`, `item` (index), `references`, `texts`,
            `ended` and `scores` (for each metric one number a text, in the unit of `generated.metrics`).
    """

    generated: Generated
    rows: tuple[dict[str, Any], ...]

    def texts_by_id(self) -> dict[str, str]:
        """Return each prompt's first text by the prompt's id, as SQuAD's evaluation script reads them."""
        return {row["id"]: row["texts"][0] for row in self.rows}


def write_and_score(
    module: nn.Module,
    prompts: Prompts,
    testing: Testing,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    seed: int,
    context_length: int | None,
    autocast: Autocast,
    root: Path,
    num_virtual_tokens: int = 0,
) -> tuple[Written, ...]:
    """Write on after the test split's prompts with each strategy, and score the texts.

    Args:
        module: a causal language model, in evaluation mode afterwards.
        prompts: of the test split; `testing.generate.limit` takes the first of them.
        testing: strategies, metrics and limits.
        tokenizer: the base's, with a padding token.
        seed: of the run's generation stream.
        context_length: tokens that the model sees in all; none is without limit.
        autocast: entered around each batch (`Runtime.autocast`).
        root: the study's folder, where a metric of the user's own may lie.
        num_virtual_tokens: tokens of the context that the method takes up.

    Returns:
        One for each strategy, in the study's order.

    Raises:
        DataError: a prompt is too long for the context; nothing is generated then.
        StudyError: a metric that cannot be worked out, or a user's function that fails.
    """
    num = min(len(prompts), testing.generate.limit or len(prompts))
    ids = [prompts.prompt(index).tolist() for index in range(num)]
    pad_id = tokenizer.pad_token_id
    assert isinstance(pad_id, int), "the loader gives every tokenizer a padding token"
    wrote = generate_each(
        module,
        ids,
        testing.decoding,
        testing.generate,
        pad_id=pad_id,
        eos_id=tokenizer.eos_token_id,
        seed=seed,
        context_length=context_length,
        autocast=autocast,
        num_virtual_tokens=num_virtual_tokens,
    )
    found = []
    for decoding, own in zip(testing.decoding, wrote, strict=True):
        texts = [[text_of(one, tokenizer) for one in samples] for samples in own.texts]
        found.append(_score(prompts, texts, own.texts, decoding, testing, own.seconds, root))
    return tuple(found)


def text_of(continuation: Continuation, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the text of new tokens, without special tokens and without white space at its ends."""
    text = tokenizer.decode(list(continuation.ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text).strip()


def _score(
    prompts: Prompts,
    texts: Sequence[Sequence[str]],
    continuations: Sequence[Sequence[Continuation]],
    decoding: Decoding,
    testing: Testing,
    seconds: float,
    root: Path,
) -> Written:
    references = prompts.references[: len(texts)]
    scores = score_texts(references, texts, testing.metrics, root)
    flat = [one for samples in continuations for one in samples]
    generated = Generated(
        decoding=decoding,
        num_items=len(texts),
        num_samples=decoding.samples,
        metrics=scores.metrics,
        best_of_n=scores.best_of_n,
        distinct_1=scores.distinct_1,
        distinct_2=scores.distinct_2,
        truncated_pct=100.0 * sum(not one.ended for one in flat) / len(flat),
        num_near_ties=sum(one.num_near_ties for one in flat),
        mean_new_tokens=sum(len(one.ids) for one in flat) / len(flat),
        generate_s=seconds,
    )
    rows = tuple(
        {
            "decoding": decoding.name,
            "id": prompts.ids[index],
            "item": int(prompts.items[index]),
            "references": list(references[index]),
            "texts": list(texts[index]),
            "ended": [one.ended for one in continuations[index]],
            "scores": {name: list(values[index]) for name, values in scores.per_text.items()},
        }
        for index in range(len(texts))
    )
    return Written(generated, rows)


def generations_jsonl(written: Sequence[Written]) -> bytes:
    """Return the content of `generations.jsonl`: one line for each prompt and strategy; `tuneoff score` reads it."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for one in written for row in one.rows)
    return "".join(f"{line}\n" for line in lines).encode()


def predictions_json(written: Written) -> bytes:
    """Return one strategy's first texts as SQuAD's `{id: text}`."""
    return (json.dumps(written.texts_by_id(), ensure_ascii=False, indent=0) + "\n").encode()
