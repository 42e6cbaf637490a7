"""What a method is called where people read it, in a word or two."""

from tuneoff.study.methods import BottleneckMethod, LoraMethod, MethodSpec, PeftMethod

_NAMES = {
    "none": "zero-shot",
    "full": "full",
    "prompt": "prompt tuning",
    "prefix": "prefix tuning",
    "bitfit": "BitFit",
    "head": "head only",
    "load": "loaded",
}
_PLACEMENTS = {"houlsby": "Houlsby", "pfeiffer": "Pfeiffer"}


def method_label(spec: MethodSpec) -> str:
    """Return the method's name, its variants in it: `LoRA`, `rsLoRA`, `DoRA`, `QLoRA nf4`, `PEFT IA3`."""
    if isinstance(spec, LoraMethod):
        return ", ".join(part for part in (lora_name(spec), bias_label(spec)) if part)
    if isinstance(spec, BottleneckMethod):
        return f"{_PLACEMENTS[spec.placement]} bottleneck"
    if isinstance(spec, PeftMethod):
        return f"PEFT {spec.peft['peft_type']}"
    return _NAMES[spec.method]


def lora_name(spec: LoraMethod) -> str:
    """Return LoRA's name with the variants that change the adapter or the base it stands on."""
    name = f"{'rs' if spec.rslora else ''}{'DoRA' if spec.dora else 'LoRA'}{'+' if spec.lr_ratio != 1 else ''}"
    return name if spec.quantize == "none" else f"Q{name} {spec.quantize}"


def bias_label(spec: LoraMethod) -> str:
    """Return which biases LoRA trains beside the adapter; empty for none."""
    return {"none": "", "all": "all biases", "lora_only": "biases of the targets"}[spec.bias]
