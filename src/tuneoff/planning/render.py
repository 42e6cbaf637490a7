"""A plan as text for the terminal: counts, costs, and below them what the target patterns matched."""

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tuneoff.planning.plan import ArmPlan, Plan, TargetMatch
from tuneoff.planning.power import power_text
from tuneoff.planning.render_costs import cost_parts
from tuneoff.planning.words import NOTHING, empty_table, shared
from tuneoff.planning.words import bytes_text as bytes_text
from tuneoff.study.labels import bias_label, lora_name
from tuneoff.study.methods import BottleneckMethod, LoadMethod, LoraMethod, PeftMethod, PrefixMethod, PromptMethod


def render(plan: Plan) -> RenderableType:
    """Return the whole plan."""
    head = f"{plan.study}: {plan.model} ({plan.architecture}, {plan.num_parameters:,} parameters), {plan.precision}"
    parts: list[RenderableType] = [
        Text(head, style="bold"),
        parameter_table(plan),
        cost_table(plan),
        *cost_parts(plan),
        Text(totals(plan)),
    ]
    if plan.power is not None:
        parts.append(Text(power_text(plan.power)))
    listing = module_listing(plan)
    if listing:
        parts.append(Text(listing))
    return Group(*_spaced(parts))


def _spaced(parts: Sequence[RenderableType]) -> Iterator[RenderableType]:
    for place, part in enumerate(parts):
        if place:
            yield Text()
        yield part


def parameter_table(plan: Plan) -> Table:
    """Return what each arm trains."""
    table = empty_table("arm", "method", numbers=("trainable", "all", "share", "reduction"))
    for arm in plan.arms:
        parameters = arm.parameters
        table.add_row(
            arm.name,
            method_label(arm),
            f"{parameters.trainable:,}" if not arm.problem else NOTHING,
            f"{parameters.total:,}" if not arm.problem else NOTHING,
            f"{parameters.share_pct:.4f} %" if not arm.problem else NOTHING,
            NOTHING if arm.reduction_pct is None else f"{arm.reduction_pct:.2f} %",
        )
    return table


def cost_table(plan: Plan) -> Table:
    """Return at which rates and how often each arm runs, and the bytes that it leaves on the disk."""
    table = empty_table("arm", "rate", numbers=("runs", "steps", "saved per run", "checkpoint", "store"))
    for arm in plan.arms:
        found = arm.predicted
        table.add_row(
            arm.name,
            " ".join(f"{rate:g}" for rate in arm.lr) + (" ..." if arm.num_extra else "") or NOTHING,
            _range(arm.num_runs, arm.num_extra, "-"),
            "by data" if arm.num_steps is None else _range(arm.num_steps, _extra_steps(arm), "-"),
            bytes_text(arm.saved_bytes),
            NOTHING if found is None else bytes_text(found.checkpoint_bytes),
            NOTHING if found is None else bytes_text(found.store_bytes),
        )
    return table


def method_label(arm: ArmPlan) -> str:
    """Return the method with what fixes its size."""
    spec = arm.method
    if isinstance(spec, LoraMethod):
        dropout = f" p{spec.dropout:g}" if spec.dropout else ""
        biases = f", {bias_label(spec)}" if spec.bias != "none" else ""
        return f"{lora_name(spec).lower()} r{spec.rank} a{spec.alpha:g}{dropout}{biases}"
    if isinstance(spec, BottleneckMethod):
        dropout = f" p{spec.dropout:g}" if spec.dropout else ""
        return f"bottleneck {spec.placement} m{spec.size} {spec.activation}{dropout}"
    if isinstance(spec, PromptMethod):
        return f"prompt {spec.num_virtual_tokens} tokens"
    if isinstance(spec, PrefixMethod):
        return f"prefix {spec.num_virtual_tokens} tokens" + (f" mlp{spec.projection}" if spec.projection else "")
    if isinstance(spec, PeftMethod):
        return f"peft {spec.peft['peft_type']}"
    if isinstance(spec, LoadMethod):
        return f"load {spec.path} (training not verified)"
    return spec.method


def totals(plan: Plan) -> str:
    """Return the study's runs and steps in one line, which arms the model cannot take, and what is assumed in which."""
    steps = "steps known once the data are read"
    if plan.num_steps is not None:
        steps = f"{_range(plan.num_steps, sum(map(_extra_steps, plan.arms)))} optimizer steps"
    lines = [f"{_range(plan.num_runs, plan.num_extra)} runs (trials and seeds), {steps}"]
    if plan.num_extra:
        lines.append("how many depends on where the best rates lie: grids are extended while one lies at an edge")
    if plan.search == "halving":
        lines.append("fewer steps, as trials that fall behind are stopped (successive halving)")
    for what, names in shared((arm.name, arm.problem) for arm in plan.arms if arm.problem):
        lines.append(f"cannot be trained here: {', '.join(names)}: {what}")
    for what, names in shared((arm.name, ", ".join(arm.assumed)) for arm in plan.arms if arm.assumed):
        lines.append(f"assumed, not published: {what} ({', '.join(names)})")
    return "\n".join(lines)


def _range(fewest: int, extra: int, word: str = " to ") -> str:
    """Return how many there will be, at least and at most."""
    return f"{fewest:,}{word}{fewest + extra:,}" if extra else f"{fewest:,}"


def _extra_steps(arm: ArmPlan) -> int:
    return arm.num_extra * (arm.steps_per_run or 0)


def module_listing(plan: Plan) -> str:
    """Return what each target pattern matched; arms that match the same are listed once."""
    lines: list[str] = []
    listed = (arm for arm in plan.arms if arm.targets)
    for targets, names in shared((arm.name, arm.targets) for arm in listed):
        modules = {name for arm in plan.arms if arm.name in names for name in arm.parameters.modules}
        lines.append(f"{', '.join(names)}: {len(modules)} modules adapted")
        lines += [line for target in targets for line in _target_lines(target)]
    return "\n".join(lines)


def _target_lines(target: TargetMatch) -> Iterator[str]:
    kinds = f", {len(target.groups)} kinds" if len(target.groups) > 1 else ""
    yield f"  {target.pattern}: {target.num_modules} modules{kinds}"
    for group in target.groups:
        size = f"{group.num_modules} x {group.kind} {group.in_features}->{group.out_features}"
        yield f"    {group.names} ({size}): {group.trainable:,} trainable"
