"""What `tuneoff doctor` found, as a table for the terminal."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuneoff.starting.doctor import Diagnosis

MARKS = {"ok": ("", ""), "note": ("note", "yellow"), "broken": ("broken", "bold red")}


def diagnosis_table(diagnosis: Diagnosis) -> RenderableType:
    """Return a row for each finding, and a line on what they come to."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("", "found", "", "what it means, what to do"):
        table.add_column(name, overflow="fold")
    last = ""
    for check in diagnosis.checks:
        if check.group != last:
            table.add_row(Text(check.group, style="bold"))
        last = check.group
        word, style = MARKS[check.state]
        table.add_row(Text(f"  {check.name}"), Text(check.found), Text(word, style=style), Text(check.advice))
    broken = [check.name for check in diagnosis.checks if check.state == "broken"]
    end = f"No study can run before this is mended: {', '.join(broken)}." if broken else "Studies can run here."
    return Group(table, Text(), Text(end, style="bold"))
