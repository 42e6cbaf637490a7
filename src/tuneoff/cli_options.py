"""What several verbs of the command line take, and how they print."""

from pathlib import Path
from typing import Annotated

import typer

from tuneoff.report.console import SafeConsole as Console

StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="A study file (YAML) or the name of a recipe.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as budget.steps=100. Can be repeated."),
]
SmokeOption = Annotated[
    bool, typer.Option("--smoke", help="A recipe's small form, on the demo base and demo data: seconds on a CPU.")
]
FitOption = Annotated[
    str | None,
    typer.Option(
        "--fit",
        metavar="[=FIT]",
        help="Change what does not fit so that it does: a smaller micro-batch and gradient checkpointing, which keep "
        "the effective batch and its gradient. --fit=all also takes bf16, QLoRA and shorter sequences; `run --fit=off` "
        "drops what an earlier --fit changed.",
    ),
]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the results of all studies lie.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="STUDY/ARM, or the id of a run (`tuneoff status`).")]
DEFAULT_OUT = Path("runs")


def say(what: object) -> None:
    """Print text or a table."""
    Console().print(what)
