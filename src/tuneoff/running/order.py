"""In what order tasks are started: as much of the report as can be had, as early as it can be had.

Every arm at its first seed before any second one; of the first seed, the first trial of every arm before the second of
any, and an arm whose rate is chosen is tested at once, which makes its row whole. So a sitting that ends early leaves
no arm with nothing. The order moves no bit: cohorts are parted in the study's order before it (see `cohorts`), and what
is left of such a list is parted the same way whichever part was done first.
"""

from collections.abc import Iterable

from tuneoff.running.schedule import Task


def breadth_first(tasks: Iterable[Task], first_seed: int) -> list[Task]:
    """Return tasks, most urgent first; those of one urgency in the order in which they come.

    Args:
        tasks: what can be done now, cohorts as one, in the study's order.
        first_seed: of the study, on which rates are tried.
    """

    def urgency(task: Task) -> tuple[int, int]:
        if task.run.seed not in (None, first_seed) or task.kind == "explain":
            return (2, 0)
        return (0, 0) if task.kind == "score" else (1, task.turn)

    return sorted(tasks, key=urgency)
