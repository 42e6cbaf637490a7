"""What a model is made of, and what each arm of a study adapts in it, without its weights.

An arm's marks need nothing of its method but what `AdaptedModel` promises. A parameter that it trains is the base's
where it is the very one that the base had, or takes the place of one, under its name and of its shape, so that the base
can be put back; all others were added. A head that was tied has no name of its own, so one that is trained apart counts
as added, as it does in the total.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from tuneoff.errors import StudyError, UnsupportedError, did_you_mean
from tuneoff.methods.base import num_parameters
from tuneoff.methods.surgery import AdaptableLayer, features, match_targets
from tuneoff.planning.groups import collapse
from tuneoff.planning.plan import adapt_shape, study_shape
from tuneoff.study.identity import canonical_json
from tuneoff.study.labels import bias_label, lora_name, method_label
from tuneoff.study.methods import ALL_LINEAR, BottleneckMethod, LoraMethod, MethodSpec, PrefixMethod, PromptMethod
from tuneoff.study.spec import Arm, Study
from tuneoff.study.value import Value, plain
from tuneoff.training.models import load_config, shape_only

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Mark(Value):
    """What one method does to a module."""

    arm: str
    """Arms of that method, as one text."""
    added: int = 0
    """Parameters that it adds there, all of them trained."""
    trained: int = 0
    """Parameters of the base that it trains there."""


class Module(Value):
    """A module, or several that are alike and follow one another."""

    names: str
    """Numbers as ranges: `h.{0-11}`."""
    num_modules: int
    kind: str
    """Class of the module."""
    size: str
    """`768->2304` of a linear layer, `50257 x 768` of an embedding, empty of others."""
    num_parameters: int
    """Of all of them with what is below, storage that is shared counted where it is first met."""
    tied_to: str = ""
    """The module whose weight it shares, which comes before it."""
    marks: tuple[Mark, ...] = ()
    below: tuple["Module", ...] = ()


class ArmTotal(Value):
    """What an arm trains in all."""

    arm: str
    """Arms of one method, as one text."""
    label: str
    """The method, with what fixes its size."""
    trainable: int = 0
    total: int = 0
    reason: str = ""
    """Why the model cannot take the method, where it cannot."""


class Architecture(Value):
    """A model as a tree, with what arms adapt."""

    model: str
    kind: str
    num_parameters: int
    root: Module
    targets: tuple[str, ...] = ()
    """Ends of names that are patterns of `targets`; `all-linear` is all of them."""
    arms: tuple[ArmTotal, ...] = ()


def model_architecture(model: str, root: Path) -> Architecture:
    """Return what a model is made of.

    Args:
        model: hub id, folder, `config.json`, or `demo`.
        root: folder that relative paths start from.

    Raises:
        ModelError: not found, or not a causal language model.
    """
    return _architecture(model, shape_only(load_config(model, root, allow_shape=True)), ())


def study_architecture(study: Study, arms: Sequence[str] = ()) -> Architecture:
    """Return what a study's base is made of, and what its arms adapt.

    Args:
        study: the study.
        arms: names of arms, or of families of arms; none is all.

    Raises:
        StudyError: no arm of that name.
        ModelError: the base's configuration cannot be had or is not a causal language model.
        MethodError: an arm whose targets match nothing.
    """
    chosen = _chosen(study, arms)
    base = study_shape(study)
    alike: dict[str, list[Arm]] = {}
    for arm in chosen:
        alike.setdefault(canonical_json(plain(arm.method)), []).append(arm)
    return _architecture(study.model, base, [_adaptation(study, group, base) for group in alike.values()])


def _chosen(study: Study, names: Sequence[str]) -> list[Arm]:
    known = {name for arm in study.arms for name in (arm.name, arm.family)}
    for name in names:
        if name not in known:
            allowed = ", ".join(arm.name for arm in study.arms)
            raise StudyError(f"no arm is called {name!r}; allowed: {allowed}.{did_you_mean(name, known)}")
    return [arm for arm in study.arms if not names or {arm.name, arm.family} & set(names)]


@dataclass(frozen=True)
class _Adaptation:
    """What the arms of one method do, by module of the base."""

    total: ArmTotal
    added: Mapping[str, int]
    trained: Mapping[str, int]


def _adaptation(study: Study, arms: Sequence[Arm], base: "PreTrainedModel") -> _Adaptation:
    spec = arms[0].method
    names = ", ".join(arm.name for arm in arms)
    model = copy.deepcopy(base)
    named = dict(model.named_parameters())
    before = {id(parameter): name for name, parameter in named.items()}
    modules = {name for name, module in model.named_modules() if name and _is_drawn(module)}
    try:
        adapted, _ = adapt_shape(study, arms[0], model)
    except UnsupportedError as error:
        return _Adaptation(ArmTotal(arm=names, label=size_label(spec), reason=str(error)), {}, {})
    found: dict[bool, dict[str, int]] = {False: {}, True: {}}
    trainable = adapted.trainable_parameters()
    for name, parameter in trainable.items():
        is_in_place = name in named and named[name].shape == parameter.shape
        known = before.get(id(parameter), name if is_in_place else None)
        owner = known.rpartition(".")[0] if known else _owner(name, modules)
        counts = found[known is not None]
        counts[owner] = counts.get(owner, 0) + parameter.numel()
    num_trainable = sum(parameter.numel() for parameter in trainable.values())
    total = num_parameters(adapted.module)
    label = size_label(spec)
    return _Adaptation(
        ArmTotal(arm=names, label=label, trainable=num_trainable, total=total), added=found[False], trained=found[True]
    )


def _owner(name: str, modules: Iterable[str]) -> str:
    """Return the module of the base that an added parameter belongs to: the longest whose name is within its own."""
    within = [module for module in modules if f".{module}." in f".{name}."]
    return max(within, key=len, default="")


def size_label(spec: MethodSpec) -> str:
    """Return the method with the one number that fixes its size: `LoRA r8`, `prefix tuning 20`."""
    match spec:
        case LoraMethod():
            return ", ".join(part for part in (f"{lora_name(spec)} r{spec.rank}", bias_label(spec)) if part)
        case BottleneckMethod(size=size):
            return f"{method_label(spec)} {size}"
        case PromptMethod(num_virtual_tokens=size) | PrefixMethod(num_virtual_tokens=size):
            return f"{method_label(spec)} {size}"
    return method_label(spec)


def _architecture(model: str, base: nn.Module, adaptations: Sequence[_Adaptation]) -> Architecture:
    kind = type(base).__name__
    root = _Builder(base, adaptations).build()
    return Architecture(
        model=model,
        kind=kind,
        num_parameters=num_parameters(base),
        root=root,
        targets=_target_names(base),
        arms=tuple(adaptation.total for adaptation in adaptations),
    )


def _target_names(base: nn.Module) -> tuple[str, ...]:
    """Return the shortest ends of names that tell the kinds of linear layers apart, the head left out."""
    parents: dict[str, set[str]] = {}
    for name in match_targets(base, [ALL_LINEAR]):
        parent, _, last = name.rpartition(".")
        parents.setdefault(last, set()).add(parent.rpartition(".")[2])
    return tuple(
        end
        for last, found in parents.items()
        for end in ([last] if len(found) == 1 or last.isdigit() else sorted(f"{parent}.{last}" for parent in found))
    )


class _Builder:
    """Turns a model into the tree, modules that are alike folded into one."""

    def __init__(self, base: nn.Module, adaptations: Sequence[_Adaptation]) -> None:
        self.base = base
        self.adaptations = adaptations
        self.owners: dict[int, str] = {}
        """The module that first holds a parameter, by the parameter's identity."""
        for name, parameter in base.named_parameters():
            self.owners[id(parameter)] = name.rpartition(".")[0]

    def build(self) -> Module:
        """Return the whole model."""
        return self._module("", "", self.base, frozenset())

    def _module(self, path: str, name: str, module: nn.Module, told: frozenset[str]) -> Module:
        """Return one module with what is below it.

        Args:
            path: its dotted name.
            name: its name within what holds it.
            module: the module.
            told: arms of which a module above says that they train all of it.
        """
        own = {id(parameter): parameter.numel() for parameter in module.parameters()}
        first = {key: size for key, size in own.items() if _is_within(self.owners[key], path)}
        marks = tuple(mark for mark in self._marks(path, sum(first.values())) if mark.arm not in told)
        whole = {mark.arm for mark in marks if first and mark.trained == sum(first.values())}
        ties = {self.owners[key] for key in own.keys() - first.keys()} if not list(module.children()) else ()
        return Module(
            names=name,
            num_modules=1,
            kind=type(module).__name__,
            size=_size(module),
            num_parameters=sum(first.values()),
            tied_to=", ".join(sorted(ties)),
            marks=marks,
            below=tuple(self._below(path, module, told | whole)),
        )

    def _marks(self, path: str, num_here: int) -> Iterator[Mark]:
        """Yield what arms do right here; of one that trains all that is here and below, that."""
        for adaptation in self.adaptations:
            name = adaptation.total.arm
            all_trained = sum(count for owner, count in adaptation.trained.items() if _is_within(owner, path))
            trained = all_trained if num_here and all_trained == num_here else adaptation.trained.get(path, 0)
            added = adaptation.added.get(path, 0)
            if added or trained:
                yield Mark(arm=name, added=added, trained=trained)

    def _below(self, path: str, module: nn.Module, told: frozenset[str]) -> Iterator[Module]:
        for name, child in module.named_children():
            inner = f"{path}.{name}".lstrip(".")
            if isinstance(child, _CONTAINERS):
                parts = self._below(inner, child, told)
                yield from _folded(part.model_copy(update={"names": f"{name}.{part.names}"}) for part in parts)
            elif _is_drawn(child):
                yield self._module(inner, name, child, told)


