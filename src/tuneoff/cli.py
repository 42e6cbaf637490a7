"""The command line: verbs that parse, call the Python interface, and print. No logic, and no torch at import."""

import gc
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Annotated

import typer
from rich.text import Text

from tuneoff import __version__, cli_start, cli_use
from tuneoff.cli_options import DEFAULT_OUT, FitOption, OutOption, SetOption, SmokeOption, StudyArgument, say
from tuneoff.errors import TuneoffError
from tuneoff.report.console import SafeConsole as Console
from tuneoff.report.text import clean_lines

app = typer.Typer(
    name="tuneoff",
    help="A bake-off for fine-tuning methods, on your model, your data and your machine.",
    epilog="Start with `tuneoff demo`. STUDY is a study file (YAML) or the name of a recipe (`tuneoff recipes`).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

STOPPED = "stopped; the same command goes on from what is done"
TERMINATED = 143
"""Exit code of a command that SIGTERM ended, as a shell gives it."""
PLAN_WIDTH = 120
PIPE_WIDTH = 1000
"""Columns of a line of a tree where the output is no terminal: more than any needs."""


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


cli_start.add_verbs(app)


@app.command()
def demo(
    out: OutOption = DEFAULT_OUT,
    overrides: SetOption = None,
) -> None:
    """Run the whole thing on the embedded base and data: offline, on a CPU, in about two minutes."""
    from tuneoff.running.threads import num_processors

    # So small a model gains more from two runs at a time than from two threads in one.
    _run("demo", overrides, out, only=(), num_jobs=min(4, num_processors()))


@app.command(
    epilog="Examples: `tuneoff plan dolly-llama3 --device 'RTX 4090'`, `tuneoff plan study.yaml --device-memory 6GB "
    "--fit -o small.yaml`. FIT is which changes may be made so that an arm fits, with commas: micro_batch and "
    "gradient_checkpointing (tried always, they move no number), bf16, qlora, length, or all."
)
@_uncollected()
def plan(
    study: StudyArgument,
    overrides: SetOption = None,
    smoke: SmokeOption = False,
    device: Annotated[
        str | None, typer.Option("--device", metavar="NAME", help="Plan for a GPU by its name, such as 'RTX 4090'.")
    ] = None,
    device_memory: Annotated[
        str | None, typer.Option("--device-memory", metavar="SIZE", help="Plan for so much memory, such as 6GB.")
    ] = None,
    fit: FitOption = None,
    write: Annotated[
        Path | None, typer.Option("--write", "-o", metavar="FILE", help="With --fit: write the changed study there.")
    ] = None,
    recalibrate: Annotated[bool, typer.Option("--recalibrate", help="Measure this machine's speed again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what each arm would train and cost, before anything is trained: counts, memory, time, disk, what fits."""
    from tuneoff import api, fork_server

    loaded = api.load(study, overrides or (), smoke=smoke)
    if write is not None:
        api.check_fitted(fit)
    api.check_plan(device, device_memory, fit)
    fork_server.start_early(fork_server.FOR_PLANS)
    with fork_server.interrupts_end_it("stopped"):
        from tuneoff.planning.render import render

    with Console(stderr=True).status(f"looking at the data and at a step of each of {len(loaded.arms)} arms"):
        found = api.plan(loaded, device=device, device_memory=device_memory, fit=fit, recalibrate=recalibrate)
    if write is not None:
        api.write_fitted(found, fit, study, write, overrides or (), smoke=smoke)
    if as_json:
        print(found.model_dump_json(indent=2))
    else:
        console = Console()
        # A pipe has no width of its own, and is read by programs and in editors.
        console = console if console.is_terminal or "COLUMNS" in os.environ else Console(width=PLAN_WIDTH)
        console.print(render(found))


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
    fit: FitOption = None,
    time: Annotated[
        str | None,
        typer.Option("--time", metavar="8h", help="Stop after so long (90m, 1h30m, 3600 s), with a report; resumable."),
    ] = None,
    out: OutOption = DEFAULT_OUT,
) -> None:
    """Train what is missing and nothing that is done. The same command resumes."""
    _run(study, overrides, out, tuple(only or ()), jobs, smoke=smoke, cohort=cohort, fit=fit, time=time)


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
    say(status_table(progress, reading.running, begun.keys(), to_go))
    for text in (under_way_lines(progress, result.study.seeds, begun, reading.num_steps), Text(explained(to_go))):
        if text:
            say(text)
    say(run_listing(progress))
    say(Text(f"Results: {result.store.folder}"))
    num_others = reading.num_other_runs
    if num_others:
        say(Text(f"{num_others} other finished runs there have other settings (another --set?).", style="yellow"))
    _say_problems(reading.store.problems)


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
    _say_problems(reading.store.problems)


cli_use.add_verbs(app)


@app.command()
def recipes() -> None:
    """List the reference studies."""
    from tuneoff import api

    for name in api.recipe_names():
        say(Text.assemble((f"{name:<16}", "bold"), api.load(name).about))


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
    Console(stderr=True).print(STOPPED)
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
    fit: str | None = None,
) -> None:
    from tuneoff import api, fork_server

    ends_at = None if time is None else monotonic() + api.seconds_of(time)
    study = api.load(source, overrides or (), smoke=smoke)
    api.check_run(study, only, cohort, fit)
    fork_server.start_early()
    with fork_server.interrupts_end_it(STOPPED):
        from tuneoff.planning.render import module_listing
        from tuneoff.report.live import Live
        from tuneoff.report.to_go import what_is_left

    console = Console()
    study, changed = api.fit(study, out, fit)
    for line in changed:
        console.print(Text(line))
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


def _say_problems(problems: list[str]) -> None:
    """Say which files are torn, or cannot be read, and so are not in what was shown."""
    for problem in problems:
        say(Text(problem, style="yellow"))


def _say_report(paths: list[Path]) -> None:
    page = next(path for path in paths if path.suffix == ".html")
    others = ", ".join(str(path.relative_to(page.parent)) for path in paths if path != page)
    say(Text.assemble("Page: ", (str(page), "bold"), f" (also {others})"))


def main() -> None:
    """Run the command line; a `TuneoffError` is one message on stderr and its own exit code."""
    # an option whose value may be left out, which Typer does not know
    sys.argv = [f"{argument}=same" if argument == "--fit" else argument for argument in sys.argv]
    try:
        app()
    except TuneoffError as error:
        Console(stderr=True).print(Text.assemble(("error: ", "bold red"), clean_lines(str(error))), soft_wrap=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
