"""What each arm wrote, or chose, for the same items of the test split, side by side."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tuneoff.analysis.values import Summary
from tuneoff.report.text import clean, clean_lines
from tuneoff.study.explained import Sample

MAX_ARMS = 24
"""Texts of one item that are shown, the highest ranked arms first."""
MAX_CHARACTERS = 4000
"""Of a prompt or a text; the middle of a longer one is cut out, and that is said."""
TITLE_CHARACTERS = 90


@dataclass(frozen=True)
class Written:
    """What one arm wrote."""

    arm: str
    text: str
    is_reference: bool
    """Whether it is the reference, to the letter."""


@dataclass(frozen=True)
class Example:
    """One item, with what every arm wrote."""

    item: str
    title: str
    """The beginning of the last line that is the prompt's own, and not of the template of all."""
    prompt: str
    reference: str
    texts: tuple[Written, ...]
    num_left_out: int
    """Arms whose text is not shown."""


def examples(summary: Summary, samples: Mapping[str, Sequence[Sample]]) -> tuple[Example, ...]:
    """Return the items that arms wrote something for, in the order of the first arm that has them.

    Args:
        summary: what is known; arms are shown as they rank.
        samples: what each arm wrote, by its name.
    """
    names = [arm.name for arm in summary.ranked if samples.get(arm.name)]
    items: dict[str, dict[str, Sample]] = {}
    for name in names:
        for sample in samples[name]:
            items.setdefault(sample.item, {})[name] = sample
    lines = [_lines(found) for found in items.values()]
    shared = set.intersection(*map(set, lines)) if len(lines) > 1 else set()
    return tuple(_example(found, shared) for found in items.values())


def _lines(found: Mapping[str, Sample]) -> list[str]:
    """Return the lines of an item's prompt that say something."""
    return [line for line in clean_lines(next(iter(found.values())).prompt).splitlines() if line.strip()]


def _example(found: Mapping[str, Sample], shared: Collection[str]) -> Example:
    first = next(iter(found.values()))
    lines = _lines(found)
    title = clean(([line for line in lines if line not in shared] or lines or [""])[-1])
    texts = tuple(
        Written(arm, shown(sample.text), is_reference=clean(sample.text) == clean(sample.reference) != "")
        for arm, sample in list(found.items())[:MAX_ARMS]
    )
    return Example(
        item=clean(first.item),
        title=title if len(title) <= TITLE_CHARACTERS else f"{title[:TITLE_CHARACTERS].rstrip()}\u2026",
        prompt=shown(first.prompt),
        reference=shown(first.reference),
        texts=texts,
        num_left_out=max(0, len(found) - MAX_ARMS),
    )


def shown(text: str) -> str:
    """Return a text cleaned, its lines kept, and cut where it is very long."""
    whole = clean_lines(text)
    if len(whole) <= MAX_CHARACTERS:
        return whole
    half = MAX_CHARACTERS // 2
    return f"{whole[:half]}\n[{len(whole) - 2 * half:,} characters are left out here]\n{whole[-half:]}"
