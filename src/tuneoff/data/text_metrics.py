"""Scores of one text against its references, by name: SQuAD's, ROUGE, BLEU, a pattern, a function of the user's own.

A scorer takes (text, references) and gives the score of the best reference. Scores with a `scale` of 100 are shares in
0..1 that are reported in points of 100; a user's function is reported as it gives it.
"""

import importlib
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from tuneoff.data.problems import shown
from tuneoff.data.squad_metric import exact_match, token_f1
from tuneoff.errors import StudyError, did_you_mean
from tuneoff.study.testing import GENERATED_METRICS

Function = Callable[[str, Sequence[str]], float]

BLEU = "bleu"
PATTERN_PREFIX = "regex:"
POINTS = 100.0


@dataclass(frozen=True)
class Scorer:
    """One metric of generated text.

    Attributes:
        score: of a text and its references; higher is better.
        scale: what a mean of scores is multiplied by where it is reported.
    """

    score: Function
    scale: float = POINTS


def find_scorer(name: str, root: Path) -> Scorer:
    """Return the scorer that a metric's name stands for.

    `exact_match` and `f1` are SQuAD's, with its normalisation, whatever the task. `rouge1`, `rouge2`, `rougeL` are
    F-measures by rouge_score (Lin, 2004; words of a-z and 0-9 in lower case, no stemming). `bleu` is one sentence's
    (see `corpus_bleu`). `regex:PATTERN` is 1 where `re.search` finds the pattern. `module:function` is imported, also
    from `root`, and called as f(text, references).

    Args:
        name: of the metric.
        root: folder that a module of the user's own may lie in.

    Raises:
        StudyError: an unknown name, a pattern that is none, or a module or function that is not there.
    """
    known: dict[str, Function] = {"exact_match": exact_match, "f1": token_f1, BLEU: _sentence_bleu}
    if name in known:
        return Scorer(known[name])
    if name.startswith("rouge") and name in GENERATED_METRICS:
        return Scorer(partial(_rouge, name))
    if name.startswith(PATTERN_PREFIX):
        return Scorer(partial(_is_found, _pattern(name)))
    if ":" in name:
        return Scorer(partial(_call, name, _function(name, root)), scale=1.0)
    hint = did_you_mean(name, GENERATED_METRICS)
    allowed = ", ".join(GENERATED_METRICS)
    raise StudyError(f"no metric is called {name!r}; allowed: {allowed}, regex:PATTERN, module:function.{hint}")


def _rouge(name: str, text: str, references: Sequence[str]) -> float:
    return float(_rouge_scorer(name).score_multi(list(references), text)[name].fmeasure)


@cache
def _rouge_scorer(name: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # takes a second to import

    return RougeScorer([name])


def _sentence_bleu(text: str, references: Sequence[str]) -> float:
    from sacrebleu.metrics import bleu

    return float(bleu.BLEU(effective_order=True).sentence_score(text, _worded(references)).score) / POINTS


def corpus_bleu(texts: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return sacrebleu's corpus BLEU in 0..1, with its defaults (13a tokens, mixed case, exponential smoothing).

    Post, 2018, "A Call for Clarity in Reporting BLEU Scores", arXiv:1804.08771. Not a mean over texts: n-grams are
    counted over the whole corpus.

    Args:
        texts: one for each item.
        references: of each item, one at least; their number may differ.
    """
    from sacrebleu.metrics import bleu

    worded = [_worded(own) for own in references]
    num_streams = max(map(len, worded))
    streams: Any = [[own[index] if index < len(own) else None for own in worded] for index in range(num_streams)]
    # force: its warning about a final period that stands apart is for translators' files
    return float(bleu.BLEU(force=True).corpus_score(list(texts), streams).score) / POINTS


def _worded(references: Sequence[str]) -> list[str]:
    """A space for an empty reference, which sacrebleu takes for none at all; it has no words either way."""
    return [reference or " " for reference in references]


def _pattern(name: str) -> re.Pattern[str]:
    pattern = name.removeprefix(PATTERN_PREFIX)
    try:
        return re.compile(pattern)
    except re.error as error:
        raise StudyError(
            f"metric {name!r} is not a regular expression of Python: {error}. Mend the pattern after {PATTERN_PREFIX}"
        ) from None


def _is_found(pattern: re.Pattern[str], text: str, references: Sequence[str]) -> float:
    del references  # a pattern is held against the text alone
    return float(pattern.search(text) is not None)


def _function(name: str, root: Path) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    try:
        with _importable(root):
            module = importlib.import_module(module_name)
    except Exception as error:  # a module of the user's own may raise anything
        raise StudyError(
            f"metric {name!r}: the module {module_name!r} cannot be imported ({_told(error)}). "
            f"Install it, or put it into {root.resolve()}."
        ) from error
    function = getattr(module, function_name, None)
    if function is None:
        hint = did_you_mean(function_name, vars(module))
        raise StudyError(f"metric {name!r}: the module {module_name!r} has no {function_name!r}.{hint}")
    if not callable(function):
        raise StudyError(f"metric {name!r}: expected a function f(text, references), found {shown(function)}")
    found: Callable[..., Any] = function
    return found


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Within the context modules in the folder can be imported; last in line, so that they hide no installed one."""
    path = str(folder.resolve())
    sys.path.append(path)
    try:
        yield
    finally:
        sys.path.remove(path)


def _call(name: str, function: Callable[..., Any], text: str, references: Sequence[str]) -> float:
    try:
        found = function(text, list(references))
    except Exception as error:  # so may a function of the user's own
        raise StudyError(f"metric {name!r} failed on the text {shown(text)}: {_told(error)}. Mend it.") from error
    try:
        value = float(found)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise StudyError(
            f"metric {name!r} gave {shown(found)} for the text {shown(text)}; it must give a finite number"
        )
    return value


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
