"""Classification by a base that was not trained for it: the likeliest label word, else the majority class.

Label words: p(c | x) is proportional to p(words of c | prompt of x), the product over the word's tokens, as in Brown et
al., 2020, arXiv:2005.14165, section 2.4 (without their normalisation by the words' own probability). Majority class:
p(c) is the share of c in the training split.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from tuneoff.data.tokens import TokenSplit
from tuneoff.evaluation.likelihood import EVALUATION_TOKENS, Scores, score_split, sum_up
from tuneoff.training.runtime import Runtime
from tuneoff.training.steps import Forward


def score_label_words(
    module: nn.Module,
    forward: Forward,
    split: TokenSplit,
    label_ids: Sequence[Sequence[int]],
    runtime: Runtime,
    pad_id: int,
    max_tokens: int = EVALUATION_TOKENS,
) -> Scores:
    """Classify every sequence of a split by its likeliest label word.

    Args:
        module: a causal language model.
        forward: way through it.
        split: prompts, with their classes.
        label_ids: tokens of each class's word, as they follow a prompt.
        runtime: device and compute type.
        pad_id: token that fills rows up.
        max_tokens: tokens of one forward.
    """
    answered = score_split(module, forward, _answered(split, label_ids), runtime, pad_id, max_tokens=max_tokens)
    log_likelihoods = -answered.nll_nats.reshape(len(split), len(label_ids))
    return _of_log_probabilities(split, log_likelihoods - _log_sum_exp(log_likelihoods))


def score_majority(train: TokenSplit, split: TokenSplit, num_classes: int) -> Scores:
    """Give every sequence of a split the class that is commonest in training (the first of several)."""
    counts = np.bincount(train.labels, minlength=num_classes).astype(np.float64)
    log_shares = np.log(counts / counts.sum())
    return _of_log_probabilities(split, np.tile(log_shares, (len(split), 1)))


def _answered(split: TokenSplit, label_ids: Sequence[Sequence[int]]) -> TokenSplit:
    """Return each sequence once for every class, followed by the class's word, which alone carries loss."""
    ids, targets = [], []
    for index in range(len(split)):
        prompt = split.sequence(index)[0]
        for word in label_ids:
            ids.append(np.concatenate([prompt, np.array(word, dtype=np.int32)]))
            targets.append(np.arange(len(ids[-1])) >= len(prompt))
    lengths = [len(sequence) for sequence in ids]
    return TokenSplit(
        input_ids=np.concatenate(ids),
        targets=np.concatenate(targets),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        target_bytes=np.zeros(len(ids), dtype=np.int64),
        items=np.repeat(split.items, len(label_ids)),
        labels=np.zeros(0, dtype=np.int32),
        item_names=split.item_names,
    )


def _of_log_probabilities(split: TokenSplit, log_probabilities: np.ndarray[Any, Any]) -> Scores:
    """Return the scores of class probabilities (sequences, classes), in logs."""
    nll = -log_probabilities[np.arange(len(split)), split.labels]
    counts = np.ones(len(split), dtype=np.int64)
    likelihood = sum_up(nll, counts, split, log_probabilities.shape[1])
    return Scores(nll, likelihood, log_probabilities.argmax(axis=1))


def _log_sum_exp(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    largest = values.max(axis=1, keepdims=True)
    total: np.ndarray[Any, Any] = largest + np.log(np.exp(values - largest).sum(axis=1, keepdims=True))
    return total
