"""The command line: verbs that parse, call the Python interface, and print. No logic, and no torch at import."""

import gc
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tuneoff import __version__
from tuneoff.errors import TuneoffError

app = typer.Typer(
    name="tuneoff",
    help="A bake-off for fine-tuning methods, on your model, your data and your machine.",
    epilog="Start with `tuneoff demo`. STUDY is a study file (YAML) or the name of a recipe (`tuneoff recipes`).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="A study file (YAML) or the name of a recipe.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as budget.steps=100. Can be repeated."),
]
SmokeOption = Annotated[
    bool, typer.Option("--smoke", help="A recipe's small form, on the demo base and demo data: seconds on a CPU.")
]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the results of all studies lie.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="STUDY/ARM, or the id of a run (`tuneoff status`).")]
DEFAULT_OUT = Path("runs")
TERMINATED = 143
"""Exit code of a command that SIGTERM ended, as a shell gives it."""
PIPE_WIDTH = 1000
"""Columns of a line of a tree where the output is no terminal: more than any needs."""


def _print(what: object) -> None:
    Console().print(what)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Within the context nobody looks for garbage: what is imported and read is millions of objects, and all stay."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.freeze()  # else the interpreter would look through all of it once, on its way out
            gc.enable()


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        print(f"tuneoff {__version__}")
        raise typer.Exit


@app.command()
def demo(
    out: OutOption = DEFAULT_OUT,
    overrides: SetOption = None,
) -> None:
    """Run the whole thing on the embedded base and data: offline, on a CPU, in about two minutes."""
    from tuneoff.running.threads import num_processors

    # So small a model gains more from two runs at a time than from two threads in one.
    _run("demo", overrides, out, only=(), num_jobs=min(4, num_processors()))


@app.command(epilog="Example: `tuneoff plan dolly-llama3`")
@_uncollected()
def plan(
    study: StudyArgument,
    overrides: SetOption = None,
    smoke: SmokeOption = False,
    as_json: Annotated[bool, typer.Option("--json")] = False,
) -> None:
    """Show what each arm would train, before anything is trained: matched modules and exact parameter counts."""
    from tuneoff import api
    from tuneoff.planning.render import render

    found = api.plan(api.load(study, overrides or (), smoke=smoke))
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        _print(render(found))


@app.command(epilog="Example: `tuneoff run study.yaml --set budget.steps=200 --only lora`")
def run(
    study: StudyArgument,
    overrides: SetOption = None,
    smoke: SmokeOption = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="ARM", help="Work on this arm alone. Can be repeated.")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Processes at a time.")] = 1,
    cohort: Annotated[
        str,
        typer.Option(
            "--cohort",
            metavar="N|auto|off",
            help="LoRA runs that one process trains in one pass over the frozen base, at most; auto: on a GPU alone.",
        ),
    ] = "auto",
    time: Annotated[
        str | None,
        typer.Option("--time", metavar="8h", help="Stop after so long (90m, 1h30m, 3600 s), with a report; resumable."),
    ] = None,
    out: OutOption = DEFAULT_OUT,
) -> None:
    """Train what is missing and nothing that is done. The same command resumes."""
    _run(study, overrides, out, tuple(only or ()), jobs, smoke=smoke, cohort=cohort, time=time)


@app.command()
@_uncollected()
def status(
    study: StudyArgument,
    overrides: SetOption = None,
    smoke: SmokeOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    out: OutOption = DEFAULT_OUT,
) -> None:
    """Show what is done, running, infeasible and left, and how long it still takes."""
    from tuneoff import api
    from tuneoff.report.status import run_listing, status_json, status_table
    from tuneoff.report.to_go import explained, under_way_lines

    result = api.open_result(api.load(study, overrides or (), smoke=smoke), out)
    reading = result.read()
    progress, to_go, begun = reading.progress, reading.time_to_go, reading.under_way
    if as_json:
        print(status_json(progress, to_go, begun))
        return
    _print(status_table(progress, reading.running, begun.keys(), to_go))
    for text in (under_way_lines(progress, result.study.seeds, begun, reading.num_steps), Text(explained(to_go))):
        if text:
            _print(text)
    _print(run_listing(progress))
    _print(Text(f"Results: {result.store.folder}"))
    num_others = reading.num_other_runs
    if num_others:
        _print(Text(f"{num_others} other finished runs there have other settings (another --set?).", style="yellow"))


