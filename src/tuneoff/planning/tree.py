"""A model's architecture as a tree for the terminal, with what arms adapt in colour."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from tuneoff.planning.modules import Architecture, ArmTotal, Module

STYLES = ("green", "cyan", "magenta", "yellow", "blue", "red")
"""Of the arms, in turn."""


def architecture_tree(found: Architecture) -> RenderableType:
    """Return the tree, and below it what each arm trains in all."""
    styles = {arm.arm: STYLES[place % len(STYLES)] for place, arm in enumerate(found.arms)}
    labels = {arm.arm: arm.label for arm in found.arms}
    head = Text.assemble((found.model, "bold"), f"  {found.kind}, {found.num_parameters:,} parameters")
    tree = Tree(head, guide_style="dim")
    for mark in _marks(found.root, styles, labels):
        tree.add(mark)
    _grow(tree, found.root, styles, labels)
    totals = [_total(arm, styles[arm.arm]) for arm in found.arms]
    targets = Text(f"targets: {', '.join(found.targets)}; all-linear is all of them")
    return Group(tree, Text(), *(totals or [targets]))


def _grow(tree: Tree, module: Module, styles: dict[str, str], labels: dict[str, str]) -> None:
    for part in module.below:
        branch = tree.add(_line(part))
        for mark in _marks(part, styles, labels):
            branch.add(mark)
        _grow(branch, part, styles, labels)


def _line(module: Module) -> Text:
    times = f"{module.num_modules:,} x " if module.num_modules > 1 else ""
    what = " ".join(part for part in (f"{times}{module.kind}", module.size) if part)
    count = f"{module.num_parameters:,}" if module.num_parameters or not module.tied_to else ""
    tie = f"tied to {module.tied_to}, counted there" if module.tied_to else ""
    told = "  ".join(part for part in (what, count, tie) if part)
    return Text.assemble((module.names, "bold"), "  ", (told, "dim" if module.tied_to else ""))


def _marks(module: Module, styles: dict[str, str], labels: dict[str, str]) -> Iterator[Text]:
    for mark in module.marks:
        whose = f"{labels[mark.arm]}" if len(labels) == 1 else f"{labels[mark.arm]} ({mark.arm})"
        if mark.added:
            yield Text(f"+ {whose}: {mark.added:,}", style=styles[mark.arm])
        if mark.trained:
            all_of_it = "all " if mark.trained == module.num_parameters else ""
            yield Text(f"* {whose}: trains {all_of_it}{mark.trained:,}", style=styles[mark.arm])


def _total(arm: ArmTotal, style: str) -> Text:
    if arm.reason:
        return Text.assemble((f"{arm.arm} ({arm.label}): ", style), f"not on this model: {arm.reason}")
    share = 100.0 * arm.trainable / arm.total if arm.total else 0.0
    numbers = f"{arm.trainable:,} of {arm.total:,} parameters are trained ({share:.4f} %)"
    return Text.assemble((f"{arm.arm} ({arm.label}): ", style), numbers)
