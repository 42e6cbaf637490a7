r"""SQuAD's exact match and F1, by the rules of its official evaluation script.

Rajpurkar et al., 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", arXiv:1606.05250, section 6.1,
and `evaluate-v1.1.py`. Both scores are of one text against its nearest reference, in 0..1.

Normalisation, in this order: lower case; the 32 ASCII punctuation characters taken out (not replaced by a space, and
no other script's punctuation); the words a, an and the replaced by a space, where a word is what Python's `\b` says;
white space (Unicode's) made one space. Nothing is done to combining characters: two spellings of one letter differ.

Departures from the paper: where the prediction and a reference have no words left, F1 is 1, as exact match is (the rule
of SQuAD 2.0's script, which changes nothing else); v1.1 gives such a pair an F1 of 0 beside an exact match of 1.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Return a text as SQuAD compares it."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(text: str, references: Sequence[str]) -> float:
    """Return 1 where the text equals any reference after normalisation, else 0."""
    own = normalise(text)
    return float(any(own == normalise(reference) for reference in references))


def token_f1(text: str, references: Sequence[str]) -> float:
    """Return the largest F1 = 2 P R / (P + R) over the references, of normalised words counted with their repeats.

    P is the share of the text's words that the reference has, R the share of the reference's that the text has.
    """
    own = normalise(text).split()
    return max(_f1(own, normalise(reference).split()) for reference in references)


def _f1(own: Sequence[str], wanted: Sequence[str]) -> float:
    if not own or not wanted:
        return float(own == wanted)
    num_same = sum((Counter(own) & Counter(wanted)).values())
    if num_same == 0:
        return 0.0
    precision, recall = num_same / len(own), num_same / len(wanted)
    return (2 * precision * recall) / (precision + recall)
