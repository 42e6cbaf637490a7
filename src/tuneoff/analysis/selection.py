"""Which learning rate an arm goes on with: chosen on the validation split of the first seed, by nothing else."""

from collections.abc import Mapping

from tuneoff.analysis.tuning import Edge as Edge
from tuneoff.analysis.tuning import Search
from tuneoff.analysis.tuning import Trial as Trial
from tuneoff.study.records import Record, TestRecord
from tuneoff.study.spec import Arm, Study


def choose_rate(study: Study, arm: Arm, records: Mapping[str, Record]) -> float | None:
    """Return the candidate with the lowest validation loss on the first seed.

    Args:
        study: the study that `arm` belongs to.
        arm: the arm whose rate is wanted.
        records: the finished runs by `run_id`; others may be among them.

    Returns:
        The rate, the lower of two that tie. None until every candidate is done or infeasible and no further ones may
        follow, where all are infeasible, and where nothing is trained.
    """
    return Search(study, records).choose(arm)


def is_current(test: TestRecord | None, study: Study) -> bool:
    """Whether a reading of the test split is there and is what the study asks for; another is made again."""
    return test is not None and test.testing == study.testing
