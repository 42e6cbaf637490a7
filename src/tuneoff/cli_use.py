"""The verbs that use what was trained: `export`, `generate`, `score`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from tuneoff.cli_options import DEFAULT_OUT, OutOption, RunArgument, say
from tuneoff.report.console import SafeConsole as Console
from tuneoff.report.text import clean_lines


def add_verbs(app: typer.Typer) -> None:
    """Give the command line these verbs."""
    app.command(
        epilog="Example: `tuneoff export demo/lora-rank16 adapter` (then `PeftModel.from_pretrained(base, 'adapter')`)"
    )(export)
    app.command(epilog='Example: `tuneoff generate demo/lora-rank16 "Tell me a story."`')(generate)
    app.command(
        epilog="Examples: `tuneoff score --predictions predictions.json --references dev-v1.1.json` (SQuAD); "
        "`tuneoff score --predictions predictions.json --references labels.json` (classes); "
        "`tuneoff score --predictions generations.jsonl --metric rougeL --metric 'regex:\\d+'` (its own references)"
    )(score)


def export(
    run_name: RunArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; made if it is not there.")],
    merge: Annotated[bool, typer.Option("--merge", help="Fold the adapter into the base: a plain model.")] = False,
    out: OutOption = DEFAULT_OUT,
) -> None:
    """Write a run as a PEFT adapter folder, or as a merged Hugging Face model."""
    from tuneoff.running.use import export_run

    say(Text(export_run(out, run_name, folder, merge=merge)))


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
        console.print(Text(clean_lines(text)), soft_wrap=True)  # what is piped keeps its own lines


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

        say(score_table(found))
