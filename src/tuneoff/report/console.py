"""The console that all is printed on: whatever a text was made from, no control character of it reaches a terminal.

Texts are cleaned where they are put into tables and charts (see `text`), which also takes whole escape codes out. This
is the wall behind that: of a text that was forgotten the escape character is missing, and the rest is harmless.
"""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from tuneoff.report.text import without_controls


class SafeConsole(Console):
    """A console that prints text and its own styles, and nothing else."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of what is printed, control characters taken out of their texts."""
        for segment in super().render(renderable, options):
            if segment.control or (segment.text.isascii() and segment.text.isprintable()) or segment.text == "\n":
                yield segment
            else:
                yield Segment(without_controls(segment.text), segment.style, segment.control)
