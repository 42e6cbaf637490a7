"""What a finished run is good for: an adapter folder or a plain model for other tools, and a look at what it writes."""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuneoff.analysis.selection import choose_rate
from tuneoff.data.prepare import encode_prompt, render_prompt
from tuneoff.errors import DataError, StoreError, did_you_mean
from tuneoff.evaluation.generated import text_of
from tuneoff.evaluation.generation import generate
from tuneoff.methods import interchange
from tuneoff.methods.base import AdaptedModel
from tuneoff.methods.external import ExternalModel, ExternalPrompt
from tuneoff.methods.heads import HeadedModel, is_classifier
from tuneoff.running.session import Place, open_weights
from tuneoff.running.store import STUDY_FILE, Store
from tuneoff.study.expand import chosen_runs
from tuneoff.study.methods import BitfitMethod, FullMethod, HeadMethod, NoneMethod
from tuneoff.study.records import Record
from tuneoff.study.spec import NAME_PATTERN, Arm, Study, TaskSpec
from tuneoff.study.streams import GENERATION, stream_seed
from tuneoff.study.testing import Decoding, GenerateSpec
from tuneoff.training.model_files import resolve
from tuneoff.training.models import load_base, load_tokenizer, quiet


def find(out: Path, name: str) -> tuple[Store, Record]:
    """Return a finished run by `STUDY/ARM` (its chosen rate, first seed), `STUDY/RUN_ID`, or either part alone.

    The start of an id will do.

    Raises:
        StoreError: no such run, several, or one that is not done.
    """
    study, _, run_name = name.rpartition("/")
    folders = [out / study] if study else [path.parent for path in out.glob(f"*/{STUDY_FILE}")]
    if not all(re.fullmatch(NAME_PATTERN, part) for part in (study, run_name) if part):
        folders = []  # no name of a study or a run leads out of the folder
    found = [(Store(folder), run_id) for folder in folders for run_id in _named(Store(folder), run_name)]
    if len(found) != 1:
        what = f"{len(found)} runs are called" if found else "no run is called"
        arms = sorted({f"{folder.name}/{arm.name}" for folder in folders for arm in _arms(folder)})
        hint = did_you_mean(name, arms)
        raise StoreError(f"{what} {name!r} under {out}.{hint} `tuneoff status STUDY` lists arms and runs.")
    store, run_id = found[0]
    record = store.record(run_id, verify=True)
    if record is not None and record.status == "pruned":
        raise StoreError(f"run {run_id} was {record.reason}. Name a run at a rate that was chosen.")
    if record is None or record.status != "done":
        why = f": {store.problems[-1]}" if store.problems else ""
        raise StoreError(f"run {run_id} is not done{why}. `tuneoff run` finishes it.")
    return store, record


def _named(store: Store, name: str) -> Iterator[str]:
    """Yield the runs of a store that an arm's name, or the start of an id, stands for."""
    study = _stored_study(store.folder)
    arm = next((arm for arm in _arms(store.folder) if arm.name == name), None)
    if study is None or arm is None:
        yield from (run_id for run_id in store.run_ids() if run_id.startswith(name))
    else:
        yield chosen_runs(study, arm, choose_rate(study, arm, store.records()[0]))[0].run_id


def _stored_study(folder: Path) -> Study | None:
    """Return the study as it was last run, or none."""
    try:
        return Study.model_validate_json((folder / STUDY_FILE).read_bytes())
    except (OSError, ValueError):
        return None


def _arms(folder: Path) -> tuple[Arm, ...]:
    study = _stored_study(folder)
    return study.arms if study is not None else ()


def _open(out: Path, name: str) -> tuple[Record, Place, AdaptedModel, PreTrainedTokenizerBase]:
    store, record = find(out, name)
    setup = store.setup(record.run_id) or {}
    place = Place(store, Path(setup.get("root", ".")))
    run = record.run
    tokenizer = load_tokenizer(run.model, place.root, run.revision, run.trust_remote_code)
    return record, place, open_weights(run, place, len(record.classes)), tokenizer


def export_run(out: Path, name: str, folder: Path, *, merge: bool = False) -> str:
    """Write a run for other tools.

    Args:
        out: folder of all studies' results.
        name: of the run (see `find`).
        folder: where to; it must not hold anything yet.
        merge: fold the adapter into the base and write a whole model.

    Returns:
        A sentence that says what was written and how to load it.

    Raises:
        TuneoffError: no such run, its weights are gone, or the folder is not empty or not writable.
    """
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder} is there already and is a file; name another folder")
    if folder.exists() and any(folder.iterdir()):
        raise StoreError(f"{folder} is there already and not empty; name another folder")
    record, place, adapted, tokenizer = _open(out, name)
    run = record.run
    if isinstance(run.method, NoneMethod):
        raise StoreError(f"run {record.run_id} is zero-shot: it trained nothing, so there is nothing to export")
    try:
        if not merge and not isinstance(run.method, FullMethod | BitfitMethod | HeadMethod):
            _write_adapter(adapted, folder, str(resolve(run.model, place.root)))
            how = f"PeftModel.from_pretrained(base, {str(folder)!r})"
            what = f"PEFT adapter of run {record.run_id} written to {folder}; load it with {how}"
            return what + _as_prompted(run.task, tokenizer)
        module = adapted.merge()
        assert isinstance(module, PreTrainedModel)
        if record.classes:
            module.config.id2label = dict(enumerate(record.classes))
            module.config.label2id = {name: index for index, name in enumerate(record.classes)}
        with quiet():
            module.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except OSError as error:
        raise StoreError(f"{folder} cannot be written to ({error.strerror})") from None
    auto_class = "AutoModelForSequenceClassification" if record.classes else "AutoModelForCausalLM"
    how = f"{auto_class}.from_pretrained({str(folder)!r})"
    return f"model of run {record.run_id} written to {folder}; load it with {how}" + _as_prompted(run.task, tokenizer)


