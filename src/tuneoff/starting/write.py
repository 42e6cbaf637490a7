"""A study file with the reason for every choice beside it, for a reader who sees one for the first time."""

from collections.abc import Mapping
from pathlib import Path

from tuneoff.data.survey import SplitCount, Survey
from tuneoff.planning.render import bytes_text
from tuneoff.starting.choices import LORA_ALPHA, PROMPT_TOKENS, unit_name
from tuneoff.starting.draft import MAX_EXTENDED, SEEDS, Draft
from tuneoff.starting.lines import Lines, flow
from tuneoff.study.testing import MARGINS, POINTS_MARGIN

METHODS_ARE = {
    "zero-shot": "the base as it is, nothing trained: what every other arm has to beat",
    "full": "all weights",
    "lora": "a low-rank update of the linear layers; the rest is frozen",
    "bottleneck": "a narrow network in every block",
    "prompt": f"{PROMPT_TOKENS} trained vectors before the input",
}


def study_text(draft: Draft, file: str) -> str:
    """Return the study file.

    Args:
        draft: what was found and chosen.
        file: what the commands at its top call it.
    """
    lines = Lines()
    _head(lines, draft, file)
    lines.key(f"name: {flow(draft.name)}", f"results go to runs/{draft.name}/")
    lines.key(f"model: {flow(draft.model)}", _model_reason(draft))
    _task(lines, draft)
    lines.blank()
    _budget(lines, draft)
    lines.blank()
    _arms(lines, draft)
    lines.blank()
    _testing(lines, draft)
    return lines.text()


def _head(lines: Lines, draft: Draft, file: str) -> None:
    survey = draft.survey
    base, data = Path(draft.model).name, Path(draft.data).name
    lines.say(
        f"Which way of fine-tuning {base} pays on {data}? Written by `tuneoff init` from what the data and this machine"
        " are; change whatever you know better. A key that is left out has its default."
    )
    width = max(len(file) + 16, 30)
    for verb, what in (
        ("plan", "what each arm trains and costs, before anything is trained"),
        ("run", "trains what is missing; the same command goes on after a stop"),
        ("report", "the table and a page, at any time"),
    ):
        lines.say_raw(f"#   {f'tuneoff {verb} {file}':<{width}} {what}")
    lines.say("Found in the data:")
    for fact in facts(draft):
        lines.say(fact, bullet="- ")
    for note in survey.notes:
        lines.say(note, bullet="- ")
    lines.say(f"Found in the machine: {machine_text(draft)}")


def machine_text(draft: Draft) -> str:
    """Return what runs are trained on, in words."""
    machine = draft.machine
    if machine.gpus:
        others = f" and {len(machine.gpus) - 1} more" if len(machine.gpus) > 1 else ""
        return f"{machine.gpus[0].name}{others}, {bytes_text(machine.gpus[0].free_bytes)} free of" + (
            f" {bytes_text(machine.gpus[0].memory_bytes)}."
        )
    threads = f"{machine.num_threads} thread{'s' * (machine.num_threads != 1)}"
    return f"no GPU; {machine.processor}, {threads}, {machine.available} available."


def facts(draft: Draft) -> list[str]:
    """Return what the data hold, one sentence each."""
    survey, needed = draft.survey, draft.lengths.needed
    found = [f"{survey.format}, read as kind: {survey.kind} ({'; '.join(survey.reasons) or 'the demo data'})."]
    for name, counts in survey.splits.items():
        found.append(f"{name} ({counts.source}): {_count(survey, counts)}.")
        found += counts.notes
    tokens = f"Tokens of train: {draft.lengths.whole.total:,}{_sampled(draft)}"
    if survey.splits["train"].num_examples > 1:
        tokens += (
            f"; of an example: median {needed.median:,}, 95 % have {needed.p95:,} or fewer, 99 % {needed.p99:,}, the"
            f" longest {needed.longest:,}"
        )
    found.append(f"{tokens}.")
    over = draft.lengths.over_context_share
    if draft.context and over and survey.kind != "text":
        found.append(f"The model sees {draft.context:,} tokens; {100 * over:.2g} % of the examples have more.")
    return found + list(_doubts(survey))


