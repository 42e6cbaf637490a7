"""The Python interface: `study = tuneoff.load("study.yaml"); result = tuneoff.run(study); result.table()`.

The command line calls these same functions.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tuneoff.errors import StudyError
from tuneoff.result import Result as Result
from tuneoff.study.loading import load_study
from tuneoff.study.loading import recipe_names as recipe_names
from tuneoff.study.spec import Study as Study
from tuneoff.study.testing import Decoding

if TYPE_CHECKING:
    from tuneoff.evaluation.scoring import Scoring
    from tuneoff.planning.modules import Architecture
    from tuneoff.planning.plan import Plan
    from tuneoff.running.events import Event
    from tuneoff.running.preflight import Preflight
    from tuneoff.starting.init import Started

DEFAULT_OUT = Path("runs")


def load(source: str | Path, overrides: Sequence[str] = (), *, smoke: bool = False) -> Study:
    """Read a study file or a recipe.

    Args:
        source: path of a YAML file, or the name of a recipe.
        overrides: `KEY=VALUE` each, such as `budget.steps=100`; `arms.*.KEY` stands for every arm that gives KEY.
        smoke: take a recipe's small form, on the demo base and demo data, called `NAME-smoke`.

    Raises:
        StudyError: the file cannot be used; the message names the key.
    """
    return load_study(source, overrides, smoke=smoke)


def init(
    data: str,
    model: str,
    out: Path = Path("study.yaml"),
    *,
    kind: str | None = None,
    columns: Sequence[str] = (),
    force: bool = False,
) -> "Started":
    """Look at data and at this machine, and write a commented study file that fits both and runs as it is.

    Args:
        data: a file, a folder, a hub id, or `demo`.
        model: hub id, folder, or `demo`.
        out: the file to write.
        kind: text, instruction, qa or classification; none tells it from the data.
        columns: `PART=NAME` each, such as `text=body`: which column holds a part; none tells it from the data.
        force: write over a file that is there.

    Raises:
        TuneoffError: the file is there already, the data or the model cannot be used, or the data do not tell which
            task they are for; the message says which options decide.
    """
    from tuneoff.starting.init import init as begin
    from tuneoff.starting.init import parse_columns, parse_kind

    return begin(data, model, out, kind=parse_kind(kind), columns=parse_columns(columns), force=force)


def open_result(study: Study, out: Path = DEFAULT_OUT) -> Result:
    """Return what is there of a study's results under `out`."""
    from tuneoff.running.fitting import as_last_run
    from tuneoff.running.store import Store

    return Result(as_last_run(study, out / study.name), Store(out / study.name))


def check(study: Study) -> "Preflight":
    """Look at everything the study will read, in a child process, and train nothing.

    Raises:
        TuneoffError: the first thing that is wrong.
    """
    from tuneoff.running.executors import in_child
    from tuneoff.running.preflight import preflight

    found: Preflight = in_child(preflight, study)
    return found


def run(
    study: Study,
    out: Path = DEFAULT_OUT,
    *,
    only: Sequence[str] = (),
    num_jobs: int = 1,
    cohort: int | str = "auto",
    time_s: float | None = None,
    checked: "Preflight | None" = None,
    listener: Callable[["Event"], Any] = lambda event: None,
) -> Result:
    """Train what is missing and nothing that is done.

    Args:
        study: the study.
        out: folder of all studies' results.
        only: arms, or families of arms, to work on; none is all.
        num_jobs: child processes at a time.
        cohort: LoRA runs that are trained in one pass over the frozen base at most. `off` trains each alone; `auto`
            does so on a CPU, and on a GPU takes as many as should fit, 8 at most. It is no part of a run's identity:
            the weights agree but for rounding. Cohorts that were begun are gone on with, whatever is given here.
        time_s: seconds after which no run is started, and those at work leave off with a checkpoint after their step;
            one that will be done within 2 % of it (300 s at most) is let finish.
        checked: what `check` said of the study; none checks now.
        listener: is told what happens.

    Raises:
        TuneoffError: bad input, or a disk that cannot hold the results.
        KeyboardInterrupt: Ctrl-C. At the first one runs leave off with a checkpoint, at a second one at once.
    """
    from tuneoff.running.begin import begin
    from tuneoff.running.cohorts import asked_size
    from tuneoff.running.full_disk import full_disk_is_told
    from tuneoff.running.run import StudyRunner, select_arms
    from tuneoff.running.sitting import Sitting
    from tuneoff.running.store import Store

    sitting, store = Sitting(time_s), Store(out / study.name)
    select_arms(study, only)  # refused before anything is read or written
    size = asked_size(cohort)
    found = checked or check(study)
    options = begin(
        study,
        store,
        found,
        only=only,
        num_jobs=num_jobs,
        cohort_size=size or found.memory.size(num_jobs),
        sitting=sitting,
        listener=listener,
    )
    runner = StudyRunner(study, store, options)
    with full_disk_is_told(store.folder):
        runner.run()
    result = Result(study, store, dict(runner.failed))
    return replace(result, is_cut=sitting.is_cut and bool(result.time_to_go().arms))