@app.command(epilog="Example: `tuneoff report study.yaml`, or with every chart as files `--figures png,svg`")
@_uncollected()
def report(
    study: StudyArgument,
    overrides: SetOption = None,
    figures: Annotated[
        str, typer.Option("--figures", metavar="FORMATS", help="Write every chart as files too: png, svg, pdf.")
    ] = "",
    smoke: SmokeOption = False,
    out: OutOption = DEFAULT_OUT,
) -> None:
    """Print the table; write the page, Markdown, CSV and JSON. Can be had at any time."""
    from tuneoff import api

    result = api.open_result(api.load(study, overrides or (), smoke=smoke), out)
    reading = result.read()
    paths = result.report(figures=[form.strip() for form in figures.split(",") if form.strip()], reading=reading)
    result.table(reading)
    _say_report(paths)


@app.command(
    epilog="Example: `tuneoff export demo/lora-rank16 adapter` (then `PeftModel.from_pretrained(base, 'adapter')`)"
)
def export(
    run_name: RunArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; made if it is not there.")],
    merge: Annotated[bool, typer.Option("--merge", help="Fold the adapter into the base: a plain model.")] = False,
    out: OutOption = DEFAULT_OUT,
) -> None:
    """Write a run as a PEFT adapter folder, or as a merged Hugging Face model."""
    from tuneoff.running.use import export_run

    _print(Text(export_run(out, run_name, folder, merge=merge)))


@app.command(epilog='Example: `tuneoff generate demo/lora-rank16 "Tell me a story."`')
def generate(
    run_name: RunArgument,
    prompt: Annotated[
        str,
        typer.Argument(help="Text to go on from or to classify, an instruction or a question: as the study trains."),
    ],
    context: Annotated[str, typer.Option("--context", help="What the instruction or the question is about.")] = "",
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1)] = 64,
    temperature: Annotated[
        float | None, typer.Option("--temperature", help="Draw tokens; below 1 the likelier.")
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Draw among the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option("--top-p", help="Draw among those with this much probability.")] = None,
    beams: Annotated[int | None, typer.Option("--beams", help="Beam search of this width; nothing is drawn.")] = None,
    out: OutOption = DEFAULT_OUT,
) -> None:
    """Try a trained run against its base, on one prompt; greedily unless told otherwise."""
    from tuneoff import api
    from tuneoff.running.use import compare_on_prompt

    console = Console()
    decoding = api.decoding(temperature=temperature, top_k=top_k, top_p=top_p, beams=beams)
    for who, text in compare_on_prompt(out, run_name, prompt, max_new_tokens, decoding, context=context):
        console.rule(Text(who), align="left")
        console.print(Text(text))