def _as_prompted(task: TaskSpec, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a sentence that says how prompts were written in training, which other tools have to do as well."""
    asked = {"instruction": "INSTRUCTION", "qa": "QUESTION"}.get(task.kind, "TEXT")
    written = render_prompt(task, tokenizer, asked, "CONTEXT" if task.kind == "qa" else "")
    return "" if written == asked else f". It was trained on prompts that are written so: {written!r}"


def _write_adapter(adapted: AdaptedModel, folder: Path, base_name: str) -> None:
    """Write a PEFT adapter folder, with the classification head where one was trained."""
    inner, head = (adapted.inner, adapted.head.state_dict()) if isinstance(adapted, HeadedModel) else (adapted, None)
    if isinstance(inner, ExternalModel | ExternalPrompt):
        inner.write_peft(folder, base_name, head)
    else:
        interchange.write_peft(adapted, folder, base_name)


def compare_on_prompt(
    out: Path,
    name: str,
    prompt: str,
    max_new_tokens: int,
    decoding: Decoding | None = None,
    *,
    context: str = "",
) -> Iterator[tuple[str, str]]:
    """Yield (who, text): what the base and the run go on with after a prompt, to the context's end at most.

    Of classification it is the run's classes with their probabilities alone, as the base has no trained head.

    Args:
        out: folder of all studies' results.
        name: of the run (see `find`).
        prompt: text to go on from, an instruction, a question, or a text to classify, put in the study's template.
        max_new_tokens: tokens at most.
        context: what the instruction or the question is about.
        decoding: the strategy; none is greedy. What is drawn is drawn from the run's generation stream, for both.

    Raises:
        TuneoffError: no such run, its weights are gone, or the prompt is longer than the base's context.
    """
    record, place, adapted, tokenizer = _open(out, name)
    run = record.run
    goes_on = partial(
        _continue,
        tokenizer=tokenizer,
        max_new_tokens=max_new_tokens,
        decoding=decoding or Decoding(),
        seed=stream_seed(run.seed or 0, GENERATION),
        num_virtual_tokens=adapted.num_virtual_tokens,
    )
    ids = encode_prompt(tokenizer, render_prompt(run.task, tokenizer, prompt, context), run.task.template)
    if record.classes:
        if context or (decoding is not None and decoding != Decoding()):
            raise DataError("a classifier takes a text alone: leave out the context and the decoding strategy")
        yield f"run {record.run_id}", _classes_of(adapted.module, ids, record.classes)
        return
    if isinstance(run.method, FullMethod):
        base = load_base(run.model, place.root, run.revision, run.trust_remote_code)
        yield "base", goes_on(base, ids)
    else:
        with adapted.base_model() as module:
            yield "base", goes_on(module, ids)
    yield f"run {record.run_id}", goes_on(adapted.module, ids)


@torch.no_grad()
def _classes_of(module: torch.nn.Module, ids: list[int], classes: Sequence[str]) -> str:
    if not is_classifier(module):
        raise StoreError("a zero-shot run has no trained classifier to try; name another arm")
    logits = module(input_ids=torch.tensor([ids], device=next(module.parameters()).device)).logits[0]
    shares = logits.float().softmax(-1).tolist()
    ranked = sorted(zip(shares, classes, strict=True), reverse=True)
    return "\n".join(f"{name}: {100 * share:.1f} %" for share, name in ranked)


def _continue(
    module: torch.nn.Module,
    ids: list[int],
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    decoding: Decoding,
    seed: int,
    num_virtual_tokens: int,
) -> str:
    assert isinstance(module, PreTrainedModel)
    assert isinstance(tokenizer.pad_token_id, int)
    context = getattr(module.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(context, int):
        room = context - num_virtual_tokens
        if len(ids) >= room:
            rest = f", beside {num_virtual_tokens} virtual ones" if num_virtual_tokens else " in all"
            raise DataError(f"the prompt has {len(ids)} tokens; the base sees {room}{rest}. Shorten it.")
        max_new_tokens = min(max_new_tokens, room - len(ids))
    found = generate(
        module,
        [ids],
        decoding,
        GenerateSpec(max_new_tokens=max_new_tokens),
        pad_id=tokenizer.pad_token_id,
        eos_id=tokenizer.eos_token_id,
        seed=seed,
        context_length=context,
        num_virtual_tokens=num_virtual_tokens,
    )
    return text_of(found[0][0], tokenizer)
