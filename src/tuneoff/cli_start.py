"""The verbs of the first hour: `init` and `doctor`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from tuneoff.report.console import SafeConsole as Console

KINDS = "text, instruction, qa or classification"


def add_verbs(app: typer.Typer) -> None:
    """Give the command line these verbs."""
    app.command()(doctor)
    app.command(
        epilog="Examples: `tuneoff init train.csv --model gpt2`, "
        "`tuneoff init rows.csv --model gpt2 --kind classification --column text=body --column label=stars`"
    )(init)


def init(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file, a folder, a hub id, or demo.")],
    model: Annotated[str, typer.Option("--model", metavar="M", help="Hub id, folder, or demo.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The study file to write.")] = Path("study.yaml"),
    kind: Annotated[
        str | None, typer.Option("--kind", metavar="KIND", help=f"{KINDS}; left out, the data tell.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="PART=NAME", help="Which column holds a part: text=body. Can be repeated."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Look at data and at this machine, and write a commented study file that fits both."""
    from tuneoff import api
    from tuneoff.starting.render import started_table

    found = api.init(data, model, out, kind=kind, columns=columns or (), force=force)
    if as_json:
        print(found.model_dump_json(indent=2, exclude={"text", "study"}))
    else:
        Console().print(started_table(found))


def doctor(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the results of all studies lie.")] = Path(
        "runs"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what this machine can do: devices, precisions, memory, disk, packages, hub. Exit code 1 if nothing runs."""
    from tuneoff.starting.doctor import examine
    from tuneoff.starting.doctor_table import diagnosis_table

    found = examine(out)
    if as_json:
        print(json.dumps(found.plain(), indent=2))
    else:
        Console().print(diagnosis_table(found))
    if not found.is_able:
        raise typer.Exit(1)
