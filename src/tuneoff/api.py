"""The Python interface: `study = tuneoff.load("study.yaml"); result = tuneoff.run(study); result.table()`.

The command line calls these same functions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tuneoff.errors import StoreError, StudyError
from tuneoff.study.explained import ExplainRecord
from tuneoff.study.loading import load_study
from tuneoff.study.loading import recipe_names as recipe_names
from tuneoff.study.records import Record, TestRecord
from tuneoff.study.spec import Study as Study
from tuneoff.study.testing import Decoding

if TYPE_CHECKING:
    from altair import LayerChart

    from tuneoff.analysis.explanation import Explanation
    from tuneoff.analysis.progress import Progress
    from tuneoff.analysis.time_to_go import TimeToGo
    from tuneoff.analysis.values import Summary
    from tuneoff.evaluation.scoring import Scoring
    from tuneoff.planning.modules import Architecture
    from tuneoff.planning.plan import Plan
    from tuneoff.running.events import Event
    from tuneoff.running.preflight import Preflight
    from tuneoff.running.reading import Reading
    from tuneoff.running.store import Store

DEFAULT_OUT = Path("runs")


@dataclass(frozen=True)
class Result:
    """What a study's folder holds.

    Attributes:
        study: the study.
        store: its folder.
        failed: runs that crashed in this sitting, with what is known of it; they are tried again by the next `run`.
        is_cut: whether this sitting ended for want of time, before its work was done; the next `run` goes on.
    """

    study: Study
    store: "Store"
    failed: dict[str, str] = field(default_factory=dict)
    is_cut: bool = False

    def read(self) -> "Reading":
        """Return what the folder holds now. Given to `report` and to `table`, it is read once for both."""
        from tuneoff.running.reading import Reading

        return Reading(self.study, self.store)

    def records(self) -> tuple[dict[str, Record], dict[str, TestRecord]]:
        """Return the finished runs, and the readings of the test split, by run id."""
        return self.store.records()

    def summary(self) -> "Summary":
        """Return what is known about each arm."""
        return self.read().summary

    def progress(self) -> "Progress":
        """Return how far each arm is."""
        return self.read().progress

    def time_to_go(self) -> "TimeToGo":
        """Return how long each arm, and the study, still takes by what its runs took so far."""
        return self.read().time_to_go

    def explained(self) -> dict[str, ExplainRecord]:
        """Return what was worked out of the arms' runs at their chosen rates, and of the base, by run id."""
        return self.read().explained

    def explanation(self) -> "Explanation":
        """Return when, why and how the arms differ, as far as the finished runs tell."""
        return self.read().explanation

    def num_other_runs(self) -> int:
        """Return how many finished runs in the folder the study as given does not want: other settings made them."""
        return self.read().num_other_runs

    def running(self) -> frozenset[str]:
        """Return the runs that some process works on now."""
        return self.read().running

    def charts(self) -> "dict[str, LayerChart]":
        """Return the report's charts by name (`learning`, `rates`, ...), as Altair: a notebook shows what it is given.

        Charts that have nothing to show are left out.
        """
        from tuneoff.report.charts import figures

        found = self.read()
        return figures(found.summary, found.curves, found.explanation)

    def table(self, reading: "Reading | None" = None) -> None:
        """Print the main table.

        Args:
            reading: what the folder held; none reads it now.
        """
        from rich.console import Console

        from tuneoff.report.tables import study_table

        found = reading or self.read()
        Console().print(study_table(found.summary, found.explanation))

    def report(
        self, folder: Path | None = None, *, figures: Sequence[str] = (), reading: "Reading | None" = None
    ) -> list[Path]:
        """Write report.html, .md, .csv and .json, and return their paths.

        Args:
            folder: where to; none is the study's own folder.
            figures: kinds of file (png, svg, pdf) that every chart is written as, into `figures/`.
            reading: what the folder held; none reads it now.

        Raises:
            StudyError: a kind of file that charts cannot be written as.
            StoreError: the folder cannot be written to, or none of its finished runs belongs to the study as given.
        """
        from tuneoff.report.write import write_report

        found = reading or self.read()
        if found.records and found.num_other_runs == len(found.records):
            raise StoreError(
                f"none of the {len(found.records)} finished runs in {self.store.folder} belongs to the study as given. "
                "Give the --set that they were run with."
            )
        return write_report(
            folder or self.store.folder,
            self.study,
            found.summary,
            found.curves,
            found.records,
            found.tests,
            figures,
            explanation=found.explanation,
            samples=found.samples,
        )


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


def open_result(study: Study, out: Path = DEFAULT_OUT) -> Result:
    """Return what is there of a study's results under `out`."""
    from tuneoff.running.store import Store

    return Result(study, Store(out / study.name))


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


def plan(study: Study) -> "Plan":
    """Return what the study will train and keep: matched modules and exact counts, without loading weights."""
    from tuneoff.planning.plan import plan as make_plan

    return make_plan(study)


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
