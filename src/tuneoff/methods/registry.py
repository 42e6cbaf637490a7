"""From a study's method specs to methods: the one place that knows all of them."""

from collections.abc import Sequence

from tuneoff.errors import MethodError
from tuneoff.methods.base import Method
from tuneoff.methods.bottleneck import Bottleneck
from tuneoff.methods.external import ExternalPeft
from tuneoff.methods.lora import LoRA, LoRACohort
from tuneoff.methods.selective import BitFit, Full, HeadOnly, NoTraining
from tuneoff.methods.soft_prompt import PrefixTuning, PromptTuning
from tuneoff.study.methods import (
    BitfitMethod,
    BottleneckMethod,
    FullMethod,
    HeadMethod,
    LoraMethod,
    MethodSpec,
    NoneMethod,
    PeftMethod,
    PrefixMethod,
    PromptMethod,
)


def method_from_spec(spec: MethodSpec) -> Method:
    """Return the method that a spec describes.

    Raises:
        MethodError: a spec that is no method of its own (`load` reads one from a folder; see `interchange`).
    """
    match spec:
        case NoneMethod():
            return NoTraining()
        case FullMethod():
            return Full()
        case LoraMethod():
            return LoRA(
                rank=spec.rank,
                alpha=spec.alpha,
                dropout=spec.dropout,
                targets=spec.targets,
                rslora=spec.rslora,
                dora=spec.dora,
                lr_ratio=spec.lr_ratio,
                bias=spec.bias,
            )
        case BottleneckMethod():
            return Bottleneck(spec.placement, spec.size, spec.activation, spec.dropout)
        case PromptMethod():
            return PromptTuning(spec.num_virtual_tokens, spec.init)
        case PrefixMethod():
            return PrefixTuning(spec.num_virtual_tokens, spec.projection)
        case BitfitMethod():
            return BitFit()
        case HeadMethod():
            return HeadOnly()
        case PeftMethod():
            return ExternalPeft(spec.peft)
    raise MethodError(f"{spec.method!r} is not a method that adapts a model")


def cohort_from_specs(specs: Sequence[MethodSpec]) -> Method:
    """Return the method that trains several runs in one pass; one spec gives the ordinary method.

    Raises:
        MethodError: specs that cannot share a pass: only LoRA runs can, with equal targets, dropout, dora and quantize,
            without trained biases.
    """
    methods = [method_from_spec(spec) for spec in specs]
    if len(methods) == 1:
        return methods[0]
    loras = tuple(method for method in methods if isinstance(method, LoRA))
    if len(loras) != len(methods):
        raise MethodError("only LoRA runs can train together; the others change or replace the base")
    bases = sorted({spec.quantize for spec in specs if isinstance(spec, LoraMethod)})
    if len(bases) != 1:
        raise MethodError(f"the members of a cohort must have one quantize; found {bases}")
    return LoRACohort(loras)
