"""What training cost on general text: the loss on it after training minus before, with its interval.

The units of the text are the smallest independent ones (documents, or stretches of one), and every run is scored on the
same, so the interval is over seeds and units, two-way (`tuneoff.analysis.stats.twoway`); of one seed over units alone.
"""

import numpy as np

from tuneoff.analysis.explaining.evidence import Evidence
from tuneoff.analysis.explanation import Forgetting
from tuneoff.analysis.items import ItemScores
from tuneoff.analysis.stats.tables import Seeds, difference_of, estimate_of
from tuneoff.analysis.values import ArmSummary
from tuneoff.study.explained import ExplainRecord, Retention
from tuneoff.study.testing import LOSS


def forgetting(evidence: Evidence) -> tuple[Forgetting, ...]:
    """Return what every arm forgot, in the study's order; nothing where the base was not scored on the text."""
    base = evidence.base
    if base is None or base.retention is None:
        _note(evidence)
        return ()
    scored = {arm.name: _seeds(evidence, arm, base, base.retention) for arm in evidence.summary.arms}
    full = evidence.full
    found = []
    for arm in evidence.summary.arms:
        seeds = scored[arm.name]
        if arm.method.method == "none" or not seeds.values:
            continue
        keys = sorted(seeds.values)
        difference = estimate_of(
            [seeds.values[key] for key in keys],
            [seeds.items.get(key) for key in keys],
            LOSS,
            is_drawn=arm.is_trained,
        )
        assert difference is not None  # there is a seed
        is_other = full is not None and arm is not full and bool(scored[full.name].values)
        found.append(
            Forgetting(
                arm=arm.name,
                difference=difference,
                reference=full.name if full is not None and is_other else "",
                beyond_reference=(
                    difference_of(seeds, scored[full.name], LOSS).estimate if full is not None and is_other else None
                ),
            )
        )
    return tuple(found)


def _seeds(evidence: Evidence, arm: ArmSummary, base: ExplainRecord, before: Retention) -> Seeds:
    """Return what each run of an arm forgot, in all and by unit; runs scored on another text do not count."""
    values, items = {}, {}
    for run in evidence.runs(arm):
        record = evidence.explained.get(run.run_id)
        if record is None or record.retention is None or record.retention_sha256 != base.retention_sha256:
            continue
        seed = -1 if run.run.seed is None else run.run.seed
        after = record.retention
        values[seed] = after.likelihood.loss_nats - before.likelihood.loss_nats
        if len(after.values) == len(before.values):
            names = tuple(map(str, range(len(before.values))))
            items[seed] = ItemScores(names, {LOSS: np.array(after.values) - np.array(before.values)})
    return Seeds(is_drawn=arm.is_trained, values=values, items=items)


def _note(evidence: Evidence) -> None:
    study = evidence.study
    if study.task.kind == "classification":
        evidence.note("Forgetting is not measured: a model that is trained to classify predicts no text.")
    elif study.retention is None:
        evidence.note("Forgetting is not measured: the study names no `retention` text.")
    else:
        evidence.note("Forgetting is not known yet: the base's loss on the retention text has not been worked out.")