def seconds_of(text: str) -> float:
    """Return a length of time, such as `8h`, `90m`, `1h30m`, `45s` or `3600`, in seconds.

    Raises:
        StudyError: it is none.
    """
    from tuneoff.running.sitting import seconds_of as parse

    return parse(text)


def plan(
    study: Study,
    *,
    device: str | None = None,
    device_memory: str | None = None,
    fit: str | None = None,
    recalibrate: bool = False,
) -> "Plan":
    """Return what the study will train, keep and cost, and which arms fit, without loading weights.

    Args:
        study: the study.
        device: name of a GPU, such as `RTX 4090`; none is this machine.
        device_memory: such as `6GB`, of a GPU that nothing else is known of, or in place of the device's own.
        fit: changes with which arms may be made to fit (see `planning.fit.parse_kinds`); the plan is then the one after
            them. None shows the study as it is, and the nearest change of any kind.
        recalibrate: measure this machine's speed again.

    Raises:
        StudyError: a device, a size or a change that is not known.
    """
    from tuneoff.planning.costs import basis_of, foretell
    from tuneoff.planning.devices import find_device, parse_bytes
    from tuneoff.planning.fit import ALL_KINDS, parse_kinds

    kinds = ALL_KINDS if fit is None else parse_kinds(fit)
    named = None if device is None else find_device(device)
    memory = None if device_memory is None else parse_bytes(device_memory)
    return foretell(study, basis_of(named, memory, anew=recalibrate), kinds=kinds, is_fitted=fit is not None)


def check_run(study: Study, only: Sequence[str] = (), cohort: int | str = "auto", fit: str | None = None) -> None:
    """Refuse words of a run that are not known, before the libraries are loaded that train.

    Raises:
        StudyError: an arm, a size of a cohort or a change that is not known.
    """
    from tuneoff.running.cohorts import asked_size
    from tuneoff.running.fitting import allowed_kinds
    from tuneoff.running.schedule import select_arms

    select_arms(study, only)
    asked_size(cohort)
    allowed_kinds(fit)


def check_plan(device: str | None, device_memory: str | None, fit: str | None) -> None:
    """Refuse words of a plan that are not known, before the libraries are loaded that make one.

    Raises:
        StudyError: a device, a size or a change that is not known.
    """
    from tuneoff.planning.devices import find_device, parse_bytes
    from tuneoff.planning.fit import parse_kinds

    if fit is not None:
        parse_kinds(fit)
    if device is not None:
        find_device(device)
    if device_memory is not None:
        parse_bytes(device_memory)


def check_fitted(fit: str | None) -> None:
    """Refuse to write a study that is not to be made to fit, before anything is planned.

    Raises:
        StudyError: it is not.
    """
    if fit is None:
        raise StudyError("--write: only a study that was made to fit is written; add --fit")


