"""From a study and its records to what is known: a pure function, so that a report can be had at any time."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from tuneoff.analysis.audit import audit
from tuneoff.analysis.costs import arm_costs, cohort_costs, shared_passes
from tuneoff.analysis.decodings import decoding_summaries, metric_estimates
from tuneoff.analysis.estimates import Estimate, exp_of, over_seeds
from tuneoff.analysis.findings import Audit
from tuneoff.analysis.flags import flags_of, truncated_flag, uniform_flag
from tuneoff.analysis.items import ItemScores
from tuneoff.analysis.measures import Measure, measure
from tuneoff.analysis.progress import ArmProgress, Progress, current_tests, ended_runs, finished_runs, run_counts
from tuneoff.analysis.progress import progress as progress_of
from tuneoff.analysis.stats.compare import compare_all
from tuneoff.analysis.stats.tables import estimate_of
from tuneoff.analysis.tuning import edge_of
from tuneoff.analysis.values import ArmParameters, ArmSummary, Origins, Scores, Summary
from tuneoff.analysis.verdict import caveats, verdict
from tuneoff.study.methods import (
    BitfitMethod,
    BottleneckMethod,
    FullMethod,
    HeadMethod,
    LoraMethod,
    MethodSpec,
    NoneMethod,
    PrefixMethod,
    PromptMethod,
)
from tuneoff.study.predicted import Predicted
from tuneoff.study.records import Likelihood, Parameters, Record, TestRecord
from tuneoff.study.solo import SoloCosts
from tuneoff.study.spec import Arm, Study
from tuneoff.study.testing import LOSS


def summarise(
    study: Study,
    records: Mapping[str, Record],
    tests: Mapping[str, TestRecord],
    items: Mapping[str, ItemScores] | None = None,
    solo: Mapping[str, SoloCosts] | None = None,
    predicted: Mapping[str, Predicted] | None = None,
    *,
    progress: Progress | None = None,
) -> Summary:
    """Return what the records say about each arm of the study, and about the study as a whole.

    Args:
        study: the question.
        records: finished runs by `run_id`; runs of other studies may be among them.
        tests: the readings of the test split by `run_id`; those that were made in another way do not count.
        items: their scores by item, by `run_id`; without them intervals hold the noise of seeds alone.
        solo: costs that were measured alone, by the arm's name.
        predicted: what the plan foretold, likewise.
        progress: how far the study is by the same records and tests, where that was worked out before.
    """
    far = (progress or progress_of(study, records, tests)).arms
    full_trainable, current = _full_trainable(study, far, records), current_tests(study, tests)
    scores, alone, foretold = items or {}, solo or {}, predicted or {}
    found_arms = tuple(
        _summarise_arm(
            study, arm, own, records, current, scores, full_trainable, alone.get(arm.name), foretold.get(arm.name)
        )
        for arm, own in zip(study.arms, far, strict=True)
    )
    audited = audit(study, found_arms, records, current)
    arms = tuple(_with_findings(arm, audited) for arm in found_arms)
    primary, margin = measure(study.primary_metric, study.task.kind), study.equivalence_margin
    ranking = _ranking(arms, primary)
    comparisons = compare_all(arms, ranking, primary, margin, records, current, scores)
    wanted, finished = finished_runs(arms, records)
    cohorts = cohort_costs(arms, records)
    return Summary(
        study=study.name,
        kind=study.task.kind,
        primary_metric=study.primary_metric,
        metric_names=study.task.metric_names,
        arms=arms,
        ranking=ranking,
        verdict=verdict(arms, ranking, primary, comparisons, margin),
        margin=margin,
        comparisons=comparisons,
        audit=audited,
        cohorts=cohorts,
        caveats=(
            *caveats(arms, ranking),
            *_outdated(wanted & tests.keys() - current.keys()),
            *shared_passes(arms, cohorts),
            *_cautions(finished),
        ),
        **run_counts(arms, wanted, finished),
        origins=_origins(finished),
    )


def _ranking(arms: Sequence[ArmSummary], primary: Measure) -> tuple[str, ...]:
    """Return the names of the arms with a test score, the best first; of two that tie the first in the study."""
    found = [(None if arm.test is None else arm.test.of(primary), place, arm.name) for place, arm in enumerate(arms)]
    scored = [(primary.badness(score.value), place, name) for score, place, name in found if score is not None]
    return tuple(name for _, _, name in sorted(scored))


def _with_findings(arm: ArmSummary, audited: Audit) -> ArmSummary:
    return arm.model_copy(update={"findings": tuple(one for one in audited.findings if arm.name in one.arms)})


def _summarise_arm(
    study: Study,
    arm: Arm,
    far: ArmProgress,
    records: Mapping[str, Record],
    tests: Mapping[str, TestRecord],
    items: Mapping[str, ItemScores],
    full_trainable: int | None,
    solo: SoloCosts | None,
    predicted: Predicted | None,
) -> ArmSummary:
    ended = ended_runs(far.run_ids, far.trials, records)
    runs = [ended[run_id] for run_id in far.chosen_run_ids if run_id in ended]
    tested = [tests[run_id] for run_id in far.chosen_run_ids if run_id in tests]
    scored = [items.get(test.run_id) for test in tested]
    likelihoods = [test.test for test in tested]
    generated = decoding_summaries([test.generated for test in tested], scored, is_drawn=arm.is_trained)
    validated = [record.validation for record in runs if record.validation is not None]
    flags = () if far.status == "infeasible" else flags_of(arm)
    return ArmSummary(
        **{name: getattr(far, name) for name in ArmProgress.model_fields},
        family=arm.family,
        method=arm.method,
        edge=edge_of(far.trials, far.chosen_lr),
        is_trained=arm.is_trained,
        is_tuned=arm.is_tuned,
        is_verified=arm.method.method != "load",
        assumed=arm.assumed,
        parameters=_parameters(ended.values(), full_trainable),
        validation=_scores(validated, (), (), is_drawn=arm.is_trained),
        test=_scores(likelihoods, tested, scored, is_drawn=arm.is_trained),
        generated=generated,
        costs=arm_costs(runs, solo),
        solo=solo,
        predicted=predicted,
        flags=(
            *uniform_flag(likelihoods or validated, study.task.kind),
            *truncated_flag(generated, study.generate.max_new_tokens),
            *flags,
        ),
    )


def _scores(
    splits: Sequence[Likelihood],
    tests: Sequence[TestRecord],
    items: Sequence[ItemScores | None],
    *,
    is_drawn: bool,
) -> Scores | None:
    loss = estimate_of([split.loss_nats for split in splits], items, LOSS, is_drawn=is_drawn)
    by_sequence = over_seeds([split.mean_sequence_loss_nats for split in splits], is_drawn=is_drawn)
    perplexity, sequence_perplexity = exp_of(loss), exp_of(by_sequence)
    if loss is None or perplexity is None or sequence_perplexity is None:
        return None
    bits = [split.bits_per_byte for split in splits if split.bits_per_byte is not None]
    return Scores(
        loss_nats=loss,
        perplexity=perplexity,
        mean_sequence_perplexity=sequence_perplexity,
        bits_per_byte=_bits(loss, bits),
        num_target_tokens=splits[0].num_target_tokens,
        metrics=metric_estimates([test.metrics for test in tests], items, is_drawn=is_drawn),
    )


def _bits(loss: Estimate, bits: Sequence[float]) -> Estimate | None:
    """Return the bits per byte, which are the loss times a constant of the split: so are the ends of its interval."""
    if not bits or not loss.value:
        return None
    value = sum(bits) / len(bits)
    low, high = (None if end is None else end * value / loss.value for end in (loss.low, loss.high))
    return Estimate(value=value, low=low, high=high, n=loss.n, how=loss.how)


def _full_trainable(study: Study, far: Sequence[ArmProgress], records: Mapping[str, Record]) -> int | None:
    """Return how many parameters full fine-tuning trains: counted where it ran, else the base's own."""
    found = (
        _full_count(arm.method, record.parameters, is_classifier=study.task.kind == "classification")
        for arm, own in zip(study.arms, far, strict=True)
        for trial in own.trials
        if (record := records.get(trial.run_id)) is not None and record.parameters is not None
    )
    return min((count for count in found if count is not None), default=(0, None))[1]


