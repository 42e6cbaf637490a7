"""SQuAD's JSON: articles, their paragraphs, and the questions on each, as one row for each question.

The layout is that of Rajpurkar et al., 2016, arXiv:1606.05250: `{"data": [{"title", "paragraphs": [{"context", "qas":
[{"id", "question", "answers": [{"text", "answer_start"}]}]}]}]}`. Rows have the columns that the hub's copy has.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from tuneoff.data.problems import Problems, shown

T = TypeVar("T")


def holds_articles(rows: Sequence[Any]) -> bool:
    """Whether rows of a JSON file are articles with paragraphs."""
    return bool(rows) and isinstance(rows[0], dict) and "paragraphs" in rows[0]


def questions(articles: Sequence[Any], file: str, problems: Problems) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield for each question its row (title, context, id, question, answers) and its place in words.

    A row has the keys that its question has; a missing one is found where the columns are looked at.

    Args:
        articles: the file's `data`.
        file: how errors name it.
        problems: where what is no article, paragraph or question is noted.
    """
    for number, article in enumerate(articles, start=1):
        place = f"article {number}"
        title = article.get("title") if isinstance(article, dict) else None
        if isinstance(title, str):
            place += f" ({shown(title)})"
        for at, paragraph in enumerate(_listed(article, "paragraphs", place, file, problems), start=1):
            here = f"{place}, paragraph {at}"
            for asked, question in enumerate(_listed(paragraph, "qas", here, file, problems), start=1):
                there = f"{here}, question {asked}"
                if not isinstance(question, dict):
                    problems.add(f"{there}: expected an object, found {shown(question)}", file=file)
                    continue
                yield {"title": title, "context": paragraph.get("context")} | question, there


def spread(found: Sequence[T], limit: int, article_of: Callable[[T], str]) -> list[T]:
    """Return `limit` of the questions in the file's order, taken in turn from every article.

    The first ones of the file would be those of an article or two, and splits are cut by article.
    """
    seen: Counter[str] = Counter()
    turns = []
    for place, one in enumerate(found):
        article = article_of(one)
        turns.append((seen[article], place))
        seen[article] += 1
    return [found[place] for place in sorted(place for _, place in sorted(turns)[:limit])]


def _listed(holder: Any, key: str, place: str, file: str, problems: Problems) -> list[Any]:
    """Return the list under `key`, or note what is there instead."""
    value = holder.get(key) if isinstance(holder, dict) else holder
    if isinstance(holder, dict) and isinstance(value, list):
        return value
    expected = f"expected an object with a list of {key}" if not isinstance(holder, dict) else "expected a list"
    problems.add(f"{place}: {expected}, found {shown(value)}", file=file, column=key)
    return []