def _count(survey: Survey, counts: SplitCount) -> str:
    """Return how much a split holds."""
    if survey.kind == "text":
        return f"{counts.num_examples:,} document{'s' * (counts.num_examples != 1)}, {counts.num_chars:,} characters"
    return (
        f"{counts.num_rows:,} rows, {counts.num_examples:,} examples of {counts.num_units:,} {unit_name(survey.kind)}"
    )


def _sampled(draft: Draft) -> str:
    measured, num_all = draft.lengths.needed.num_measured, draft.survey.splits["train"].num_examples
    if measured == 0:
        return ", by the beginnings of the documents"
    return f", by {measured:,} of the examples" if measured < num_all else ""


def _doubts(survey: Survey) -> list[str]:
    """Say what about the data may spoil a comparison."""
    found = []
    train = survey.splits["train"]
    for name, counts in survey.splits.items():
        if counts.num_copies:
            found.append(f"{counts.num_copies:,} examples of {name} are word for word like an earlier one.")
        if counts.num_contradictions:
            found.append(f"{counts.num_contradictions:,} texts of {name} stand there with more than one class.")
        if counts.labels:
            found.append(f"Classes of {name}: {class_shares(counts.labels)}.")
    if train.num_shared:
        found.append(
            f"{train.num_shared:,} examples of train stand in validation or test too; they are left out of train, as a"
            " test on what was trained on says nothing."
        )
    if survey.kind == "text" and train.num_units == 1:
        found.append("It is one document: intervals over its stretches are too narrow, as these are not independent.")
    return found


def class_shares(counts: Mapping[str, int]) -> str:
    """Return how many texts the most frequent classes have."""
    total = sum(counts.values())
    shown = [f"{' '.join(name.split())} {100 * number / total:.1f} %" for name, number in list(counts.items())[:6]]
    more = f" and {len(counts) - 6} more" if len(counts) > 6 else ""
    return ", ".join(shown) + more


def _model_reason(draft: Draft) -> str:
    return f"sees {draft.context:,} tokens" if draft.context else ""


def _task(lines: Lines, draft: Draft) -> None:
    survey = draft.survey
    lines.key("task:")
    lines.key(f"kind: {survey.kind}", "text | instruction | qa | classification", indent=2)
    lines.key(f"data: {flow(draft.data)}", indent=2)
    if survey.columns:
        lines.key(f"columns: {flow(dict(survey.columns))}", "; ".join(survey.reasons), indent=2)
    lines.key(f"max_length: {draft.max_length.value}", f"tokens; {draft.max_length.reason}", indent=2)
    if survey.kind == "classification":
        _labels(lines, draft)
    splits = ", ".join(
        f"{name}: {flow(value) if isinstance(value, str) else f'{value:g}'}"
        for name, value in draft.splits.value.items()
    )
    lines.key(f"splits: {{{splits}}}", draft.splits.reason, indent=2)
    if survey.kind == "instruction":
        lines.key(
            "metrics: [rougeL]",
            "the loss of the replies decides; to score generated replies too, switch this on (it takes time)",
            indent=2,
            is_off=True,
        )


def _labels(lines: Lines, draft: Draft) -> None:
    if draft.labels.value is not None:
        lines.key(f"labels: {flow(draft.labels.value)}", draft.labels.reason, indent=2)
        lines.key(f"template: {flow(draft.template)}", "what stands before the class, for zero-shot", indent=2)
        return
    words = [f"word{number}" for number in range(len(draft.survey.classes))][:8]
    more = ", ..." if len(draft.survey.classes) > len(words) else ""
    lines.say(f"{draft.labels.reason}; with words for the classes, in this order, it scores them after the text:", 2)
    lines.say(f"classes {', '.join(map(repr, draft.survey.classes[:8]))}{more}", 2)
    lines.key(f"labels: [{', '.join(words)}{more}]", indent=2, is_off=True)
    lines.key('template: "{text}\\nLabel:"', indent=2, is_off=True)