def _full_count(method: MethodSpec, counts: Parameters, *, is_classifier: bool) -> tuple[int, int] | None:
    """Return how many parameters full fine-tuning would train, as another method tells, behind how far to trust it.

    Args:
        method: the method that was counted.
        counts: what it trains.
        is_classifier: whether the model got a new head, which every trained method trains and zero-shot has not.
    """
    match method:
        case FullMethod():
            return 0, counts.trainable
        case BitfitMethod() | HeadMethod():
            return 1, counts.total
        case NoneMethod() if not is_classifier:
            return 1, counts.total
        case LoraMethod(bias="none", quantize="none") if not is_classifier:
            return 2, counts.total - counts.trainable  # all that is not added
        case BottleneckMethod() | PromptMethod() | PrefixMethod() if not is_classifier:
            return 2, counts.total - counts.trainable
    return None


def _parameters(found: Iterable[Record], full_trainable: int | None) -> ArmParameters | None:
    counts = next((record.parameters for record in found if record.parameters is not None), None)
    if counts is None:
        return None
    return ArmParameters(
        trainable=counts.trainable,
        total=counts.total,
        share_pct=counts.share_pct,
        reduction_pct=100.0 * (1 - counts.trainable / full_trainable) if full_trainable else None,
        num_modules=len(counts.modules),
    )


def _outdated(run_ids: Collection[str]) -> Iterable[str]:
    """Return a line on runs whose reading of the test split was made in another way."""
    if run_ids:
        runs = "1 run was" if len(run_ids) == 1 else f"{len(run_ids)} runs were"
        yield f"{runs} tested with other metrics, decoding or limits; `tuneoff run` reads the test split again."


def _cautions(records: Sequence[Record]) -> Iterable[str]:
    """Return what the data's notes say that can change what the numbers mean, each once."""
    return dict.fromkeys(caution for record in records for caution in record.provenance.cautions)


def _origins(records: Sequence[Record]) -> Origins:
    values: dict[str, Counter[str]] = {}
    notes: dict[str, None] = {}
    for record in sorted(records, key=lambda record: record.run_id):
        source = record.provenance
        facts = {
            "device": source.device,
            "threads": str(source.num_threads),
            "platform": source.platform,
            "python": source.python,
            "tuneoff": source.tuneoff_version,
            **source.versions,
            "model sha256": source.model_sha256,
            "data sha256": source.data_sha256,
        }
        for name, value in facts.items():
            values.setdefault(name, Counter())[value] += 1
        notes |= dict.fromkeys(source.notes)
    ordered = {name: tuple(value for value, _ in counts.most_common()) for name, counts in values.items()}
    return Origins(facts=ordered, notes=tuple(notes))