def write_fitted(
    found: "Plan",
    fit: str | None,
    source: str | Path,
    path: Path,
    overrides: Sequence[str] = (),
    *,
    smoke: bool = False,
) -> None:
    """Write the study file of a plan that was made to fit.

    Args:
        found: the plan, after its changes.
        fit: what was asked for.
        source: study file or recipe that was planned.
        path: where to.
        overrides: that it was planned with.
        smoke: whether it was the small form.

    Raises:
        StudyError: nothing was to be made to fit, or the file cannot be written.
    """
    from tuneoff.planning.fitted_file import write_study

    check_fitted(fit)
    changes = {arm.name: arm.changed for arm in found.arms if arm.changed is not None}
    write_study(path, source, overrides, changes, smoke=smoke)


def fit(study: Study, out: Path = DEFAULT_OUT, kinds: str | None = None) -> tuple[Study, list[str]]:
    """Return a study with what makes its arms fit into this machine's memory, and lines that say what was changed.

    What was changed is kept in the study's folder, so that every later command goes on with the same runs whatever
    memory is free then; `status` and `report` follow it. Without `kinds` it is what was kept, if anything was.

    Args:
        study: the study.
        out: folder of all studies' results.
        kinds: changes that may be made (see `planning.fit.parse_kinds`); none makes no others than those kept, `off`
            drops them, so that the study is run as it is written.

    Raises:
        StudyError: a change that is not known.
    """
    from tuneoff.running import fitting

    return fitting.fit(study, out / study.name, kinds)


def modules(
    model: str,
    study: str | Path | None = None,
    *,
    arms: Sequence[str] = (),
    overrides: Sequence[str] = (),
    smoke: bool = False,
) -> "Architecture":
    """Return what a model is made of and what a study's arms adapt in it, without loading weights.

    Args:
        model: hub id, folder, `config.json`, or `demo`; a study file or a recipe stands for its model and its arms.
        study: a study file or a recipe whose arms are marked in `model`.
        arms: names of arms, or of families of arms; none is all.
        overrides: `KEY=VALUE` each, of the study.
        smoke: a recipe's small form.

    Raises:
        StudyError: the study cannot be used, it has no such arm, or arms are asked for without a study.
        ModelError: the model's configuration cannot be had or is not a causal language model.
        MethodError: an arm whose targets match nothing.
    """
    from tuneoff.planning.modules import model_architecture, study_architecture

    source = study if study is not None else model if _is_study(model) else None
    if source is not None:
        return study_architecture(
            _with_model(load(source, overrides, smoke=smoke), None if source == model else model), arms
        )
    if arms or overrides or smoke:
        raise StudyError(f"{model!r} is a model and has no arms; name the study with --study STUDY")
    return model_architecture(model, Path.cwd())


def _is_study(source: str) -> bool:
    """Whether a text names a study. `demo` is a model, too, and that is meant."""
    from tuneoff.training.model_files import DEMO

    return source != DEMO and (source in recipe_names() or Path(source).suffix in (".yaml", ".yml"))


def _with_model(study: Study, model: str | None) -> Study:
    """Return the study on another base, whose path starts at the working folder and whose code is not trusted."""
    if model is None or model == study.model:
        return study
    base = str(Path(model).absolute()) if Path(model).exists() else model
    return study.model_copy(update={"model": base, "revision": None, "trust_remote_code": False})


def score(predictions: Path, references: Path | None = None, metrics: Sequence[str] = ()) -> "Scoring":
    """Score saved predictions of any task, whoever wrote them.

    Args:
        predictions: JSON (`{id: text}`, a list of texts or classes), JSON lines, CSV, TSV, Parquet, or one text a line.
        references: the same, or SQuAD's JSON; none takes those that stand beside the predictions.
        metrics: names as in a study file; none is accuracy and f1 for classes, f1 and exact_match for texts. Modules
            of functions of your own may lie in the folder that you are in.

    Raises:
        TuneoffError: a file or a metric that cannot be used, or files that do not belong together.
    """
    from tuneoff.evaluation.scoring import score_files

    return score_files(predictions, references, metrics, Path.cwd())


def decoding(**options: float | None) -> Decoding:
    """Return a decoding strategy: greedy, or what departs from it (`temperature`, `top_k`, `top_p`, `beams`).

    Raises:
        StudyError: a value that no strategy can have.
    """
    try:
        return Decoding.model_validate({name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        found = f"{first['loc'][-1]}: {message}; found {first['input']}" if first["loc"] else message
        raise StudyError(found) from None
