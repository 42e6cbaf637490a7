"""What training cost: of an arm from the runs that were trained alone, and of each pass that trained several."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from tuneoff.analysis.values import ArmCosts, ArmSummary, CohortCosts
from tuneoff.study.records import Costs, Record
from tuneoff.study.solo import SoloCosts


def arm_costs(records: Sequence[Record], solo: SoloCosts | None = None) -> ArmCosts | None:
    """Return what an arm's runs cost: as it was measured alone, else medians over runs; none where nothing was metered.

    What several runs cost together is no run's own, so times and memory are of those that were trained alone.

    Args:
        records: of the chosen runs.
        solo: what was measured in a process of its own, where the runs themselves were not alone.
    """
    costs = [record.costs for record in records if record.costs is not None]
    if not costs:
        return None
    if solo is not None and solo.step_s is not None:
        return _measured_alone(records, costs, solo)
    alone = [cost for cost in costs if cost.num_runs == 1]
    phases = dict.fromkeys(phase for cost in alone for phase in cost.peak_bytes)
    return ArmCosts(
        num_runs=len(alone),
        source="own" if alone and all(cost.is_alone for cost in alone) else "beside",
        train_s=median(cost.train_s for cost in alone) if alone else None,
        step_s=median(cost.step_s for cost in alone) if alone else None,
        target_tokens_per_s=median(cost.target_tokens_per_s for cost in alone) if alone else None,
        peak_bytes={
            phase: round(median(cost.peak_bytes[phase] for cost in alone if phase in cost.peak_bytes))
            for phase in phases
        },
        peak_kind=" and ".join(sorted({cost.peak_kind for cost in alone or costs})),
        optimizer_bytes=round(median(cost.optimizer_bytes for cost in costs)),
        weights_bytes=round(median(cost.weights_bytes for cost in costs)),
    )


def _measured_alone(records: Sequence[Record], costs: Sequence[Costs], solo: SoloCosts) -> ArmCosts:
    """Return the costs of a measurement; a run's time is that of its tokens at the measured speed."""
    tokens = [record.training.num_input_tokens for record in records if record.training is not None]
    per_s = solo.input_tokens_per_s
    return ArmCosts(
        num_runs=len(costs),
        source="solo",
        train_s=median(tokens) / per_s if tokens and per_s else None,
        step_s=solo.step_s,
        target_tokens_per_s=solo.target_tokens_per_s,
        peak_bytes=dict(solo.peak_bytes),
        peak_kind=solo.peak_kind,
        optimizer_bytes=solo.optimizer_bytes,
        weights_bytes=round(median(cost.weights_bytes for cost in costs)),
    )


def cohort_costs(arms: Sequence[ArmSummary], records: Mapping[str, Record]) -> tuple[CohortCosts, ...]:
    """Return what each pass cost that trained several of the arms' runs."""
    passes: dict[tuple[str, ...], Costs] = {}
    names: dict[tuple[str, ...], dict[str, None]] = {}
    for arm in arms:
        for run_id in arm.run_ids:
            record = records.get(run_id)
            if record is not None and record.costs is not None and record.costs.num_runs > 1:
                passes.setdefault(record.provenance.cohort, record.costs)
                names.setdefault(record.provenance.cohort, {})[arm.name] = None
    return tuple(
        CohortCosts(
            num_runs=costs.num_runs,
            arms=tuple(names[cohort]),
            train_s=costs.train_s,
            step_s=costs.step_s,
            peak_bytes=costs.peak_bytes,
            peak_kind=costs.peak_kind,
        )
        for cohort, costs in passes.items()
    )


def shared_passes(arms: Sequence[ArmSummary], cohorts: Sequence[CohortCosts]) -> Iterator[str]:
    """Yield what must be known of arms whose runs shared their passes."""
    without = [arm.name for arm in arms if arm.costs is not None and arm.costs.train_s is None]
    if without:
        yield (
            f"No time and memory of their own: {', '.join(without)}. Their runs shared passes with others (cohorts); "
            "a study with `--cohort off` measures them alone."
        )
    for found in cohorts:
        peak = found.peak_bytes.get("train", max(found.peak_bytes.values(), default=0))
        yield (
            f"A cohort of {found.num_runs} runs ({', '.join(found.arms)}) took {found.train_s:,.1f} s of training and "
            f"{peak / 1e6:,.0f} MB at its peak, all together."
        )
