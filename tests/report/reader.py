"""Reads a page as a test needs it: its elements, its texts, the words of one section."""

from html.parser import HTMLParser


class Reader(HTMLParser):
    """Keeps the page's elements, texts and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.styles: list[str] = []
        self.texts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        {"script": self.scripts, "style": self.styles}.get(self._inside, self.texts).append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def section(text: str, heading: str) -> str:
    """Return the words of the section with this heading."""
    (found,) = (part for part in text.split("<section")[1:] if f">{heading}</h2>" in part)
    return Reader(f"<section{found}").text