_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


def _is_drawn(module: nn.Module) -> bool:
    """Whether a module has a line of its own: not without weights, and not where it only holds others."""
    return not isinstance(module, _CONTAINERS) and any(True for _ in module.parameters())


def _is_within(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(f"{path}.")


def _folded(modules: Iterable[Module]) -> Iterator[Module]:
    """Yield modules with those that differ in name alone, and follow one another, as one; counts are of all of them."""
    groups: list[list[Module]] = []
    for module in modules:
        if groups and _alike(groups[-1][0], module):
            groups[-1].append(module)
        else:
            groups.append([module])
    for group in groups:
        yield _scaled(group[0], len(group), collapse([module.names for module in group]))


def _alike(one: Module, two: Module) -> bool:
    return one.model_copy(update={"names": ""}) == two.model_copy(update={"names": ""})


def _scaled(module: Module, times: int, names: str) -> Module:
    """Return `times` equal modules as one."""
    marks = tuple(Mark(arm=mark.arm, added=times * mark.added, trained=times * mark.trained) for mark in module.marks)
    return module.model_copy(
        update={
            "names": names,
            "num_modules": times * module.num_modules,
            "num_parameters": times * module.num_parameters,
            "marks": marks,
            "below": tuple(_scaled(part, times, part.names) for part in module.below),
        }
    )


def _size(module: nn.Module) -> str:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2:
        return ""
    if isinstance(module, nn.Embedding):
        return f"{module.num_embeddings} x {module.embedding_dim}"
    found = features(module) if isinstance(module, AdaptableLayer) else None
    return "" if found is None else f"{found[0]}->{found[1]}"