def _budget(lines: Lines, draft: Draft) -> None:
    steps, batch = draft.budget.value
    lines.key(f"budget: {{steps: {steps}, batch_size: {batch}}}", f"the same for every arm; {draft.budget.reason}")
    if draft.micro_batch is not None:
        lines.key(f"micro_batch: {draft.micro_batch}", "sequences at a time, so that it fits; the gradient is the same")
    if draft.is_recomputed:
        lines.key("gradient_checkpointing: true", "less memory, about a third more time, the same gradient")
    lines.key(f"precision: {draft.machine.precision}", draft.machine.precision_reason)
    lines.key(
        f"seeds: {flow(list(SEEDS))}",
        "the first one chooses the rates; three tell noise from difference, one cannot",
    )
    lines.key(f"tuning: {{extend: {MAX_EXTENDED}}}", "further rates that each arm may get at most, see arms")


def _arms(lines: Lines, draft: Draft) -> None:
    lines.say(
        "What is compared. Each arm's rate is chosen on validation among as many. extend: while the best one of an arm"
        " lies at an edge of its grid, beyond which a better may lie, every arm gets one rate more; false leaves it at"
        " the list."
    )
    lines.key("arms:")
    for name, arm in draft.arms().items():
        why = draft.left_out(name)
        text = f"{METHODS_ARE[name]}{_rate_reason(draft, name)}"
        lines.say(f"{text}{_why_not(draft, name, why)}", indent=2)
        if name == "lora":
            _lora_reasons(lines, draft)
        lines.key(f"{name}: {flow(arm)}", indent=2, is_off=bool(why))


def _rate_reason(draft: Draft, name: str) -> str:
    return f". Rates: {draft.rates[name].reason}" if name in draft.rates else ""


def _why_not(draft: Draft, name: str, why: str) -> str:
    if not why:
        small = "" if draft.can_fit(name) else f" It needs {_needed(draft, name)}, so it may not fit."
        return f".{small}"
    if why == "does not fit here":
        return f". Left out, as it does not fit: it needs {_needed(draft, name)}."
    return ". An option: switch it on." if why == "an option" else f". Left out: {why}"


def _needed(draft: Draft, name: str) -> str:
    fit = draft.fits[name]
    return f"about {bytes_text(fit.needed_bytes)}, and there is room for {bytes_text(fit.room_bytes)}"


def _lora_reasons(lines: Lines, draft: Draft) -> None:
    lines.say(f"rank: {draft.ranks.reason}.", 2)
    lines.say(
        f"alpha: the update is scaled by alpha / rank; {LORA_ALPHA} for every rank keeps the best rate about the same"
        " (others double it with the rank: then tune anew).",
        2,
    )
    lines.say(
        f"targets: all linear layers, here {', '.join(draft.linear_layers)}; attention alone does worse at the same"
        " number of parameters.",
        2,
    )


def _testing(lines: Lines, draft: Draft) -> None:
    kind = draft.survey.kind
    if kind == "qa":
        lines.key("decoding: [greedy]", "or several, crossed with every arm: [greedy, {temperature: 0.7, samples: 5}]")
        lines.key(
            f"generate: {flow(draft.generate())}",
            f"99 % of the answers have {draft.lengths.targets.p99} tokens or fewer; of so many test questions a score"
            f" of 50 is known to {draft.error_points():.0f} points at best, and more take longer",
        )
    metric = {"text": "loss", "instruction": "loss", "qa": "f1", "classification": "accuracy"}[kind]
    margin = MARGINS.get(metric, POINTS_MARGIN)
    unit = "nats per token" if metric == "loss" else f"point{'s' * (margin != 1)} of {metric}"
    lines.key(f"margin: {margin:g}", f"two arms within {margin:g} {unit} count as equal", is_off=True)
    if kind != "classification":
        lines.key(
            "retention: demo",
            "what is forgotten of plain English; better a text of the kind that the base has to keep",
            is_off=True,
        )