@app.command(
    epilog="Examples: `tuneoff score --predictions predictions.json --references dev-v1.1.json` (SQuAD); "
    "`tuneoff score --predictions predictions.json --references labels.json` (classes); "
    "`tuneoff score --predictions generations.jsonl --metric rougeL --metric 'regex:\\d+'` (its own references)"
)
def score(
    predictions: Annotated[
        Path,
        typer.Option(
            "--predictions",
            metavar="P",
            help="JSON ({id: text}, a list of texts or classes), JSON lines, CSV, TSV, Parquet, or one text a line.",
        ),
    ],
    references: Annotated[
        Path | None,
        typer.Option(
            "--references",
            metavar="R",
            help="The same, or SQuAD's JSON; left out, they are taken from P (generations.jsonl has them).",
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="accuracy, f1, macro_f1 of classes; exact_match, f1, rouge1, rouge2, rougeL, bleu, regex:PATTERN, "
            "module:function of texts. Can be repeated.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score saved predictions of any task, whoever wrote them."""
    from tuneoff import api

    found = api.score(predictions, references, tuple(metrics or ()))
    if as_json:
        print(found.model_dump_json(indent=2, exclude_none=True))
    else:
        from tuneoff.report.scores import score_table

        _print(score_table(found))


@app.command()
def recipes() -> None:
    """List the reference studies."""
    from tuneoff import api

    for name in api.recipe_names():
        _print(Text.assemble((f"{name:<16}", "bold"), api.load(name).about))


@app.command(
    epilog="Examples: `tuneoff modules gpt2`, `tuneoff modules dolly-llama3 --arm lora-r16`, "
    "`tuneoff modules gpt2 --study study.yaml`"
)
def modules(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|STUDY", help="Hub id, folder, config.json or demo; or a study, whose arms are then marked."
        ),
    ],
    study: Annotated[
        str | None, typer.Option("--study", metavar="STUDY", help="Mark what its arms adapt in this model.")
    ] = None,
    arms: Annotated[
        list[str] | None, typer.Option("--arm", metavar="ARM", help="Mark this arm alone. Can be repeated.")
    ] = None,
    overrides: SetOption = None,
    smoke: SmokeOption = False,
) -> None:
    """Draw a model's architecture: its layers, which of them can be targets, and what a study's arms adapt."""
    from tuneoff import api
    from tuneoff.planning.tree import architecture_tree

    found = api.modules(model, study, arms=arms or (), overrides=overrides or (), smoke=smoke)
    console = Console()
    # A pipe has no width, so nothing is folded there; a terminal's lines are folded within the tree.
    console = console if console.is_terminal else Console(width=PIPE_WIDTH)
    console.print(architecture_tree(found))


@contextmanager
def _stoppable() -> Iterator[None]:
    """Within the context Ctrl-C and SIGTERM end with a line that says how to go on; Typer would end without a word."""
    try:
        yield
    except KeyboardInterrupt:
        code = 130
    except SystemExit as end:
        if end.code != TERMINATED:
            raise
        code = TERMINATED
    else:
        return
    Console(stderr=True).print("stopped; the same command goes on from the last checkpoints")
    raise typer.Exit(code)


@_stoppable()
def _run(
    source: str,
    overrides: list[str] | None,
    out: Path,
    only: tuple[str, ...],
    num_jobs: int,
    *,
    smoke: bool = False,
    cohort: str = "auto",
    time: str | None = None,
) -> None:
    from tuneoff.running import fork_server

    fork_server.start_early()
    from tuneoff import api
    from tuneoff.planning.render import module_listing
    from tuneoff.report.live import Live
    from tuneoff.report.to_go import what_is_left

    ends_at = None if time is None else monotonic() + api.seconds_of(time)
    console = Console()
    study = api.load(source, overrides or (), smoke=smoke)
    checked = api.check(study)
    for line in checked.lines():
        console.print(Text(line))
    console.print(Text(module_listing(checked.plan)))
    before = api.open_result(study, out)
    with Live(console, before.progress().num_left) as live:
        time_s = None if ends_at is None else ends_at - monotonic()
        result = api.run(
            study, out, only=only, num_jobs=num_jobs, cohort=cohort, time_s=time_s, checked=checked, listener=live
        )
    reading = result.read()
    result.table(reading)
    _say_report(result.report(reading=reading))
    if result.is_cut:
        console.print(what_is_left(reading.time_to_go, shlex.join(["tuneoff", *sys.argv[1:]])), soft_wrap=True)
    if result.failed:
        raise typer.Exit(1)


def _say_report(paths: list[Path]) -> None:
    page = next(path for path in paths if path.suffix == ".html")
    others = ", ".join(str(path.relative_to(page.parent)) for path in paths if path != page)
    _print(Text.assemble("Page: ", (str(page), "bold"), f" (also {others})"))


def main() -> None:
    """Run the command line; a `TuneoffError` is one message on stderr and its own exit code."""
    try:
        app()
    except TuneoffError as error:
        Console(stderr=True).print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
