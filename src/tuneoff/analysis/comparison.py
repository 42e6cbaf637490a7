"""What is known of the difference between two arms, as frozen values."""

from typing import Literal

from tuneoff.analysis.estimates import Estimate
from tuneoff.study.value import Value

Outcome = Literal["better", "worse", "equivalent", "undecided"]


class Comparison(Value):
    """Two arms, held against each other on the same seeds and the same test items, by the primary metric."""

    one: str
    """The arm that ranks higher."""
    other: str
    difference: Estimate
    """The metric of `one` minus that of `other`, in its unit; its 95 % interval is marginal (not corrected)."""
    outcome: Outcome
    """Of `one` against `other`, after Holm's correction over all of a study's comparisons."""
    p_difference: float | None
    """That the two differ: two-sided, not corrected. None where it cannot be worked out."""
    p_equivalence: float | None
    """That they lie within the margin of each other: the larger of two one-sided tests, not corrected."""
    p_difference_corrected: float | None
    p_equivalence_corrected: float | None
    num_seeds: int
    """Seeds that both arms have; 0 where neither is trained."""
    num_items: int
    """Test items that both were scored on; 0 where they are not known."""
    more_seeds: int | None = None
    """About how many more seeds would decide an undecided one; none where it is decided, or no number would."""
    note: str = ""
    """What limits it, in a sentence: one seed, two seeds, items not known."""
