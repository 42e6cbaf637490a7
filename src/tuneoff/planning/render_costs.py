"""The costs of a plan as text for the terminal: what each arm needs and takes, of what its memory is, what fits."""

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tuneoff.planning.plan import ArmPlan, Plan
from tuneoff.planning.words import NOTHING, bytes_text, empty_table, shared
from tuneoff.study.predicted import PARTS, Predicted, Seconds

MINUTE, HOUR, DAY = 60, 3600, 86400
PART_NAMES = {"key_values": "keys, values"}
HALVED_NAMES = {"evaluation_tokens": "tokens scored", "generation_rows": "texts written"}
FLOP_UNITS = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))


def cost_parts(plan: Plan) -> Iterator[RenderableType]:
    """Yield the tables of costs, and the lines below them; nothing where no costs were asked for."""
    if plan.room is None:
        return
    yield needs_table(plan)
    yield parts_table(plan)
    lines = list(cost_lines(plan))
    if lines:
        yield Text("\n".join(lines))


def needs_table(plan: Plan) -> Table:
    """Return memory, fit and time of each arm."""
    table = empty_table("arm", numbers=("memory", "while"))
    table.add_column("fits")
    for name in ("a step", "a run", "all runs", "FLOP/step"):
        table.add_column(name, justify="right")
    for arm in plan.arms:
        found = arm.predicted
        if found is None:
            table.add_row(arm.name, *[NOTHING] * 7)
            continue
        train = found.phases.get("train")
        table.add_row(
            arm.name,
            bytes_text(found.needed_bytes),
            max(found.phases, key=lambda phase: found.phases[phase].peak_bytes),
            _fits(arm),
            _optional(found.step_s),
            _optional(found.run_s),
            NOTHING if found.total_s is None else range_text(found.total_s),
            NOTHING if train is None else flop_text(train.flop),
        )
    return table


def _fits(arm: ArmPlan) -> str:
    if arm.fit is None:
        return NOTHING
    if arm.fit.fits:
        return "yes" + (", changed" if arm.changed is not None else "") + (", halved" if arm.fit.halved else "")
    return f"no, {bytes_text(arm.fit.missing_bytes)} more"


def parts_table(plan: Plan) -> Table:
    """Return of what each arm's memory is made where it is highest, arms that are alike once."""
    known = [(arm.name, arm.predicted) for arm in plan.arms if arm.predicted is not None]
    used = [part for part in PARTS if any(_highest(found).get(part) for _, found in known)]
    names = [PART_NAMES.get(part, part) for part in used]
    table = empty_table("of which", numbers=names)
    rows = ((name, tuple(bytes_text(_highest(found).get(part, 0)) for part in used)) for name, found in known)
    for cells, arms in shared(rows):
        table.add_row(", ".join(arms), *cells)
    return table


def _highest(found: Predicted) -> dict[str, int]:
    return dict(max(found.phases.values(), key=lambda phase: phase.peak_bytes).parts)


def cost_lines(plan: Plan) -> Iterator[str]:
    """Yield what does not fit and what makes it, how the figures are made, and the totals."""
    room = plan.room
    assert room is not None, "asked for only where there is one"
    size = bytes_text(room.total_bytes)
    whole = room.where if size in room.where else f"{room.where}, {size}"
    yield (
        f"memory: {whole}, of which {bytes_text(room.tensor_bytes)} can be tensors; "
        f"{bytes_text(room.process_bytes)} of the process beside them is in the column memory"
    )
    for change, names in shared((arm.name, arm.changed.text()) for arm in plan.arms if arm.changed is not None):
        yield f"changed to fit: {', '.join(names)}: {change}"
    fits = [(arm.name, arm.fit) for arm in plan.arms if arm.fit is not None]
    for halved, names in shared((name, tuple(fit.halved.items())) for name, fit in fits if fit.fits and fit.halved):
        what = " and ".join(f"{size:,} {HALVED_NAMES[kind]}" for kind, size in halved)
        yield f"halved by the run itself: {', '.join(names)}: {what} at a time"
    for arm in plan.arms:
        if arm.fit is not None and not arm.fit.fits:
            yield _unfit_line(arm)
    if plan.speed_basis:
        yield f"times: {plan.device}, {plan.speed_basis}; without loading, saving and explaining"
    yield from plan.notes
    total, store = plan.total_s, bytes_text(plan.store_bytes)
    taken = _untimed(plan) if total is None else range_text(total)
    yield f"all arms, one run after another: {taken}; {store} on disk at the end"


def _untimed(plan: Plan) -> str:
    """Return why there is no time."""
    if plan.speed_basis:
        return "no time, as the data were not read"
    return "no time, as nothing is known of the device's speed (--device NAME)"


def _unfit_line(arm: ArmPlan) -> str:
    fit = arm.fit
    assert fit is not None
    lacks = f"{arm.name} does not fit: {bytes_text(fit.needed_bytes)} of tensors in {bytes_text(fit.room_bytes)}"
    if fit.change is None:
        return f"{lacks}; nothing that was tried makes it fit"
    what = "other numbers" if fit.change.moves_numbers else "the same effective batch and gradient"
    return f"{lacks}; it does with {fit.change.text()} ({bytes_text(fit.changed_bytes or 0)}; {what})"


def _optional(value: float | None) -> str:
    return NOTHING if value is None else seconds_text(value)


def range_text(value: Seconds) -> str:
    """Return a time, or from when to when: `2 h 5 min to 3 h`."""
    fewest, most = seconds_text(value.fewest), seconds_text(value.most)
    return fewest if fewest == most else f"{fewest} to {most}"


def seconds_text(value: float) -> str:
    """Return a time as people say it, with two or three digits: 0.0123 gives `12 ms`, 7506 `2 h 5 min`."""
    if value < 0.9995:
        return f"{value * 1000:.3g} ms" if value >= 0.0001 else f"{value * 1e6:.2g} us"
    if value < MINUTE:
        return f"{value:.3g} s"
    if value < 10 * MINUTE:
        whole = round(value)
        return f"{whole // MINUTE} min {whole % MINUTE} s" if whole % MINUTE else f"{whole // MINUTE} min"
    if value < 2 * DAY:
        minutes = round(value / MINUTE)
        hours, rest = divmod(minutes, 60)
        return f"{minutes} min" if not hours else f"{hours} h {rest} min" if rest and hours < 10 else f"{hours} h"
    return f"{value / DAY:,.3g} days"


def flop_text(value: float) -> str:
    """Return a number of floating-point operations with three digits and a unit."""
    for size, unit in FLOP_UNITS:
        if value >= 0.9995 * size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} FLOP"
